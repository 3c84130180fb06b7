"""The kernel path: the pump by itself, and both verbs with it, against the same ends that the block path knows."""

import asyncio
import contextlib
import errno
import fcntl
import functools
import json
import os
import pty
import re
import resource
import select
import signal
import socket
import struct
import subprocess
import termios
import threading
import time
import tty
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import peers
import pytest

from ringmain import kernel
from ringmain._coalesce import Coalescer
from ringmain._pump import HAS_SPLICE, Pump, widen_pipe
from ringmain._ring import Counters
from ringmain.descriptor import Output
from ringmain.errors import UsageError

pytestmark = pytest.mark.skipif(not HAS_SPLICE, reason="this system has no splice")

Run = Callable[[Coroutine[Any, Any, Any]], Any]
PATHS = ["kernel", "block"]
PAGE = 4096
# What ends at once takes no longer than this, however busy the machine.
AT_ONCE = 10.0
# What a run says that ended only because its grace was over.
OVERDUE = "stopped with bytes under way"


@contextlib.contextmanager
def connection() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Yield both ends of a TCP connection: a peer's, and ours that does not block."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = peers.connect(listener.getsockname()[1])
        ours, _ = listener.accept()
    ours.setblocking(False)
    with peer, ours:
        yield peer, ours


@contextlib.contextmanager
def pipe(size: int = 0) -> Iterator[tuple[Any, Any]]:
    """Yield an unbuffered reader and writer of a pipe that holds `size` bytes, if that is given."""
    reader, writer = os.pipe()
    if size:
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, size)
    with open(reader, "rb", buffering=0) as source, open(writer, "wb", buffering=0) as sink:  # noqa: PTH123
        yield source, sink


@contextlib.contextmanager
def running(pump: Pump) -> Iterator[threading.Thread]:
    """Let a pump run on a thread; stop it at the end."""
    thread = threading.Thread(target=pump.run, daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        pump.stop()
        thread.join(peers.TIMEOUT)
        assert not thread.is_alive()


@contextlib.contextmanager
def sending(sink: Any, data: bytes) -> Iterator[None]:
    """Write data to a socket or pipe on a thread."""
    write = sink.sendall if isinstance(sink, socket.socket) else functools.partial(write_all, sink)
    thread = threading.Thread(target=write, args=[data], daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join(peers.TIMEOUT)
        assert not thread.is_alive()


def write_all(sink: Any, data: bytes) -> None:
    view = memoryview(data)
    while len(view):
        view = view[os.write(sink.fileno(), view) :]


def read(source: Any, size: int) -> bytes:
    """Read that many bytes from a socket or pipe, or up to its end."""
    got = bytearray()
    while len(got) < size:
        want = min(size - len(got), 1 << 16)
        assert select.select([source], [], [], peers.TIMEOUT)[0], f"{len(got)} of {size} bytes came"
        chunk = source.recv(want) if isinstance(source, socket.socket) else os.read(source.fileno(), want)
        if not chunk:
            break
        got += chunk
    return bytes(got)


def loading(ours: socket.socket, sink: Any, *, linger: float = 0.001, through: bool = False) -> Pump:
    """Return a pump from a connection to a descriptor."""
    return Pump(ours.fileno(), sink.fileno(), Counters(), Coalescer(ours.fileno(), linger, 1 << 19), through=through)


def saving(source: Any, ours: socket.socket, **options: Any) -> Pump:
    """Return a pump from a descriptor to a connection."""
    return Pump(source.fileno(), ours.fileno(), Counters(), **options)


def unacknowledged(sock: socket.socket) -> int:
    return int(struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))[0])


def moved(pump: Pump) -> tuple[int, int]:
    return pump.counters.bytes_in, pump.counters.bytes_out


