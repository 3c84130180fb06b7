"""What `help()` tells of every keyword, and that a value of the wrong kind is refused where it is given."""

import inspect
import re
import subprocess
import sys
import typing
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import ringmain
from ringmain import testing
from ringmain.keywords import KEYWORD
from ringmain.settings import Settings, TlsSettings

VERBS = ["connect", "load", "open", "relay", "save", "serve"]
FEEDS = [
    "arrow.batches",
    "arrow.buffer",
    "arrow.lines",
    "arrow.record_batches",
    "duckdb.relation",
    "msgspec.decode_lines",
    "numpy.line_offsets",
    "numpy.records",
    "pandas.frames",
    "polars.frames",
]
CLASSES = [
    *(getattr(ringmain, name) for name in ringmain.__all__ if inspect.isclass(getattr(ringmain, name))),
    *(getattr(testing, name) for name in testing.__all__),
]
# What is for a log only, and refused elsewhere whatever it is.
OF_A_LOG: dict[str, set[str]] = {
    "load": {"from_sequence", "until_sequence"},
    **{key: {"framing", "long_records", "message_size", "max_in_flight"} for key in ("relay", "save")},
    **{key: set() for key in ("connect", "open", "serve")},
}
CALL_OF: dict[str, Callable[[dict[str, Any]], object]] = {
    "connect": lambda options: ringmain.connect("127.0.0.1:1", **options),
    "load": lambda options: ringmain.load("127.0.0.1:0", **options),
    "open": lambda options: ringmain.open("127.0.0.1:1", **options),
    "relay": lambda options: ringmain.relay("127.0.0.1:0", "127.0.0.1:1", **options),
    "save": lambda options: ringmain.save("127.0.0.1:1", **options),
    "serve": lambda options: ringmain.serve("127.0.0.1:0", print, **options),  # type: ignore[arg-type]
}


