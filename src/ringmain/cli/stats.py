"""The stats file: a row for each connection, one of totals from time to time, and what stands in them."""

import json
import logging
import os
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from ringmain.errors import OutputError, reason

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ringmain._ring import Counters
    from ringmain.outcome import Outcome, RelayOutcome

log = logging.getLogger("ringmain")


def figures(outcome: "Outcome", refused: int, exec_exit: int | None = None) -> dict[str, Any]:
    """Return what a stats file tells of a connection; `refused` clients were turned away so far.

    `exec_exit` is the exit code of the command that it was given to, if there was one.
    """
    ended = {} if exec_exit is None else {"exec_exit": exec_exit}
    return {**_figures(outcome), **ended, "refused": refused, "verdict": outcome.verdict}


def _figures(outcome: "Outcome") -> dict[str, Any]:
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


def _who(outcome: "Outcome") -> dict[str, Any]:
    """Return who the peer is: what a certificate it has shown says, its process and user by a UNIX socket."""
    who = {"peer": outcome.peer, "tls": outcome.tls, "cipher": outcome.cipher}
    for more in (outcome.certificate, outcome.credentials):
        who |= more._asdict() if more is not None else {}
    return who


def _left_out(counters: "Counters") -> dict[str, int]:
    """Return what was thrown away, where that is anything."""
    figures = {
        "skipped_records": counters.skipped_records,
        "skipped_bytes": counters.skipped_bytes,
        "dropped_bytes": counters.dropped_bytes,
    }
    return {name: figure for name, figure in figures.items() if figure}


def relay_figures(outcome: "RelayOutcome", refused: int) -> dict[str, Any]:
    """Return what it tells of a client's way through a relay."""
    return {
        "source": {**_side(outcome.source), **({"proxy": outcome.source.proxy} if outcome.source.proxy else {})},
        "destination": _side(outcome.destination),
        "seconds": round(outcome.seconds, 6),
        "refused": refused,
        "verdict": outcome.verdict,
    }


def _side(outcome: "Outcome") -> dict[str, Any]:
    """Return the figures of one side of a relay: what it sent that reached the other, if it sends at all."""
    if outcome.state is None:
        return _who(outcome)
    return {**_figures(outcome), "state": outcome.state}


class Side(NamedTuple):
    """What connections have brought: the bytes that they were there for, and their counters, None without any."""

    size: int
    counters: "Counters | None"

    @classmethod
    def of(cls, outcome: "Outcome") -> "Side":
        """Return what one has brought that has ended."""
        return cls(outcome.size, outcome.counters)


# What one or many have brought; of a relay by the end that sent it, "source" or "destination", else under "".
Sides: TypeAlias = dict[str, Side]


def relay_sides(outcome: "RelayOutcome") -> Sides:
    """Return what a client's way through a relay has brought from each end that sends."""
    ends = {"source": outcome.source, "destination": outcome.destination}
    return {name: Side.of(end) for name, end in ends.items() if end.state is not None}


class Present(NamedTuple):
    """What a verb has at the moment: connections, and what they brought; how many it refused so far, and probes."""

    connections: int
    refused: int
    probes: int
    sides: Sides


class Totals:
    """The figures of all connections of a run: of those that have ended (`ended`) and those that are there."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._count = self._peak = self._refused = self._probes = 0
        self._ended: Sides = {}

    def ended(self, sides: Sides, others: int, refused: int) -> None:
        """Count one that has just ended: there never were more at once than before some end, or than there are now."""
        self._count += 1
        self._ended |= self._with(sides)
        self._see(others + 1, refused)

    def see(self, present: Present) -> None:
        """Take note of what a verb forgets when it closes."""
        self._see(present.connections, present.refused)
        self._probes = max(self._probes, present.probes)

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

    def _with(self, sides: Sides) -> Sides:
        """Return what these and all that have ended have brought."""
        return {
            name: _sum([side, self._ended[name]] if name in self._ended else [side]) for name, side in sides.items()
        }

    def _see(self, connections: int, refused: int) -> None:
        self._peak = max(self._peak, connections)
        self._refused = max(self._refused, refused)


def _sum(sides: "Iterable[Side]") -> Side:
    from ringmain.outcome import total

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