# The pump by itself


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
        monkeypatch.setattr("ringmain._pump.widen_pipe", lambda fd: fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PAGE))
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
                peer.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    while True:
                        peer.send(bytes(1 << 20))
                peers.eventually(lambda: pump.paused, "a full pipe")
            elif state == "flooded":
                stack.callback(flood(peer))
                stack.callback(drain(source))
                peers.eventually(lambda: pump.counters.bytes_out > 10 << 20, "a flood")
            started = time.monotonic()
            pump.stop("timed out")
            pump.stop("stopped")  # the first word counts
            thread.join(peers.TIMEOUT)
            assert time.monotonic() - started < AT_ONCE
        assert (pump.verdict, pump.error, pump.failed) == ("timed out", None, None)
        assert pump.counters.bytes_in == pump.counters.bytes_out
        sink.close()
        peer.close()


def flood(peer: socket.socket) -> Callable[[], None]:
    """Send without end, or until the connection breaks; return how to end that."""
    over = threading.Event()

    def send() -> None:
        with contextlib.suppress(OSError):
            while not over.is_set():
                if select.select([], [peer], [], 0.05)[1]:
                    peer.send(bytes(1 << 20), socket.MSG_DONTWAIT)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()

    def end() -> None:
        over.set()
        thread.join(peers.TIMEOUT)

    return end


def drain(source: Any) -> Callable[[], None]:
    """Read and drop to the end; return how to wait for that."""

    def take() -> None:
        while source.recv(1 << 20) if isinstance(source, socket.socket) else source.read(1 << 20):
            pass

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    return lambda: thread.join(peers.TIMEOUT)


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
        pump.run()
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
        pump.run()
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
        pump.run()
        assert (pump.refused, moved(pump)) == (True, (0, 0))
        assert ours.recv(100) == b"still there"


def test_without_descriptors_to_spare_the_pump_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    for name in ("eventfd", "pipe2"):
        with connection() as (_, ours), pipe() as (_, sink), monkeypatch.context() as context:
            context.setattr(os, name, refuse)
            pump = loading(ours, sink, through=True)
            pump.stop()
            pump.run()
            assert (pump.refused, pump.failed) == (True, None)


def test_without_a_thread_to_spare_the_pump_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with connection() as (_, ours), pipe() as (_, sink):
        monkeypatch.setattr(threading.Thread, "start", refuse)
        pump = loading(ours, sink)
        run(kernel.run(pump))
        assert (pump.refused, pump.failed) == (True, None)


@pytest.mark.parametrize("source", ["/proc/self/cmdline", "empty"])
def test_files_that_sendfile_refuses_and_empty_ones(bench: peers.Bench, tmp_path: Path, source: str) -> None:
    (tmp_path / "empty").touch()
    saver, port = bench.listening("save", "-o", "-I", tmp_path / source)  # an absolute path stays as it is
    with peers.connect(port) as sock:
        got = peers.read_all(sock)
    assert got == b"" if source == "empty" else b"ringmain\0save" in got
    expect(saver, 0)


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
            pump.run()
            assert (pump.failed, pump.verdict, moved(pump)) == (side, "stopped", (0, 0))
            assert isinstance(pump.error, OSError)
            assert pump.error.errno == errno.EBADF


def test_a_pump_is_waited_for_however_often_its_task_is_cancelled(run: Run) -> None:
    release = threading.Event()

    class Stubborn:
        stopped = over = False

        def run(self) -> None:
            release.wait(peers.TIMEOUT)
            self.over = True

        def stop(self) -> None:
            self.stopped = True

    async def main() -> None:
        pump = Stubborn()
        task = asyncio.ensure_future(kernel.run(pump))  # type: ignore[arg-type]
        for _ in range(3):
            await asyncio.sleep(0)
            task.cancel()
        await asyncio.sleep(0.01)
        assert pump.stopped
        assert not task.done()
        release.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert pump.over

    run(main())


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
            assert not kernel.may_pump("auto", output, tls=False)
            with pytest.raises(UsageError, match=words):
                kernel.may_pump("kernel", output, tls=False)
            output.close()
        with pipe() as (_, sink):
            output = Output(sink.fileno(), "standard output")
            assert kernel.may_pump("auto", output, tls=False)
            assert not kernel.may_pump("block", output, tls=False)
            with pytest.raises(UsageError, match="TLS"):
                kernel.may_pump("kernel", output, tls=True)
            output.close()
    os.close(main)
    os.close(side)


