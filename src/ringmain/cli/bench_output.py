"""How `bench` tells of a run: JSON, events, a line on a terminal; failures as JSON too."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import click

from ringmain.cli.command import Command
from ringmain.cli.flags import as_flags
from ringmain.errors import RingmainError, UsageError, printable
from ringmain.terminal import screen


class JsonCommand(Command):
    """A command with --json and --json-stream, whose failures are JSON as well, where that is what it prints."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Read the arguments."""
        with _told("--json" in args, "--json-stream" in args):
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Do what they say."""
        as_json, as_events = ctx.params["json"], ctx.params["json_stream"]
        with _told(as_json, as_events):
            if as_json and as_events:
                why = "both are for standard output"
                raise UsageError("--json with --json-stream", why, "leave one of them out")
            return super().invoke(ctx)


@contextlib.contextmanager
def _told(as_json: bool, as_events: bool) -> Iterator[None]:
    """Print an error on standard output; it still becomes a line on stderr and an exit code."""
    try:
        yield
    except (click.UsageError, RingmainError, click.exceptions.Exit) as error:
        if isinstance(error, click.exceptions.Exit):
            if error.exit_code == 0:  # --help
                raise
            words = "interrupted"
        else:
            words = as_flags(error.format_message() if isinstance(error, click.UsageError) else str(error))
        if as_events:
            click.echo(json.dumps({"event": "error", "data": words}))
            click.echo(json.dumps({"event": "result", "data": {"error": words}}))
        elif as_json:
            click.echo(json.dumps({"error": words}))
        raise


class Teller:
    """Writes events of --json-stream to standard output, and a line that changes to a terminal."""

    def __init__(self, *, as_events: bool, show: bool) -> None:
        self._as_events = as_events
        self._show = show

    def event(self, name: str, data: Any, **more: Any) -> None:
        """Write an event, if they are wanted."""
        if self._as_events:
            print(json.dumps({"event": name, **more, "data": data}), flush=True)

    def interval(self, interval: dict[str, Any]) -> None:
        """Tell of an interval."""
        self.event("interval", interval)
        total = interval["sum"]
        words = "  (warm-up)" if total["omitted"] else ""
        self.line(f"{total['end']:.1f} s  {total['bits_per_second'] / 8e9:.3f} GB/s{words}")

    def line(self, text: str = "") -> None:
        """Write over the line, if it is wanted."""
        if self._show:
            screen.show(printable(text)) if text else screen.clear()

    def result(self, whole: dict[str, Any], text: str, *, as_json: bool) -> None:
        """Print the result in the form that is wanted."""
        self.line()
        if "error" in whole:
            whole = {**whole, "error": as_flags(whole["error"])}
        if self._as_events:
            self.event("result", whole)
        else:
            print(json.dumps(whole, indent=1) if as_json else "\n".join(map(printable, text.split("\n"))))
