"""What the command line tells of itself, for the reference and the man pages: read from click, so none lags behind."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import click

from ringmain.cli.commands import cli

PROGRAM = "ringmain"


@dataclass(frozen=True)
class Option:
    """An option: how it is written, what it does with its default, and its environment variable, if it has one."""

    names: str
    text: str
    variable: str


@dataclass(frozen=True)
class Command:
    """A command: its full name, arguments, sentences, examples, options, and the commands behind it.

    `parts` are paragraphs in order; those that are examples are lists of lines.
    """

    name: str
    arguments: str
    summary: str
    parts: list[str | list[str]]
    options: list[Option] = field(default_factory=list)


def commands() -> Iterator[Command]:
    """Yield `ringmain` itself and each command, `bench load` and `bench save` among them."""
    yield _read(cli, PROGRAM)
    for name in cli.commands:
        command = cli.commands[name]
        yield _read(command, f"{PROGRAM} {name}")
        if name == "bench":  # which finds them itself
            from ringmain.cli.replay import bench_load, bench_save

            yield _read(bench_load, f"{PROGRAM} bench load")
            yield _read(bench_save, f"{PROGRAM} bench save")


def _read(command: click.Command, name: str) -> Command:
    context = click.Context(
        command, info_name=name, auto_envvar_prefix=name.upper().replace(" ", "_"), help_option_names=["-h", "--help"]
    )
    parts = [_part(it) for it in re.split(r"\n\s*\n", (command.help or "").replace("\\\\", "\\")) if it.strip()]
    summary = parts.pop(0)
    assert isinstance(summary, str)
    arguments = " ".join(command.collect_usage_pieces(context))
    options = [it for it in command.get_params(context) if isinstance(it, click.Option) and not it.hidden]
    names = [it.name for it in options if it.expose_value]  # not --help and --version
    alone = {it for it in names if names.count(it) == 1}
    return Command(
        name, arguments, summary, parts, [_option(it, context, has_variable=it.name in alone) for it in options]
    )


def _part(paragraph: str) -> str | list[str]:
    """Return a paragraph as one line, or as its lines where click is told to leave those alone."""
    lines = [line.strip() for line in paragraph.strip(" \n").splitlines()]
    return lines[1:] if lines[0] == "\b" else " ".join(lines)


def _option(option: click.Option, context: click.Context, *, has_variable: bool) -> Option:
    record = option.get_help_record(context)
    assert record is not None
    assert option.help, f"{record[0]} says nothing"
    variable = option.envvar or f"{context.auto_envvar_prefix}_{option.name}".upper()
    return Option(*record, str(variable) if has_variable else "")


def markdown() -> Iterator[str]:
    """Yield the lines of the reference: a section for each command."""
    for command in commands():
        yield from ["", f"## {command.name}", "", "```text", f"{command.name} {command.arguments}", "```", ""]
        yield from [plain(command.summary), ""]
        for part in command.parts:
            yield from [plain(part), ""] if isinstance(part, str) else ["```text", *part, "```", ""]
        for option in command.options:
            variable = f" *Environment: `{option.variable}`*" if option.variable else ""
            yield from [f"`{option.names}`", f": {plain(option.text)}{variable}", ""]


def plain(text: str) -> str:
    """Return words that Markdown leaves alone."""
    return re.sub(r"([\\`*_{}\[\]<>|#$~])", r"\\\1", text)


def shown() -> str:
    """Return the reference with each option on one line."""
    return "\n".join(markdown()).replace("`\n: ", "` ")
