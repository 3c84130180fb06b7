"""`ringmain bench` with what the command line adds: forms of output, signals. Returns exit codes."""

import asyncio
import json
import signal
import sys
from collections.abc import Coroutine
from typing import Any

import uvloop

from ringmain.bench.files import try_to_write, write
from ringmain.bench.plan import Plan
from ringmain.bench.report import page
from ringmain.bench.run import Gate, Run
from ringmain.bench.server import Server
from ringmain.cli.session import Session
from ringmain.cli.verbs import uses_tls
from ringmain.endpoint import Endpoint
from ringmain.settings import Settings

# What is left out at the beginning of a measurement, in seconds, and how long it then takes.
_WARM_UP = 0.25
_SECONDS, _LOOPBACK_SECONDS, _ROUND_SECONDS = 10.0, 2.0, 0.5
# A limited sender writes this often at least, so that its rate is a steady one.
_WRITES_A_SECOND = 20


class Teller:
    """Writes events of --json-stream to standard output, and a line that changes to a terminal."""

    def __init__(self, *, stream: bool, show: bool) -> None:
        self._stream = stream
        self._show = show

    def event(self, name: str, data: Any, **more: Any) -> None:
        """Write an event, if they are wanted."""
        if self._stream:
            print(json.dumps({"event": name, **more, "data": data}), flush=True)

    def line(self, text: str = "") -> None:
        """Write over the line, if it is wanted."""
        if self._show:
            print(f"\r{text}\x1b[K", end="", file=sys.stderr, flush=True)


def run_bench(
    endpoint: str | None, *, json_: bool, json_stream: bool, report: str | None, gate: Gate, **options: Any
) -> int:
    """Run `ringmain bench` as a client, or on loopback without an endpoint; return the exit code."""
    plan = _plan(options, _ROUND_SECONDS if gate.wanted else _LOOPBACK_SECONDS if endpoint is None else _SECONDS)
    session = Session(options)
    if endpoint is not None:
        uses_tls(Endpoint.parse(endpoint), options)
    settings = Settings(**options)
    teller = Teller(stream=json_stream, show=session.shows_progress)
    run = Run(gate, teller)

    async def work() -> None:
        if endpoint is None:
            await run.of_loopback(plan)
        else:
            await run.of_endpoint(Endpoint.parse(endpoint), settings, plan)

    if report is not None:
        try_to_write(report, "--report")
    try:
        _until_signal(work())
    finally:
        teller.line()
    if report is not None:
        write(report, page(run.whole()), "--report")
    if json_stream:
        teller.event("result", run.whole())
    else:
        print(json.dumps(run.whole(), indent=1) if json_ else run.text())
    return run.exit_code


def _until_signal(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine to its end; raise SystemExit when a signal ends it."""
    got = 0

    async def supervised() -> None:
        task = asyncio.ensure_future(work)

        def interrupt(number: int) -> None:
            nonlocal got
            got = number
            task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, interrupt, number)
        await asyncio.wait([task])
        if not got:
            task.result()

    runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    # An error leaves the loop as it is: closing it would wait for a name that is still being resolved, in a thread.
    runner.run(supervised())
    if got:
        raise SystemExit(128 + got)
    runner.close()


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
