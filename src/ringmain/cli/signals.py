"""Which signals end us, SIGTERM and all that can be caught, what they do to a run, and which it heeds otherwise.

One list, for the start of the command line and for its runs. What `stop` means to a verb: its own `stop`.

The start imports this before anything else, so asyncio and logging are imported where they are needed.
"""

import os
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

# What the kernel raises for a fault of our own, and what ends nobody.
_FAULTS = {"SIGILL", "SIGTRAP", "SIGABRT", "SIGBUS", "SIGFPE", "SIGSEGV", "SIGSYS"}
_HARMLESS = {"SIGCHLD", "SIGCONT", "SIGURG", "SIGWINCH", "SIGSTOP", "SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGKILL"}
_KEPT = {getattr(signal, name).value for name in _FAULTS | _HARMLESS if hasattr(signal, name)}
# After the first signal what is under way may go on for as long as it moves; standing still for this long ends it.
_GRACE = 2.0


_early: list[int] = []  # came while we started
_has_begun = False


def end_at_once(number: int, _: object) -> None:
    """Handle a signal while there is nothing to undo: end the process without a traceback."""
    if _has_begun:
        _early.append(number)
    else:
        os._exit(128 + number)


def hear_later(number: int, _: object) -> None:
    """Handle a signal that a run may heed otherwise, before it is known which run that is."""
    _early.append(number)


def hear_all_later() -> None:
    """From now on hear of every signal once a run watches for them: there is something to undo when it ends."""
    global _has_begun
    _has_begun = True


def heeded() -> set[int]:
    """Return the signals that a run may heed otherwise than by its end: SIGUSR1, and SIGHUP where no terminal sends it.

    A terminal that hangs up sends SIGHUP to those whose controlling terminal it is, which are to end. Whoever has none,
    as a service has none, is sent it by somebody who wants something of it.
    """
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:  # ENXIO: there is none
        return {signal.SIGUSR1, signal.SIGHUP}
    return {signal.SIGUSR1}


def terminating() -> list[int]:
    """Return the signals that would end this process if nobody handled them, and that can be caught.

    One that was ignored when we started, as nohup does with SIGHUP, is not among them, nor one that somebody else has
    set a handler for. Python itself ignores SIGPIPE and SIGXFSZ: a write that meets the limit fails, and says why.
    """
    ours = (signal.SIG_DFL, signal.default_int_handler, end_at_once, hear_later)
    return [int(number) for number in sorted(signal.valid_signals() - _KEPT) if signal.getsignal(number) in ours]


class Signals:
    """What signals do to a run. Make it before the event loop, which sets handlers of its own.

    `number` is the first that came, or 0; `cancelled` tells that the run was cancelled for it; `helpers` are tasks to
    cancel once the run is over; `calls` are what those of `heeded` do where they do not end it.
    """

    def __init__(self, at_exit: Callable[[], object]) -> None:
        """`at_exit` is called before a second signal ends the process at once."""
        self.number = 0
        self.cancelled = False
        self.helpers: list[asyncio.Task[None]] = []
        self.calls: dict[int, Callable[[], object]] = {}
        self._at_exit = at_exit
        self._terminating = terminating()

    def watch(self, task: "asyncio.Task[None]", stop: Callable[[], bool], moved: Callable[[], object]) -> None:
        """Call `stop` at the first signal, and cancel the task once it no longer moves.

        That is at once where `stop` returns False, as nothing is under way, else when `moved` returns the same for a
        while.
        """
        loop, kept = task.get_loop(), heeded()
        for number in self._terminating:
            if number in kept and number in self.calls:
                loop.add_signal_handler(number, self.calls[number])
            else:
                loop.add_signal_handler(number, self.came, number, task, stop, moved)
        while _early:
            signal.raise_signal(_early.pop())

    def came(
        self, number: int, task: "asyncio.Task[None]", stop: Callable[[], bool], moved: Callable[[], object]
    ) -> None:
        """Hear of a signal: the second one ends the process at once."""
        if self.number:
            self._at_exit()
            os._exit(128 + number)
        self.number = number
        if not stop():
            self._cancel(task)
        else:
            self.helpers.append(task.get_loop().create_task(self._give_up(task, moved)))

    async def _give_up(self, task: "asyncio.Task[None]", moved: Callable[[], object]) -> None:
        """End a run that was told to stop once it no longer moves."""
        import asyncio
        import logging

        last, since = moved(), time.monotonic()
        while time.monotonic() - since < _GRACE:
            await asyncio.sleep(0.05)
            if (now := moved()) != last:
                last, since = now, time.monotonic()
        logging.getLogger("ringmain").warning("stopped with bytes under way: the other side takes nothing any more")
        self._cancel(task)

    def _cancel(self, task: "asyncio.Task[None]") -> None:
        self.cancelled = True
        task.cancel()
