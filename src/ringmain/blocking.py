"""The plain `with` and `for` over objects made for `async with`: a private event loop that runs while a call waits."""

import _thread
import asyncio
import contextlib
import math
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar, cast

from ringmain._ring import Counters
from ringmain.endpoint import Endpoint
from ringmain.errors import UsageError
from ringmain.outcome import Outcome, RelayOutcome
from ringmain.settings import Settings

if TYPE_CHECKING:
    from typing_extensions import Buffer

Result = TypeVar("Result")


class Blocking:
    """Give an asynchronous context manager the plain `with` too. Between two calls nothing moves.

    The loop runs in the thread that calls. Only where another loop is running there already, as in a notebook, it runs
    on a thread that lasts as long as the call, and the other loop stands still meanwhile.

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
        self._runner = asyncio.Runner(loop_factory=new_loop)
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

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run the private loop until the work is done."""
        if self._runner is None:
            work.close()
            raise UsageError(f"a {type(self).__name__.lower()}", "it is not open", "use it inside `with`")
        if self._runner.get_loop().is_running():
            work.close()
            raise UsageError(f"a {type(self).__name__.lower()}", "another thread is using it", "use it in one thread")
        try:
            return _run_apart(self._runner, work) if _in_a_loop() else self._runner.run(work)
        finally:
            work.close()  # an interrupt may come before it has begun

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


class BlockingSaver(Protocol):
    """A saver in a plain `with`: the same, without `await`."""

    endpoint: Endpoint
    settings: Settings
    listening: bool
    listen_once: bool
    on_end: Callable[[Outcome], None] | None

    @property
    def addresses(self) -> list[str]:
        """The addresses listened at; empty when dialled."""

    @property
    def port(self) -> int:
        """The port listened at."""

    @property
    def refused(self) -> int:
        """How many clients were turned away."""

    @property
    def connections(self) -> int:
        """How many connections are being served."""

    @property
    def try_number(self) -> int:
        """Which try to connect again is under way or comes next; 0 while there is a connection, or is to be none."""

    @property
    def counters(self) -> Counters | None:
        """The counters of the connection being served, or None between two; of many the bytes of all together."""

    @property
    def unacknowledged_bytes(self) -> int:
        """How many of the bytes sent are not known to be with the present peer's kernel yet."""

    @property
    def fullness(self) -> float:
        """The part of the kernel's send buffer that the peer has yet to take, from 0 to 1."""

    def write(self, buffer: "Buffer") -> None:
        """Send all of a buffer; return when the kernel has it."""

    def wait_for_peer(self) -> None:
        """Return once there is a peer to write to that has what a lost one never got."""

    def end_connection(self) -> None:
        """End the connection being served properly."""

    def break_off(self, *, at_once: bool = False) -> None:
        """Reset the peer, if there is one, once it has all that was written, or `at_once`."""

    def reload_certificates(self) -> None:
        """Read certificate, key and CA files again; raise what is wrong with one, and go on with what was read."""

    def stop(self) -> bool:
        """Serve no other client. False when there is no connection."""


class BlockingRelayer(Protocol):
    """A relayer in a plain `with`: the same, without `await`."""

    on_end: Callable[[RelayOutcome], None] | None

    @property
    def addresses(self) -> list[str]:
        """The addresses listened at, those of the source first."""

    @property
    def port(self) -> int:
        """The port listened at, the source's where both ends listen."""

    @property
    def refused(self) -> int:
        """How many clients were turned away."""

    @property
    def counters(self) -> list[Counters]:
        """The counters of the present connection, or of all: there, and, unless it is one-way, back. Else empty."""

    @property
    def taken(self) -> list[int]:
        """How many bytes of the present connections were acknowledged: there, and, unless it is one-way, back."""

    @property
    def fullness(self) -> float:
        """The part of what lies between the peers that is filled, from 0 to 1, in the fullest direction."""

    @property
    def waiting_for(self) -> list[tuple[str, int]]:
        """The addresses that `reconnect` has no connection to at the moment, each with the number of the next try."""

    def serve(self, path: str = "auto") -> None:
        """Relay for one client after another, or many at once, until none is to come. path: auto, kernel, block."""

    def reload_certificates(self) -> None:
        """Read certificate, key and CA files again; raise what is wrong with one, and go on with what was read."""

    def stop(self) -> bool:
        """Serve no other client, and end `serve`; to be called from another thread, or a signal's handler."""


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
