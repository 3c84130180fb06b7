"""The pump by itself: whatever its two ends do, no byte is lost and it can be stopped."""

import asyncio
import contextlib
import errno
import fcntl
import os
import pty
import signal
import socket
import struct
import termios
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import peers
import pytest
from streams import connection, drain, fill, flood, pipe, read, run_pump, sending

from ringmain._low_water import LowWater
from ringmain._pump import HAS_SPLICE, Pump, widen_pipe
from ringmain._pump_loop import PumpLoop
from ringmain._ring import Counters
from ringmain.errors import UsageError
from ringmain.flow import kernel
from ringmain.flow.descriptor import Output
from ringmain.flow.path import may_pump

pytestmark = pytest.mark.skipif(not HAS_SPLICE, reason="this system has no splice")

Run = Callable[[Coroutine[Any, Any, Any]], Any]
PATHS = ["kernel", "block"]
PAGE = 4096
# What ends at once takes no longer than this, however busy the machine.
AT_ONCE = 10.0
# What a run says that ended only because its grace was over.
OVERDUE = "stopped with bytes under way"


@contextlib.contextmanager
def running(pump: Pump) -> Iterator[threading.Thread]:
    """Let a pump run on a thread; stop it at the end."""
    thread = threading.Thread(target=run_pump, args=[pump], daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        pump.stop()
        thread.join(peers.TIMEOUT)
        assert not thread.is_alive()


def loading(ours: socket.socket, sink: Any, *, linger: float = 0.001, through: bool = False) -> Pump:
    """Return a pump from a connection to a descriptor."""
    return Pump(ours.fileno(), sink.fileno(), Counters(), LowWater(ours.fileno(), linger, 1 << 19), through=through)


def saving(source: Any, ours: socket.socket, **options: Any) -> Pump:
    """Return a pump from a descriptor to a connection."""
    return Pump(source.fileno(), ours.fileno(), Counters(), **options)


def unacknowledged(sock: socket.socket) -> int:
    return int(struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))[0])


def moved(pump: Pump) -> tuple[int, int]:
    return pump.counters.bytes_in, pump.counters.bytes_out


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
            peers.eventually(lambda: pump.paused and not unacknowledged(peer), "a full pipe")
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


@pytest.mark.parametrize("state", ["unstarted", "idle", "blocked", "flooded"])
def test_stop_ends_a_load_at_once(state: str) -> None:
    with connection() as (peer, ours), pipe() as (source, sink), contextlib.ExitStack() as stack:
        pump = loading(ours, sink, linger=60)  # a raised mark must not hold up the end
        if state == "unstarted":
            pump.stop("timed out")
        with running(pump) as thread:
            if state == "blocked":
                fill(peer, lambda: pump.paused)
            elif state == "flooded":
                stack.callback(drain(source))
                stack.callback(sink.close)  # the end that drain waits for
                stack.callback(flood(peer))
                peers.eventually(lambda: pump.counters.bytes_out > 10 << 20, "a flood")
            started = time.monotonic()
            pump.stop("timed out")
            pump.stop("stopped")  # the first word counts
            thread.join(peers.TIMEOUT)
            assert time.monotonic() - started < AT_ONCE
        assert (pump.verdict, pump.error, pump.failed) == ("timed out", None, None)
        assert pump.counters.bytes_in == pump.counters.bytes_out


@pytest.mark.parametrize("state", ["idle", "blocked", "flooded"])
def test_stop_ends_a_save_at_once(state: str) -> None:
    with connection() as (peer, ours), pipe() as (idle, _), open("/dev/zero", "rb") as zero:  # noqa: PTH123
        pump = saving(idle, ours) if state == "idle" else saving(zero, ours, through=True)
        wait = drain(peer) if state == "flooded" else None
        with running(pump) as thread:
            if state == "blocked":
                peers.eventually(lambda: pump.paused, "a full connection")
            elif state == "flooded":
                peers.eventually(lambda: pump.counters.bytes_out > 10 << 20, "a flood")
            started = time.monotonic()
            pump.stop()
            thread.join(peers.TIMEOUT)
            assert time.monotonic() - started < AT_ONCE
        assert (pump.verdict, pump.failed) == ("stopped", None)
        ours.close()
        if wait is not None:
            wait()


def test_a_pump_that_is_over_holds_no_descriptors(tmp_path: Path) -> None:
    with connection() as (peer, ours), (tmp_path / "got").open("wb") as sink:
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        pump = loading(ours, sink, through=True)
        peer.close()
        run_pump(pump)
        pump.stop()
        assert pump.verdict == "ended"
        assert pump.fullness == 0
        assert len(os.listdir("/proc/self/fd")) == before - 1  # noqa: PTH208


def test_what_had_come_before_the_stop_is_moved() -> None:
    with connection() as (peer, ours), pipe() as (source, sink):
        peer.sendall(b"already here")
        peers.eventually(lambda: not unacknowledged(peer), "the bytes")
        pump = loading(ours, sink)
        pump.stop()
        run_pump(pump)
        assert (pump.verdict, moved(pump)) == ("stopped", (12, 12))
        assert pump.fullness == 0
        assert read(source, 12) == b"already here"


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


