"""One run of the command: its log and progress, and who is told where it listens and what it moved."""

import asyncio
import contextlib
import dataclasses
import errno
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, Protocol

from ringmain._ring import Counters
from ringmain.blocking import new_loop
from ringmain.cli.log_handler import set_up_log
from ringmain.cli.notify import ServiceManager
from ringmain.cli.port_file import PortFile
from ringmain.cli.renewal import Renewal
from ringmain.cli.signals import Signals
from ringmain.cli.stats import Present, StatsFile, Totals, failed_handshake, timed
from ringmain.cli.summary import Blame, Summary
from ringmain.endpoint import Endpoint, LogEndpoint, as_url, is_log
from ringmain.errors import RingmainError, TimedOutError, TlsError, UsageError, reason
from ringmain.flow.descriptor import Input, Output, ReaderLeft
from ringmain.net.listening import Listening
from ringmain.outcome import Outcome, RelayOutcome
from ringmain.progress import Figures, Line, Look, show_progress, size_words
from ringmain.settings import TlsSettings, check_plain, keywords_given
from ringmain.terminal import screen

if TYPE_CHECKING:
    from ringmain.cli.metrics import Told
    from ringmain.cli.metrics_server import MetricsServer

log = logging.getLogger("ringmain")

# How long a service manager that is busy is waited for, which else would never hear that we are ready.
_PATIENCE = 1.0
# So many clients are named to a service manager; of more there is only the number.
_MOST_NAMES = 3
_REPORT_OPTIONS = (
    *("port_file", "stats_file", "stats_interval", "metrics", "reload_certificates"),
    *("quiet", "verbose", "progress"),
)
# The options that wait for TLS in vain where there is none: not those that are never unset, nor the one that brings it.
_TLS_OPTIONS = [it.name for it in dataclasses.fields(TlsSettings) if not it.default and it.name != "tls_auto"]


