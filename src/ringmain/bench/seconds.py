"""What goes on in a measurement as lines of text, one a second, as iperf3 has them."""

from typing import Any

from ringmain.bench.table import figure, rates_of, size_of

# A second, as timers keep it.
_SECOND = 0.95
_COLUMNS = (("seconds", 15), ("bytes", 9), ("GB/s  ", 8), ("Gbit/s  ", 8), ("retransmits", 11), ("RTT ms  ", 8))
# A figure has so many digits behind its point at most.
_DIGITS = 4


class Seconds:
    """Intervals as lines no wider than `width`: columns that do not fit are left out, behind the third.

    What the kernel tells is left out where it told nothing of the first interval.
    """

    def __init__(self, width: int) -> None:
        self._width = width
        self._shown = 0
        self._pending: list[dict[str, Any]] = []

    def add(self, interval: dict[str, Any]) -> list[str]:
        """Return the lines that are due when an interval, as it is in a result, is over."""
        turns = self._pending and self._pending[-1]["sum"]["omitted"] != interval["sum"]["omitted"]
        lines = self.rest() if turns else []
        self._pending.append(interval)
        over = interval["sum"]["end"] - self._pending[0]["sum"]["start"] >= _SECOND
        return lines + self.rest() if over else lines

    def rest(self) -> list[str]:
        """Return the lines of what came since the last one."""
        whole, self._pending = self._pending, []
        sums = [it["sum"] for it in whole]
        size = sum(it["bytes"] for it in sums)
        if not sums or (size == 0 and sums[-1]["end"] - sums[0]["start"] < _SECOND):
            return []
        start, end = sums[0]["start"], sums[-1]["end"]
        trips = [stream["rtt"] for it in whole for stream in it["streams"] if "rtt" in stream]
        retransmits = [it["retransmits"] for it in sums if "retransmits" in it]
        cells = [f"{start:.2f}-{end:.2f}", size_of(size), *map(_pointed, rates_of(8 * size / max(end - start, 1e-9)))]
        cells.append(str(sum(retransmits)) if retransmits else "-")
        cells.append(_pointed(figure(sum(trips) / len(trips) / 1e3 if trips else None)))
        lines = [] if self._shown else [self._head(known=bool(retransmits))]
        return [*lines, self._line(cells) + ("  (warm-up)" if sums[0]["omitted"] else "")]

    def _head(self, *, known: bool) -> str:
        """Choose the columns; return their head."""
        used, most = 0, len(_COLUMNS) if known else 4
        for _, width in _COLUMNS[:most]:
            used += width + 2
            if self._shown >= 3 and used - 2 > self._width:
                break
            self._shown += 1
        return self._line([name for name, _ in _COLUMNS])

    def _line(self, cells: list[str]) -> str:
        shown = zip(cells[: self._shown], _COLUMNS, strict=False)
        return "  ".join(cell.rjust(width) for cell, (_, width) in shown).rstrip()


def _pointed(cell: str) -> str:
    """Return a figure with blanks behind it, so that its point is where those of others are."""
    whole, point, digits = cell.partition(".")
    return f"{whole}{point or ' '}{digits:{_DIGITS}}"
