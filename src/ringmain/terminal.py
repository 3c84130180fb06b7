"""Standard output and error, and how wide they are. Imported at each start: it costs next to nothing."""

import contextlib
import io
import os
import sys
from collections.abc import Sequence
from typing import Protocol


class Data(Protocol):
    """What writes data to the terminal."""

    mid_line: bool
    """Whether what it wrote last has not ended a line."""


class Screen:
    """Standard error: a line that is written over, and lines that stay. Where it is no terminal all of them stay.

    `data` is what else is written to the terminal: lines of ours begin behind a line of that, not within.
    """

    data: Data | None = None
    shared = False
    """Whether another process shows a line there, which is to be written over as well."""
    _shown = False  # the line that is written over

    def show(self, text: str) -> None:
        """Write over the line, or another one where it is no terminal; raise OSError."""
        width = columns(2)
        if sys.stderr.isatty():
            self._shown = True
            text = f"\r{fitting(text, width and width - 1)}\x1b[K"  # a full line would wrap in some terminals
        else:
            text = f"{fitting(text, width)}\n"
        sys.stderr.write(text)
        sys.stderr.flush()

    def clear(self) -> None:
        """Let what is written next begin a line."""
        text = ""
        if self._shown or self.shared:
            self._shown, text = False, "\r\x1b[K"
        elif self.data is not None and self.data.mid_line:
            self.data.mid_line, text = False, "\n"
        if text:
            with contextlib.suppress(OSError):  # nobody reads standard error
                sys.stderr.write(text)
                sys.stderr.flush()


screen = Screen()


def write_whole_texts() -> None:
    """Have standard output write all of a text, also where PYTHONUNBUFFERED or `-u` took its buffer away.

    Without one Python loses the rest of a text when the process is stopped, or gets a signal, while a full pipe waits.
    """
    out = sys.stdout
    if isinstance(out, io.TextIOWrapper) and isinstance(out.buffer, io.RawIOBase):
        sys.stdout = open(1, "w", buffering=1, encoding=out.encoding, errors=out.errors, closefd=False)  # noqa: SIM115


def columns(fd: int) -> int | None:
    """Return how many columns there are: those that COLUMNS says, or the terminal's; None where neither tells."""
    try:
        said = int(os.environ.get("COLUMNS", ""))
    except ValueError:
        said = 0
    if said > 0:
        return said
    try:
        return os.get_terminal_size(fd).columns or None  # a terminal that nobody told its size has 0
    except OSError:
        return None


def fitting(text: str, width: int | None) -> str:
    """Return as many parts of a line as fit, from its left; two spaces are between parts. The first may be cut."""
    while width is not None and len(text) > width and "  " in text:
        text = text.rpartition("  ")[0].rstrip()
    return text[:width]


def table(rows: Sequence[Sequence[str]], width: int | None, *, right: bool = False) -> str:
    """Return rows as a table; columns that do not fit follow below, behind the first one again.

    With `right` all but the first column stand at the right, as figures do.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    bands: list[list[int]] = [[]]
    for at in range(1, len(widths)):
        if width is not None and bands[-1] and widths[0] + sum(widths[it] + 2 for it in (*bands[-1], at)) > width:
            bands.append([])
        bands[-1].append(at)

    def line(row: Sequence[str], band: list[int]) -> str:
        cells = [row[it].rjust(widths[it]) if right else row[it].ljust(widths[it]) for it in band]
        return "  ".join([row[0].ljust(widths[0]), *cells]).rstrip()

    return "\n\n".join("\n".join(line(row, band) for row in rows) for band in bands)
