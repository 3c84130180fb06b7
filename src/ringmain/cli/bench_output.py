"""How `bench` tells of a run: JSON, events, a line on a terminal; failures as JSON too."""

import contextlib
import json
from collections.abc import Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any

import click

from ringmain.cli.command import Command, words_of
from ringmain.cli.flags import as_flags
from ringmain.errors import RingmainError, UsageError, printable
from ringmain.terminal import screen

if TYPE_CHECKING:
    from ringmain.cli.session import Session


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
                why = "both write to standard output"
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
            words = as_flags(words_of(error) if isinstance(error, click.UsageError) else str(error))
        if as_events:
            click.echo(json.dumps({"event": "error", "data": words}))
            click.echo(json.dumps({"event": "result", "data": {"error": words}}))
        elif as_json:
            click.echo(json.dumps({"error": words}))
        raise


class Teller:
    """Writes what a run tells to standard output: events, one JSON object, or text. A terminal sees a line meanwhile.

    With `seconds` the text has a line a second, and nothing else is shown meanwhile.
    """

    def __init__(self, *, as_json: bool, as_events: bool, show: bool, seconds: bool) -> None:
        import shutil

        from ringmain.bench.seconds import Seconds

        self._as_json = as_json
        self._as_events = as_events
        self._width = shutil.get_terminal_size().columns  # COLUMNS, or the terminal's, or 80
        self._seconds = Seconds(self._width) if seconds and not (as_json or as_events) else None
        self._show = show and self._seconds is None
        self._told = False
        self._failure: OSError | None = None
        self._give_up: Callable[[], object] = lambda: None

    def run(self, session: "Session", work: Callable[[], Coroutine[Any, Any, None]]) -> int:
        """Run the work in a session until it is over, or what it tells cannot be written: that raises the OSError."""

        async def watched() -> None:
            import asyncio

            task = asyncio.current_task()
            assert task is not None
            self._give_up = task.cancel
            try:
                await work()
            except asyncio.CancelledError:
                if self._failure is None:
                    raise

        try:
            code = session.run(watched)
        finally:
            self.line()
        if self._failure is not None:
            raise self._failure
        return code

    def event(self, name: str, data: Any, **more: Any) -> None:
        """Write an event, if they are wanted."""
        if self._as_events:
            self._write(json.dumps({"event": name, **more, "data": data}))

    def interval(self, interval: dict[str, Any]) -> None:
        """Tell of an interval, as it is in a result."""
        self.event("interval", interval)
        if self._seconds is not None:
            for line in self._seconds.add(interval):
                self._write(line)
        from ringmain.bench.table import rates_of

        total = interval["sum"]
        words = "  (warm-up)" if total["omitted"] else ""
        self.line(f"{total['end']:.1f} s  {rates_of(total['bits_per_second'])[0]} GB/s{words}")

    def heading(self, text: str) -> None:
        """Begin other lines."""
        if self._seconds is not None:
            from ringmain.bench.seconds import Seconds

            self._write("\n".join([*self._seconds.rest(), *([""] if self._told else []), text]))
            self._seconds = Seconds(self._width)

    def line(self, text: str = "") -> None:
        """Write over the line, if it is wanted."""
        if self._show:
            screen.show(printable(text)) if text else screen.clear()

    def result(self, whole: dict[str, Any], text: Callable[[int], str]) -> None:
        """Print the result in the form that is wanted; `text` gets the columns that there are."""
        self.line()
        if "error" in whole:
            whole = {**whole, "error": as_flags(whole["error"])}
        if self._as_events:
            self.event("result", whole)
        elif self._as_json:
            self._write(json.dumps(whole, indent=1))
        else:
            lines = self._seconds.rest() if self._seconds is not None else []
            if lines or self._told:
                lines.append("")
            self._write("\n".join([*lines, *map(printable, text(self._width).split("\n"))]))
        if self._failure is not None:
            raise self._failure

    def _write(self, text: str) -> None:
        """Write a line to standard output; where that fails, end the work, since nobody would hear of it."""
        if self._failure is not None:
            return
        self._told = True
        try:
            print(text, flush=True)
        except OSError as error:
            self._failure = error
            self._give_up()
