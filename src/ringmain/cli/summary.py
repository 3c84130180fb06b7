"""The last line: what all connections of a run moved, how long that took, and what kept it from being faster."""

import os
import time
from typing import Any, NamedTuple

from ringmain.outcome import FAILED_HANDSHAKE, NOT_SERVED, PROCESS_DIED
from ringmain.progress import clock_words, size_words

# So many gaps between connections are kept; what is older counts as it was when it was folded.
_MOST_GAPS = 1000
# What took less is not judged.
_LEAST_SECONDS = 0.1


class Blame(NamedTuple):
    """Who kept a run waiting: while writes stood still, and while there was nothing to move.

    `waited` are seconds that no counter has as stalled; `lanes` are the cores that could be at work at once.
    """

    stalled: str
    idle: str
    waited: float = 0.0
    lanes: int = 1


class Summary:
    """The figures of a run's connections, from their rows for the stats file."""

    def __init__(self) -> None:
        self.begin()
        self._count = 0
        self._seconds = 0.0  # of all connections together
        self._sizes = [0, 0]  # there and back; of load and save there is but one way
        self._stalled = [0.0, 0.0]
        self._both = False
        self._folded = 0.0
        self._spans: list[tuple[float, float]] = []  # in which there were connections, apart from one another

    def begin(self) -> None:
        """Leave out the CPU time so far, which went to the start of the program."""
        self._cpu = _cpu_seconds()

    def add(self, row: dict[str, Any]) -> None:
        """Count a connection that has just ended, if it ever got as far as bytes, and how many is known."""
        if row["verdict"] in (FAILED_HANDSHAKE, NOT_SERVED, PROCESS_DIED):
            return
        self._both = "source" in row
        for way, side in enumerate((row["source"], row["destination"]) if self._both else (row,)):
            self._sizes[way] += side.get("bytes", 0)
            self._stalled[way] += side.get("stalled_seconds", 0.0)
        self._count += 1
        self._seconds += row["seconds"]
        end = time.monotonic()
        start = end - row["seconds"]
        while self._spans and self._spans[-1][1] >= start:
            start = min(start, self._spans.pop()[0])
        self._spans.append((start, end))
        if len(self._spans) > _MOST_GAPS:
            first, last = self._spans.pop(0)
            self._folded += last - first

    def line(self, blame: Blame | None) -> str:
        """Return the line, or nothing where there was no connection."""
        if not self._count:
            return ""
        seconds = self._folded + sum(end - start for start, end in self._spans)
        way = int(self._sizes[1] > self._sizes[0])
        size = self._sizes[way]
        words = ("there", "back")
        moved = f"{size_words(size)}{f' {words[way]}' if self._both else ''}"
        if self._both and self._sizes[1 - way]:
            moved += f" and {size_words(self._sizes[1 - way])} {words[1 - way]}"
        taken = f"{seconds:.2f} s" if seconds < 60 else clock_words(seconds)
        parts = [f"{moved} in {taken}", f"{size_words(size / max(seconds, 1e-3))}/s"]
        if blame is not None and size and seconds >= _LEAST_SECONDS:
            parts.append(f"limited by {self._limit(blame, way, seconds)}")
        return f"{f'{self._count} connections: ' if self._count > 1 else ''}{', '.join(parts)}"

    def _limit(self, blame: Blame, way: int, seconds: float) -> str:
        """Return what most of the time went to."""
        stalled = min(1.0, (self._stalled[way] + blame.waited) / max(self._seconds, 1e-3))
        busy = min(1.0, (_cpu_seconds() - self._cpu) / seconds / blame.lanes)
        # Where the answers of a relay are most of it, each of its ends has the other's part.
        takes, gives = (blame.idle, blame.stalled) if way else (blame.stalled, blame.idle)
        shares = {takes: stalled, "this machine's CPU": busy}
        shares[gives] = shares.get(gives, 0.0) + max(0.0, 1 - stalled - busy)
        return max(shares, key=lambda it: shares[it])


def _cpu_seconds() -> float:
    """Return the CPU time of this process, and of those of its children that have ended."""
    return sum(os.times()[:4])
