"""The types of the values that options have: durations, sizes, percentages, counts."""

import os
import re
from typing import TYPE_CHECKING, Any, ClassVar

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

# How endpoints begin, two of each scheme: behind a word that only one completes shells put a space.
_BEGINNINGS = [f"{scheme}://{host}:" for scheme in ("tcp", "tcps") for host in ("", "127.0.0.1")]
_BEGINNINGS += ["unix:/", "unix:@", "nats://127.0.0.1/", "nats://localhost/"]
# Compiled code counts bytes in 63 bits, and adds a few sizes up.
_MOST_BYTES = 1 << 62
# What Python takes for a number has so many digits at most; nobody needs that many.
_MOST_DIGITS = 18
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}


class Duration(click.ParamType[float | None]):
    """500ms, 5s, 2m, 1h, or off; a bare number is seconds. Converts to float seconds, off to None."""

    name = "duration"
    _may_be_zero = False

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | None:
        """Return the seconds."""
        if value is None or not isinstance(value, str):
            return None if value is None else float(value)
        if value == "off":
            return None
        match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|)", value)
        if match is None or not (float(match[1]) or self._may_be_zero):
            self.fail(f"{value!r} is not a duration: write 500ms, 5s, 2m or off", param, ctx)
        return float(match[1]) * _UNITS[match[2]]

    @staticmethod
    def words(seconds: float | None) -> str:
        """Return how a duration is written."""
        if seconds is None:
            return "off"
        return f"{seconds:g}s" if seconds >= 1 else f"{seconds * 1000:g}ms"


class Linger(Duration):
    """A duration that may be 0, which off is too."""

    _may_be_zero = True

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the seconds."""
        return super().convert(value, param, ctx) or 0.0


class Size(click.ParamType[int]):
    """A number of bytes: 1500, 64K, 1M, 10G, in powers of 1024."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the bytes."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)", value)
        size = float(match[1]) * 1024 ** " KMGT".index(match[2] or " ") if match else 0.0
        if not 1 <= size <= _MOST_BYTES:
            self.fail(f"{value!r} is not a size: write 1500, 64K, 1M or 10G", param, ctx)
        return int(size)

    @staticmethod
    def words(size: int) -> str:
        """Return how a whole number of mebibytes is written."""
        return f"{size >> 20}M"


class Octets(click.ParamType[bytes]):
    r"""Octets; \n, \r, \t, \0, \\ and \xHH stand for what they do in C."""

    name = "octets"
    _ESCAPES: ClassVar[dict[str, bytes]] = {"n": b"\n", "r": b"\r", "t": b"\t", "0": b"\0", "\\": b"\\"}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bytes:
        """Return the octets."""
        if isinstance(value, bytes):
            return value
        octets = b""
        for piece in re.findall(r"\\x[0-9A-Fa-f]{2}|\\.?|[^\\]+", value, re.DOTALL):
            if not piece.startswith("\\"):
                octets += os.fsencode(piece)
            elif len(piece) == 4:
                octets += bytes.fromhex(piece[2:])
            elif piece[1:] in self._ESCAPES:
                octets += self._ESCAPES[piece[1:]]
            else:
                self.fail(f"{piece} is no escape: write \\n, \\r, \\t, \\0, \\\\ or \\x1e", param, ctx)
        return octets


class LongRecords(click.Choice[str]):
    """What becomes of records that are too long; what raises in the library resets its sender here."""

    def __init__(self) -> None:
        super().__init__(["reset", "skip"])

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the library's word."""
        word = super().convert(value, param, ctx)
        return "raise" if word == "reset" else word

    @staticmethod
    def words(word: str) -> str:
        """Return the command line's word."""
        return "reset" if word == "raise" else word


class Mode(click.ParamType[int]):
    """The mode of a file, as chmod has it: 0660."""

    name = "mode"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the bits."""
        if isinstance(value, int):
            return value
        if not re.fullmatch(r"0?[0-7]{3}", value):
            self.fail(f"{value!r} is not a mode: write three octal digits, as 0660", param, ctx)
        return int(value, 8)


class Percentage(click.ParamType[float]):
    """5%, which converts to 0.05."""

    name = "percentage"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the part of one."""
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)%", value)
        if match is None or not 0 < float(match[1]) < 100:
            self.fail(f"{value!r} is not a percentage: write 5%", param, ctx)
        return float(match[1]) / 100


class Count(click.IntRange):
    """A whole number within bounds, which error lines and help call an integer and no "integer range"."""

    name = "integer"


class Retries(click.ParamType[int]):
    """A count, or forever, which converts to -1."""

    name = "count"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the count."""
        if value == "forever":
            return -1
        if not str(value).isdecimal() or len(str(value)) > _MOST_DIGITS:
            self.fail(f"{value!r} is not a count: write a number or forever", param, ctx)
        return int(value)


class FileName(click.types.StringParamType):
    """The name of a file, which a shell completes; whether there is one is found out by whoever opens it."""

    name = "file"

    def shell_complete(self, _: click.Context, __: click.Parameter, incomplete: str) -> "list[CompletionItem[str]]":
        """Have the shell complete it."""
        return file_names(incomplete)


class Endpoint(click.types.StringParamType):
    """An endpoint, whose beginning a shell completes, and the file of a UNIX socket; or a file, with `or_file`."""

    name = "endpoint"

    def __init__(self, *, or_file: bool = False) -> None:
        self._or_file = or_file

    def shell_complete(self, _: click.Context, __: click.Parameter, incomplete: str) -> "list[CompletionItem[str]]":
        """Complete the beginning, or have the shell complete a file's name."""
        from click.shell_completion import CompletionItem

        beginnings = [CompletionItem(it) for it in _BEGINNINGS if it.startswith(incomplete)]
        return beginnings or (file_names(incomplete) if self._or_file else [])


def file_names(incomplete: str) -> "list[CompletionItem[str]]":
    """Return what has a shell complete the name of a file."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="file")]


DURATION = Duration()
ENDPOINT, END, FILE = Endpoint(), Endpoint(or_file=True), FileName()
