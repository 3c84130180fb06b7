"""The plain `with` and `for` over objects made for `async with`: a private event loop that runs while a call waits."""

import _thread
import asyncio
import contextlib
import math
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self, TypeVar, cast

from ringmain.errors import RingmainError, UsageError

Result = TypeVar("Result")


# A loop that does not turn for so many seconds, in which this process runs, waits for the very thread that asks it.
_STANDSTILL = 30


class Blocking:
    """Open and close a verb, once: by `async with`, or by a plain `with`, between two calls of which nothing moves.

    The loop of a plain `with` runs in the thread that calls. Only where another loop is running there already, as in a
    notebook, it runs on a thread that lasts as long as the call, and the other loop stands still meanwhile.

    Who inherits defines `_verb`, `_set_up`, `_tear_down` and `stop`, and `__enter__` as a call of `_enter`, with the
    type that the plain form has.
    """

    _verb: str  # what makes one
    _runner: asyncio.Runner | None = None
    _loop: asyncio.AbstractEventLoop | None = None
    _entered = False
    _is_open = False
    _left = False
    _aborted = False

    async def _set_up(self) -> None:
        """Open what there is to open; if that fails, leave nothing open."""
        raise NotImplementedError

    async def _tear_down(self, error: BaseException | None, *, broken_off: bool) -> None:
        """Close all, however it is cancelled; reset whoever is there if that is `broken_off`, by an error or not."""
        raise NotImplementedError

    def stop(self) -> bool:
        """Serve nobody else."""
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        self._check_new()
        self._entered = True
        try:
            await self._set_up()
        except BaseException:
            self._entered = False
            raise
        self._is_open = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._is_open:
            self._is_open, self._left = False, True
            await self._tear_down(error, broken_off=kind is not None or self._aborted)

    async def aclose(self) -> None:
        """Do now what leaving the `async with` by its end does; leaving it does nothing more then.

        Does nothing the second time. May be cancelled, which leaves nothing open, and resets those whose end is waited
        for. In a plain `with` call `close`.
        """
        if self._runner is not None:
            raise UsageError(self._what, "it was opened by a plain `with`", "call close()")
        await self.__aexit__(None, None, None)

    def close(self) -> None:
        """Do now what leaving the plain `with` by its end does. In `async with` await `aclose`."""
        if self._is_open and self._runner is None:
            raise UsageError(self._what, "it was opened by `async with`", "await aclose()")
        self.__exit__(None, None, None)

    def abort(self) -> None:
        """Reset all peers at once, as leaving the block by an exception does: none takes a part for the whole.

        Nobody else is let in: the listener is closed. What was not taken, or not sent, is lost. Nothing is waited for;
        whoever waits for this meanwhile is raised an error, or ends. Leaving the block afterwards raises nothing. To be
        called in the loop's thread.
        """
        if self._is_open and not self._aborted:
            self._check_idle()
            self._aborted = True
            if self._runner is None:
                self._reset_all()
            else:
                self.close()

    def _reset_all(self) -> None:
        """Reset whoever is there; `_tear_down` follows, now or later."""
        self.stop()

    def _check_new(self) -> None:
        if self._entered:
            why = "it was open before" if self._left else "it is open already"
            raise UsageError(self._what, why, f"call ringmain.{self._verb} for each")

    def _check_idle(self) -> None:
        """Raise UsageError while the private loop runs: whoever it runs for would be left with no loop to close by."""
        if self._runner is not None and self._runner.get_loop().is_running():
            why = "another thread is using it, or a call that a signal has interrupted"
            raise UsageError(self._what, why, "use it in one thread; stop() may be called at any time")

    def _enter(self) -> None:
        self._check_new()
        self._runner = asyncio.Runner(loop_factory=new_loop)
        try:
            self.run(self.__aenter__())
        except BaseException:
            self._close_runner()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._runner is None:
            return
        self._check_idle()
        try:
            self.run(self.__aexit__(kind, error, traceback))
        finally:
            self._close_runner()

    def __del__(self) -> None:
        """Close what a forgotten object left open. The collector may run in any thread, a loop that runs in its own."""
        runner, self._runner = self._runner, None
        for close in self._leftovers():
            if runner is not None or self._loop is None or self._loop.is_closed():
                close()
            else:
                self._loop.call_soon_threadsafe(close)
        if runner is None:
            return
        with contextlib.suppress(RuntimeError):  # the interpreter is ending, and starts no thread
            if _in_a_loop():  # not waited for: whoever the collector has interrupted may hold any lock
                _thread.start_new_thread(runner.close, ())
            else:
                runner.close()

    def _leftovers(self) -> list[Callable[[], object]]:
        """Return what closes the things that are open now. It is called in the loop's thread, or on a closed loop."""
        return []

    @property
    def in_loop(self) -> bool:
        """Whether it was opened by `async with`: other threads must leave to its loop whatever touches it."""
        return self._is_open and self._runner is None

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run the private loop until the work is done; in a thread beside an `async with` let that one's loop do it."""
        if self.in_loop:
            return self._run_there(work)
        try:
            if self._runner is None:
                raise UsageError(self._what, "it is not open", "use it inside `with`")
            self._check_idle()
            return _run_apart(self._runner, work) if _in_a_loop() else self._runner.run(work)
        except RingmainError as error:
            raise error.with_traceback(None)  # noqa: B904 - the way through an event loop is of no interest
        finally:
            work.close()  # an interrupt may come before it has begun

    def _run_there(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Let the loop of an `async with`, which runs in another thread, do the work."""
        loop, begun = self._loop, threading.Event()
        assert loop is not None
        try:
            if _in_a_loop() and asyncio.get_running_loop() is loop:
                why = "a plain call would stop the event loop that it was opened in"
                raise UsageError(self._what, why, "use `async for`, or call it by `await asyncio.to_thread(...)`")
            loop.call_soon_threadsafe(begun.set)
            future = asyncio.run_coroutine_threadsafe(work, loop)
        except BaseException:
            work.close()
            raise
        try:
            if not any(begun.wait(1) for _ in range(_STANDSTILL)):
                why = f"its event loop has stood still for {_STANDSTILL} s"
                raise UsageError(self._what, why, "call what waits for it by `await asyncio.to_thread(...)`")
            return future.result()
        except RingmainError as error:
            raise error.with_traceback(None)  # noqa: B904 - as above
        finally:
            future.cancel()
            if not self._is_open:  # what has come so far must not look like the whole
                why = "it was left while another thread was using it"
                raise RingmainError(self._what, why, "await that before leaving the `with`")

    @property
    def _what(self) -> str:
        return f"a {type(self).__name__.lower()}"

    def _described(self, where: str, state: str, sizes: Sequence[int], count: int = 1) -> str:
        """Return what `repr` tells; `sizes` are the bytes of the present connections, each way, if there are any."""
        some = f", {count} connection{'s' if count > 1 else ''}"
        clients = (some if sizes and count else ", no connection") if state == "listening" else ""
        moved = f", {' and '.join(map(str, sizes))} bytes" if sizes and count else ""
        return f"<{type(self).__name__} {where} {state}{clients}{moved}>"

    def _awaited_or_done(self, work: Coroutine[Any, Any, Result]) -> Coroutine[Any, Any, Result]:
        """Return work to be awaited; in a plain `with` do it, and return its result, whatever the type says."""
        return work if self._runner is None else cast(Coroutine[Any, Any, Result], self.run(work))

    def _close_runner(self) -> None:
        if self._runner is not None:
            runner, self._runner = self._runner, None
            if _in_a_loop():
                _call_apart(runner.close, lambda: None)
            else:
                runner.close()


def new_loop() -> asyncio.AbstractEventLoop:
    """Return a loop of ours; where asyncio's debug mode is on it does not tell how long a step of ours took."""
    import uvloop

    loop = uvloop.new_event_loop()
    loop.slow_callback_duration = math.inf
    return loop


def _in_a_loop() -> bool:
    """Tell whether an event loop is running in this thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _run_apart(runner: asyncio.Runner, work: Coroutine[Any, Any, Result]) -> Result:
    """Run the work as `runner.run` does, on a thread of its own; what interrupts this one cancels the work first."""
    task: asyncio.Task[Any] | None = None
    cancelled = False

    async def cancellable() -> Result:
        nonlocal task
        task = asyncio.current_task()
        if cancelled:
            raise asyncio.CancelledError
        return await work

    def cancel() -> None:
        nonlocal cancelled
        cancelled = True
        if task is not None:
            task.cancel()

    return _call_apart(lambda: runner.run(cancellable()), lambda: runner.get_loop().call_soon_threadsafe(cancel))


def _call_apart(call: Callable[[], Result], interrupt: Callable[[], object]) -> Result:
    """Return or raise what a call does on a thread of its own.

    Where this thread is interrupted meanwhile, `interrupt` is called, and what has interrupted is raised once the call
    has returned.
    """
    outcome: Future[Result] = Future()
    decided, wanted = threading.Event(), True

    def work() -> None:
        decided.wait()
        if wanted:
            try:
                outcome.set_result(call())
            except BaseException as error:
                outcome.set_exception(error)

    try:
        threading.Thread(target=work, name="ringmain-loop", daemon=True).start()
    except BaseException:  # it may have been started all the same
        wanted = False
        decided.set()
        raise
    interruption: BaseException | None = None
    try:
        while not outcome.done():
            try:
                decided.set()
                outcome.exception()
            except BaseException as error:
                interruption = error
                interrupt()
        if interruption is not None:
            raise interruption
        return outcome.result()
    finally:
        interruption = outcome = None  # type: ignore[assignment]  # whose tracebacks hold this frame
