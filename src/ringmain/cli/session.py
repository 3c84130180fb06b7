"""One run of a verb on the command line: signals, reports, progress, and what the user gets when it ends."""

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, Protocol

import uvloop

from ringmain._ring import Counters
from ringmain.descriptor import ReaderLeft
from ringmain.endpoint import Endpoint
from ringmain.errors import OutputError, printable, reason
from ringmain.progress import Line, Look, progress_line, show_progress

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
        self._port_file = report["port_file"]
        self._port_file_written = False
        self._stats_fd = _open_stats(report["stats_file"])
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
        runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        # An error leaves the loop as it is: closing it would wait for a name that is still being resolved, in a thread.
        code = runner.run(self._supervise(work, stop, look, line))
        if self._signal:
            sys.stderr.flush()
            os._exit(code)
        runner.close()
        return code

    async def _supervise(
        self, work: Callable[[], Coroutine[Any, Any, None]], stop: Callable[[], bool], look: Look, line: Line
    ) -> int:
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(work())

        def interrupt(number: int) -> None:
            if self._signal:
                self._remove_port_file()
                os._exit(128 + number)
            self._signal = number
            if not stop():
                task.cancel()
            else:
                helpers.append(asyncio.ensure_future(self._give_up(task, look)))

        for number in (signal.SIGINT, signal.SIGTERM):
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
                for address in listener.addresses:
                    print(f"listening on {'tcps' if tls else 'tcp'}://{address}", file=sys.stderr, flush=True)
        if self._port_file is None or not listening:
            yield
            return
        _write_atomically(Path(self._port_file), "".join(f"{listener.port}\n" for listener, _, _ in listening))
        self._port_file_written = True
        try:
            yield
        finally:
            self._remove_port_file()

    def _remove_port_file(self) -> None:
        if self._port_file_written:
            Path(self._port_file).unlink(missing_ok=True)
            self._port_file_written = False

    def record(self, row: dict[str, Any], bytes_in: int, bytes_out: int) -> None:
        """Append a connection's figures to the stats file, and its bytes to those of all."""
        self.bytes_in += bytes_in
        self.bytes_out += bytes_out
        if self._stats_fd is None:
            return
        try:
            os.write(self._stats_fd, json.dumps(row).encode() + b"\n")
        except OSError as error:
            raise OutputError("write the stats file", reason(error), "choose another --stats-file") from error


def _open_stats(path: str | None) -> int | None:
    if path is None:
        return None
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise OutputError(f"open {path}", reason(error), "choose another --stats-file") from error


def _write_atomically(path: Path, text: str) -> None:
    try:
        fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(fd, "w") as file:
            file.write(text)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except OSError as error:
        raise OutputError(f"write {path}", reason(error), "choose another --port-file") from error


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def _set_up_log(quiet: bool, verbose: bool) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_Lines("ringmain: %(message)s"))
    log.handlers = [handler]
    log.propagate = False
    log.setLevel(logging.ERROR if quiet else logging.INFO if verbose else logging.WARNING)
