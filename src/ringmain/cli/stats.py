"""The stats file: a row for each connection, one of totals from time to time, and what stands in them."""

import json
import logging
import os
import stat
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from ringmain._counters import Counters
from ringmain.cli.flags import as_flags
from ringmain.errors import OutputError, RingmainError, reason
from ringmain.outcome import PROCESS_DIED, Outcome, RelayOutcome, Unserved, Verdict, total

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

log = logging.getLogger("ringmain")


def figures(outcome: Outcome, refused: int, exec_exit: int | None = None) -> dict[str, Any]:
    """Return what a stats file tells of a connection; `refused` clients were turned away so far.

    `exec_exit` is the exit code of the command that it was given to, if there was one.
    """
    ended = {} if exec_exit is None else {"exec_exit": exec_exit}
    return {**_figures(outcome), **ended, "refused": refused, "verdict": outcome.verdict, **_error(outcome.error)}


def unserved(
    peer: str, seconds: float, error: Exception, verdict: str, refused: int = 0, end: str = ""
) -> dict[str, Any]:
    """Return what it tells of a connection that never got as far as bytes, or of that at one `end` of a relay.

    It is what is told of any other, and the verdict is no other's.
    """
    outcome = Outcome(peer, None, None, Counters(), 0, Verdict.RESET)
    took = {"seconds": round(seconds, 6)}
    ending = {"refused": refused, "verdict": verdict, **_error(error)}
    return {end: _who(outcome), **took, **ending} if end else {**_figures(outcome), **took, **ending}


def lost_with_its_process(peer: str, seconds: float, why: str) -> dict[str, Any]:
    """Return what it tells of a connection whose process has died: nobody knows its figures."""
    row = unserved(peer, seconds, RingmainError(f"load from {peer}", why), PROCESS_DIED)
    unknown = ("tls", "cipher", "bytes", "reads", "blocks", "writes", "stalls", "stalled_seconds")
    return {**row, **dict.fromkeys(unknown)}


def timed(row: dict[str, Any], endpoints: "Sequence[str]") -> dict[str, Any]:
    """Return a row of what has just ended, with the times of that and of its beginning, and with the endpoints.

    Each side of a relay has its own.
    """
    now = time.time()
    times = {"started": _utc(now - row["seconds"]), "ended": _utc(now)}
    if "source" not in row:
        return {**times, **({"endpoint": endpoints[0]} if endpoints and "peer" in row else {}), **row}
    sides = {
        name: {"endpoint": url, **row[name]}
        for name, url in zip(("source", "destination"), endpoints, strict=False)
        if name in row
    }
    return {**times, **row, **sides}


def _utc(seconds: float) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds % 1 * 1000):03}Z"


def _error(error: Exception | None) -> dict[str, str | None]:
    return {"error": as_flags(str(error) if isinstance(error, RingmainError) else reason(error)) if error else None}


def _figures(outcome: Outcome) -> dict[str, Any]:
    counters = outcome.counters
    return {
        **_who(outcome),
        "bytes": outcome.size,
        "seconds": round(max(0.0, (counters.ended or time.monotonic()) - counters.started), 6),
        "reads": counters.reads,
        "blocks": counters.blocks,
        "writes": counters.writes,
        "stalls": counters.stalls,
        "stalled_seconds": round(counters.stalled_seconds, 6),
        **_left_out(counters),
    }


def _who(outcome: Outcome) -> dict[str, Any]:
    """Return who the peer is: what a certificate it has shown says, its process and user by a UNIX socket."""
    who = {"peer": outcome.peer, "tls": outcome.tls, "cipher": outcome.cipher}
    for more in (outcome.certificate, outcome.credentials):
        who |= more._asdict() if more is not None else {}
    return who


def _left_out(counters: Counters) -> dict[str, int]:
    """Return what was thrown away, where that is anything."""
    figures = {
        "skipped_records": counters.skipped_records,
        "skipped_bytes": counters.skipped_bytes,
        "dropped_bytes": counters.dropped_bytes,
    }
    return {name: figure for name, figure in figures.items() if figure}


def relay_figures(outcome: RelayOutcome, refused: int) -> dict[str, Any]:
    """Return what it tells of a client's way through a relay."""
    return {
        "source": {**_side(outcome.source), **({"proxy": outcome.source.proxy} if outcome.source.proxy else {})},
        "destination": _side(outcome.destination),
        **({"reconnects": outcome.reconnects} if outcome.reconnects else {}),
        "seconds": round(outcome.seconds, 6),
        "refused": refused,
        "verdict": outcome.verdict,
        **_error(outcome.error),
    }


def _side(outcome: Outcome) -> dict[str, Any]:
    """Return the figures of one side of a relay: what it sent that reached the other, if it sends at all."""
    if outcome.state is None:
        return _who(outcome)
    return {**_figures(outcome), "state": outcome.state}


class Side(NamedTuple):
    """What connections have brought: the bytes that they were there for, and their counters, None without any."""

    size: int
    counters: Counters | None

    @classmethod
    def of(cls, outcome: Outcome) -> "Side":
        """Return what one has brought that has ended."""
        return cls(outcome.size, outcome.counters)


# What one or many have brought; of a relay by the end that sent it, "source" or "destination", else under "".
Sides: TypeAlias = dict[str, Side]


def relay_sides(outcome: RelayOutcome) -> Sides:
    """Return what a client's way through a relay has brought from each end that sends."""
    ends = {"source": outcome.source, "destination": outcome.destination}
    return {name: Side.of(end) for name, end in ends.items() if end.state is not None}


