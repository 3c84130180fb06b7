"""ringmain load from a log: its flags, and which of the others mean something there."""

from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ringmain.cli.options import TLS_OPTIONS
from ringmain.cli.values import FILE, Count
from ringmain.endpoint import is_log
from ringmain.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

# What is about listening, and about cutting the bytes of a connection, has no meaning for a log.
_OWN = ("consumer", "from_sequence", "until_sequence", "filter", "credentials")
_SHARED = (
    *TLS_OPTIONS,
    *("tls", "connect_timeout", "idle_timeout", "retry", "keepalive"),
)
_OF_THE_RUN = (
    *("endpoint", "output", "append", "stats_file", "stats_interval", "metrics", "reload_certificates"),
    *("quiet", "verbose", "progress"),
)

_OPTIONS = [
    click.option(
        "--consumer",
        metavar="NAME",
        help="Durable consumer to read with. Readers of the same name share its messages; it keeps their position.",
    ),
    click.option("--from-sequence", metavar="N", type=Count(min=1), help="First message of a new consumer."),
    click.option(
        "--until-sequence",
        metavar="N",
        type=Count(min=1),
        help="End once this message and all before it are done.",
    ),
    click.option("--filter", metavar="SUBJECT", help="A new consumer gets messages of this subject only."),
    click.option(
        "--credentials", metavar="FILE", type=FILE, help="Our JWT and seed, as nsc generate creds writes them."
    ),
]


def of_log(command: "Callable[..., Any]") -> "Callable[..., Any]":
    """Give a command the options of a log."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def is_of_log(endpoint: str, options: dict[str, Any]) -> bool:
    """Tell whether to load from a log; raise UsageError for an option that has no meaning there, or elsewhere.

    Elsewhere the options of a log are taken out.
    """
    log = is_log(endpoint)
    _check_options(log=log)
    if not log:
        for name in _OWN:
            del options[name]
    return log


def _check_options(*, log: bool) -> None:
    context = click.get_current_context()
    for name in context.params:
        given = context.get_parameter_source(name) in (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)
        meant = name in (*_OWN, *_SHARED, *_OF_THE_RUN) if log else name not in _OWN
        if given and not meant:
            option = next(it for it in context.command.params if it.name == name)
            where = "a NATS stream" if log else "a socket"
            remedy = "leave it out" if log else "leave it out, or load from nats://HOST:PORT/STREAM"
            raise UsageError(option.opts[-1], f"it has no meaning for {where}", remedy)


def load_log(endpoint: str, output: str, **options: Any) -> int:
    """Run `ringmain load` from a log; return the exit code."""
    import contextlib
    import os

    import ringmain
    from ringmain.cli.load import load_into
    from ringmain.cli.outputs import reopen
    from ringmain.cli.renewal import Renewal
    from ringmain.cli.session import Session
    from ringmain.cli.template import Template
    from ringmain.flow.descriptor import open_output

    session = Session(options, endpoint)
    template = Template(output, "--output")
    if template.varies or template.parts:
        remedy = "name one file, or start a load for each with the same --consumer"
        raise UsageError(f"--output {output}", "several loads may share the messages of one connection", remedy)
    loader = ringmain.load(endpoint, **{name: options[name] for name in (*_OWN, *_SHARED)})
    session.check_reloading(loader.settings, credentials=options["credentials"])
    if options["append"] and output == "-":
        raise UsageError("--append", "standard output is already open", "give --output FILE, or redirect with >>")
    flags = os.O_APPEND if options["append"] else 0
    with contextlib.closing(open_output(template.name(), "--output", flags)) as sink:
        renewal = Renewal([loader], [lambda: reopen(sink, template.name())])
        return load_into(sink, "block", loader, session, tls=loader.endpoint.tls, renewal=renewal)
