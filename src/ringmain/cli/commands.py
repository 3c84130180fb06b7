"""The command itself: arguments to one of the verbs to an exit code.

Which one: that of the error (`errors`), or of a signal (`session`).
"""

import contextlib
import importlib
import os
import sys
from collections.abc import MutableMapping
from typing import Any

import click

import ringmain.cli.values  # noqa: F401 - what a click that is too old fails at, before anything else is done
from ringmain.cli.command import VERSION, Context, plain_help, words_of
from ringmain.cli.flags import as_flags
from ringmain.errors import OutputError, RingmainError, printable, reason
from ringmain.terminal import screen

# Each is a module here, with a command of its name.
_NAMES = ("bench", "load", "nics", "relay", "save")


class _Failed(Exception):  # noqa: N818 - it is none: it carries one
    """A RingmainError on its way past click, which takes an OSError with EPIPE for the end of our standard output."""


class _Commands(click.Group):
    """The commands, each imported once it is asked for: to import all takes longer than to start one."""

    @property
    def commands(self) -> MutableMapping[str, click.Command]:
        """All of them, by their names."""
        return {name: _command(name) for name in _NAMES}

    @commands.setter
    def commands(self, _: MutableMapping[str, click.Command]) -> None:
        """Keep what there is, where click would begin with none."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return their names."""
        del ctx
        return list(_NAMES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return one; None if there is none of that name."""
        del ctx
        return _command(cmd_name) if cmd_name in _NAMES else None

    context_class = Context

    def get_help_option(self, ctx: click.Context) -> click.Option:
        """Return --help."""
        return plain_help(ctx.help_option_names)

    def invoke(self, ctx: click.Context) -> Any:
        """Run one."""
        try:
            return super().invoke(ctx)
        except RingmainError as error:
            raise _Failed(error) from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@VERSION
def cli() -> None:
    """Move bytes between TCP or TLS connections and pipes or files, as fast as the machine can.

    \b
    ringmain load tcp://127.0.0.1:8000 > events.ndjson     receive
    ringmain save tcp://127.0.0.1:8000 < events.ndjson     send
    ringmain relay tcp://:9000 tcps://example.org:4000     relay both ways
    ringmain bench                                         measure this machine

    Instead of tcp://HOST:PORT you can write unix:/path (or unix:@name) for a UNIX socket. To listen on a socket that
    systemd passes in, write its name: tcp://fd:NAME or tcps://fd:NAME (fd:3 is the first).

    Every option except -4 and -6 can be set by an environment variable, such as RINGMAIN_LOAD_IDLE_TIMEOUT=30s.
    ringmain load --help shows the main options, --help tls those for TLS, --help all every option.
    """


def _command(name: str) -> click.Command:
    command: click.Command = getattr(importlib.import_module(f"ringmain.cli.{name}"), name)
    return command


def run() -> None:
    """Run the command line and exit: 0, or the documented code with one line on stderr."""
    try:
        code = cli.main(prog_name="ringmain", auto_envvar_prefix="RINGMAIN", standalone_mode=False) or 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        code = 2
    except click.ClickException as error:
        command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "ringmain"
        code = fail(f"{words_of(error)}; see: {command} --help", 2)
    except click.Abort:
        code = 130
    except _Failed as failed:
        cause: RingmainError = failed.args[0]
        fail(str(cause), cause.exit_code)
        os._exit(cause.exit_code)  # without waiting for a name that is still being resolved, in a thread
    except SystemExit as error:
        if error.code != 1 or "_RINGMAIN_COMPLETE" in os.environ:
            raise
        code = _forget_stdout(0)  # click's way to say that the reader of --help or nics has left
    except OSError as error:  # --help, --version, nics or bench print; what else they meet has a class of its own
        code = fail(f"write to standard output: {reason(error)}; free space or redirect it", OutputError.exit_code)
        _forget_stdout(code)
    if code > 128:  # a signal, which waits for nobody: not for a name that is still being resolved, in a thread
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


def _forget_stdout(code: int) -> int:
    """Let what Python still holds for standard output go nowhere when it exits; return the code."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return code


def fail(message: str, code: int) -> int:
    """Write the error line and return the exit code."""
    screen.clear()
    with contextlib.suppress(OSError):  # nobody reads standard error, or it has no room: the code tells all the same
        print(f"ringmain: {printable(as_flags(message))}", file=sys.stderr, flush=True)
    return code
