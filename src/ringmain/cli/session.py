"""One run of the command: its log and progress, and who is told where it listens.

A listener is to be up soon: what a run needs is imported when it begins, before the first client is accepted.
"""

import contextlib
import errno
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, Protocol

from ringmain.cli.account import Account
from ringmain.cli.announcement import Announcement, say
from ringmain.cli.descriptors import check_room
from ringmain.cli.log_handler import set_up_log
from ringmain.cli.notify import ServiceManager
from ringmain.cli.signals import Signals
from ringmain.endpoint import Endpoint, LogEndpoint, as_url, is_log
from ringmain.errors import RingmainError, UsageError, reason
from ringmain.flow.descriptor import Input, Output, ReaderLeft
from ringmain.settings import TlsSettings
from ringmain.terminal import screen

if TYPE_CHECKING:
    from ringmain.cli.metrics import Told
    from ringmain.cli.metrics_server import MetricsServer
    from ringmain.cli.renewal import Renewal
    from ringmain.cli.stats import Present
    from ringmain.cli.summary import Blame
    from ringmain.progress import Line, Look

log = logging.getLogger("ringmain")

# How long a service manager that is busy is waited for, which else would never hear that we are ready.
_PATIENCE = 1.0
# So many clients are named to a service manager; of more there is only the number.
_MOST_NAMES = 3
_REPORT_OPTIONS = (
    *("port_file", "stats_file", "stats_interval", "metrics", "reload_certificates"),
    *("quiet", "verbose", "progress"),
)


def _nothing() -> tuple[int, int, float]:
    """Show nothing."""
    return 0, 0, 0.0


class Listener(Protocol):
    """What may listen."""

    @property
    def addresses(self) -> list[str]:
        """Where it listens, as "127.0.0.1:43211"; nothing if it does not."""

    @property
    def peers(self) -> list[str]:
        """The clients that are served."""


