"""Counters to one line on stderr, twice a second, while a terminal looks on. Those of a bench: cli.bench_output."""

import asyncio
import contextlib
import sys
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

from ringmain.terminal import screen

INTERVAL = 0.5
# What a look at a verb shows: bytes in and out, or there and back, and the fullness of what is between, from 0 to 1.
Look = Callable[[], tuple[int, int, float]]
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def size_words(size: float) -> str:
    """Return a number of bytes in the largest unit that leaves it at 1 or more: 1.50 GiB."""
    unit = 0
    while size >= 1024 and unit < len(_UNITS) - 1:
        size /= 1024
        unit += 1
    return f"{size:.0f} B" if unit == 0 else f"{size:.2f} {_UNITS[unit]}"


def clock_words(seconds: float) -> str:
    """Return a duration as 0:01:02."""
    minutes, second = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{second:02}"


class Line(Protocol):
    """How a look is worded: both numbers of bytes, seconds since the start, both rates lately, and the fullness."""

    def __call__(self, sizes: tuple[int, int], seconds: float, rates: tuple[float, float], fullness: float, /) -> str:
        """Return the line."""


def progress_line(
    sizes: tuple[int, int], seconds: float, rates: tuple[float, float], fullness: float, far: "Far | None" = None
) -> str:
    """Return the line of load and save: what came in so far, the rates in and out. What matters most comes first."""
    return (
        f"{size_words(sizes[0])}{f'  {far}' if far is not None else ''}  {clock_words(seconds)}"
        f"  in {size_words(rates[0])}/s  out {size_words(rates[1])}/s  buffer {fullness:.0%}"
    )


class Far(NamedTuple):
    """How far one has come with `whole` bytes, of which `size` are done after so many seconds."""

    size: int
    whole: int
    seconds: float

    def __str__(self) -> str:
        share = min(1.0, self.size / self.whole) if self.whole else 1.0
        left = self.seconds * (1 / share - 1) if share else None
        return f"{int(100 * share)}%" + ("" if left is None else f"  {clock_words(left)} left")


def relay_line(sizes: tuple[int, int], seconds: float, rates: tuple[float, float], fullness: float) -> str:
    """Return the line of relay: what went each way so far, and the rates."""
    there, back = (f"{size_words(size)} at {size_words(rate)}/s" for size, rate in zip(sizes, rates, strict=True))
    return f"there {there}  back {back}  {clock_words(seconds)}  buffer {fullness:.0%}"


class Figures:
    """What a verb shows, as a line whose rates are of the time since the one before, or since the start."""

    def __init__(self, look: Look, line: Line) -> None:
        self._look = look
        self._line = line
        self._started = self._before = time.monotonic()
        self._last = (0, 0)

    def text(self) -> str:
        """Return the line."""
        now = time.monotonic()
        bytes_in, bytes_out, fullness = self._look()
        seconds = max(now - self._before, 1e-3)
        rates = (bytes_in - self._last[0]) / seconds, (bytes_out - self._last[1]) / seconds
        self._before, self._last = now, (bytes_in, bytes_out)
        return self._line((bytes_in, bytes_out), now - self._started, rates, fullness)

    def tell(self) -> None:
        """Write the line to standard error, to stay."""
        with contextlib.suppress(OSError):  # nobody reads standard error, or it has no room
            screen.clear()
            print(self.text(), file=sys.stderr, flush=True)


def waiting_line(where: str, number: int) -> str:
    """Return the line of who waits for a peer: which try to connect comes next or is under way."""
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"waiting for {where} ({number}{ending} try)"


async def show_progress(look: Look, line: Line) -> None:
    """Show progress until cancelled."""
    figures = Figures(look, line)
    try:
        while True:
            await asyncio.sleep(INTERVAL)
            screen.show(figures.text())
    finally:
        screen.clear()
