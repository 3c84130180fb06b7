"""The receive low-water mark follows the flow, no byte waits for others for long, and no path changes one."""

import asyncio
import contextlib
import fcntl
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peers
import pytest
from conftest import Certificates
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from streams import connection, pipe, read, run_pump

import ringmain
from ringmain._counters import Counters
from ringmain._low_water import LowWater
from ringmain._pump import HAS_SPLICE, Pump
from ringmain.flow import copying
from ringmain.flow.descriptor import Input, Output

Run = Callable[[Any], Any]
needs_splice = pytest.mark.skipif(not HAS_SPLICE, reason="this system has no splice")
PATHS = ["auto", "kernel", "block"] if HAS_SPLICE else ["auto", "block"]
CAP = 512 << 10
FOREVER = 3600.0


class Flow:
    """A peer that sends, a pump from its connection to a pipe, and a reader of that pipe."""

    def __init__(self, linger: float, cap: int = CAP, pipe_size: int = 1 << 20) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.peer = peers.connect(listener.getsockname()[1])
            self.sock, _ = listener.accept()
        self.sock.setblocking(False)
        self.source, self.sink = os.pipe()
        fcntl.fcntl(self.sink, fcntl.F_SETPIPE_SZ, pipe_size)
        self.low_water = LowWater(self.sock.fileno(), linger, cap)
        self.pump = Pump(self.sock.fileno(), self.sink, Counters(), self.low_water)
        self.got = 0
        self.marks = {1}
        self.threads = [threading.Thread(target=work, daemon=True) for work in (self.move, self.read)]
        for thread in self.threads:
            thread.start()

    def move(self) -> None:
        run_pump(self.pump)

    def read(self) -> None:
        while chunk := os.read(self.source, 1 << 20):
            self.marks.add(self.mark)
            self.got += len(chunk)

    @property
    def mark(self) -> int:
        """The mark in force, as the kernel has it."""
        return self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT)

    def close(self) -> None:
        self.pump.stop()
        self.threads[0].join(peers.TIMEOUT)
        os.close(self.sink)
        self.threads[1].join(peers.TIMEOUT)
        os.close(self.source)
        self.peer.close()
        self.sock.close()


@contextlib.contextmanager
def flow(linger: float, **options: int) -> Iterator[Flow]:
    it = Flow(linger, **options)
    try:
        yield it
    finally:
        it.close()


@needs_splice
def test_a_flood_raises_the_mark_and_its_end_lowers_it_again() -> None:
    with flow(0.001) as it:
        sent = 0
        while max(it.marks) == 1 or sent < 50 << 20:
            assert sent < 2 << 30
            it.peer.sendall(bytes(1 << 20))
            sent += 1 << 20
        it.peer.sendall(b"and these are below any mark")
        sent += 28
        peers.eventually(lambda: it.got == sent, "every byte, with the connection left open")
        peers.eventually(lambda: it.mark == it.low_water.mark == 1, "the mark of an idle connection")
        assert all(mark == 1 or 8 << 10 <= mark <= CAP for mark in it.marks)


@needs_splice
@pytest.mark.parametrize("end", ["fin", "reset", "stop"])
def test_an_end_is_not_waited_for_however_long_the_linger(end: str) -> None:
    with flow(FOREVER) as it:
        it.peer.sendall(bytes(4 << 20))
        peers.eventually(lambda: it.mark > 1, "a raised mark")
        it.peer.sendall(b"x")
        if end == "fin":
            it.peer.shutdown(socket.SHUT_WR)
        elif end == "reset":
            peers.eventually(lambda: it.got > 1 << 20, "most of it")
            peers.close_with_reset(it.peer)
        else:
            it.pump.stop()
        it.threads[0].join(peers.TIMEOUT)
        assert it.pump.verdict == {"fin": "ended", "reset": "reset", "stop": "stopped"}[end]
        if end == "fin":
            peers.eventually(lambda: it.got == (4 << 20) + 1, "every byte")