class Session:
    """What the verbs have in common on the command line."""

    def __init__(self, options: dict[str, Any], *endpoints: str) -> None:
        """`endpoints` are those of the rows, as the user gave them."""
        rows_of = [str(LogEndpoint.parse(it) if is_log(it) else Endpoint.parse(it)) for it in endpoints]
        report = {name: options.pop(name, None) for name in _REPORT_OPTIONS}
        options["family"] = options["family"] or 0
        self.account = Account(rows_of, report["stats_file"], report["stats_interval"])
        self._reload_interval: float | None = report["reload_certificates"]
        self._metrics: MetricsServer | None = None
        if (address := report["metrics"]) is not None:
            from ringmain.cli import metrics_server

            self._metrics = metrics_server.MetricsServer(address)
        self._manager = ServiceManager()
        self._listening: list[Listener] = []
        self._renewal: Renewal | None = None
        self._look: Look = _nothing
        self._words = ("in", "out")  # for what a look shows
        terminal = sys.stderr.isatty()
        self.shows_progress = terminal and not report["quiet"] if report["progress"] is None else report["progress"]
        self._asked = report["progress"]
        self._verbose = report["verbose"] and not report["quiet"]
        self.loudness = {"quiet": report["quiet"], "verbose": report["verbose"], "progress": self.shows_progress}
        aloud = report["verbose"] or (terminal and not report["quiet"])
        self.announcement = Announcement(report["port_file"], aloud=aloud)
        set_up_log(report["quiet"], report["verbose"])

    @property
    def has_metrics(self) -> bool:
        """Whether somebody may ask for metrics."""
        return self._metrics is not None

    def run(
        self,
        work: Callable[[], Coroutine[Any, Any, None]],
        stop: Callable[[], bool] = lambda: False,
        look: "Look" = _nothing,
        line: "Line | None" = None,
        present: "Callable[[], Present] | None" = None,
        signals: Signals | None = None,
        renewal: "Renewal | None" = None,
        words: tuple[str, str] = ("in", "out"),
        figures: "Callable[[], Told] | None" = None,
        blame: "Callable[[], Blame | None]" = lambda: None,
    ) -> int:
        """Run a coroutine to its end on a loop of its own; return 0, or the exit code of the signal that ended it.

        A signal calls `stop`, or cancels the coroutine where nothing moves any more: see `Signals.watch`. What it then
        raises counts no more. `line` words what `look` shows as progress; without it none is shown. `present` tells
        what the totals need besides what `account` has recorded. `signals` is what signals do, where that is something
        else. With a `renewal` SIGHUP does that, and SIGUSR1 tells the figures. `words` say what both numbers of bytes
        are, `figures` are those of --metrics, where they are not made of the others. The last line tells who of `blame`
        kept the run waiting.
        """
        import asyncio

        from ringmain.blocking import new_loop
        from ringmain.progress import Figures

        check_room()
        gc.freeze()  # what was imported stays
        gc.enable()
        self.account.open()
        self._look, self.account.present, self._renewal, self._words = look, present, renewal, words
        signals = signals or Signals(self.announcement.withdraw)
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

        present = self.account.present
        assert present is not None, "each verb with --metrics has it"
        *sizes, fullness = self._look()
        moved = dict(zip(self._words, sizes, strict=True))
        return figures(self.account.totals, present(), moved, fullness, self._renewal)

    async def _measured(self, run: Coroutine[Any, Any, None], figures: "Callable[[], Told]") -> None:
        """Await a run, and tell its metrics meanwhile if that is wanted."""
        if self._metrics is None:
            return await run
        try:
            addresses = await self._metrics.open(figures)
            if self.announcement.aloud or self._metrics.endpoint.port == "0":
                say(*(f"metrics at {as_url(address, tls=False)}" for address in addresses))
            await run
        finally:
            run.close()
            await self._metrics.close()

    async def _supervise(
        self,
        work: Callable[[], Coroutine[Any, Any, None]],
        stop: Callable[[], bool],
        line: "Line | None",
        signals: Signals,
        blame: "Callable[[], Blame | None]",
    ) -> None:
        import asyncio

        from ringmain.waiting import let_go

        look, renewal, account = self._look, self._renewal, self.account
        task = asyncio.get_running_loop().create_task(work())
        signals.watch(task, lambda: self._stops(stop), lambda: look()[:2])
        if self.shows_progress and line is not None:
            signals.helpers.append(asyncio.ensure_future(self.show(look, line)))
        if account.interval is not None:
            signals.helpers.append(asyncio.ensure_future(account.keep_appending_totals(account.interval)))
        if self._manager.is_there:
            signals.helpers.append(asyncio.ensure_future(self._manager.keep_told(self._status)))
        if self._reload_interval is not None and renewal is not None:
            signals.helpers.append(asyncio.ensure_future(renewal.watch(self._reload_interval)))
        try:
            await asyncio.wait([task])
        finally:
            task.cancel()  # which goes on only where this was cancelled
            await let_go([task])
            for helper in signals.helpers:
                helper.cancel()
            await asyncio.gather(*signals.helpers, return_exceptions=True)
            account.append_totals()
            account.record_dialling(task)
            self.tell_end(blame())
        if not signals.cancelled:
            with contextlib.suppress(ReaderLeft):
                task.result()

    def _stops(self, stop: Callable[[], bool]) -> bool:
        self._manager.tell("STOPPING=1")
        return stop()

    def _status(self) -> str:
        """Return a line for the service manager: who is connected, and what was moved."""
        from ringmain.progress import size_words

        if not self.account.begun:
            return "beginning"
        peers = [peer for listener in self._listening for peer in listener.peers]
        present = self.account.present
        waiting = present().waiting if present is not None else ""
        names = f" ({', '.join(peers)})" if 0 < len(peers) <= _MOST_NAMES else ""
        who = [f"{len(peers)} connected{names}"] if self._listening else [] if waiting else ["connected"]
        moved = [f"{size_words(size)} {word}" for size, word in zip(self._look()[:2], self._words, strict=True)]
        return ", ".join([*who, *filter(None, [waiting]), *moved])

    def _renew(self, renewal: "Renewal") -> None:
        self.account.reopen()
        renewal.renew()

    async def show(self, look: "Look", line: "Line") -> None:
        """Show progress until cancelled."""
        from ringmain.progress import show_progress

        await show_progress(look, line)

    def tell_end(self, blame: "Blame | None") -> None:
        """Say what all connections moved, on a terminal or where it is asked for."""
        line = self.account.last_line(blame) if self.shows_progress or self._verbose else ""
        if line:
            say(f"ringmain: {line}")

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

    @contextlib.contextmanager
    def announced(self, *ends: tuple[Listener, Endpoint | LogEndpoint, bool]) -> Iterator[None]:
        """Say where is listened: for each end the listener, what was asked for, TLS.

        Tell the service manager too, if there is one, that clients can come or the connection is there.
        """
        self.account.begin()
        listening = [end for end in ends if end[0].addresses]
        self._listening = [end[0] for end in listening]
        named = self.account.endpoints
        for at, (listener, endpoint, _) in enumerate(ends):
            if isinstance(endpoint, Endpoint) and endpoint.port == "0" and named and listener.addresses:
                named[at] = as_url(listener.addresses[0], tls=endpoint.tls)
        self.announcement.tell(*((listener.addresses, endpoint, tls) for listener, endpoint, tls in listening))
        self._manager.tell("READY=1", _PATIENCE)
        try:
            yield
        finally:
            self.announcement.withdraw()
            if self.account.present is not None:
                self.account.totals.see(self.account.present())
