"""The pump by itself: whatever its two ends do, no byte is lost and it can be stopped."""

import contextlib
import errno
import fcntl
import os
import pty
import signal
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import peers
import pytest
from pumping import loading, moved, running, saving
from streams import connection, pipe, read, run_pump, sending

from ringmain._pump import HAS_SPLICE, widen_pipe
from ringmain.errors import UsageError
from ringmain.flow import kernel
from ringmain.flow.descriptor import Output
from ringmain.flow.path import may_pump

pytestmark = pytest.mark.skipif(not HAS_SPLICE, reason="this system has no splice")

Run = Callable[[Coroutine[Any, Any, Any]], Any]
PAGE = 4096


@pytest.mark.parametrize("size", [PAGE, 1 << 20])
def test_small_and_large_pipes_get_every_byte(size: int) -> None:
    data = peers.payload(3_000_001)
    with connection() as (peer, ours), pipe(size) as (source, sink):
        pump = loading(ours, sink)
        with running(pump) as thread, sending(peer, data):
            assert peers.sha256(read(source, len(data))) == peers.sha256(data)
            peer.shutdown(socket.SHUT_WR)
            thread.join(peers.TIMEOUT)
        assert (pump.verdict, pump.error, moved(pump)) == ("ended", None, (len(data), len(data)))


@pytest.mark.parametrize("size", [PAGE, 1 << 20])
def test_every_byte_of_small_and_large_pipes_is_sent(size: int) -> None:
    data = peers.payload(3_000_001)
    with connection() as (peer, ours), pipe(size) as (source, sink):
        pump = saving(source, ours)
        with running(pump) as thread, sending(sink, data):
            assert peers.sha256(read(peer, len(data))) == peers.sha256(data)
            sink.close()
            thread.join(peers.TIMEOUT)
        assert (pump.verdict, pump.error, moved(pump)) == ("ended", None, (len(data), len(data)))


@pytest.mark.parametrize("enlarged", [True, False])
def test_a_pipe_of_its_own_leads_to_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, enlarged: bool) -> None:
    data = peers.payload(5_000_001)
    if not enlarged:
        monkeypatch.setattr("ringmain._pump.widen_pipe", lambda fd, _: fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PAGE))
    with connection() as (peer, ours), (tmp_path / "got").open("wb") as sink:
        pump = loading(ours, sink, through=True)
        with running(pump) as thread, sending(peer, data):
            peers.eventually(lambda: pump.counters.bytes_out == len(data), "every byte")
            peer.shutdown(socket.SHUT_WR)
            thread.join(peers.TIMEOUT)
        assert pump.verdict == "ended"
    assert peers.sha256(tmp_path / "got") == peers.sha256(data)


def test_a_pipe_that_may_not_be_enlarged_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        F_GETPIPE_SZ, F_SETPIPE_SZ = fcntl.F_GETPIPE_SZ, fcntl.F_SETPIPE_SZ

        @staticmethod
        def fcntl(fd: int, command: int, value: int = 0) -> int:
            if command == fcntl.F_SETPIPE_SZ:
                raise PermissionError(errno.EPERM, "Operation not permitted")
            return fcntl.fcntl(fd, command, value)

    with pipe(PAGE) as (_, sink):
        with monkeypatch.context() as context:
            context.setattr("ringmain._pump.fcntl", Refusing)
            widen_pipe(sink.fileno())
        assert fcntl.fcntl(sink, fcntl.F_GETPIPE_SZ) == PAGE
        widen_pipe(sink.fileno())
        assert fcntl.fcntl(sink, fcntl.F_GETPIPE_SZ) > PAGE


def test_a_reader_that_stalls_makes_the_peer_wait_and_loses_nothing() -> None:
    data = peers.payload(20_000_003)
    with connection() as (peer, ours), pipe() as (source, sink):
        pump = loading(ours, sink)
        with running(pump), sending(peer, data):
            for size in (1_000_000, 1_000_001, len(data) - 2_000_001):
                peers.eventually(lambda: pump.paused, "a full pipe")
                assert 0 < pump.fullness <= 1
                part = read(source, size)
                assert part == data[:size]
                data = data[size:]
        assert moved(pump) == (20_000_003, 20_000_003)
        assert pump.counters.stalls >= 3
        assert pump.counters.stalled_seconds > 0


@pytest.mark.parametrize("state", ["idle", "stalled"])
def test_a_reader_that_leaves_is_the_destinations_failure(state: str) -> None:
    with connection() as (peer, ours), pipe(PAGE) as (source, sink):
        pump = loading(ours, sink)
        with running(pump) as thread:
            peer.sendall(b"x" * (100 if state == "idle" else 10 * PAGE))
            peers.eventually(lambda: pump.counters.bytes_in if state == "idle" else pump.paused, state)
            source.close()
            if state == "idle":
                peer.sendall(b"x")
            thread.join(peers.TIMEOUT)
        assert (pump.failed, pump.verdict, pump.refused) == ("destination", "stopped", False)
        assert isinstance(pump.error, BrokenPipeError)


