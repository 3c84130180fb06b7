"""One run of the command: its log and progress, and who is told where it listens and what it moved."""

import asyncio
import contextlib
import dataclasses
import errno
import functools
import gc
import logging
import re
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Protocol

from ringmain._ring import Counters
from ringmain.blocking import new_loop
from ringmain.cli.log_handler import LogHandler
from ringmain.cli.notify import ServiceManager
from ringmain.cli.port_file import PortFile
from ringmain.cli.renewal import Renewal
from ringmain.cli.signals import Signals
from ringmain.cli.stats import Present, StatsFile, Totals
from ringmain.endpoint import Endpoint, LogEndpoint, as_url
from ringmain.errors import RingmainError, UsageError, reason
from ringmain.flow.descriptor import ReaderLeft
from ringmain.outcome import Outcome
from ringmain.progress import Figures, Line, Look, relay_line, show_progress, size_words
from ringmain.settings import TlsSettings, check_plain, keywords_given

log = logging.getLogger("ringmain")

# What a listener has open besides its connections, and some to spare.
_OTHER_DESCRIPTORS = 64
# How long a service manager that is busy is waited for, which else would never hear that we are ready.
_PATIENCE = 1.0
# So many clients are named to a service manager; of more there is only the number.
_MOST_NAMES = 3
_REPORT_OPTIONS = ("port_file", "stats_file", "stats_interval", "reload_certificates", "quiet", "verbose", "progress")
# The options that wait for TLS in vain where there is none: not those that are never unset, nor the one that brings it.
_TLS_OPTIONS = [it.name for it in dataclasses.fields(TlsSettings) if not it.default and it.name != "tls_auto"]


class Listener(Protocol):
    """What may listen."""

    @property
    def addresses(self) -> list[str]:
        """Where it listens, as "127.0.0.1:43211"; nothing if it does not."""

    @property
    def port(self) -> int:
        """The port listened at."""

    @property
    def peers(self) -> list[str]:
        """The clients that are served."""


