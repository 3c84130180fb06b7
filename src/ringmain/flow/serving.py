"""One run of a relayer's `serve`: what ends it from outside, and a task for each client where they are many."""

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any

from ringmain.waiting import let_go


class Serving:
    """What ends a `serve` from outside: the wait for a client, and the passages too; and that it has ended.

    Where clients are many it has a task for each. What goes wrong with one and is not its own fault ends all.
    """

    def __init__(self) -> None:
        self.stopped, self.left = asyncio.Event(), asyncio.Event()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None

    @property
    def broken(self) -> bool:
        """Whether a task has failed."""
        return self._failure is not None

    def begin(self, work: Coroutine[Any, Any, None], dismiss: Callable[[], object]) -> None:
        """Serve a client in a task of its own; `dismiss` it afterwards, which may be cancelled before it has begun."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(functools.partial(self._over, dismiss))

    def _over(self, dismiss: Callable[[], object], task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        dismiss()
        if not task.cancelled() and task.exception() is not None:
            self._failure = self._failure or task.exception()
            self.stopped.set()

    async def until_all_left(self) -> None:
        """Return once all clients have left, or a task has failed."""
        if self._tasks and not self.broken:
            await asyncio.wait(list(self._tasks), return_when=asyncio.FIRST_EXCEPTION)

    async def break_off(self) -> None:
        """Reset all who are still there; raise what a task has failed with."""
        for task in self._tasks:
            task.cancel()
        await let_go(list(self._tasks))
        failure, self._failure = self._failure, None
        try:
            if failure is not None:
                raise failure
        finally:
            del failure  # whose traceback holds this frame
