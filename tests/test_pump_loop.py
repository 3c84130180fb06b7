"""Several pumps at once: threads that they share, and tasks that wait for them."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import peers
import pytest
from conftest import Run
from pumping import loading, moved, saving
from streams import connection, fill, pipe, read, sending

from ringmain._pump import HAS_SPLICE, Pump
from ringmain._pump_loop import PumpLoop
from ringmain.flow import kernel

pytestmark = pytest.mark.skipif(not HAS_SPLICE, reason="this system has no splice")


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
