"""ringmain bench load and ringmain bench save: load tests of someone else's sender and receiver."""

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Literal

import click

from ringmain.bench.plan import Plan, measured_at
from ringmain.cli.bench_gate import ROUND_SECONDS, gate, gate_of
from ringmain.cli.bench_output import JsonCommand, Teller
from ringmain.cli.options import duration, endpoint_of_bench, forms
from ringmain.cli.values import DURATION, FILE, Duration, Size
from ringmain.errors import RingmainError, UsageError
from ringmain.settings import Settings

if TYPE_CHECKING:
    from ringmain.bench.gate import Gate
    from ringmain.bench.replay_result import Test
    from ringmain.cli.session import Listener

_IDLE = duration("--idle-timeout", Settings.idle_timeout, "Give up if nothing moves for this long.")


@click.command(name="save", cls=JsonCommand)
@click.option("--listen", is_flag=True, help="Listen for the receiver at ENDPOINT instead of connecting.")
@click.option("-i", "--input", metavar="FILE", type=FILE, required=True, help="File to send, again and again.")
@click.option(
    "-t",
    "--time",
    type=DURATION,
    help=f"How long to send. Default: {Duration.words(Plan.seconds)}, in rounds {Duration.words(ROUND_SECONDS)}.",
    metavar="DURATION",
)
@click.option("-n", "--bytes", type=Size(), help="How much to send, instead of --time.")
@click.option(
    "--records-per-second", type=click.FloatRange(0, min_open=True), help="Send N lines per second.", metavar="N"
)
@forms
@gate
@_IDLE
@endpoint_of_bench(required=True)
def bench_save(**options: Any) -> int:
    """Load-test a receiver: send FILE in a loop to ENDPOINT, and report what got through.

    \b
    ringmain bench save tcp://10.0.0.5:9000 --input events.ndjson
    ringmain bench save tcp://10.0.0.5:9000 --input events.ndjson --records-per-second 50000 -t 1m
    ringmain bench save tcp://127.0.0.1:9000 --input events.ndjson --save-baseline before.json

    Bytes count as received once the peer's kernel has acknowledged them, even if the program there has not read them.
    With --save-baseline or --baseline each round is a new connection. Its result is compared with what this machine
    can do by itself, so the receiver should run on this machine.
    """
    if options["time"] is not None and options["bytes"] is not None:
        raise UsageError("--time with --bytes", "each says when the test ends", "leave one of them out")
    renamed = {f"{name}_": options.pop(name) for name in ("input", "bytes", "json")}
    return run_save_test(gate=gate_of(options), **renamed, **options)


@click.command(name="load", cls=JsonCommand)
@click.option("-c", "--connect", is_flag=True, help="Connect to ENDPOINT instead of listening there.")
@click.option(
    "-t", "--time", type=DURATION, help="How long to receive. Default: until the sender ends.", metavar="DURATION"
)
@forms
@gate
@_IDLE
@endpoint_of_bench(required=True)
def bench_load(**options: Any) -> int:
    """Load-test a sender: receive one connection at ENDPOINT as fast as possible, and report what got through.

    \b
    ringmain bench load tcp://:9000
    ringmain bench load --connect tcp://10.0.0.5:9000 -t 30s

    With --save-baseline or --baseline each round is a new connection, so the sender must connect again each time. The
    result is compared with what this machine can do by itself, so the sender should run on this machine.
    """
    return run_load_test(gate=gate_of(options), json_=options.pop("json"), **options)


def run_save_test(
    endpoint: str,
    *,
    gate: "Gate",
    listen: bool,
    input_: str,
    time: float | None,
    bytes_: int | None,
    records_per_second: float | None,
    **options: Any,
) -> int:
    """Run `ringmain bench save`; return the exit code."""
    from ringmain.bench.replay import Recording, send

    seconds = time or (ROUND_SECONDS if gate.wanted else Plan.seconds)
    plan = Plan(seconds=None if bytes_ is not None else seconds, size=bytes_)
    recording = Recording(input_, whole=records_per_second is not None)

    async def work(test: "Test", idle_timeout: float | None) -> None:
        await send(test, recording, plan, records_per_second, idle_timeout)

    told = {
        "duration": plan.seconds or 0,
        "bytes": plan.size or 0,
        "blksize": plan.message_size,
        "records_per_second": records_per_second,
    }
    settings = {**told, "input": len(recording.data), "listen": listen}
    return _test("save", endpoint, work, told, settings, gate=gate, listening=listen, **options)


def run_load_test(endpoint: str, *, gate: "Gate", connect: bool, time: float | None, **options: Any) -> int:
    """Run `ringmain bench load`; return the exit code."""
    from ringmain.bench.replay import receive

    async def work(test: "Test", idle_timeout: float | None) -> None:
        await receive(test, time, idle_timeout)

    told = {"duration": time or 0}
    settings = {**told, "connect": connect}
    return _test("load", endpoint, work, told, settings, gate=gate, listening=not connect, **options)


def _test(
    verb: Literal["save", "load"],
    endpoint: str,
    work: Callable[["Test", float | None], Coroutine[Any, Any, None]],
    told: dict[str, Any],
    kept: dict[str, Any],
    *,
    gate: "Gate",
    listening: bool,
    json_: bool,
    json_stream: bool,
    **options: Any,
) -> int:
    """Run a load test over one connection, or in rounds; tell what got through, also when it fails or a signal ends it.

    `told` is in the result, `kept` in a baseline.
    """
    import contextlib

    from ringmain.bench.replay import connections
    from ringmain.bench.replay_result import Test
    from ringmain.bench.replay_rounds import in_rounds
    from ringmain.bench.result import about
    from ringmain.bench.table import replay_table, verdict_table
    from ringmain.cli.session import Session, log
    from ringmain.cli.tls import uses_tls

    session = Session(options)
    where = measured_at(endpoint)
    tls = uses_tls(where, options)
    settings = Settings(**options)
    teller = Teller(as_json=json_, as_events=json_stream, show=session.shows_progress, seconds=not gate.wanted)
    tests: list[Test] = []
    judged: dict[str, Any] = {}

    def announced(listener: "Listener") -> contextlib.AbstractContextManager[None]:
        return session.announced((listener, where, tls))

    async def run() -> None:
        async with connections(where, settings, listening=listening, announced=announced) as next_one:

            async def one() -> Test:
                tests.append(Test(await next_one(), teller.interval))
                teller.event("start", about())
                await work(tests[-1], settings.idle_timeout)
                return tests[-1]

            if not gate.wanted:
                await one()
                return
            subject = {"endpoint": where.address, "tls": tls, **kept}
            median, found = await in_rounds(gate, verb, subject, one, lambda number: teller.line(f"round {number + 1}"))
            tests.append(median)
            judged.update(found)

    try:
        code = teller.run(session, run)
    except RingmainError as error:
        if not tests or tests[-1].error is not error:
            raise
        code = 0
    if not tests:  # nobody came before the signal
        raise click.exceptions.Exit(code)
    whole = {**tests[-1].whole(**told), **judged}
    if code:
        whole["error"] = "interrupted"

    def text(width: int) -> str:
        judgement = ["", verdict_table({"": judged["comparison"]}, width)] if "comparison" in judged else []
        return "\n".join([replay_table(whole, width), *judgement])

    teller.result(whole, text)
    failure = tests[-1].error
    if failure is not None:
        log.error("%s", failure)
    verdict = judged["comparison"]["verdict"] if "comparison" in judged else None
    return code or (gate.exit_code(verdict) if failure is None else failure.exit_code)
