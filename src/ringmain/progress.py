"""Counters to one line on stderr, twice a second, while a terminal looks on."""

import asyncio
import sys
import time
from collections.abc import Callable

_INTERVAL = 0.5
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


def progress_line(size: int, seconds: float, rate_in: float, rate_out: float, fullness: float) -> str:
    """Return the line: bytes so far, time, rates over the last interval, and how full the buffer between them is."""
    return (
        f"{size_words(size)}  {clock_words(seconds)}  in {size_words(rate_in)}/s  out {size_words(rate_out)}/s"
        f"  buffer {fullness:.0%}"
    )


async def show_progress(look: Callable[[], tuple[int, int, float]]) -> None:
    """Show progress until cancelled; `look` returns bytes in, bytes out, and the buffer's fullness from 0 to 1.

    On a terminal one line is written over; elsewhere (--progress) each is a line of its own.
    """
    terminal = sys.stderr.isatty()
    started = before = time.monotonic()
    last_in = last_out = 0
    try:
        while True:
            await asyncio.sleep(_INTERVAL)
            now = time.monotonic()
            bytes_in, bytes_out, fullness = look()
            rates = (bytes_in - last_in) / (now - before), (bytes_out - last_out) / (now - before)
            line = progress_line(bytes_in, now - started, *rates, fullness)
            print(f"\r{line}\x1b[K" if terminal else line, end="" if terminal else "\n", file=sys.stderr, flush=True)
            before, last_in, last_out = now, bytes_in, bytes_out
    finally:
        if terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
