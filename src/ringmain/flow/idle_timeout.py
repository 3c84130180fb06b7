"""The only idle time-out: a limit on how long something may stand still.

What counts as moving is its users' to say: `Inflow`, `Clients`, `Passage`, `Connection`, `bench.replay`.
"""

import asyncio
from collections.abc import Callable
from time import monotonic
from types import TracebackType

from ringmain.errors import TimedOutError


class Watch:
    """Call `expired` once `moved()` has not changed for `timeout` seconds, until `cancel`. None: it need not move now.

    Never early, and late by a twenty-fifth of the time at most: so often it looks, and what moves does nothing for it.
    The loop keeps what the two functions refer to: not an object that is to be collected when it is forgotten.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        timeout: float | None,
        moved: Callable[[], int | None],
        expired: Callable[[], object],
    ) -> None:
        self._loop = loop
        self._moved = moved
        self._expired = expired
        self._last: int | None = None
        self._since = monotonic()  # not the loop's time, which uvloop rounds down to milliseconds
        self._timer = None if timeout is None else loop.call_later(timeout / 25, self._look, timeout)

    def _look(self, timeout: float) -> None:
        count, now = self._moved(), monotonic()
        if count is None or count != self._last:
            self._last, self._since = count, now
        if now - self._since >= timeout:
            self._timer = None
            self._expired()
        else:
            self._timer = self._loop.call_later(min(timeout / 25, self._since + timeout - now), self._look, timeout)

    def cancel(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None  # which refers to this: only the collector would free what they hold


class Deadline:
    """`async with`: raise TimedOutError within, once `moved()` has not changed for `timeout` seconds. See `Watch`.

    `what` was being done, `why` and `remedy` are its words for standing still. A class, since contextlib's would keep
    the exception that it throws in, by a frame that the exception refers to.
    """

    def __init__(
        self, timeout: float | None, moved: Callable[[], int | None], what: str, why: str, remedy: str = ""
    ) -> None:
        self._timeout = timeout
        self._moved = moved
        self._words = what, why, remedy
        self._limit: asyncio.Timeout | None = None

    async def __aenter__(self) -> None:
        if self._timeout is not None:
            loop = asyncio.get_running_loop()
            self._limit = limit = await asyncio.timeout(None).__aenter__()
            self._watch = Watch(loop, self._timeout, self._moved, lambda: limit.reschedule(loop.time()))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._limit is None:
            return
        self._watch.cancel()
        # An asyncio.timeout refers to its task, and that to its error: no error of ours may have it in a frame, or
        # asyncio's TimeoutError for a cause, since such a cycle would keep what is the connection's.
        limit, self._limit = self._limit, None
        del self._watch
        try:
            await limit.__aexit__(kind, error, traceback)
            return
        except TimeoutError:
            pass
        finally:
            del limit
        what, why, remedy = self._words
        raise TimedOutError(what, f"{why} for {self._timeout:g} s", remedy, limit="idle_timeout") from None