def test_a_reset_comes_after_the_bytes_before_it() -> None:
    data = peers.payload(40_000)
    with connection() as (peer, ours), pipe(PAGE) as (source, sink):
        pump = loading(ours, sink)
        with running(pump) as thread:
            peer.sendall(data)
            peers.eventually(lambda: pump.paused and not peers.unacknowledged(peer), "a full pipe")
            peers.close_with_reset(peer)
            assert peers.sha256(read(source, len(data))) == peers.sha256(data)
            thread.join(peers.TIMEOUT)
        assert (pump.failed, pump.verdict) == ("source", "reset")
        assert isinstance(pump.error, ConnectionResetError)
        assert moved(pump) == (len(data), len(data))


@pytest.mark.parametrize("kind", ["pipe", "file", "device"])
def test_a_peer_that_resets_is_the_destinations_failure(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "input"
    file.write_bytes(bytes(50_000_000))
    with connection() as (peer, ours), contextlib.ExitStack() as stack:
        if kind == "pipe":
            source, sink = stack.enter_context(pipe(1 << 20))
            sink.write(bytes(1 << 20))
            options: dict[str, Any] = {}
        else:
            source = stack.enter_context(open(file if kind == "file" else "/dev/zero", "rb"))  # noqa: PTH123
            options = {"offset": 0} if kind == "file" else {"through": True}
        pump = saving(source, ours, **options)
        with running(pump) as thread:
            assert peer.recv(1)
            peers.close_with_reset(peer)
            if kind == "pipe":
                with contextlib.suppress(BrokenPipeError):
                    while pump.verdict is None:
                        os.set_blocking(sink.fileno(), False)
                        sink.write(bytes(PAGE))
            thread.join(peers.TIMEOUT)
        assert (pump.failed, pump.verdict) == ("destination", "reset")
        assert isinstance(pump.error, ConnectionResetError | BrokenPipeError)


def test_signals_with_a_handler_interrupt_nothing() -> None:
    data = peers.payload(4_000_000)
    handled = []
    before = signal.signal(signal.SIGUSR1, lambda *_: handled.append(True))
    try:
        with connection() as (peer, ours), pipe(PAGE) as (source, sink):
            pump = loading(ours, sink)
            with running(pump) as thread, sending(peer, data):
                got = bytearray()
                while len(got) < len(data):
                    assert thread.ident is not None
                    signal.pthread_kill(thread.ident, signal.SIGUSR1)
                    got += read(source, min(50_000, len(data) - len(got)))
                for _ in range(20):  # while it is idle
                    signal.pthread_kill(thread.ident, signal.SIGUSR1)
                peer.sendall(b"!")
                assert source.read(1) == b"!"
            assert peers.sha256(bytes(got)) == peers.sha256(data)
            assert pump.verdict == "stopped"
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert handled


@pytest.mark.parametrize("through", [False, True])
def test_urgent_data_is_left_out_as_for_every_reader(tmp_path: Path, through: bool) -> None:
    with connection() as (peer, ours), pipe() as (source, sink), (tmp_path / "got").open("wb+") as file:
        pump = loading(ours, file if through else sink, through=through)
        with running(pump) as thread:
            sent = b""
            for text in (b"one", b"two", b"three"):  # TCP knows but one urgent byte, so each waits for the last
                peer.sendall(text)
                peer.send(b"!", socket.MSG_OOB)
                peer.sendall(b" and ")
                sent += text + b" and "
                peers.eventually(lambda: pump.counters.bytes_out == len(sent), "what is not urgent")  # noqa: B023
            peer.send(b"!", socket.MSG_OOB)
            peer.sendall(b"the end")
            peer.shutdown(socket.SHUT_WR)
            thread.join(peers.TIMEOUT)
        sent += b"the end"
        got = (tmp_path / "got").read_bytes() if through else read(source, len(sent))
        assert (got, pump.verdict) == (sent, "ended")
        assert moved(pump) == (len(got), len(got))


def test_two_readers_of_one_pipe_share_it_and_do_not_spin() -> None:
    with pipe() as (source, sink), contextlib.ExitStack() as stack:
        ends = [stack.enter_context(connection()) for _ in range(2)]
        pumps = [saving(source, ours) for _, ours in ends]
        threads = [stack.enter_context(running(pump)) for pump in pumps]
        for number in range(300):
            sink.write(b"x" * 100)
            peers.eventually(lambda: sum(pump.counters.bytes_out for pump in pumps) == 100 * (number + 1))  # noqa: B023
        stalls = [pump.counters.stalls for pump in pumps]
        time.sleep(0.05)
        # The loser of a race for bytes looks again after a pause, once; one that spins looks thousands of times.
        assert all(pump.counters.stalls - before < 100 for pump, before in zip(pumps, stalls, strict=True))
        sink.close()
        for thread in threads:
            thread.join(peers.TIMEOUT)
        assert [pump.verdict for pump in pumps] == ["ended", "ended"]
        assert (
            sum(len(read(peer, pump.counters.bytes_out)) for (peer, _), pump in zip(ends, pumps, strict=True)) == 30_000
        )


@pytest.mark.parametrize("kind", ["append", "full"])
def test_what_cannot_be_spliced_is_refused_before_a_byte_moves(tmp_path: Path, kind: str) -> None:
    path = "/dev/full" if kind == "full" else tmp_path / "log"
    with connection() as (peer, ours), open(path, "ab") as sink:  # noqa: PTH123
        peer.sendall(b"still there")
        pump = loading(ours, sink, through=True)
        run_pump(pump)
        assert (pump.refused, moved(pump)) == (True, (0, 0))
        assert ours.recv(100) == b"still there"


@pytest.mark.parametrize("name", ["eventfd", "pipe2"])
def test_without_descriptors_to_spare_the_pump_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async def main() -> None:
        with connection() as (_, ours), pipe() as (_, sink), monkeypatch.context() as context:
            context.setattr(os, name, refuse)
            pump = loading(ours, sink, through=True)
            pump.stop()
            await kernel.Pumping().run(pump)
            assert (pump.refused, pump.failed) == (True, None)

    run(main())


def test_without_a_thread_to_spare_the_pump_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def main() -> None:
        pumping = kernel.Pumping()
        with connection() as (peer, ours), pipe() as (source, sink):
            with monkeypatch.context() as context:
                context.setattr(threading.Thread, "start", refuse)
                pump = loading(ours, sink)
                await pumping.run(pump)
                assert (pump.refused, pump.failed) == (True, None)
            peer.sendall(b"later")
            peer.shutdown(socket.SHUT_WR)
            later = loading(ours, sink)
            await pumping.run(later)
            assert (later.verdict, read(source, 5)) == ("ended", b"later")

    run(main())


def test_a_file_goes_once_also_through_a_pipe_of_the_pumps_own(tmp_path: Path) -> None:
    data = peers.payload(5_000_000)
    path = tmp_path / "input"
    path.write_bytes(data)
    with connection() as (peer, ours), path.open("rb", buffering=0) as source:
        pump = saving(source, ours, offset=0, through=True)
        with running(pump) as thread:
            assert peers.sha256(read(peer, len(data))) == peers.sha256(data)
            thread.join(peers.TIMEOUT)
        assert (pump.verdict, moved(pump)) == ("ended", (len(data), len(data)))


def test_a_file_goes_from_an_offset_to_its_end_as_it_is_then(tmp_path: Path) -> None:
    data = peers.payload(40_000_000)
    path = tmp_path / "input"
    path.write_bytes(data)
    for change in (b"grown" * 100_000, None):
        with connection() as (peer, ours), path.open("rb+", buffering=0) as source:
            pump = saving(source, ours, offset=1_000_001)
            with running(pump) as thread:
                peers.eventually(lambda: pump.paused, "a full connection")  # noqa: B023
                before = moved(pump)[1]
                if change is not None:
                    source.seek(0, os.SEEK_END)
                    source.write(change)
                    source.seek(7)
                    expected = data[1_000_001:] + change
                else:
                    source.truncate(1_000_001 + before)
                    expected = data[1_000_001 : 1_000_001 + before]
                assert peers.sha256(read(peer, len(expected))) == peers.sha256(expected)
                thread.join(peers.TIMEOUT)
            assert (pump.verdict, moved(pump)[1]) == ("ended", len(expected))
            assert source.tell() == (0 if change is None else 7)


def test_a_file_that_is_not_open_for_it_is_blamed(tmp_path: Path) -> None:
    with connection() as (peer, ours), (tmp_path / "file").open("wb") as sink, (tmp_path / "file").open("rb") as source:
        peer.sendall(b"x")
        for pump, side in (
            (loading(ours, source, through=True), "destination"),
            (saving(sink, ours, offset=0), "source"),
        ):
            run_pump(pump)
            assert (pump.failed, pump.verdict, moved(pump)) == (side, "stopped", (0, 0))
            assert isinstance(pump.error, OSError)
            assert pump.error.errno == errno.EBADF


def test_what_stands_in_the_way_is_told_by_name(tmp_path: Path) -> None:
    main, side = pty.openpty()
    left, right = socket.socketpair()
    with (tmp_path / "log").open("ab") as log, left, right:
        for fd, words in (
            (side, "is a terminal"),
            (left.fileno(), "is a socket"),
            (log.fileno(), "open for appending"),
        ):
            output = Output(fd, "standard output")
            assert not may_pump("auto", output, tls=False)
            with pytest.raises(UsageError, match=words):
                may_pump("kernel", output, tls=False)
            output.close()
        with pipe() as (_, sink):
            output = Output(sink.fileno(), "standard output")
            assert may_pump("auto", output, tls=False)
            assert not may_pump("block", output, tls=False)
            with pytest.raises(UsageError, match="TLS"):
                may_pump("kernel", output, tls=True)
            output.close()
    os.close(main)
    os.close(side)