@needs_splice
@pytest.mark.parametrize(("linger", "cap"), [(0.0, CAP), (0.001, 4096), (0.001, 0)])
def test_without_a_linger_or_room_the_mark_is_never_raised(linger: float, cap: int) -> None:
    with flow(linger, cap=cap) as it:
        for _ in range(30):
            it.peer.sendall(bytes(1 << 20))
        peers.eventually(lambda: it.got == 30 << 20, "every byte")
        assert it.marks == {1}
        assert it.low_water.mark == 1


@needs_splice
def test_the_cap_bounds_the_mark() -> None:
    with flow(FOREVER, cap=100_000) as it:
        it.peer.sendall(bytes(4 << 20))
        peers.eventually(lambda: it.mark > 1, "a raised mark")
        it.peer.shutdown(socket.SHUT_WR)
        it.threads[0].join(peers.TIMEOUT)
        assert max(it.marks | {it.mark}) <= 100_000


@needs_splice
def test_a_trickle_is_delivered_as_it_comes() -> None:
    with flow(FOREVER) as it:  # were a single byte to wait, it would wait for an hour
        for number in range(50):
            it.peer.sendall(b"x")
            peers.eventually(lambda: it.got == number + 1, "a byte")  # noqa: B023
            assert it.mark == 1


@needs_splice
def test_messages_that_wait_for_their_answer_are_not_held_up_time_and_again() -> None:
    with connection() as (peer, ours), pipe() as (source, sink):
        low_water = LowWater(ours.fileno(), 0.02, CAP)
        pump = Pump(ours.fileno(), sink.fileno(), Counters(), low_water)
        thread = threading.Thread(target=run_pump, args=[pump], daemon=True)
        thread.start()
        count, held = 2000, 0
        for _ in range(count):
            peer.sendall(bytes(1024))
            assert len(read(source, 1024)) == 1024
            held += low_water.mark > 1  # the next message waits for the linger
        peer.close()
        thread.join(peers.TIMEOUT)
        # Eleven of them are enough to raise the mark.
        assert held < count / 50


@needs_splice
def test_a_lone_byte_long_after_a_flood_that_raised_no_mark_raises_none() -> None:
    with flow(0.02) as it:
        sent = 0
        while it.marks == {1}:
            it.peer.sendall(bytes(20_000))
            sent += 20_000
            peers.eventually(lambda: it.got == sent, "the bytes")  # noqa: B023
        peers.eventually(lambda: it.mark == 1, "the end of a mark that was raised in vain")
        it.peer.sendall(bytes(4 << 20))  # while that keeps others away
        peers.eventually(lambda: it.got == sent + (4 << 20), "the flood")
        time.sleep(0.5)  # it no longer does
        it.marks.clear()
        it.peer.sendall(b"x")
        peers.eventually(lambda: it.marks, "a byte")
        assert it.marks == {1}


@needs_splice
def test_an_idle_connection_wakes_nobody() -> None:
    with flow(0.001) as it:
        it.peer.sendall(bytes(8 << 20))
        peers.eventually(lambda: it.got == 8 << 20 and it.mark == 1, "the end of a flood")
        status = Path(f"/proc/self/task/{it.threads[0].native_id}/status")

        def wakeups() -> int:
            return int(re.search(r"^voluntary_ctxt_switches:\s*(\d+)", status.read_text(), re.M)[1])

        before = None
        while before != (before := wakeups()):  # until it sleeps for good
            time.sleep(0.02)
        time.sleep(0.1)
        assert wakeups() == before


@needs_splice
def test_a_socket_that_has_no_mark_is_left_alone() -> None:
    left, right = socket.socketpair()
    source, sink = os.pipe()
    with left, right:
        right.setblocking(False)
        low_water = LowWater(source, 0.001, CAP)  # no socket at all: setsockopt fails
        pump = Pump(right.fileno(), sink, Counters(), low_water)
        left.sendall(bytes(60_000))
        left.close()
        run_pump(pump)
        assert (pump.verdict, pump.counters.bytes_out, low_water.mark) == ("ended", 60_000, 1)
    os.close(source)
    os.close(sink)