# Both verbs from the command line


def expect(program: peers.Program, code: int, *words: str) -> None:
    """Check how a program ended, and that it said so in a line."""
    assert program.wait() == code, program.stderr
    assert "Traceback" not in program.stderr
    for word in words:
        assert word in program.stderr


@pytest.mark.parametrize("verb", ["load", "save"])
def test_pipes_of_users_who_may_not_enlarge_them(bench: peers.Bench, tmp_path: Path, verb: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import fcntl\n_fcntl = fcntl.fcntl\n"
        "def refuse(fd, command, *rest):\n"
        "    if command == fcntl.F_SETPIPE_SZ:\n        raise PermissionError(1, 'Operation not permitted')\n"
        "    return _fcntl(fd, command, *rest)\n"
        "fcntl.fcntl = refuse\n"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    data = peers.payload(3_000_001)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    program, port = bench.listening(verb, "-o", "--path", "kernel", env=environment, **pipes)
    with peers.connect(port) as sock:
        if verb == "load":
            with sending(sock, data):
                assert peers.sha256(read(program.process.stdout, len(data))) == peers.sha256(data)
            sock.shutdown(socket.SHUT_WR)
        else:
            with sending(program.process.stdin, data):
                assert peers.sha256(read(sock, len(data))) == peers.sha256(data)
            program.process.stdin.close()
            program.process.stdin = None
        expect(program, 0)


@pytest.mark.parametrize("path", ["auto", "kernel", "block"])
def test_an_append_mode_file_is_appended_to_by_the_block_path(bench: peers.Bench, tmp_path: Path, path: str) -> None:
    data = peers.payload(1_000_001)
    log = bench.file(b"before\n", "log")
    with log.open("ab") as sink:
        if path == "kernel":
            expect(bench.ringmain("load", "--path", path, "127.0.0.1:0", stdout=sink), 2, "appending", "--path")
            assert log.read_bytes() == b"before\n"
            return
        loader, port = bench.listening("load", "-o", "--path", path, stdout=sink)
        with peers.connect(port) as sock:
            sock.sendall(data[:1000])
            peers.eventually(lambda: log.stat().st_size > 1000, "the first bytes")
            os.write(sink.fileno(), b"between")  # by another who appends
            sock.sendall(data[1000:])
        expect(loader, 0)
    assert log.read_bytes() == b"before\n" + data[:1000] + b"between" + data[1000:]


def test_a_file_that_takes_standard_error_too_loses_nothing(bench: peers.Bench, tmp_path: Path) -> None:
    data = peers.payload(5_000_001)
    with (tmp_path / "both").open("wb") as both:
        for path in ("kernel", "auto"):
            port = peers.free_port()
            command = [*peers.RINGMAIN, "load", "-o", "-v", "--gate", "refuse", "--path", path, f"127.0.0.1:{port}"]
            # A Program has a standard error of its own.
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=both, stderr=both)
            try:
                if path == "kernel":
                    assert process.wait(peers.TIMEOUT) == 2
                    continue
                peers.wait_for_port(port)
                with peers.connect(port) as sock:
                    for start in range(0, len(data), 1_000_000):
                        sock.sendall(data[start : start + 1_000_000])
                        with contextlib.suppress(OSError), peers.connect(port) as refused:
                            refused.recv(1)  # each of these writes a line
                assert process.wait(peers.TIMEOUT) == 0
            finally:
                process.kill()
                process.wait()
    got = (tmp_path / "both").read_bytes()
    assert got.startswith(b"ringmain: --path kernel: standard output is where standard error goes too")
    lines = re.findall(rb"ringmain: [^\n]*\n|listening on [^\n]*\n", got)
    assert len(got) - sum(map(len, lines)) == len(data)


