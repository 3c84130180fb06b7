"""The plain `with` and `for` over objects made for `async with`: a private event loop that runs while a call waits."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

from ringmain.errors import UsageError

Result = TypeVar("Result")


class Blocking:
    """Give an asynchronous context manager the plain `with` too. No thread: between two calls nothing moves.

    Who inherits defines `__enter__` as a call of `_enter`, with the type that the plain form has.
    """

    _runner: asyncio.Runner | None = None
    _loop: asyncio.AbstractEventLoop | None = None

    async def __aenter__(self) -> Self:
        raise NotImplementedError

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        raise NotImplementedError

    def _enter(self) -> None:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            pass
        else:
            raise UsageError("`with` in a coroutine", "it would block the event loop", "write `async with`")
        import uvloop

        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        try:
            self.run(self.__aenter__())
        except BaseException:
            self._close_runner()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.run(self.__aexit__(kind, error, traceback))
        finally:
            self._close_runner()

    def __del__(self) -> None:
        """Close what a forgotten object left open; the collector may run in any thread, the loop's does the closing."""
        for close in self._leftovers():
            if self._loop is None or self._loop.is_closed():
                close()
            else:
                self._loop.call_soon_threadsafe(close)
        with contextlib.suppress(RuntimeError):  # another loop is running in this thread
            self._close_runner()

    def _leftovers(self) -> list[Callable[[], object]]:
        """Return what closes the things that are open now. It is called in the loop's thread, or on a closed loop."""
        return []

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run the private loop until the work is done."""
        if self._runner is None:
            work.close()
            raise UsageError(f"a {type(self).__name__.lower()}", "it is not open", "use it inside `with`")
        if self._runner.get_loop().is_running():
            work.close()
            raise UsageError(f"a {type(self).__name__.lower()}", "another thread is using it", "use it in one thread")
        try:
            return self._runner.run(work)
        finally:
            work.close()  # an interrupt may come before it has begun

    def _close_runner(self) -> None:
        if self._runner is not None:
            runner, self._runner = self._runner, None
            runner.close()
