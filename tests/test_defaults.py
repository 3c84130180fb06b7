"""Every default stands once, in `settings`: what the command line does unasked is what the library does unasked."""

import ast
import dataclasses
import inspect
from pathlib import Path
from typing import Any, get_overloads

import click
import pytest

import ringmain
from ringmain.cli.commands import cli
from ringmain.cli.replay import bench_load, bench_save
from ringmain.settings import Settings

PACKAGE = Path(ringmain.__file__).parent
VERBS = [*get_overloads(ringmain.load), ringmain.save, ringmain.relay, ringmain.open, ringmain.Relayer.serve]
COMMANDS = [*(cli.commands[name] for name in ("load", "save", "relay", "bench")), bench_load, bench_save]


def library_defaults() -> dict[str, Any]:
    """Return what each keyword is in the library where nobody gives it."""
    parameters = [it for verb in VERBS for it in inspect.signature(verb).parameters.values()]
    of_verbs = {it.name: it.default for it in parameters if it.default is not inspect.Parameter.empty}
    return {**of_verbs, **{field.name: field.default for field in dataclasses.fields(Settings)}}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda it: it.name)
def test_an_option_that_is_not_given_is_what_the_keyword_is(command: click.Command) -> None:
    needed = [it for it in command.params if it.required]
    words = [word for it in needed for word in ([it.opts[-1], "x"] if isinstance(it, click.Option) else ["x"])]
    known, compared = library_defaults(), 0
    for name, value in command.make_context("ringmain", words).params.items():
        keyword = name.removeprefix("source_").removeprefix("destination_")
        if keyword in known and name != "family":  # which has no option for both
            assert (name, value) == (name, known[keyword])
            compared += 1
    assert compared > 5


def test_no_option_of_a_keyword_and_no_signature_has_a_default_written_out() -> None:
    """0, 1 and what is no number or word at all are left to them; a word in a signature is of one function only."""
    known = library_defaults()
    found = []

    def look_at(value: ast.expr | None, *kinds: type) -> None:
        constants = [it.value for it in ast.walk(value) if isinstance(it, ast.Constant)] if value is not None else []
        found.extend(it for it in constants if isinstance(it, kinds) and it not in (0, 1, "-"))

    for path in PACKAGE.glob("cli/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                words = [it.value for it in node.args if isinstance(it, ast.Constant) and isinstance(it.value, str)]
                if known.keys() & {word.lstrip("-").replace("-", "_") for word in words}:
                    for it in node.keywords:
                        look_at(it.value if it.arg == "default" else None, int, float, str)
    for name in ("connection", "file", "relayer", "saver", "server", "sources"):
        for node in ast.walk(ast.parse((PACKAGE / f"{name}.py").read_text())):
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                for default in (*node.args.defaults, *node.args.kw_defaults):
                    look_at(default, int, float)
    assert found == []