def timer_is_set() -> bool:
    """Tell whether a timerfd of this process is set."""
    for entry in Path("/proc/self/fdinfo").iterdir():
        with contextlib.suppress(OSError):
            value = re.search(r"^it_value: \((\d+), (\d+)\)", entry.read_text(), re.M)
            if value is not None and value.groups() != ("0", "0"):
                return True
    return False


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_blocks_follow_the_flow_too_and_an_idle_connection_has_no_timer(
    run: Run, certificates: Certificates, tls: bool
) -> None:
    size = 64 << 20
    idle = threading.Event()

    def send(port: int) -> None:
        with peers.connect_tls(port, certificates.ca) if tls else peers.connect(port) as sock:
            sock.sendall(bytes(size))
            for _ in range(20):
                assert idle.wait(peers.TIMEOUT)
                idle.clear()
                sock.sendall(b"x")
            if tls:
                sock.unwrap()  # type: ignore[attr-defined]

    async def main() -> None:
        options: dict[str, Any] = {"certfile": str(certificates.server), "tls": True} if tls else {}
        got, marks = 0, {1}
        async with ringmain.load("127.0.0.1:0", listen_once=True, **options) as loader:
            sending = asyncio.get_running_loop().run_in_executor(None, send, loader.port)

            def mark() -> int:
                sock: socket.socket = loader._inflow.link.sock  # type: ignore[union-attr]
                return sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT)

            async for block in loader:
                got += len(block)
                assert got <= size or bytes(block) == b"x"
                del block
                marks.add(mark())
                if got >= size and got < size + 20:
                    await asyncio.sleep(0.005)  # what comes within the linger belongs to the flood
                    async with asyncio.timeout(peers.TIMEOUT):
                        while got == size and (mark() > 1 or timer_is_set()):  # noqa: ASYNC110 - the end of the flood
                            await asyncio.sleep(0.005)
                    assert not timer_is_set()  # nor is there one after the bytes that come one by one
                    idle.set()
            await sending
        assert got == size + 20
        assert max(marks) > 1

    run(main())


# What is sent: how much, how often at once, and then how long a pause. Sizes around those of pages, marks and pipes.
sizes = st.one_of(
    st.integers(1, 200), st.sampled_from([4095, 4096, 8193, 65_537, 200_000, 600_000]), st.integers(1, 300_000)
)
writes = st.lists(
    st.tuples(sizes, st.sampled_from([1, 1, 1, 2, 20]), st.sampled_from([0.0, 0.0, 0.0, 0.0005, 0.002])), max_size=10
)
ALPHABET = peers.payload(700_000)
hypothesis_settings = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def parts_of(pattern: list[tuple[int, int, float]]) -> list[tuple[bytes, float]]:
    """Turn sizes into bytes that differ from one part to the next; they have newlines, by chance."""
    pauses = [(size, pause) for size, count, last in pattern for pause in [0.0] * (count - 1) + [last]]
    return [(ALPHABET[number % 12 * 7919 :][:size], pause) for number, (size, pause) in enumerate(pauses)]


def send_parts(send: Callable[[bytes], Any], close: Callable[[], Any], parts: list[tuple[bytes, float]]) -> None:
    for data, pause in parts:
        send(data)
        if pause:
            time.sleep(pause)
    close()


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while len(view):
        view = view[os.write(fd, view) :]


def read_all(fd: int) -> bytes:
    chunks = []
    while chunk := os.read(fd, 1 << 16):
        chunks.append(chunk)
    return b"".join(chunks)


