"""The lists of keywords that end docstrings: each is written once, and `help()` shows it wherever it belongs."""

import inspect
import re
from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])

# A keyword, its default, and what it is.
KEYWORD = re.compile(r"(\w+) \((.+?)\): ")


def documented(*others: object) -> Callable[[Function], Function]:
    """Return a decorator that adds the keywords of others to a function's docstring."""

    def decorate(function: Function) -> Function:
        function.__doc__ = with_keywords(function, *others)
        return function

    return decorate


def with_keywords(it: object, *others: object) -> str:
    """Return a docstring, and behind it the lists that end the docstrings of others."""
    return "\n".join(filter(None, [inspect.getdoc(it), *map(_keywords, others)]))


def _keywords(it: object) -> str:
    lines = (inspect.getdoc(it) or "").splitlines()  # Python leaves docstrings out where it is told to (-OO)
    first = next((at for at, line in enumerate(lines) if KEYWORD.match(line)), len(lines))
    return "\n".join(lines[first:])
