"""ringmain bench."""

from typing import Any

import click

from ringmain.cli.options import DURATION, TLS_OPTIONS, Linger, Percentage, Size, endpoint_of_bench, forms
from ringmain.cli.replay import bench_load, bench_save
from ringmain.cli.telling import JsonCommand
from ringmain.errors import UsageError

# As iperf3's: a hole in a firewall for the one is good for the other.
_PORT = 5201
_MEASURING = ("reverse", "time", "bytes", "omit", "parallel", "processes", "message_size", "limit")
_REPORTING = ("json", "json_stream", "report", "save_baseline", "baseline")
_GATING = ("rounds", "noise_threshold", "fail_on_regression", "force")


class _Bench(JsonCommand):
    """`bench`, and behind it `bench load` and `bench save`: it may have an endpoint instead of a command."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Read the arguments, here or as the other command's."""
        other = {"load": bench_load, "save": bench_save}.get(args[0] if args else "")
        if other is None:
            return super().make_context(info_name, args, parent, **extra)
        prefix = getattr(parent, "auto_envvar_prefix", None)
        if prefix is not None:
            extra["auto_envvar_prefix"] = f"{prefix}_BENCH_{args[0].upper()}"
        return other.make_context(f"{info_name} {args[0]}", args[1:], parent, **extra)


@click.command(name="bench", cls=_Bench)
@click.option("--server", is_flag=True, help=f"Serve those who measure, at ENDPOINT or tcp://:{_PORT}.")
@click.option("-o", "--listen-once", is_flag=True, help="With --server: end after the first measurement.")
@click.option("-R", "--reverse", is_flag=True, help="The server sends.")
@click.option(
    "-t",
    "--time",
    type=DURATION,
    help="How long to measure: 10s; on loopback 2s, in rounds 500ms.",
    metavar="DURATION",
)
@click.option("-n", "--bytes", type=Size(), help="How much to send, instead of --time.")
@click.option(
    "-O", "--omit", type=Linger(), help="Warm-up, which is left out: 500ms; with --bytes 0.", metavar="DURATION"
)
@click.option("-P", "--parallel", type=click.IntRange(1, 128), default=1, show_default=True, help="Streams at once.")
@click.option("--processes", is_flag=True, help="Each stream in a process of its own, at both ends.")
@click.option("-l", "--message-size", type=Size(), help="What the sender writes at once: 1M.")
@click.option("-L", "--limit", type=Size(), help="Bytes a second, all streams together.", metavar="RATE")
@forms
@click.option("--report", metavar="FILE", help="Write a page with plots here, for the browser: out.html.")
@click.option("--save-baseline", metavar="FILE", help="Measure in rounds, and keep them to compare with.")
@click.option("--baseline", metavar="FILE", help="Measure in rounds, and compare them with those.")
@click.option("--rounds", type=click.IntRange(3), default=10, show_default=True, help="How many, for both.")
@click.option(
    "--noise-threshold", type=Percentage(), default="5%", show_default=True, help="How much worse is not worse."
)
@click.option("--fail-on-regression", is_flag=True, help="Exit with 1 for a regression, with 75 if inconclusive.")
@click.option("--force", is_flag=True, help="Compare with a baseline of another machine, or of other options.")
@endpoint_of_bench(required=False)
@click.pass_context
def bench(context: click.Context, /, endpoint: str | None, server: bool, **options: Any) -> int:
    """Measure this machine, or the way to another one.

    \b
    ringmain bench                                       this machine with itself, plain and TLS: 20 s
    ringmain bench --server                              on one host
    ringmain bench tcp://10.0.0.5:5201 -P 4 --reverse    on the other
    ringmain bench tcp://10.0.0.5:5201 --json            for machines; --json-stream while it goes on
    ringmain bench --save-baseline before.json           then, after a change:
    ringmain bench --baseline before.json --fail-on-regression

    \b
    ringmain bench save ENDPOINT --input FILE            load-test someone else's receiver
    ringmain bench load ENDPOINT                         or sender; see their --help
    """
    given = {
        name for name in options if context.get_parameter_source(name) not in (click.core.ParameterSource.DEFAULT, None)
    }
    # Imported when it is used: --help and --version need neither the event loop nor sockets.
    from ringmain.bench.run import Rounds
    from ringmain.cli.instrument import run_bench, run_server

    if server:
        _refuse(given, (*_MEASURING, *_REPORTING, *_GATING), "with --server", "give it to the client")
        for name in (*_MEASURING, *_REPORTING, *_GATING):
            del options[name]
        return run_server(endpoint or f"tcp://:{_PORT}", **options)
    if endpoint is None:
        names = ("reverse", "bytes", "parallel", "processes", "tls", *TLS_OPTIONS, "retry")
        _refuse(given, names, "without an ENDPOINT", "give a bench --server's")
    _refuse(given, ("listen_once", "port_file"), "without --server", "leave it out")
    if {"time", "bytes"} <= given:
        raise UsageError("--time with --bytes", "either ends a measurement", "leave one of them out")
    if options["fail_on_regression"] and options["baseline"] is None:
        raise UsageError("--fail-on-regression", "there is nothing to compare with", "add --baseline FILE")
    for name in ("listen_once", "port_file"):
        del options[name]
    gate = Rounds(**{name: options.pop(name) for name in ("save_baseline", "baseline", *_GATING)})
    return run_bench(endpoint, json_=options.pop("json"), gate=gate, **options)


def _refuse(given: set[str], names: tuple[str, ...], where: str, remedy: str) -> None:
    """Raise UsageError for the first of some options that was given."""
    for name in names:
        if name in given:
            raise UsageError(f"--{name.replace('_', '-')} {where}", "it makes no sense there", remedy)
