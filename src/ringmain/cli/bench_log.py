"""ringmain bench nats://HOST/SUBJECT: its options, and the run."""

from typing import Any

import click

from ringmain.bench.plan import Plan
from ringmain.cli.bench_output import Teller
from ringmain.cli.options import Command, decorated
from ringmain.endpoint import LogEndpoint

OF_LOG = ("credentials", "create_stream")
# What has a meaning there besides.
SHARED = (
    "time",
    "bytes",
    "limit",
    "message_size",
    "json",
    "json_stream",
    "tls",
    "connect_timeout",
    "retry",
    "keepalive",
)
SIZE, MESSAGE_SIZE = 1 << 30, 256 << 10


def log_options(command: Command) -> Command:
    """Give a command the options of a log."""
    return decorated(
        command,
        [
            click.option(
                "--credentials", metavar="FILE", help="To nats://: our JWT and seed, as nsc generate creds writes them."
            ),
            click.option(
                "--create-stream",
                metavar="NAME[:REPLICAS]",
                help="To nats://: create a stream with file storage if none stores the subject. For trials.",
            ),
        ],
    )


def run_bench_log(endpoint: str, plan: Plan, options: dict[str, Any]) -> int:
    """Run `ringmain bench` with a log; return the exit code."""
    from ringmain.bench.log_run import LogRun
    from ringmain.bench.result import about
    from ringmain.cli.session import Session
    from ringmain.settings import Settings

    credentials, create_stream = options.pop("credentials"), options.pop("create_stream")
    as_json, as_events = options.pop("json"), options.pop("json_stream")
    session = Session(options)
    teller = Teller(as_json=as_json, as_events=as_events, show=session.shows_progress, seconds=True)
    run = LogRun(LogEndpoint.parse(endpoint), Settings(**options), plan, credentials)
    started = about()
    ended: list[str] = []

    def on_test(name: str) -> None:
        tell_ended()
        teller.event("start", started, test=name)
        teller.heading(name)

    def tell_ended() -> None:
        for name in [it for it in run.results if it not in ended]:
            ended.append(name)
            teller.event("end", run.results[name]["end"], test=name)

    async def work() -> None:
        run.on_test, run.on_interval = on_test, teller.interval
        await run.measure(create_stream)
        tell_ended()

    code = teller.run(session, work)
    if code:
        raise click.exceptions.Exit(code)
    teller.result({"start": started, "tests": run.results}, run.text)
    return 0
