"""ringmain bench."""

from typing import TYPE_CHECKING, Any

import click

from ringmain.bench.plan import MAX_PARALLEL, Plan, measured_at
from ringmain.cli.bench_gate import BASELINES, OTHERS, ROUND_SECONDS, gate, gate_of
from ringmain.cli.bench_log import MESSAGE_SIZE, OF_LOG, SHARED, SIZE, log_options, run_bench_log
from ringmain.cli.bench_output import JsonCommand, Teller
from ringmain.cli.options import TLS_OPTIONS, endpoint_of_bench, forms
from ringmain.cli.replay import bench_load, bench_save
from ringmain.cli.values import DURATION, FILE, Count, Duration, Linger, Size
from ringmain.endpoint import is_log
from ringmain.errors import UsageError

if TYPE_CHECKING:
    from ringmain.bench.gate import Gate

# As iperf3's: a hole in a firewall for the one is good for the other.
_PORT = "5201"
# How long a measurement takes on loopback; what is left out at its beginning: in seconds.
_LOOPBACK_SECONDS = 2.0
_WARM_UP = 0.25
# A limited sender writes this often at least, so that its rate is a steady one.
_WRITES_A_SECOND = 20
_MEASURING = ("reverse", "time", "bytes", "omit", "parallel", "processes", "message_size", "limit")
_REPORTING = ("json", "json_stream", "report", *BASELINES)


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
@click.option("--server", is_flag=True, help=f"Be the server for other benches, at ENDPOINT or tcp://:{_PORT}.")
@click.option("-o", "--listen-once", is_flag=True, help="With --server: end after the first measurement.")
@click.option("-R", "--reverse", is_flag=True, help="The server sends and this end receives.")
@click.option(
    "-t",
    "--time",
    type=DURATION,
    help=f"How long to measure. Default: {Duration.words(Plan.seconds)}; on loopback "
    f"{Duration.words(_LOOPBACK_SECONDS)}, in rounds {Duration.words(ROUND_SECONDS)}.",
    metavar="DURATION",
)
@click.option("-n", "--bytes", type=Size(), help="How much to send, instead of --time.")
@click.option(
    "-O",
    "--omit",
    type=Linger(),
    help=f"Warm-up that is not counted. Default: {Duration.words(_WARM_UP)}; none with --bytes.",
    metavar="DURATION",
)
@click.option(
    "-P",
    "--parallel",
    type=Count(1, MAX_PARALLEL),
    default=Plan.parallel,
    show_default=True,
    help="How many streams to use at once.",
)
@click.option(
    "--processes",
    is_flag=True,
    help="Run each stream in its own process, at both ends. By default they share one process per core.",
)
@click.option(
    "-l",
    "--message-size",
    type=Size(),
    help=f"Bytes per write of the sender. Default: {Size.words(Plan.message_size)}.",
)
@click.option("-L", "--limit", type=Size(), help="Bytes per second at most, all streams together.", metavar="RATE")
@forms
@click.option("--report", metavar="FILE", type=FILE, help="Write an HTML page with plots to FILE.")
@gate
@log_options
@endpoint_of_bench(required=False)
@click.pass_context
def bench(context: click.Context, /, endpoint: str | None, server: bool, **options: Any) -> int:
    """Measure the throughput of this machine, or of a network link.

    \b
    ringmain bench                                       this machine over loopback, plain and TLS: 20 s
    ringmain bench --server                              on one host
    ringmain bench 10.0.0.5 -P 4 --reverse               on the other
    ringmain bench tcp://10.0.0.5:5201 --json            for programs; --json-stream while measuring
    ringmain bench --save-baseline before.json           then, after a change:
    ringmain bench --baseline before.json --fail-on regression

    \b
    ringmain bench save ENDPOINT --input FILE            load-test another program that receives
    ringmain bench load ENDPOINT                         or one that sends; see their --help
    ringmain bench nats://HOST:PORT/SUBJECT              write 1 GiB to a NATS stream, where it stays, and read it
    """
    given = {
        name for name in options if context.get_parameter_source(name) not in (click.core.ParameterSource.DEFAULT, None)
    }
    if server:
        ours = (*_MEASURING, *_REPORTING, *OTHERS, *OF_LOG)
        _refuse(given, ours, "with --server", "give it to the client")
        for name in ours:
            del options[name]
        return run_server(endpoint or f"tcp://:{_PORT}", **options)
    if endpoint is None:
        names = ("reverse", "bytes", "parallel", "processes", "tls", *TLS_OPTIONS, "retry")
        _refuse(given, names, "without an ENDPOINT", "give the endpoint of a bench --server")
    _refuse(given, ("listen_once", "port_file"), "without --server", "leave it out")
    if {"time", "bytes"} <= given:
        raise UsageError("--time with --bytes", "each says when the measurement ends", "leave one of them out")
    if endpoint is not None and is_log(endpoint):
        return _run_log(endpoint, given, options)
    _refuse(given, OF_LOG, "without nats://HOST:PORT/SUBJECT", "leave it out")
    for name in OF_LOG:
        del options[name]
    for name in ("listen_once", "port_file"):
        del options[name]
    return run_bench(endpoint, json_=options.pop("json"), gate=gate_of(options), **options)


