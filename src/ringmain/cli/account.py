"""What a run tells of its connections: a row for each in the stats file, rows of totals, and their sum.

Made before it listens, which is to be soon: what the first connection needs is imported by `open`.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ringmain.errors import RingmainError, TimedOutError, TlsError, UsageError

if TYPE_CHECKING:
    import asyncio

    from ringmain._counters import Counters
    from ringmain.cli.stats import Present, StatsFile, Totals
    from ringmain.cli.summary import Blame, Summary
    from ringmain.net.listening import Listening
    from ringmain.outcome import Outcome, RelayOutcome


class Account:
    """The rows and the sums of a run's connections; `endpoints` are those that the rows name.

    `begun` tells that the run has got as far as connections. `present` tells what there is at the moment.
    """

    def __init__(self, endpoints: list[str], stats_file: str | None, interval: float | None) -> None:
        """Raise OutputError where the file cannot be written, UsageError where totals have none."""
        self.endpoints = endpoints
        self.interval = interval
        self.begun = False
        self.present: Callable[[], Present] | None = None
        self.totals: Totals
        self.bytes_in = 0
        self.bytes_out = 0
        self._stats_file: StatsFile | None = None
        if stats_file is not None:
            from ringmain.cli import stats

            self._stats_file = stats.StatsFile(stats_file)
        if interval is not None and self._stats_file is None:
            raise UsageError("--stats-interval", "there is no file for its rows", "add --stats-file")
        self._summary: Summary
        self._since = time.monotonic()  # when it began, or a connection ended last
        self._last_error: RingmainError | None = None  # that has a row

    def open(self) -> None:
        """Get ready to count."""
        from ringmain.cli.stats import Totals
        from ringmain.cli.summary import Summary

        self.totals, self._summary = Totals(), Summary()

    def begin(self) -> None:
        """Count from now on: connections may come."""
        self.begun = True
        self._summary.begin()

    def moved(self, counters: "Counters | None") -> tuple[int, int]:
        """Return the bytes in and out so far, those of the present connection included."""
        if counters is None:
            return self.bytes_in, self.bytes_out
        return self.bytes_in + counters.bytes_in, self.bytes_out + counters.bytes_out

    def record(
        self,
        row: dict[str, Any],
        bytes_in: int,
        bytes_out: int,
        outcome: "Outcome | RelayOutcome | None" = None,
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
            self.totals.ended(outcome, others, row["refused"])
        self._summary.add(row)
        self.append(row)

    def record_failures(self, listening: "Listening", end: str = "") -> None:
        """Append a row for each client that is not served, at one `end` of a relay."""
        from ringmain.cli.stats import unserved

        def failed(peer: str, seconds: float, error: Exception, verdict: str) -> None:
            self.append(unserved(peer, seconds, error, verdict, listening.refused, end))

        listening.on_failed = failed

    def record_dialling(self, task: "asyncio.Task[None]") -> None:
        """Append a row where the run ends since a server and we have not come to terms."""
        from ringmain.cli.stats import unserved
        from ringmain.outcome import FAILED_HANDSHAKE

        error = None if task.cancelled() else task.exception()
        if not isinstance(error, TlsError | TimedOutError) or error is self._last_error or len(self.endpoints) != 1:
            return
        if isinstance(error, TlsError) or error.limit == "handshake_timeout":
            peer = self.endpoints[0].rpartition("//")[2]
            self.append(unserved(peer, time.monotonic() - self._since, error, FAILED_HANDSHAKE))

    def append(self, row: dict[str, Any]) -> None:
        """Append a row to the stats file, if there is one."""
        if self._stats_file is not None:
            from ringmain.cli.stats import timed

            self._stats_file.append(timed(row, self.endpoints))

    def reopen(self) -> None:
        """Append to the file that has the name now."""
        if self._stats_file is not None:
            self._stats_file.reopen()

    def append_totals(self) -> None:
        """Append a row of totals where these are wanted, once the run has got as far as connections."""
        if self.interval is not None and self.present is not None and self.begun:
            self.append(self.totals.row(self.present()))

    async def keep_appending_totals(self, interval: float) -> None:
        """Do so every so many seconds."""
        import asyncio

        due = time.monotonic()
        while True:
            due = max(due + interval, time.monotonic())
            await asyncio.sleep(due - time.monotonic())
            self.append_totals()

    def last_line(self, blame: "Blame | None") -> str:
        """Return what all connections moved, in words; nothing where there was none."""
        return self._summary.line(blame)