async def load_by(path: str, linger: float, parts: list[tuple[bytes, float]], kind: str, folder: Path) -> bytes:
    """Load what a peer sends in these parts to a pipe or file; return what came out."""
    async with ringmain.load("127.0.0.1:0", listen_once=True, linger=linger) as loader:
        loop = asyncio.get_running_loop()
        sock = socket.create_connection(("127.0.0.1", loader.port))
        sending = loop.run_in_executor(None, send_parts, sock.sendall, sock.close, parts)
        if kind == "pipe":
            source, sink = os.pipe()
            reading = loop.run_in_executor(None, read_all, source)
        else:
            source = sink = os.open(folder / "got", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        output = Output(sink, "the output")
        await copying.to_output(loader, output, path)
        output.close()
        await sending
        os.close(sink)
        if kind == "pipe":
            got = await reading
            os.close(source)
            return got
        return (folder / "got").read_bytes()


async def save_by(path: str, parts: list[tuple[bytes, float]], kind: str, folder: Path) -> bytes:
    """Save what is written to a pipe in these parts, or a file of them; return what a peer got."""
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with ringmain.save(f"127.0.0.1:{listener.getsockname()[1]}") as saver:
            sock, _ = listener.accept()
            with sock:
                reading = loop.run_in_executor(None, peers.read_all, sock)
                if kind == "pipe":
                    source_fd, sink = os.pipe()
                    close, send = (lambda: os.close(sink)), (lambda data: write_all(sink, data))
                    sending = loop.run_in_executor(None, send_parts, send, close, parts)
                else:
                    (folder / "input").write_bytes(b"".join(data for data, _ in parts))
                    source_fd = os.open(folder / "input", os.O_RDONLY)
                source = Input(source_fd, "the input")
                await copying.from_input(saver, source, path)
                source.close()
                os.close(source_fd)
                if kind == "pipe":
                    await sending
                    if saver.counters is not None:
                        await saver.end_connection()
                return await reading


@settings(hypothesis_settings, max_examples=40)
@given(pattern=writes, kind=st.sampled_from(["pipe", "file"]))
def test_no_path_and_no_linger_changes_a_byte_that_is_loaded(
    run: Run, tmp_path: Path, pattern: list[tuple[int, int, float]], kind: str
) -> None:
    parts = parts_of(pattern)
    sent = b"".join(data for data, _ in parts)

    async def main() -> None:
        for path in PATHS:
            for linger in (0.0, 0.001, 0.005):
                got = await load_by(path, linger, parts, kind, tmp_path)
                assert (path, linger, peers.sha256(got)) == (path, linger, peers.sha256(sent))

    run(main())


@settings(hypothesis_settings, max_examples=30)
@given(pattern=writes, kind=st.sampled_from(["pipe", "file"]))
def test_no_path_changes_a_byte_that_is_saved(
    run: Run, tmp_path: Path, pattern: list[tuple[int, int, float]], kind: str
) -> None:
    parts = parts_of(pattern)
    sent = b"".join(data for data, _ in parts)

    async def main() -> None:
        for path in PATHS:
            got = await save_by(path, parts, kind, tmp_path)
            assert (path, peers.sha256(got)) == (path, peers.sha256(sent))

    run(main())


@settings(hypothesis_settings, max_examples=60)
@given(pattern=writes, delimiter=st.sampled_from([b"", b"\n", b"\x00\x01"]))
def test_no_linger_changes_a_byte_or_a_cut_of_the_blocks(
    run: Run, pattern: list[tuple[int, int, float]], delimiter: bytes
) -> None:
    parts = parts_of(pattern)
    sent = b"".join(data for data, _ in parts)

    async def main() -> None:
        for linger in (0.0, 0.001, 0.005):
            async with ringmain.load(
                "127.0.0.1:0", listen_once=True, linger=linger, delimiter=delimiter, block_size=8192, ring_size=65_536
            ) as loader:
                sock = socket.create_connection(("127.0.0.1", loader.port))
                loop = asyncio.get_running_loop()
                sending = loop.run_in_executor(None, send_parts, sock.sendall, sock.close, parts)
                blocks = [bytes(block) async for block in loader]
                await sending
            assert (linger, peers.sha256(b"".join(blocks))) == (linger, peers.sha256(sent))
            assert all(block.endswith(delimiter) for block in blocks[:-1])

    run(main())
