"""The one idle time-out, by a clock of its own: never early, and late by a twenty-fifth at most."""

import asyncio
import functools
import gc
import heapq
import math
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringmain import errors
from ringmain.flow import idle_timeout

Run = Callable[[Any], Any]


class Clock:
    """A clock and the timers of a loop, which are exact here."""

    def __init__(self) -> None:
        self.now = 0.0
        self.looks = 0
        self._timers: list[tuple[float, int, Callable[[], None]]] = []

    def call_later(self, delay: float, callback: Callable[..., None], *arguments: Any) -> "Clock":
        self.looks += 1
        heapq.heappush(self._timers, (self.now + delay, self.looks, functools.partial(callback, *arguments)))
        return self

    def cancel(self) -> None:
        self._timers.clear()

    def run(self, until: float) -> None:
        while self._timers and self._timers[0][0] <= until:
            time, _, callback = heapq.heappop(self._timers)
            self.now = math.nextafter(max(self.now, time), math.inf)  # no clock stands still
            callback()
        self.now = max(self.now, until)


def expiry(timeout: float, moves: list[float], pauses: list[tuple[float, float]] = []) -> tuple[float, int]:  # noqa: B006
    """Return when it expires, and how often it looked, where bytes come at these times."""
    clock = Clock()
    expired: list[float] = []

    def moved() -> int | None:
        if any(start <= clock.now < end for start, end in pauses):
            return None
        return sum(time <= clock.now for time in moves)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(idle_timeout, "monotonic", lambda: clock.now)
        loop: Any = clock
        watch = idle_timeout.Watch(loop, timeout, moved, lambda: expired.append(clock.now))
        clock.run(max([*moves, *(end for _, end in pauses), 0.0]) + 2 * timeout)
        watch.cancel()
    assert len(expired) == 1
    return expired[0], clock.looks


@given(
    timeout=st.floats(0.01, 1000),
    gaps=st.lists(st.floats(0, 0.95), max_size=20),
)
def test_it_fires_within_five_percent_and_never_early(timeout: float, gaps: list[float]) -> None:
    moves: list[float] = []
    for gap in gaps:
        moves.append((moves[-1] if moves else 0.0) + gap * timeout)
    last = moves[-1] if moves else 0.0
    at, looks = expiry(timeout, moves)
    assert timeout * 0.999999 <= at - last <= timeout * 1.05
    assert looks <= 26 * (at / timeout + 1)


def test_what_need_not_move_for_a_while_has_all_its_time_afterwards() -> None:
    at, _ = expiry(2.0, [0.5], [(1.0, 7.3)])
    assert 7.3 + 2.0 <= at + 2.0 / 25 <= (7.3 + 2.0) * 1.05


def test_off_is_off() -> None:
    loop = asyncio.new_event_loop()
    idle_timeout.Watch(loop, None, lambda: 0, lambda: None).cancel()
    loop.close()


def test_what_stands_still_in_a_deadline_is_an_error_that_keeps_nothing_alive(run: Run) -> None:
    class Peer:
        def moved(self) -> int:
            return 0

    peers: list[weakref.ref[Peer]] = []

    async def stand_still() -> None:
        peer = Peer()
        peers.append(weakref.ref(peer))
        async with idle_timeout.Deadline(0.05, peer.moved, "a test", "nothing moved", "is it up?"):
            await asyncio.sleep(20)

    async def main() -> str:
        try:
            await asyncio.create_task(stand_still())
        except errors.TimedOutError as error:
            return str(error)
        return ""

    gc.disable()
    try:
        said = run(main())
        assert peers[0]() is None
    finally:
        gc.enable()
    assert said == "a test: nothing moved for 0.05 s; is it up? else raise idle_timeout="


def test_a_deadline_passes_on_what_is_raised_within(run: Run) -> None:
    async def main() -> None:
        for timeout in (None, 5.0):
            with pytest.raises(TimeoutError, match="of another kind"):
                async with idle_timeout.Deadline(timeout, lambda: 0, "a test", "nothing moved"):
                    raise TimeoutError("of another kind")

    run(main())