def _nothing() -> tuple[int, int, float]:
    """Show nothing."""
    return 0, 0, 0.0


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

    def __init__(self, options: dict[str, Any], *endpoints: str) -> None:
        """`endpoints` are those of the rows, as the user gave them."""
        self._endpoints = [str(LogEndpoint.parse(it) if is_log(it) else Endpoint.parse(it)) for it in endpoints]
        report = {name: options.pop(name, None) for name in _REPORT_OPTIONS}
        options["family"] = options["family"] or 0
        self._port_file = PortFile(report["port_file"]) if report["port_file"] is not None else None
        self._stats_file = StatsFile(report["stats_file"]) if report["stats_file"] is not None else None
        self.interval: float | None = report["stats_interval"]
        if self.interval is not None and self._stats_file is None:
            raise UsageError("--stats-interval", "there is no file for its rows", "add --stats-file")
        self._reload_interval: float | None = report["reload_certificates"]
        self._metrics: MetricsServer | None = None
        if (address := report["metrics"]) is not None:
            from ringmain.cli import metrics_server

            self._metrics = metrics_server.MetricsServer(address)
        self._totals = Totals()
        self._manager = ServiceManager()
        self._begun = False
        self._listening: list[Listener] = []
        self._present: Callable[[], Present] | None = None
        self._renewal: Renewal | None = None
        self._look: Look = _nothing
        self._words = ("in", "out")  # for what a look shows
        terminal = sys.stderr.isatty()
        self.shows_progress = terminal and not report["quiet"] if report["progress"] is None else report["progress"]
        self._asked = report["progress"]
        self._verbose = report["verbose"] and not report["quiet"]
        self._summary = Summary()
        self._since = time.monotonic()  # when it began, or a connection ended last
        self._last_error: RingmainError | None = None  # that has a row
        self.loudness = {"quiet": report["quiet"], "verbose": report["verbose"], "progress": self.shows_progress}
        self._announce = report["verbose"] or (terminal and not report["quiet"])
        self.bytes_in = 0
        self.bytes_out = 0
        set_up_log(report["quiet"], report["verbose"])

    @property
    def has_metrics(self) -> bool:
        """Whether somebody may ask for metrics."""
        return self._metrics is not None

    def moved(self, counters: Counters | None) -> tuple[int, int]:
        """Return the bytes in and out so far, those of the present connection included."""
        if counters is None:
            return self.bytes_in, self.bytes_out
        return self.bytes_in + counters.bytes_in, self.bytes_out + counters.bytes_out

    def run(
        self,
        work: Callable[[], Coroutine[Any, Any, None]],
        stop: Callable[[], bool] = lambda: False,
        look: Look = _nothing,
        line: Line | None = None,
        present: Callable[[], Present] | None = None,
        signals: Signals | None = None,
        renewal: Renewal | None = None,
        words: tuple[str, str] = ("in", "out"),
        figures: "Callable[[], Told] | None" = None,
        blame: Callable[[], Blame | None] = lambda: None,
    ) -> int:
        """Run a coroutine to its end on a loop of its own; return 0, or the exit code of the signal that ended it.

        A signal calls `stop`, or cancels the coroutine where nothing moves any more: see `Signals.watch`. What it then
        raises counts no more. `line` words what `look` shows as progress; without it none is shown. `present` tells
        what the totals need besides what `record` was given. `signals` is what signals do, where that is something
        else. With a `renewal` SIGHUP does that, and SIGUSR1 tells the figures. `words` say what both numbers of bytes
        are, `figures` are those of --metrics, where they are not made of the others. The last line tells who of `blame`
        kept the run waiting.
        """
        gc.freeze()  # what was imported stays
        gc.enable()
        self._look, self._present, self._renewal, self._words = look, present, renewal, words
        signals = signals or Signals(self.remove_port_file)
        if renewal is not None and line is not None:
            signals.calls = {signal.SIGHUP: lambda: self._renew(renewal), signal.SIGUSR1: Figures(look, line).tell}
        runner = asyncio.Runner(loop_factory=new_loop)
        # An error leaves the loop as it is: closing it would wait for a name that is still being resolved, in a thread.
        try:
            runner.run(self._measured(self._supervise(work, stop, line, signals, blame), figures or self.figures))
        except RingmainError:
            raise
        except OSError as error:  # nobody above can tell what it was about
            remedy = "see ulimit -n" if error.errno in (errno.EMFILE, errno.ENFILE) else "please report this"
            raise RingmainError("ringmain cannot go on", reason(error), remedy) from error
        finally:
            for handler in log.handlers:
                handler.close()  # which tells what it has kept back
        if not signals.number:
            runner.close()
        return 128 + signals.number if signals.number else 0

    def figures(self) -> "Told":
        """Return what --metrics tells of this process."""
        from ringmain.cli.metrics import figures

        assert self._present is not None, "each verb with --metrics has it"
        *sizes, fullness = self._look()
        moved = dict(zip(self._words, sizes, strict=True))
        return figures(self._totals, self._present(), moved, fullness, self._renewal)

    async def _measured(self, run: Coroutine[Any, Any, None], figures: "Callable[[], Told]") -> None:
        """Await a run, and tell its metrics meanwhile if that is wanted."""
        if self._metrics is None:
            return await run
        try:
            addresses = await self._metrics.open(figures)
            if self._announce or self._metrics.endpoint.port == "0":
                _say(*(f"metrics at {as_url(address, tls=False)}" for address in addresses))
            await run
        finally:
            run.close()
            await self._metrics.close()

    async def _supervise(
        self,
        work: Callable[[], Coroutine[Any, Any, None]],
        stop: Callable[[], bool],
        line: Line | None,
        signals: Signals,
        blame: Callable[[], Blame | None],
    ) -> None:
        look, present, renewal = self._look, self._present, self._renewal
        task = asyncio.get_running_loop().create_task(work())
        signals.watch(task, lambda: self._stops(stop), lambda: look()[:2])
        if self.shows_progress and line is not None:
            signals.helpers.append(asyncio.ensure_future(self.show(look, line)))
        if self.interval is not None and present is not None:
            signals.helpers.append(asyncio.ensure_future(self._tell_totals(self.interval, present)))
        if self._manager.is_there:
            signals.helpers.append(asyncio.ensure_future(self._manager.keep_told(self._status)))
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
            self._record_dialling(task)
            self.tell_end(blame())
        if not signals.cancelled:
            with contextlib.suppress(ReaderLeft):
                task.result()

    def _stops(self, stop: Callable[[], bool]) -> bool:
        self._manager.tell("STOPPING=1")
        return stop()

    def _status(self) -> str:
        """Return a line for the service manager: who is connected, and what was moved."""
        if not self._begun:
            return "beginning"
        peers = [peer for listener in self._listening for peer in listener.peers]
        waiting = self._present().waiting if self._present is not None else ""
        names = f" ({', '.join(peers)})" if 0 < len(peers) <= _MOST_NAMES else ""
        who = [f"{len(peers)} connected{names}"] if self._listening else [] if waiting else ["connected"]
        moved = [f"{size_words(size)} {word}" for size, word in zip(self._look()[:2], self._words, strict=True)]
        return ", ".join([*who, *filter(None, [waiting]), *moved])

    def _renew(self, renewal: Renewal) -> None:
        if self._stats_file is not None:
            self._stats_file.reopen()
        renewal.renew()

    async def show(self, look: Look, line: Line) -> None:
        """Show progress until cancelled."""
        await show_progress(look, line)

    def tell_end(self, blame: Blame | None) -> None:
        """Say what all connections moved, on a terminal or where it is asked for."""
        line = self._summary.line(blame) if self.shows_progress or self._verbose else ""
        if line:
            _say(f"ringmain: {line}")

    def share_terminal(self, data: Input | Output | None) -> None:
        """Show no progress where data has the terminal, typed or written; None: by commands, to standard output."""
        if (os.isatty(1) if data is None else data.is_terminal) and sys.stderr.isatty():
            if self._asked:
                log.warning("--progress: not shown on a terminal that data comes from or goes to")
            self.shows_progress = False
            screen.data = data if isinstance(data, Output) else None

    def check_reloading(self, *ends: TlsSettings, credentials: str | None = None) -> None:
        """Raise UsageError for --reload-certificates where none of these ends, those with TLS, has a file to read."""
        names = ("certfile", "keyfile", "key_password_file", "cafile", "client_ca", "crl")
        files = any(getattr(end, name) is not None for end in ends for name in names)
        if self._reload_interval is not None and not files and credentials is None:
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
        self._summary.begin()
        listening = [end for end in ends if end[0].addresses]
        self._listening = [end[0] for end in listening]
        for at, (listener, endpoint, _) in enumerate(ends):
            if isinstance(endpoint, Endpoint) and endpoint.port == "0" and self._endpoints and listener.addresses:
                self._endpoints[at] = as_url(listener.addresses[0], tls=endpoint.tls)
        for listener, endpoint, tls in listening:
            if self._announce or (isinstance(endpoint, Endpoint) and endpoint.port == "0"):
                _say(*(f"listening on {as_url(address, tls=tls)}" for address in listener.addresses))
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
        self,
        row: dict[str, Any],
        bytes_in: int,
        bytes_out: int,
        outcome: Outcome | RelayOutcome | None = None,
        others: int = 0,
    ) -> None:
        """Append a connection's figures to the stats file, and its bytes to those of all.

        The totals have what it has brought, if that is given, and how many `others` are still there.
        """
        self.bytes_in += bytes_in
        self.bytes_out += bytes_out
        self._since = time.monotonic()
        if outcome is not None:
            self._last_error = outcome.error
            self._totals.ended(outcome, others, row["refused"])
        self._summary.add(row)
        self._append(row)

    def record_failures(self, listening: Listening, end: str = "") -> None:
        """Append a row for each client whose handshake fails, at one `end` of a relay."""

        def failed(peer: str, seconds: float, error: Exception) -> None:
            self._append(failed_handshake(peer, seconds, error, listening.refused, end))

        listening.on_failed = failed

    def _record_dialling(self, task: "asyncio.Task[None]") -> None:
        """Append a row where the run ends since a server and we have not come to terms."""
        error = None if task.cancelled() else task.exception()
        if not isinstance(error, TlsError | TimedOutError) or error is self._last_error or len(self._endpoints) != 1:
            return
        if isinstance(error, TlsError) or error.limit == "handshake_timeout":
            peer = self._endpoints[0].rpartition("//")[2]
            self._append(failed_handshake(peer, time.monotonic() - self._since, error))

    def _append(self, row: dict[str, Any]) -> None:
        if self._stats_file is not None:
            self._stats_file.append(timed(row, self._endpoints))

    async def _tell_totals(self, interval: float, present: Callable[[], Present]) -> None:
        """Append a row of totals every so many seconds, once the run has got as far as connections."""
        due = time.monotonic()
        while True:
            due = max(due + interval, time.monotonic())
            await asyncio.sleep(due - time.monotonic())
            if self._begun:
                self._append(self._totals.row(present()))


def _say(*lines: str) -> None:
    with contextlib.suppress(OSError):  # nobody reads standard error, or it has no room
        screen.clear()
        for line in lines:
            print(line, file=sys.stderr, flush=True)


def measured_at(text: str, default_port: str = "") -> Endpoint:
    """Return an endpoint that is to be measured; raise UsageError for a UNIX socket, of which TCP has no figures."""
    endpoint = Endpoint.parse(text, default_port)
    if endpoint.path or endpoint.handed_over:
        why = "it measures TCP and TLS only, no UNIX sockets and no sockets of systemd"
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
