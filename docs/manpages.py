"""Write the man pages: one for ringmain, and one for each of its commands. Run with the folder that they go to.

setup.py runs this while the package is built, with what is in src/; nothing but click is needed for that.
"""

import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from commands import Command, Option, commands

from ringmain import __version__

_EXIT_CODES = Path(__file__).parent / "reference" / "exit-codes.md"


def pages() -> dict[str, str]:
    """Return each page's text by the name of its file."""
    by_page: dict[str, list[Command]] = {}
    for command in commands():
        by_page.setdefault("-".join(command.name.split()[:2]), []).append(command)
    return {f"{name}.1": _page(name, of_page, list(by_page)) for name, of_page in by_page.items()}


def _page(name: str, of_page: list[Command], names: list[str]) -> str:
    main = of_page[0]
    lines = [f'.TH {name.upper()} 1 "{_date()}" "ringmain {__version__}" "User Commands"']
    lines += [".SH NAME", f"{_escaped(name)} \\- {_escaped(main.summary.rstrip('.'))}", ".SH SYNOPSIS"]
    for position, command in enumerate(of_page):
        lines += [*([".br"] if position else []), f".B {_escaped(command.name)}", _escaped(command.arguments)]
    lines += [".SH DESCRIPTION", *_paragraph(main.summary), *_prose(main)]
    for command in of_page[1:]:
        lines += [f".SS {_escaped(command.name)}", *_paragraph(command.summary), *_prose(command)]
    lines += [".SH OPTIONS", *_options(main.options)]
    for command in of_page[1:]:
        lines += [f".SS Of {_escaped(command.name)}", *_options(command.options)]
    lines += [".SH VALUES", *_paragraph(_VALUES), ".SH ENVIRONMENT", *_paragraph(_environment(main))]
    lines += [".SH EXIT STATUS", *_exit_codes()]
    others = [f".BR {_escaped(it)} (1)" for it in names if it != name]
    lines += [".SH SEE ALSO", *(line + "," for line in others[:-1]), *others[-1:]]
    return "\n".join(lines) + "\n"


_VALUES = (
    "A DURATION is written 500ms, 5s, 2m or off; a bare number is seconds. "
    "A SIZE is in bytes, as 1500, 64K, 1M or 10G, in powers of 1024. An ENDPOINT is tcp://HOST:PORT, tcps://HOST:PORT "
    "for TLS, unix:/path, or, to listen, tcp://fd:NAME; an empty HOST listens at every interface."
)


def _environment(command: Command) -> str:
    if command.name == "ringmain":
        return (
            "RINGMAIN_KEY_PASSWORD is the password of an encrypted key. See the page of each command for its options."
        )
    example = next(it for it in command.options if it.variable)
    return (
        f"Every option except -4 and -6 can be set by a variable: {example.variable} is {example.names.split()[0]}. "
        "RINGMAIN_KEY_PASSWORD is the password of an encrypted key."
    )


def _prose(command: Command) -> Iterator[str]:
    for part in command.parts:
        if isinstance(part, str):
            yield from _paragraph(part)
        else:
            yield from [".PP", ".nf", ".RS 4", *map(_escaped, part), ".RE", ".fi"]


def _paragraph(text: str) -> list[str]:
    return [".PP", _escaped(text)]


def _options(options: Iterable[Option]) -> Iterator[str]:
    for option in options:
        names = re.sub(r"(?<![\w-])(--?[\w-]+)", r"\\fB\1\\fR", option.names)
        yield from [".TP", _escaped(names, written=True), _escaped(option.text)]


def _exit_codes() -> Iterator[str]:
    """Take the table of the documentation."""
    for line in _EXIT_CODES.read_text().splitlines():
        if match := re.fullmatch(r"\| (\d[^|]*?) *\| (.*?) *\|(?:.*\|)?", line):
            codes, text = (re.sub(r"[`*]|\[([^]]*)\]\([^)]*\)", r"\1", it) for it in match.groups())
            yield from [".TP", rf"\fB{_escaped(codes)}\fR", _escaped(text)]


def _escaped(text: str, *, written: bool = False) -> str:
    """Return a line for roff: nothing in it is a request, and dashes stay what they are."""
    if not written:
        text = text.replace("\\", "\\e")
    text = (
        text.replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga").replace("^", "\\(ha").replace("~", "\\(ti")
    )
    return text if not text.startswith(".") else "\\&" + text


def _date() -> str:
    """Return the day of the build, or the one that is given for builds with the same bytes."""
    return time.strftime("%Y-%m-%d", time.gmtime(int(os.environ.get("SOURCE_DATE_EPOCH", time.time()))))


def main(folder: Path) -> list[str]:
    """Write all pages; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text)
    return [str(folder / name) for name in pages()]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