class Session:
    """What the verbs have in common on the command line."""

    def __init__(self, options: dict[str, Any]) -> None:
        report = {name: options.pop(name, None) for name in _REPORT_OPTIONS}
        options["family"] = options["family"] or 0
        self._port_file = PortFile(report["port_file"]) if report["port_file"] is not None else None
        self._stats_file = StatsFile(report["stats_file"]) if report["stats_file"] is not None else None
        self.interval: float | None = report["stats_interval"]
        if self.interval is not None and self._stats_file is None:
            raise UsageError("--stats-interval", "there is no file for its rows", "add --stats-file")
        self._reload_interval: float | None = report["reload_certificates"]
        self._totals = Totals()
        self._manager = ServiceManager()
        self._begun = False
        self._listening: list[Listener] = []
        self._present: Callable[[], Present] | None = None
        terminal = sys.stderr.isatty()
        self.shows_progress = terminal and not report["quiet"] if report["progress"] is None else report["progress"]
        self.loudness = {"quiet": report["quiet"], "verbose": report["verbose"], "progress": self.shows_progress}
        self._announce = report["verbose"] or (terminal and not report["quiet"])
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
        stop: Callable[[], bool] = lambda: False,
        look: Look = lambda: (0, 0, 0.0),
        line: Line | None = None,
        present: Callable[[], Present] | None = None,
        signals: Signals | None = None,
        renewal: Renewal | None = None,
    ) -> int:
        """Run a coroutine to its end on a loop of its own; return 0, or the exit code of the signal that ended it.

        A signal calls `stop`, or cancels the coroutine where nothing moves any more: see `Signals.watch`. What it then
        raises counts no more. `line` words what `look` shows as progress; without it none is shown. `present` tells
        what the totals need besides what `record` was given. `signals` is what signals do, where that is something
        else. With a `renewal` SIGHUP does that, and SIGUSR1 tells the figures.
        """
        gc.freeze()  # what was imported stays
        gc.enable()
        self._present = present
        signals = signals or Signals(self.remove_port_file)
        if renewal is not None and line is not None:
            signals.calls = {signal.SIGHUP: lambda: self._renew(renewal), signal.SIGUSR1: _teller(Figures(look, line))}
        runner = asyncio.Runner(loop_factory=new_loop)
        # An error leaves the loop as it is: closing it would wait for a name that is still being resolved, in a thread.
        try:
            runner.run(self._supervise(work, stop, look, line, signals, present, renewal))
        except RingmainError:
            raise
        except OSError as error:  # nobody above can tell what it was about
            remedy = "see ulimit -n" if error.errno in (errno.EMFILE, errno.ENFILE) else "please report this"
            raise RingmainError("this run could not go on", reason(error), remedy) from error
        finally:
            for handler in log.handlers:
                handler.close()  # which tells what it has kept back
        if not signals.number:
            runner.close()
        return 128 + signals.number if signals.number else 0

    async def _supervise(
        self,
        work: Callable[[], Coroutine[Any, Any, None]],
        stop: Callable[[], bool],
        look: Look,
        line: Line | None,
        signals: Signals,
        present: Callable[[], Present] | None,
        renewal: Renewal | None,
    ) -> None:
        task = asyncio.get_running_loop().create_task(work())
        signals.watch(task, lambda: self._stops(stop), lambda: look()[:2])
        if self.shows_progress and line is not None:
            signals.helpers.append(asyncio.ensure_future(self.show(look, line)))
        if self.interval is not None and present is not None:
            signals.helpers.append(asyncio.ensure_future(self._tell_totals(self.interval, present)))
        if self._manager.is_there:
            words = ("there", "back") if line is relay_line else ("in", "out")
            status = functools.partial(self._status, look, words)
            signals.helpers.append(asyncio.ensure_future(self._manager.keep_told(status)))
        if self._reload_interval is not None and renewal is not None:
            signals.helpers.append(asyncio.ensure_future(renewal.watch(self._reload_interval)))
        try:
            await asyncio.wait([task])
        finally:
            for helper in signals.helpers:
                helper.cancel()
            await asyncio.gather(*signals.helpers, return_exceptions=True)
            if self.interval is not None and present is not None and self._begun:
                self._append(self._totals.row(present()))
        if not signals.cancelled:
            with contextlib.suppress(ReaderLeft):
                task.result()

    def _stops(self, stop: Callable[[], bool]) -> bool:
        self._manager.tell("STOPPING=1")
        return stop()

    def _status(self, look: Look, words: tuple[str, str]) -> str:
        """Return a line for the service manager: who is connected, and what was moved."""
        if not self._begun:
            return "beginning"
        peers = [peer for listener in self._listening for peer in listener.peers]
        who = f"{len(peers)} connected" if self._listening else "connected"
        names = f" ({', '.join(peers)})" if 0 < len(peers) <= _MOST_NAMES else ""
        moved = [f"{size_words(size)} {word}" for size, word in zip(look()[:2], words, strict=True)]
        return f"{who}{names}, {', '.join(moved)}"

    def _renew(self, renewal: Renewal) -> None:
        if self._stats_file is not None:
            self._stats_file.reopen()
        renewal.renew()

    async def show(self, look: Look, line: Line) -> None:
        """Show progress until cancelled."""
        await show_progress(look, line)

    def check_reloading(self, *ends: TlsSettings) -> None:
        """Raise UsageError for --reload-certificates where none of these ends, those with TLS, has a file to read."""
        names = ("certfile", "keyfile", "key_password_file", "cafile", "client_ca", "crl")
        files = any(getattr(end, name) is not None for end in ends for name in names)
        if self._reload_interval is not None and not files:
            raise UsageError("--reload-certificates", "no certificate, key or CA file is used", "leave it out")

    def remove_port_file(self) -> None:
        """Remove the port file, if there is one of ours."""
        if self._port_file is not None:
            self._port_file.remove()

    @contextlib.contextmanager
    def announced(self, *ends: tuple[Listener, Endpoint | LogEndpoint, bool]) -> Iterator[None]:
        """Say where is listened, on stderr and in the port file: for each end the listener, what was asked for, TLS.

        Tell the service manager too, if there is one, that clients can come or the connection is there.
        """
        self._begun = True
        listening = [end for end in ends if end[0].addresses]
        self._listening = [end[0] for end in listening]
        for listener, endpoint, tls in listening:
            if self._announce or (isinstance(endpoint, Endpoint) and endpoint.port == "0"):
                with contextlib.suppress(OSError):  # nobody reads standard error, or it has no room
                    for address in listener.addresses:
                        print(f"listening on {as_url(address, tls=tls)}", file=sys.stderr, flush=True)
        if self._port_file is not None and listening:
            with_ports = [it[0] for it in listening if not it[0].addresses[0].startswith("unix:")]
            if not with_ports:
                raise UsageError("port_file=", "a UNIX socket has no port", "leave port_file= out")
            self._port_file.write("".join(f"{listener.port}\n" for listener in with_ports))
        self._manager.tell("READY=1", _PATIENCE)
        try:
            yield
        finally:
            self.remove_port_file()
            if self._present is not None:
                self._totals.see(self._present())

    def record(
        self, row: dict[str, Any], bytes_in: int, bytes_out: int, outcome: Outcome | None = None, others: int = 0
    ) -> None:
        """Append a connection's figures to the stats file, and its bytes to those of all.

        The totals have its `outcome`, if that is given, and how many `others` are still there.
        """
        self.bytes_in += bytes_in
        self.bytes_out += bytes_out
        if outcome is not None:
            self._totals.ended(outcome, others, row["refused"])
        self._append(row)

    def _append(self, row: dict[str, Any]) -> None:
        if self._stats_file is not None:
            self._stats_file.append(row)

    async def _tell_totals(self, interval: float, present: Callable[[], Present]) -> None:
        """Append a row of totals every so many seconds, once the run has got as far as connections."""
        due = time.monotonic()
        while True:
            due = max(due + interval, time.monotonic())
            await asyncio.sleep(due - time.monotonic())
            if self._begun:
                self._append(self._totals.row(present()))


