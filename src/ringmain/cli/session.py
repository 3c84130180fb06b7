"""One run of a verb on the command line: signals, reports, progress, and what the user gets when it ends."""

import asyncio
import contextlib
import errno
import logging
import os
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Protocol

from ringmain._ring import Counters
from ringmain.blocking import new_loop
from ringmain.cli.lines import Lines
from ringmain.cli.reports import PortFile, StatsFile
from ringmain.endpoint import Endpoint
from ringmain.errors import RingmainError, reason
from ringmain.flow.descriptor import ReaderLeft
from ringmain.progress import Line, Look, progress_line, show_progress
from ringmain.signals import terminating

log = logging.getLogger("ringmain")

# After the first signal what is under way may go on for as long as it moves; standing still for this long ends it.
_GRACE = 2.0
_REPORT_OPTIONS = ("port_file", "stats_file", "quiet", "verbose", "progress")


class Listener(Protocol):
    """What may listen."""

    @property
    def addresses(self) -> list[str]:
        """Where it listens, as "127.0.0.1:43211"; nothing if it does not."""

    @property
    def port(self) -> int:
        """The port listened at."""


class Session:
    """What the verbs have in common on the command line."""

    def __init__(self, options: dict[str, Any]) -> None:
        report = {name: options.pop(name, None) for name in _REPORT_OPTIONS}
        options["family"] = options["family"] or 0
        self._port_file = PortFile(report["port_file"]) if report["port_file"] is not None else None
        self._stats_file = StatsFile(report["stats_file"]) if report["stats_file"] is not None else None
        terminal = sys.stderr.isatty()
        self.shows_progress = terminal and not report["quiet"] if report["progress"] is None else report["progress"]
        self._announce = report["verbose"] or (terminal and not report["quiet"])
        self._signal = 0
        self.bytes_in = 0
        self.bytes_out = 0
        _set_up_log(report["quiet"], report["verbose"])

    def moved(self, counters: Counters | None) -> tuple[int, int]:
        """Return the bytes in and out so far, those of the present connection included."""
        if counters is None:
            return self.bytes_in, self.bytes_out
        return self.bytes_in + counters.bytes_in, self.bytes_out + counters.bytes_out

    def run(
        self,
        work: Callable[[], Coroutine[Any, Any, None]],
        stop: Callable[[], bool],
        look: Look,
        line: Line = progress_line,
    ) -> int:
        """Run the verb's coroutine to its end; return the exit code. `line` words what `look` shows."""
        runner = asyncio.Runner(loop_factory=new_loop)
        signals = terminating()
        # An error leaves the loop as it is: closing it would wait for a name that is still being resolved, in a thread.
        try:
            code = runner.run(self._supervise(work, stop, look, line, signals))
        except RingmainError:
            raise
        except OSError as error:  # nobody above can tell what it was about
            remedy = "see ulimit -n" if error.errno in (errno.EMFILE, errno.ENFILE) else "please report this"
            raise RingmainError("this run could not go on", reason(error), remedy) from error
        finally:
            for handler in log.handlers:
                handler.close()  # which tells what it has kept back
        if self._signal:
            sys.stderr.flush()
            os._exit(code)
        runner.close()
        return code

    async def _supervise(
        self,
        work: Callable[[], Coroutine[Any, Any, None]],
        stop: Callable[[], bool],
        look: Look,
        line: Line,
        signals: list[int],
    ) -> int:
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(work())

        def interrupt(number: int) -> None:
            if self._signal:
                if self._port_file is not None:
                    self._port_file.remove()
                os._exit(128 + number)
            self._signal = number
            if not stop():
                task.cancel()
            else:
                helpers.append(asyncio.ensure_future(self._give_up(task, look)))

        for number in signals:
            loop.add_signal_handler(number, interrupt, number)
        helpers: list[asyncio.Task[None]] = []
        if self.shows_progress:
            helpers.append(asyncio.ensure_future(show_progress(look, line)))
        try:
            await task
        except asyncio.CancelledError:
            if not self._signal:
                raise
        except ReaderLeft:
            pass
        finally:
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
        return 128 + self._signal if self._signal else 0

    async def _give_up(self, task: "asyncio.Task[None]", look: Look) -> None:
        """End a run that was told to stop once it no longer moves."""
        moved, since = look()[:2], time.monotonic()
        while time.monotonic() - since < _GRACE:
            await asyncio.sleep(0.05)
            if look()[:2] != moved:
                moved, since = look()[:2], time.monotonic()
        log.warning("stopped with bytes under way: the other side takes nothing any more")
        task.cancel()

    @contextlib.contextmanager
    def announced(self, *ends: tuple[Listener, Endpoint, bool]) -> Iterator[None]:
        """Say where is listened, on stderr and in the port file: for each end the listener, what was asked for, TLS."""
        listening = [end for end in ends if end[0].addresses]
        for listener, endpoint, tls in listening:
            if self._announce or endpoint.port == "0":
                with contextlib.suppress(OSError):  # nobody reads standard error, or it has no room
                    for address in listener.addresses:
                        print(f"listening on {'tcps' if tls else 'tcp'}://{address}", file=sys.stderr, flush=True)
        if self._port_file is None or not listening:
            yield
            return
        self._port_file.write("".join(f"{listener.port}\n" for listener, _, _ in listening))
        try:
            yield
        finally:
            self._port_file.remove()

    def record(self, row: dict[str, Any], bytes_in: int, bytes_out: int) -> None:
        """Append a connection's figures to the stats file, and its bytes to those of all."""
        self.bytes_in += bytes_in
        self.bytes_out += bytes_out
        if self._stats_file is not None:
            self._stats_file.append(row)


def _set_up_log(quiet: bool, verbose: bool) -> None:
    log.handlers = [Lines()]
    log.propagate = False
    log.setLevel(logging.ERROR if quiet else logging.INFO if verbose else logging.WARNING)
