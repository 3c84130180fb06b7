"""`ringmain bench` with what the command line adds: forms of output, signals. Returns exit codes."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from ringmain.bench.files import try_to_write, write
from ringmain.bench.outcome import Test
from ringmain.bench.plan import Plan
from ringmain.bench.replay import Recording, connected, receive, send
from ringmain.bench.report import page
from ringmain.bench.result import about
from ringmain.bench.run import Rounds, Run
from ringmain.bench.server import Server
from ringmain.bench.table import replay_table
from ringmain.blocking import new_loop
from ringmain.cli.session import Session
from ringmain.cli.telling import Teller
from ringmain.cli.verbs import uses_tls
from ringmain.endpoint import Endpoint
from ringmain.net.gate import Gate
from ringmain.settings import Settings
from ringmain.signals import terminating

log = logging.getLogger("ringmain")

# What is left out at the beginning of a measurement, in seconds, and how long it then takes.
_WARM_UP = 0.25
_SECONDS, _LOOPBACK_SECONDS, _ROUND_SECONDS = 10.0, 2.0, 0.5
# A limited sender writes this often at least, so that its rate is a steady one.
_WRITES_A_SECOND = 20


def run_bench(
    endpoint: str | None, *, json_: bool, json_stream: bool, report: str | None, gate: Rounds, **options: Any
) -> int:
    """Run `ringmain bench` as a client, or on loopback without an endpoint; return the exit code."""
    plan = _plan(options, _ROUND_SECONDS if gate.wanted else _LOOPBACK_SECONDS if endpoint is None else _SECONDS)
    session = Session(options)
    if endpoint is not None:
        uses_tls(Endpoint.parse(endpoint), options)
    settings = Settings(**options)
    teller = Teller(as_events=json_stream, show=session.shows_progress)
    run = Run(gate, teller)

    async def work() -> None:
        if endpoint is None:
            await run.of_loopback(plan)
        else:
            await run.of_endpoint(Endpoint.parse(endpoint), settings, plan)

    if report is not None:
        try_to_write(report, "--report")
    try:
        number = _until_signal(work())
    finally:
        teller.line()
    if number:
        raise SystemExit(128 + number)
    if report is not None:
        write(report, page(run.whole()), "--report")
    teller.result(run.whole(), run.text(), as_json=json_)
    return run.exit_code


def _until_signal(work: Coroutine[Any, Any, None]) -> int:
    """Run a coroutine to its end; a signal cancels it, whose number is returned then, else 0."""
    got = 0

    async def supervised() -> None:
        task = asyncio.ensure_future(work)

        def interrupt(number: int) -> None:
            nonlocal got
            got = number
            task.cancel()

        for number in terminating():
            asyncio.get_running_loop().add_signal_handler(number, interrupt, number)
        await asyncio.wait([task])
        if not got:
            task.result()

    runner = asyncio.Runner(loop_factory=new_loop)
    # An error leaves the loop as it is: closing it would wait for a name that is still being resolved, in a thread.
    runner.run(supervised())
    if not got:
        runner.close()
    return got


def _plan(options: dict[str, Any], seconds: float) -> Plan:
    """Take what is to be measured out of the options."""
    time, size, omit, rate = (options.pop(name) for name in ("time", "bytes", "omit", "limit"))
    message_size = options.pop("message_size")
    if message_size is None:
        message_size = 1 << 20 if rate is None else min(1 << 20, max(1, rate // _WRITES_A_SECOND))
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
    session = Session(options)
    uses_tls(Endpoint.parse(endpoint), options)
    settings = Settings(**options)
    server = Server(Endpoint.parse(endpoint), settings, listen_once=listen_once)

    async def work() -> None:
        async with server:
            with session.announced((server, server.endpoint, server.tls)):
                await server.serve()

    return session.run(work, lambda: False, lambda: (0, 0, 0.0))


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
    plan = Plan(seconds=None if bytes_ is not None else time or _SECONDS, size=bytes_)
    recording = Recording(input_, whole=records_per_second is not None)

    async def work(test: Test, idle_timeout: float | None) -> None:
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

    async def work(test: Test, idle_timeout: float | None) -> None:
        await receive(test, time, idle_timeout)

    return _test(endpoint, work, {"duration": time or 0}, listening=not connect, **options)


def _test(
    endpoint: str,
    work: Callable[[Test, float | None], Coroutine[Any, Any, None]],
    told: dict[str, Any],
    *,
    listening: bool,
    json_: bool,
    json_stream: bool,
    **options: Any,
) -> int:
    """Run a load test over one connection; tell what got through, also when it fails or a signal ends it."""
    session = Session(options)
    where = Endpoint.parse(endpoint)
    tls = uses_tls(where, options)
    settings = Settings(**options)
    teller = Teller(as_events=json_stream, show=session.shows_progress)
    tests: list[Test] = []

    async def run() -> None:
        def announced(gate: Gate) -> contextlib.AbstractContextManager[None]:
            return session.announced((gate, where, tls))

        async with connected(where, settings, listening=listening, announced=announced) as connection:
            tests.append(Test(connection, teller.interval))
            teller.event("start", about())
            await work(tests[0], settings.idle_timeout)

    try:
        number = _until_signal(run())
    finally:
        teller.line()
    if not tests:  # nobody came before the signal
        raise SystemExit(128 + number)
    whole = tests[0].whole(**told)
    if number:
        whole["error"] = "interrupted"
    teller.result(whole, replay_table(whole), as_json=json_)
    error = tests[0].error
    if error is not None:
        log.error("%s", error)
    return 128 + number if number else 0 if error is None else error.exit_code
