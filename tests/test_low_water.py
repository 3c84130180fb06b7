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
from streams import connection, pipe, read, run_pump

import ringmain
from ringmain._counters import Counters
from ringmain._low_water import LowWater
from ringmain._pump import HAS_SPLICE, Pump

Run = Callable[[Any], Any]
needs_splice = pytest.mark.skipif(not HAS_SPLICE, reason="this system has no splice")
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
