"""The words of error lines: the library names keywords, the command line names its flags, and where they came from."""

import re
from collections.abc import Iterable

# A keyword in an error line of the library: idle_timeout=, listen_once=True, path=kernel, source_tls.cafile=.
_KEYWORD = r"\b(?:(source|destination)_tls\.)?([a-z][a-z0-9_]*)=(?:True\b|(?=[^\s.,:;)?])(?P<value>))?"
# The keywords that the options of the commands which are there stand for.
_names: set[str] = set()
# The flags that nobody has written, and the variables that hold them.
_variables: dict[str, str] = {}


def stand_for(keywords: Iterable[str]) -> None:
    """Have lines that name one of these keywords name its flag."""
    _names.update(keywords)


def set_by_environment(flag: str, variable: str) -> None:
    """Have lines that name the flag name the environment variable too, which is where the user has to look."""
    _variables[flag] = variable


def as_flags(line: str) -> str:
    """Name the flags where a line of the library names its keywords, and the variables that have set them."""

    def flag(match: re.Match[str]) -> str:
        name = "_".join(filter(None, match.group(1, 2)))
        if name not in _names:
            return match[0]
        return f"--{name.replace('_', '-')}" + (" " if match["value"] is not None else "")

    line = re.sub(_KEYWORD, flag, line)
    for given, variable in _variables.items():
        line = re.sub(rf"(?<![\w-]){given}(?![\w-])'?", rf"\g<0> (set by {variable})", line, count=1)
    return line