@pytest.mark.parametrize("path", ["auto", "kernel"])
def test_dev_full_is_full(bench: peers.Bench, path: str) -> None:
    loader, port = bench.listening("load", "--path", path, "-O", "/dev/full")
    with peers.connect(port) as sock:
        sock.sendall(b"x")
        if path == "kernel":
            expect(loader, 2, "/dev/full cannot be spliced")
        else:
            expect(loader, 23, "/dev/full", "no space left on device")


@pytest.mark.parametrize("path", PATHS)
def test_a_file_at_its_size_limit_keeps_what_came_before(bench: peers.Bench, tmp_path: Path, path: str) -> None:
    data, limit = peers.payload(4_000_000), 2_000_001

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    loader, port = bench.listening("load", "-o", "--path", path, "-O", tmp_path / "got", preexec_fn=limited)
    with peers.connect(port) as sock:
        with contextlib.suppress(OSError):
            sock.sendall(data)
        expect(loader, 23, str(tmp_path / "got"), "file too large")
    assert (tmp_path / "got").read_bytes() == data[:limit]


@pytest.mark.parametrize("path", PATHS)
def test_a_disk_that_fills_up_keeps_what_came_before(bench: peers.Bench, tmp_path: Path, path: str) -> None:
    data = peers.payload(4_000_000)
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "ringmain-test", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a small file system")
    try:
        loader, port = bench.listening("load", "-o", "--path", path, "-O", disk / "got")
        with peers.connect(port) as sock:
            with contextlib.suppress(OSError):
                sock.sendall(data)
            expect(loader, 23, str(disk / "got"), "no space left on device")
        got = (disk / "got").read_bytes()
        assert 1 << 20 < len(got) < 3 << 20
        assert data.startswith(got)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_terminals_go_by_the_block_path(bench: peers.Bench) -> None:
    main, side = pty.openpty()
    tty.setraw(side)
    text = b"one line\nanother\n" * 10
    try:
        expect(bench.ringmain("load", "--path", "kernel", "127.0.0.1:0", stdout=side), 2, "is a terminal")
        expect(bench.ringmain("save", "--path", "kernel", "127.0.0.1:1", stdin=side), 2, "is a terminal")
        flags = fcntl.fcntl(side, fcntl.F_GETFL)
        loader, port = bench.listening("load", "-o", stdout=side)
        with peers.connect(port) as sock:
            sock.sendall(text)
            with open(main, "rb", buffering=0, closefd=False) as screen:
                assert read(screen, len(text)) == text
        expect(loader, 0)
        tty.setcbreak(side)
        attributes = tty.tcgetattr(side)
        attributes[3] |= tty.ICANON
        tty.tcsetattr(side, tty.TCSANOW, attributes)
        saver, port = bench.listening("save", "-o", stdin=side)
        with peers.connect(port) as sock:
            os.write(main, text + b"\x04")
            assert peers.read_all(sock) == text
        expect(saver, 0)
        assert fcntl.fcntl(side, fcntl.F_GETFL) == flags
    finally:
        os.close(main)
        os.close(side)


@pytest.mark.parametrize("path", ["auto", "kernel", "block"])
def test_devices_take_and_give(bench: peers.Bench, tmp_path: Path, path: str) -> None:
    stats = tmp_path / "stats"
    options = ["-o", "--path", path, "--stats-file", stats]
    loader, port = bench.listening("load", *options, "-O", "/dev/null")
    with peers.connect(port) as sock:
        sock.sendall(bytes(3_000_000))
    expect(loader, 0)
    assert json.loads(stats.read_text())["bytes"] == 3_000_000
    saver, port = bench.listening("save", *options, "-I", "/dev/zero")
    with peers.connect(port) as sock:
        assert read(sock, 3_000_000) == bytes(3_000_000)
    expect(saver, 55, "save to 127.0.0.1:")
    if path != "kernel":
        saver, port = bench.listening("save", *options)  # /dev/null
        with peers.connect(port) as sock:
            assert peers.read_all(sock) == b""
        expect(saver, 0)


