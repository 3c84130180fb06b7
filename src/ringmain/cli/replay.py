"""ringmain bench load and ringmain bench save: load tests of someone else's sender and receiver."""

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import click

from ringmain.bench.plan import Plan
from ringmain.cli.bench_output import JsonCommand, Teller
from ringmain.cli.options import duration, endpoint_of_bench, forms
from ringmain.cli.values import DURATION, Duration, Size
from ringmain.errors import UsageError
from ringmain.settings import Settings

if TYPE_CHECKING:
    from ringmain.bench.replay_result import Test

_IDLE = duration("--idle-timeout", Settings.idle_timeout, "Give up a peer that stands still.")


@click.command(name="save", cls=JsonCommand)
@click.option("--listen", is_flag=True, help="Wait for the receiver at ENDPOINT instead of connecting.")
@click.option("-i", "--input", metavar="FILE", required=True, help="What to send, again and again.")
@click.option("-t", "--time", type=DURATION, help=f"How long: {Duration.words(Plan.seconds)}.", metavar="DURATION")
@click.option("-n", "--bytes", type=Size(), help="How much to send, instead of --time.")
@click.option(
    "--records-per-second", type=click.FloatRange(0, min_open=True), help="Send so many lines a second.", metavar="N"
)
@forms
@_IDLE
@endpoint_of_bench(required=True)
def bench_save(**options: Any) -> int:
    """Load-test a receiver: send FILE in a loop to ENDPOINT, and tell what got through.

    \b
    ringmain bench save tcp://10.0.0.5:9000 --input events.ndjson
    ringmain bench save tcp://10.0.0.5:9000 --input events.ndjson --records-per-second 50000 -t 1m

    What the peer's kernel has acknowledged got through; what the program there makes of it is its own affair.
    """
    if options["time"] is not None and options["bytes"] is not None:
        raise UsageError("--time with --bytes", "either ends a test", "leave one of them out")
    renamed = {f"{name}_": options.pop(name) for name in ("input", "bytes", "json")}
    return run_save_test(**renamed, **options)


@click.command(name="load", cls=JsonCommand)
@click.option("-c", "--connect", is_flag=True, help="Connect to ENDPOINT instead of listening there.")
@click.option("-t", "--time", type=DURATION, help="How long; else until the sender ends.", metavar="DURATION")
@forms
@_IDLE
@endpoint_of_bench(required=True)
def bench_load(**options: Any) -> int:
    """Load-test a sender: receive one connection at ENDPOINT as fast as it comes, and tell what got through.

    \b
    ringmain bench load tcp://:9000
    ringmain bench load --connect tcp://10.0.0.5:9000 -t 30s
    """
    return run_load_test(json_=options.pop("json"), **options)


def run_save_test(
    endpoint: str,
    *,
    listen: bool,
    input_: str,
    time: float | None,
    bytes_: int | None,
    records_per_second: float | None,
    **options: Any,
) -> int:
    """Run `ringmain bench save`; return the exit code."""
    from ringmain.bench.replay import Recording, send

    plan = Plan(seconds=None if bytes_ is not None else time or Plan.seconds, size=bytes_)
    recording = Recording(input_, whole=records_per_second is not None)

    async def work(test: "Test", idle_timeout: float | None) -> None:
        await send(test, recording, plan, records_per_second, idle_timeout)

    told = {
        "duration": plan.seconds or 0,
        "bytes": plan.size or 0,
        "blksize": plan.message_size,
        "records_per_second": records_per_second,
    }
    return _test(endpoint, work, told, listening=listen, **options)


def run_load_test(endpoint: str, *, connect: bool, time: float | None, **options: Any) -> int:
    """Run `ringmain bench load`; return the exit code."""
    from ringmain.bench.replay import receive

    async def work(test: "Test", idle_timeout: float | None) -> None:
        await receive(test, time, idle_timeout)

    return _test(endpoint, work, {"duration": time or 0}, listening=not connect, **options)


def _test(
    endpoint: str,
    work: Callable[["Test", float | None], Coroutine[Any, Any, None]],
    told: dict[str, Any],
    *,
    listening: bool,
    json_: bool,
    json_stream: bool,
    **options: Any,
) -> int:
    """Run a load test over one connection; tell what got through, also when it fails or a signal ends it."""
    import contextlib

    from ringmain.bench.replay import connected
    from ringmain.bench.replay_result import Test
    from ringmain.bench.result import about
    from ringmain.bench.table import replay_table
    from ringmain.cli.session import Session, log, measured_at, uses_tls
    from ringmain.net.gate import Gate

    session = Session(options)
    where = measured_at(endpoint)
    tls = uses_tls(where, options)
    settings = Settings(**options)
    teller = Teller(as_json=json_, as_events=json_stream, show=session.shows_progress, seconds=True)
    tests: list[Test] = []

    async def run() -> None:
        def announced(gate: Gate) -> contextlib.AbstractContextManager[None]:
            return session.announced((gate, where, tls))

        async with connected(where, settings, listening=listening, announced=announced) as connection:
            tests.append(Test(connection, teller.interval))
            teller.event("start", about())
            await work(tests[0], settings.idle_timeout)

    code = teller.run(session, run)
    if not tests:  # nobody came before the signal
        raise click.exceptions.Exit(code)
    whole = tests[0].whole(**told)
    if code:
        whole["error"] = "interrupted"
    teller.result(whole, lambda width: replay_table(whole, width))
    error = tests[0].error
    if error is not None:
        log.error("%s", error)
    return code or (0 if error is None else error.exit_code)
