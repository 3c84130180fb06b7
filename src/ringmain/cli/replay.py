"""ringmain bench load and ringmain bench save: load tests of someone else's sender and receiver."""

from typing import Any

import click

from ringmain.cli.options import DURATION, Size, endpoint_of_bench, forms
from ringmain.cli.telling import JsonCommand
from ringmain.errors import UsageError

_IDLE = click.option(
    "--idle-timeout", type=DURATION, default="off", show_default=True, help="Give up a peer that stands still."
)


@click.command(name="save", cls=JsonCommand)
@click.option("--listen", is_flag=True, help="Wait for the receiver at ENDPOINT instead of connecting.")
@click.option("-i", "--input", metavar="FILE", required=True, help="What to send, again and again.")
@click.option("-t", "--time", type=DURATION, help="How long: 10s.", metavar="DURATION")
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
    # Imported when it is used: --help and --version need neither the event loop nor sockets.
    from ringmain.cli.instrument import run_save_test

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
    from ringmain.cli.instrument import run_load_test

    return run_load_test(json_=options.pop("json"), **options)