def test_sockets_as_standard_input_and_output_go_by_the_block_path(bench: peers.Bench) -> None:
    data = peers.payload(2_000_001)
    with connection() as (near, far), connection() as (source, sink):
        expect(bench.ringmain("load", "--path", "kernel", "127.0.0.1:0", stdout=far), 2, "is a socket")
        expect(bench.ringmain("save", "--path", "kernel", "127.0.0.1:1", stdin=sink), 2, "is a socket")
        far.setblocking(True)
        loader, port = bench.listening("load", "-o", stdout=far)
        far.close()
        saver = bench.ringmain("save", f"127.0.0.1:{port}", stdin=sink)
        with sending(source, data):
            assert peers.sha256(read(near, len(data))) == peers.sha256(data)
        source.shutdown(socket.SHUT_WR)
        assert near.recv(1) == b""
        expect(saver, 0)
        expect(loader, 0)


@pytest.mark.parametrize("verb", ["load", "save"])
def test_a_process_that_is_stopped_and_continued_loses_nothing(bench: peers.Bench, verb: str) -> None:
    data = peers.payload(1_000_003) * 8
    feed = ["-I", bench.file(data)] if verb == "save" else []
    program, port = bench.listening(verb, "-o", "--path", "kernel", *feed, stdout=subprocess.PIPE)
    state = Path(f"/proc/{program.process.pid}/stat")
    with peers.connect(port) as sock, sending(sock, data if verb == "load" else b""):
        source = program.process.stdout if verb == "load" else sock
        got = b""
        while len(got) < len(data):
            program.signal(signal.SIGSTOP)
            peers.eventually(lambda: state.read_text().rpartition(")")[2].split()[0] == "T", "a stopped process")
            program.signal(signal.SIGCONT)
            part = read(source, min(1_000_000, len(data) - len(got)))
            assert part
            got += part
        assert peers.sha256(got) == peers.sha256(data)
        sock.shutdown(socket.SHUT_WR)
    expect(program, 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("state", ["idle", "blocked", "flooded"])
def test_a_signal_ends_a_load_at_once(bench: peers.Bench, tmp_path: Path, state: str, number: int) -> None:
    stats = tmp_path / "stats"
    loader, port = bench.listening(
        "load", "--path", "kernel", "-v", "--linger", "1h", "--stats-file", stats, stdout=subprocess.PIPE
    )
    source = loader.process.stdout
    end = wait = None
    with peers.connect(port) as sock:
        loader.says("connected")
        if state == "idle":
            sock.sendall(b"x")
            assert read(source, 1) == b"x"
        else:
            end = flood(sock)
            assert read(source, 1 << 20) == bytes(1 << 20)
            wait = drain(source) if state == "flooded" else None
        loader.signal(number)
        expect(loader, 128 + number)
        assert OVERDUE not in loader.stderr
        if end is not None:
            end()
        if wait is not None:
            wait()
    assert json.loads(stats.read_text())["verdict"] == "stopped"


@pytest.mark.parametrize("state", ["idle", "blocked", "flooded"])
def test_a_signal_ends_a_save(bench: peers.Bench, state: str) -> None:
    feed = [] if state == "idle" else ["-I", "/dev/zero"]
    saver, port = bench.listening("save", "-o", "--path", "kernel", "-v", *feed, stdin=subprocess.PIPE)
    with peers.connect(port) as sock:
        saver.says("connected")
        wait = drain(sock) if state == "flooded" else None
        if state == "blocked":
            assert sock.recv(1)
        saver.signal(signal.SIGTERM)
        expect(saver, 143)
        # What was sent gets two seconds at a standstill to arrive.
        assert (OVERDUE in saver.stderr) == (state == "blocked")
        if wait is not None:
            wait()


@pytest.mark.parametrize("path", PATHS)
def test_an_idle_peer_is_timed_out_and_a_stalled_reader_is_not(bench: peers.Bench, path: str) -> None:
    options = ["-o", "--path", path, "--idle-timeout", "300ms"]
    loader, port = bench.listening("load", *options, stdout=subprocess.PIPE)
    data = peers.payload(20_000_000)  # more than a ring, a pipe and the kernel's buffers take
    with peers.connect(port) as sock, sending(sock, data):
        time.sleep(0.9)
        assert loader.process.poll() is None
        assert peers.sha256(read(loader.process.stdout, len(data))) == peers.sha256(data)
        expect(loader, 28, "nothing came for 0.3 s after 20000000 bytes", "--idle-timeout")
    saver, port = bench.listening("save", *options, stdin=subprocess.PIPE)
    with peers.connect(port) as sock:
        time.sleep(0.9)  # an idle input is no idle peer
        assert saver.process.poll() is None
        with contextlib.suppress(BrokenPipeError), sending(saver.process.stdin, data[:100]):
            assert read(sock, 100) == data[:100]
        writer = threading.Thread(target=lambda: quietly(write_all, saver.process.stdin, data), daemon=True)
        writer.start()
        expect(saver, 28, "it took nothing for 0.3 s")
        writer.join(peers.TIMEOUT)
        quietly(saver.process.stdin.close)


def quietly(work: Callable[..., object], *arguments: Any) -> None:
    with contextlib.suppress(BrokenPipeError):
        work(*arguments)


@pytest.mark.parametrize("end", ["fin", "reset"])
def test_both_paths_tell_the_same(bench: peers.Bench, tmp_path: Path, end: str) -> None:
    data = peers.payload(100_001)
    told = {}
    for path in PATHS:
        for verb, kind in (("load", "pipe"), ("load", "file"), ("save", "pipe"), ("save", "file")):
            stats = tmp_path / f"stats-{path}-{verb}-{kind}"
            options = ["-o", "--path", path, "--stats-file", stats]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE} if kind == "pipe" else {}
            if kind == "file":
                options += ["-O", tmp_path / "got"] if verb == "load" else ["-I", bench.file(data)]
            if end == "reset" and verb == "save":
                options[-1 if kind == "file" else len(options) :] = ["/dev/zero"] if kind == "file" else []
            program, port = bench.listening(verb, *options, **pipes)
            with peers.connect(port) as sock:
                if verb == "load":
                    sock.sendall(data)
                    if kind == "pipe":
                        assert read(program.process.stdout, len(data)) == data
                    else:
                        peers.eventually(lambda: (tmp_path / "got").read_bytes() == data, "the bytes")
                elif end == "reset" and kind == "file":
                    assert sock.recv(1)
                else:
                    write_all(program.process.stdin, data) if kind == "pipe" else None
                    assert peers.sha256(read(sock, len(data))) == peers.sha256(data)
                    if kind == "pipe" and end == "fin":
                        program.process.stdin.close()
                        program.process.stdin = None
                if end == "reset":
                    peers.close_with_reset(sock)
                else:
                    sock.shutdown(socket.SHUT_WR)
                program.wait()
            row = json.loads(stats.read_text())
            if end == "reset" and verb == "save" and kind == "file":
                row["bytes"] = 0  # an endless input; how much of it went out is chance
            error = program.stderr.splitlines()[1:]
            words = [re.sub(r"127\.0\.0\.1:\d+", "PEER", line) for line in error]
            figures = [row[name] for name in ("bytes", "verdict", "tls", "cipher", "refused")]
            told[path, verb, kind] = (program.process.returncode, words, figures, sorted(row))
            assert row["reads"] > 0
            assert row["writes"] > 0
    for verb, kind in {key[1:] for key in told}:
        kernel_told, block_told = told["kernel", verb, kind], told["block", verb, kind]
        if verb == "save" and end == "reset":  # which of the two words for it comes is chance
            kernel_told, block_told = ((code, len(words), *rest) for code, words, *rest in (kernel_told, block_told))
        assert kernel_told == block_told
        assert kernel_told[0] == (0 if end == "fin" else 56 if verb == "load" else 55)