def test_a_pump_is_waited_for_however_often_its_task_is_cancelled(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    class Stubborn:
        over: Callable[[], object]

        def __init__(self, start: Callable[[Callable[[], None]], object]) -> None:
            self.start = start

        def add(self, _: Pump, over: Callable[[], object]) -> None:
            self.over = over
            self.start(self.run)

        def run(self) -> None:
            release.wait(peers.TIMEOUT)
            self.over()

    class Stoppable:
        stopped = False

        def stop(self) -> None:
            self.stopped = True

    async def main() -> None:
        pump = Stoppable()
        task = asyncio.ensure_future(kernel.Pumping().run(pump))  # type: ignore[arg-type]
        for _ in range(3):
            await asyncio.sleep(0)
            task.cancel()
        await asyncio.sleep(0.01)
        assert pump.stopped
        assert not task.done()
        release.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    monkeypatch.setattr(kernel, "PumpLoop", Stubborn)
    run(main())


@contextlib.contextmanager
def both_ways(
    threads_to_spare: int,
) -> Iterator[tuple[socket.socket, socket.socket, Pump, Pump, list[threading.Thread]]]:
    """Yield two peers, the pumps of both ways between them, and their threads."""
    with connection() as (left, ours), connection() as (right, theirs):
        there, back = loading(ours, theirs, through=True), loading(theirs, ours, through=True)
        threads: list[threading.Thread] = []

        def start(work: Callable[[], None]) -> None:
            if len(threads) == threads_to_spare:
                raise RuntimeError("can't start new thread")
            threads.append(threading.Thread(target=work, daemon=True))
            threads[-1].start()

        pumps = PumpLoop(start)
        pumps.add(there, lambda: theirs.shutdown(socket.SHUT_WR))
        pumps.add(back, lambda: ours.shutdown(socket.SHUT_WR))
        try:
            yield left, right, there, back, threads
        finally:
            there.stop()
            back.stop()
            for thread in threads:
                thread.join(peers.TIMEOUT)
                assert not thread.is_alive()


@pytest.mark.parametrize("threads_to_spare", [1, 2])
def test_two_floods_get_a_thread_each_if_there_is_one_and_each_ends_alone(threads_to_spare: int) -> None:
    data = peers.payload(50_000_001)
    with both_ways(threads_to_spare) as (left, right, there, back, threads):
        rounds = 0
        while rounds == 0 or (len(threads) < threads_to_spare and rounds < 50):
            got: list[bytes] = []
            with sending(left, data), sending(right, data[::-1]):
                reader = threading.Thread(target=lambda: got.append(read(left, len(data))), daemon=True)  # noqa: B023
                reader.start()
                assert peers.sha256(read(right, len(data))) == peers.sha256(data)
                reader.join(peers.TIMEOUT)
            assert peers.sha256(got[0]) == peers.sha256(data[::-1])
            rounds += 1
        assert len(threads) == threads_to_spare
        left.shutdown(socket.SHUT_WR)
        assert right.recv(1) == b""
        assert (there.verdict, back.verdict) == ("ended", None)
        right.sendall(b"still")
        assert read(left, 5) == b"still"
        right.shutdown(socket.SHUT_WR)
        assert left.recv(1) == b""
        for thread in threads:
            thread.join(peers.TIMEOUT)
        size = rounds * len(data)
        assert (back.verdict, moved(there), moved(back)) == ("ended", (size, size), (size + 5, size + 5))


def test_questions_and_answers_share_a_thread() -> None:
    with both_ways(2) as (left, right, there, back, threads):
        for _ in range(1000):
            left.sendall(bytes(1024))
            right.sendall(read(right, 1024))
            assert len(read(left, 1024)) == 1024
        assert len(threads) == 1
        # A pump counts what it has moved a moment after it arrived.
        whole = (1_024_000, 1_024_000)
        peers.eventually(lambda: moved(there) == moved(back) == whole, "every byte counted")


@pytest.mark.parametrize("which", ["there", "back"])
def test_a_way_that_stalls_or_is_stopped_does_not_hold_up_the_other(which: str) -> None:
    data = peers.payload(3_000_001)
    with both_ways(1) as (left, right, there, back, _):
        stalled, sender, other, receiver = (
            (there, left, right, left) if which == "there" else (back, right, left, right)
        )
        fill(sender, lambda: stalled.paused)
        for _ in range(2):
            with sending(other, data):
                assert peers.sha256(read(receiver, len(data))) == peers.sha256(data)
            stalled.stop()
            peers.eventually(lambda: stalled.verdict == "stopped", "the end of the stalled way")


def test_a_loop_of_pumps_can_be_used_again() -> None:
    pumps = PumpLoop(lambda run: run())
    for text in (b"once", b"twice"):
        with connection() as (peer, ours), pipe() as (source, sink):
            peer.sendall(text)
            peer.shutdown(socket.SHUT_WR)
            over: list[bool] = []
            pumps.add(loading(ours, sink), lambda: over.append(True))  # noqa: B023
            assert (read(source, len(text)), over) == (text, [True])
    pumps.run()  # and without any there is nothing to do


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


def test_a_pump_whose_end_is_told_to_someone_who_fails_leaves_a_loop_that_others_can_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    complaints: list[Any] = []
    monkeypatch.setattr("sys.unraisablehook", lambda it: complaints.append(it.exc_type))
    threads: list[threading.Thread] = []

    def start(work: Callable[[], None]) -> None:
        threads.append(threading.Thread(target=work, daemon=True))
        threads[-1].start()

    def fail() -> None:
        raise LookupError

    loop = PumpLoop(start)
    for number in range(3):
        with connection() as (peer, ours), pipe() as (source, sink):
            over = threading.Event()
            pump = saving(source, ours)
            loop.add(pump, over.set if number == 2 else fail)
            sink.write(b"some")
            sink.close()
            assert read(peer, 4) == b"some"
            for thread in threads:
                thread.join(peers.TIMEOUT)
                assert not thread.is_alive()
            assert pump.verdict == "ended"
            assert over.is_set() == (number == 2)
    assert complaints == [LookupError] * 2
