"""Wait for work of ours to end, or for whichever of two comes first, however often cancelled; one task at a time."""

import asyncio
from collections.abc import Callable, Collection, Coroutine
from typing import Any, TypeVar

from ringmain.errors import UsageError

Result = TypeVar("Result")


class Turn:
    """`with`: what one task at a time may do. Another gets RuntimeError with the words given."""

    _what = ""
    _loop: asyncio.AbstractEventLoop | None = None

    def __init__(self, refusal: str) -> None:
        self.taken = False
        self._refusal = refusal

    def begin(self, what: str) -> None:
        """From now on raise UsageError, which names `what`, in any event loop but the one that runs now."""
        self._what, self._loop = what, asyncio.get_running_loop()

    def __enter__(self) -> None:
        if self._loop is not None and self._loop is not asyncio.get_running_loop():
            why = "it was opened by a plain `with`, or in another event loop"
            raise UsageError(
                self._what, why, "in a plain `with` use a plain `for`; for `async for` open it by `async with`"
            )
        if self.taken:
            raise RuntimeError(self._refusal)
        self.taken = True

    def __exit__(self, *_: object) -> None:
        self.taken = False


async def let_go(works: "Collection[asyncio.Future[Any]]") -> None:
    """Return once all are over, however often this is cancelled meanwhile: until then they may use descriptors.

    Whoever closes those awaits this first. A cancellation is raised afterwards.
    """
    cancelled = False
    while not all(work.done() for work in works):
        try:
            await asyncio.wait(works)
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError


async def unless(
    over: Coroutine[Any, Any, object],
    work: Coroutine[Any, Any, Result],
    discard: Callable[[Result], object] = lambda _: None,
) -> Result | None:
    """Await work, or until something is over: None then. Neither goes on afterwards; what came in vain is discarded."""
    working, ending = asyncio.ensure_future(work), asyncio.ensure_future(over)
    wanted = False
    try:
        await asyncio.wait([working, ending], return_when=asyncio.FIRST_COMPLETED)
        wanted = not ending.done()
    finally:
        for task in (working, ending):
            task.cancel()
        try:
            await let_go([working, ending])
        except asyncio.CancelledError:
            wanted = False
            raise
        finally:
            if not ending.cancelled():
                ending.exception()
            brought = not working.cancelled() and working.exception() is None
            if brought and not wanted:
                discard(working.result())
    try:
        return working.result() if wanted or not (brought or working.cancelled()) else None
    finally:
        del working  # its traceback holds this frame: a cycle would keep what is theirs