def _refuse(given: set[str], names: tuple[str, ...], where: str, remedy: str) -> None:
    """Raise UsageError for the first of some options that was given."""
    for name in names:
        if name in given:
            raise UsageError(f"--{name.replace('_', '-')} {where}", "it has no meaning there", remedy)


def _run_log(endpoint: str, given: set[str], options: dict[str, Any]) -> int:
    """Run `ringmain bench nats://...`; return the exit code."""
    kept = {*SHARED, *OF_LOG, *TLS_OPTIONS, "quiet", "verbose", "progress"}
    _refuse(
        given,
        tuple(name for name in options if name not in kept),
        f"with {endpoint.partition(':')[0]}://",
        "leave it out",
    )
    options = {name: value for name, value in options.items() if name in kept}
    size = options["bytes"] if options["time"] is not None else options["bytes"] or SIZE
    message_size = options.pop("message_size") or MESSAGE_SIZE
    plan = Plan(seconds=options.pop("time"), size=size, rate=options.pop("limit"), message_size=message_size)
    del options["bytes"]
    return run_bench_log(endpoint, plan, {**options, "family": 0})


def run_bench(
    endpoint: str | None, *, json_: bool, json_stream: bool, report: str | None, gate: "Gate", **options: Any
) -> int:
    """Run `ringmain bench` as a client, or on loopback without an endpoint; return the exit code."""
    from ringmain.bench.files import try_to_write, write
    from ringmain.bench.page import page
    from ringmain.bench.run import Run
    from ringmain.cli.session import Session
    from ringmain.cli.tls import uses_tls
    from ringmain.settings import Settings

    plan = _plan(options, ROUND_SECONDS if gate.wanted else _LOOPBACK_SECONDS if endpoint is None else Plan.seconds)
    session = Session(options)
    if endpoint is not None:
        uses_tls(measured_at(endpoint, _PORT), options)
    settings = Settings(**options)
    told = endpoint is not None and not gate.wanted  # several tests, and rounds, would have too many lines
    teller = Teller(as_json=json_, as_events=json_stream, show=session.shows_progress, seconds=told)
    run = Run(gate, teller)

    async def work() -> None:
        if endpoint is None:
            await run.of_loopback(plan)
        else:
            await run.of_endpoint(measured_at(endpoint, _PORT), settings, plan)

    if report is not None:
        try_to_write(report, "--report")
    code = teller.run(session, work)
    if code:
        raise click.exceptions.Exit(code)
    if report is not None:
        write(report, page(run.whole()), "--report")
    teller.result(run.whole(), run.text)
    return run.exit_code


def _plan(options: dict[str, Any], seconds: float | None) -> Plan:
    """Take what is to be measured out of the options."""
    time, size, omit, rate = (options.pop(name) for name in ("time", "bytes", "omit", "limit"))
    message_size = options.pop("message_size")
    if message_size is None:
        message_size = Plan.message_size if rate is None else min(Plan.message_size, max(1, rate // _WRITES_A_SECOND))
    return Plan(
        seconds=None if size is not None else time or seconds,
        size=size,
        omit=omit if omit is not None else _WARM_UP if size is None else 0.0,
        rate=rate,
        message_size=message_size,
        **{name: options.pop(name) for name in ("parallel", "processes", "reverse")},
    )


def run_server(endpoint: str, *, listen_once: bool, **options: Any) -> int:
    """Run `ringmain bench --server`; return the exit code."""
    from ringmain.bench.server import Server
    from ringmain.cli.session import Session
    from ringmain.cli.tls import uses_tls
    from ringmain.settings import Settings

    session = Session(options)
    uses_tls(measured_at(endpoint, _PORT), options)
    settings = Settings(**options)
    server = Server(measured_at(endpoint, _PORT), settings, listen_once=listen_once)

    async def work() -> None:
        async with server:
            with session.announced((server, server.endpoint, server.tls)):
                await server.serve()

    return session.run(work)