@pytest.mark.parametrize("path", PATHS)
def test_progress_counts_what_moves(bench: peers.Bench, path: str) -> None:
    loader, port = bench.listening("load", "--path", path, "--progress", stdout=subprocess.PIPE)
    saver = bench.ringmain("save", "--path", path, "--progress", f"127.0.0.1:{port}", stdin=subprocess.PIPE)
    saver.process.stdin.write(b"x" * 5000)
    saver.process.stdin.flush()
    assert read(loader.process.stdout, 5000) == b"x" * 5000
    for program in (loader, saver):
        peers.eventually(lambda: re.search(r"^4\.88 KiB  0:00:\d\d  in ", program.stderr, re.M), "progress")  # noqa: B023
    saver.process.stdin.close()
    saver.process.stdin = None
    assert saver.wait() == 0


@pytest.mark.parametrize("path", PATHS)
def test_a_file_is_sent_from_where_it_stands(bench: peers.Bench, path: str) -> None:
    body = peers.payload(1_000_001)
    with bench.file(b"a line\n" + body).open("rb") as source:
        assert os.read(source.fileno(), 7) == b"a line\n"
        saver, port = bench.listening("save", "-o", "--path", path, stdin=source)
        with peers.connect(port) as sock:
            assert peers.sha256(peers.read_all(sock)) == peers.sha256(body)
        expect(saver, 0)
        assert os.lseek(source.fileno(), 0, os.SEEK_CUR) == 7