def parameters(function: Callable[..., Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield each keyword that a function takes, its default, and its type; those of `**options` too."""
    for signature in map(inspect.signature, typing.get_overloads(function) or [function]):
        for it in signature.parameters.values():
            if it.kind is it.VAR_KEYWORD:
                for options in typing.get_args(it.annotation):
                    for name, kind in typing.get_type_hints(options).items():
                        yield name, getattr(Settings, name), kind
            elif it.name != "self":
                yield it.name, it.default, it.annotation


def listed(documented: object) -> dict[str, str]:
    """Return the keywords that a docstring lists, with what it says of their defaults."""
    found = [KEYWORD.match(line) for line in (inspect.getdoc(documented) or "").splitlines()]
    assert len({it[1] for it in found if it}) == sum(it is not None for it in found), "a keyword is listed twice"
    return {it[1]: it[2] for it in found if it}


def told(default: Any) -> str:
    """Return how a docstring tells of a default."""
    if type(default) is int and default >= 1024:
        return f"{default >> 20} MiB" if default % (1 << 20) == 0 else f"{default >> 10} KiB"
    return {Any: "Any", "": '""', b"": 'b""'}.get(default, repr(default).replace("'", '"'))


def check(function: Callable[..., Any], also: Callable[..., Any] | None = None) -> None:
    lines, known = listed(function), set()
    text = inspect.getdoc(function) or ""
    for name, default, _ in [*parameters(function), *(parameters(also) if also else [])]:
        known.add(name)
        if default is inspect.Parameter.empty or name not in lines:
            assert re.search(rf"`{name}[`(]", text), f"{name} is missing"
            assert default in (inspect.Parameter.empty, "rb", ...), f"{name} has a default that is not listed"
        elif default is not None and default is not ...:
            assert re.match(re.escape(told(default)) + r"(?![\w.])", lines[name]), f"{name}: {default!r}"
    assert set(lines) <= known, "a keyword is listed that there is not"


@pytest.mark.parametrize("verb", VERBS)
def test_help_tells_every_keyword_of_a_verb_with_its_default(verb: str) -> None:
    check(getattr(ringmain, verb))


@pytest.mark.parametrize("kind", [ringmain.Options, ringmain.ConnectionOptions, ringmain.LogOptions])
def test_help_tells_every_keyword_that_verbs_share_with_its_default(kind: Any) -> None:
    lines = listed(kind)
    assert set(lines) == set(typing.get_type_hints(kind))
    for name, default in lines.items():
        assert default == told(getattr(Settings, name))


def test_help_tells_how_tls_is_chosen() -> None:
    assert {name: told(getattr(TlsSettings, name)) for name in TlsSettings.__dataclass_fields__} == listed(TlsSettings)


@pytest.mark.parametrize("path", FEEDS)
def test_help_tells_every_argument_of_a_feed_with_its_default(path: str) -> None:
    from feeding import library

    module, _, name = path.partition(".")
    feed, batches = library(f"ringmain.feeds.{module}"), library("ringmain.feeds.arrow").batches
    function = getattr(feed, name)
    takes_more = any(it.kind is it.VAR_KEYWORD for it in inspect.signature(function).parameters.values())
    if name in ("buffer", "lines", "line_offsets"):
        assert "block" in (inspect.getdoc(function) or "")
    elif takes_more:
        strict = {it: default for it, default, _ in parameters(function) if it != "options"}
        function.__signature__ = inspect.Signature(
            [inspect.Parameter(it, inspect.Parameter.KEYWORD_ONLY, default=default) for it, default in strict.items()]
        )
        try:
            check(function, batches)
        finally:
            del function.__signature__
    else:
        check(function)


@pytest.mark.parametrize("module", ["arrow", "duckdb", "msgspec", "numpy", "pandas", "polars"])
def test_no_feed_is_left_out_of_these_tests(module: str) -> None:
    from feeding import library

    feed = library(f"ringmain.feeds.{module}")
    functions = {
        f"{module}.{name}"
        for name, it in vars(feed).items()
        if inspect.isfunction(it) and it.__module__ == feed.__name__ and not name.startswith("_")
    }
    assert functions == {path for path in FEEDS if path.startswith(f"{module}.")}


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_help_tells_every_argument_of_a_public_method(kind: type) -> None:
    for name, method in vars(kind).items():
        if name.startswith("_") or not inspect.isfunction(method):
            continue
        for argument, _, _ in parameters(method):
            if argument == "_":
                continue
            text = inspect.getdoc(getattr(kind, name)) or ""
            assert re.search(rf"\b{argument}\b", text), f"{kind.__name__}.{name}: {argument} is missing"


@pytest.mark.parametrize("verb", VERBS)
def test_a_value_of_the_wrong_kind_is_refused_where_it_is_given(verb: str) -> None:
    for name, _, kind in parameters(getattr(ringmain, verb)):
        if name in ("url", "source", "destination", "handler", "mode") or str in {kind, *typing.get_args(kind)}:
            continue
        if name in OF_A_LOG[verb]:
            continue
        for value in ("forever", 1.5j, float("nan")):
            with pytest.raises(ringmain.UsageError, match=rf"{name}\b"):
                CALL_OF[verb]({name: value})


def test_a_number_of_tries_is_one_and_forever_has_a_remedy() -> None:
    with pytest.raises(ringmain.UsageError, match="retry='forever': not a whole number; give -1 for ever"):
        ringmain.connect("127.0.0.1:1", retry="forever")  # type: ignore[arg-type]
    for wrong in (-2, True, 1.0):
        with pytest.raises(ringmain.UsageError, match="retry="):
            ringmain.load("127.0.0.1:1", connect=True, retry=wrong)  # type: ignore[arg-type]


def test_without_docstrings_all_works_the_same() -> None:
    code = "import ringmain; ringmain.load('127.0.0.1:0'); assert ringmain.open; print(ringmain.load.__doc__)"
    result = subprocess.run([sys.executable, "-OO", "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""