def _teller(figures: Figures) -> Callable[[], None]:
    def tell() -> None:
        text = figures.text()
        with contextlib.suppress(OSError):  # nobody reads standard error, or it has no room
            print(f"\r{text}\x1b[K" if sys.stderr.isatty() else text, file=sys.stderr, flush=True)

    return tell


def _set_up_log(quiet: bool, verbose: bool) -> None:
    log.handlers = [LogHandler()]
    log.propagate = False
    log.setLevel(logging.ERROR if quiet else logging.INFO if verbose else logging.WARNING)


def measured_at(text: str, port: int | None = None) -> Endpoint:
    """Return an endpoint that is to be measured, at `port` where it names none and that is given.

    Raises UsageError, for a UNIX socket too, of which TCP has no figures.
    """
    host = re.fullmatch(r"(?:tcps?://)?(\[[^\[\]]*\]|[^:/\[\]]+)/?", text) if port is not None else None
    if host is not None and not host[1].isdigit():  # that would be a port, or a mistake
        text = f"{text.rstrip('/')}:{port}"
    endpoint = Endpoint.parse(text)
    if endpoint.path or endpoint.handed_over:
        why = "it measures TCP and TLS, no UNIX socket, and nothing that was handed over"
        raise UsageError(f"bench {endpoint}", why, "give HOST:PORT")
    return endpoint


def uses_tls(endpoint: Endpoint, options: dict[str, Any]) -> bool:
    """Tell whether an endpoint is to be used with TLS; warn of options that wait for it in vain."""
    tls = bool(options["tls"] or options.get("tls_auto") or endpoint.tls)  # bench has no tls_auto
    if not tls:
        prefix = options.get("prefix", "")  # relay's, where a file is at the other end
        warn_of_unused(options, prefix, "a tcps:// endpoint" if prefix else "tls=True")
    return tls


def warn_of_unused(options: dict[str, Any], prefix: str, wanted: str) -> None:
    """Warn of options of TLS where nothing is encrypted; `wanted` is what would encrypt it.

    Raise UsageError for those that nobody may take for granted. The warning counts as an error, which --quiet shows.
    """
    check_plain(options, prefix, wanted)
    if unused := keywords_given(options, _TLS_OPTIONS, prefix):
        log.error("%s: ignored without %s, nothing is encrypted", unused, wanted)


def allow_descriptors(connections: int, each: int) -> None:
    """Raise the soft limit on descriptors as far as connections need, so many `each`; warn where it stays below."""
    import resource

    needed = each * connections + _OTHER_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if connections == 1 or soft == resource.RLIM_INFINITY or soft >= needed:
        return
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    except (OSError, OverflowError, ValueError):  # the kernel's own limit is lower, or it counts no further
        allowed = soft
    if allowed < needed:
        log.warning("--max-connections %d: this process may open %d files only; see ulimit -n", connections, allowed)