@pytest.mark.parametrize("path", PATHS)
def test_standard_output_and_its_position_are_left_for_who_comes_next(
    bench: peers.Bench, tmp_path: Path, path: str
) -> None:
    data = peers.payload(1_000_001)
    with (tmp_path / "got").open("wb", buffering=0) as sink:
        sink.write(b"header\n")
        flags = fcntl.fcntl(sink, fcntl.F_GETFL)
        loader, port = bench.listening("load", "-o", "--path", path, stdout=sink)
        with peers.connect(port) as sock:
            sock.sendall(data)
        expect(loader, 0)
        assert fcntl.fcntl(sink, fcntl.F_GETFL) == flags
        sink.write(b"trailer\n")
    assert (tmp_path / "got").read_bytes() == b"header\n" + data + b"trailer\n"


@pytest.mark.parametrize("verb", ["load", "save"])
def test_shared_pipes_keep_their_flags(bench: peers.Bench, verb: str) -> None:
    with pipe() as (source, sink):
        flags = [fcntl.fcntl(end, fcntl.F_GETFL) for end in (source, sink)]
        ours = {"stdout": sink} if verb == "load" else {"stdin": source}
        program, port = bench.listening(verb, "-o", "--path", "kernel", **ours)
        with peers.connect(port) as sock:
            if verb == "load":
                sock.sendall(b"through")
                assert source.read(7) == b"through"
            else:
                sink.write(b"through")
                assert read(sock, 7) == b"through"
                sink.close()
            assert [fcntl.fcntl(end, fcntl.F_GETFL) for end in (source, sink) if not end.closed] == (
                flags if verb == "load" else flags[:1]
            )
        expect(program, 0)


def test_one_client_after_another_goes_by_the_kernel_path(bench: peers.Bench, tmp_path: Path) -> None:
    stats = tmp_path / "stats"
    loader, port = bench.listening("load", "--path", "kernel", "--stats-file", stats, stdout=subprocess.PIPE)
    for number in range(5):
        part = peers.payload(200_000 + number, number)
        with peers.connect(port) as sock, sending(sock, part):
            assert peers.sha256(read(loader.process.stdout, len(part))) == peers.sha256(part)
            if number % 2:
                peers.close_with_reset(sock)
    peers.eventually(lambda: stats.exists() and stats.read_text().count("\n") == 5, "five rows")
    rows = [json.loads(line) for line in stats.read_text().splitlines()]
    assert [row["bytes"] for row in rows] == [200_000 + number for number in range(5)]
    assert [row["verdict"] for row in rows] == ["ended", "reset", "ended", "reset", "ended"]
    assert loader.stderr.count("connection reset by peer") == 2