class Present(NamedTuple):
    """What a verb has at the moment: connections, and what they have brought; clients that it did not serve so far.

    `waiting` are words for what it waits for, where it is a peer to connect to; `not_after` is when the certificate of
    each end expires, in seconds of Unix time, if there is one.
    """

    connections: int
    unserved: Unserved
    sides: Sides
    waiting: str = ""
    reconnects: int = 0
    connect_failures: int = 0
    not_after: Mapping[str, int | None] = MappingProxyType({})


class Totals:
    """The figures of all connections of a run: of those that have ended (`ended`) and those that are there.

    `verdicts` counts those that have ended.
    """

    def __init__(self) -> None:
        self.verdicts: Counter[Verdict] = Counter()
        self._started = time.monotonic()
        self._count = self._peak = self._refused = self._probes = 0
        self._ended: Sides = {}

    def ended(self, outcome: Outcome | RelayOutcome, others: int, refused: int) -> None:
        """Count one that has just ended: there never were more at once than before some end, or than there are now."""
        sides = {"": Side.of(outcome)} if isinstance(outcome, Outcome) else relay_sides(outcome)
        self._count += 1
        self.verdicts[outcome.verdict] += 1
        self._ended |= self._with(sides)
        self._see(others + 1, refused)

    def see(self, present: Present) -> None:
        """Take note of what a verb forgets when it closes."""
        self._see(present.connections, present.unserved.refused)
        self._probes = max(self._probes, present.unserved.probes)

    def row(self, present: Present) -> dict[str, Any]:
        """Return what the stats file tells of all: `event` is what no other row has."""
        self.see(present)
        sides = {name: _brought(side) for name, side in self._with(present.sides).items()}
        return {
            "event": "totals",
            "seconds": round(time.monotonic() - self._started, 6),
            "connections": present.connections,
            "accepted": self._count + present.connections,
            "refused": self._refused,
            "probes": self._probes,
            "peak": self._peak,
            **sides.pop("", {}),
            **sides,
        }

    def brought(self, present: Present) -> dict[str, Any]:
        """Return what all have brought, those of either end of a relay together."""
        return _brought(_sum(self._with(present.sides).values()))

    def _with(self, sides: Sides) -> Sides:
        """Return what these and all that have ended have brought."""
        return {
            name: _sum([side, self._ended[name]] if name in self._ended else [side]) for name, side in sides.items()
        }

    def _see(self, connections: int, refused: int) -> None:
        self._peak = max(self._peak, connections)
        self._refused = max(self._refused, refused)


def _sum(sides: "Iterable[Side]") -> Side:
    sizes, counters = zip(*sides, strict=True)
    return Side(sum(sizes), total(it for it in counters if it is not None))


def _brought(side: Side) -> dict[str, Any]:
    size, counters = side
    assert counters is not None  # of a sum
    return {
        "bytes": size,
        "reads": counters.reads,
        "stalls": counters.stalls,
        "stalled_seconds": round(counters.stalled_seconds, 6),
        "skipped_records": counters.skipped_records,
        "skipped_bytes": counters.skipped_bytes,
        "dropped_bytes": counters.dropped_bytes,
    }


class StatsFile:
    """A file that gets one line of JSON for each connection, or of totals: a whole line or none.

    A line that cannot be written costs a warning, one for as long as it goes on: the connections matter more. The file
    is made with the first line, so that a run that comes to nothing leaves none.
    """

    def __init__(self, path: str) -> None:
        """Raise OutputError where it cannot be written."""
        self._path = path
        self._failing = False
        self._fd: int | None = None
        try:
            self._fd = self._open(0)
        except FileNotFoundError:
            self._try_to_make()
        except OSError as error:
            raise self._failure(error) from error

    def append(self, row: dict[str, Any]) -> None:
        """Append a row, or warn."""
        try:
            if self._fd is None:
                self._fd = self._open(os.O_CREAT)
            _append_whole(self._fd, json.dumps(row).encode() + b"\n")
            self._failing = False
        except OSError as error:
            if not self._failing:
                log.warning("write %s: %s; connections are served, and not reported", self._path, reason(error))
            self._failing = True

    def reopen(self) -> None:
        """Append to the file that has the name now, or warn and go on with the old one."""
        if self._fd is None:
            return  # it is opened for the first row
        try:
            fd = self._open(os.O_CREAT)
        except OSError as error:
            log.warning("reopen %s: %s; rows go on in the file that is open", self._path, reason(error))
            return
        os.close(self._fd)
        self._fd = fd

    def _open(self, flags: int) -> int:
        # A pipe is opened for reading too: it is not waited for whoever reads there, and rows lie in it meanwhile.
        pipe = Path(self._path).is_fifo()
        flags |= os.O_RDWR if pipe else os.O_WRONLY
        return os.open(self._path, flags | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, 0o666)

    def _try_to_make(self) -> None:
        try:
            os.close(self._open(os.O_CREAT | os.O_EXCL))
            Path(self._path).unlink()
        except FileExistsError:
            pass
        except OSError as error:
            raise self._failure(error) from error

    def _failure(self, error: OSError) -> OutputError:
        return OutputError(f"open {self._path}", reason(error), "choose another --stats-file")


def _append_whole(fd: int, line: bytes) -> None:
    """Write all of a line, or take back what was written and raise OSError. A pipe takes so short a line whole."""
    size = 0
    try:
        while size < len(line):
            size += os.write(fd, line[size:])
    except OSError:
        status = os.fstat(fd)
        if size and stat.S_ISREG(status.st_mode) and os.lseek(fd, 0, os.SEEK_CUR) == status.st_size:
            os.ftruncate(fd, status.st_size - size)
        raise
