"""ringmain save."""

from typing import Any

import click

import ringmain
from ringmain.cli.options import one_end, totals


@click.command()
@one_end
@click.option("-l", "--listen", is_flag=True, help="Listen at ENDPOINT instead of connecting.")
@click.option("-o", "--listen-once", is_flag=True, help="End after the first connection; implies --listen.")
@click.option("-I", "--input", "input_", metavar="FILE", default="-", help="Send FILE instead of standard input.")
@totals
def save(**options: Any) -> int:
    """Connect to ENDPOINT and send standard input.

    \b
    ringmain save tcp://127.0.0.1:8000 < events.ndjson
    ringmain save --listen --input events.ndjson tcp://:8000
    zstdcat dump.zst | ringmain save --retry forever tcps://example.org:4000

    A listener sends a regular file whole to every client; any other input goes on with the next client where the last
    one left. A signal ends it after what was read: a file that is cut short by a reset, any other input properly.
    """
    return run_save(**options)


def run_save(
    endpoint: str,
    input_: str,
    path: str,
    *,
    listen: bool,
    listen_once: bool,
    option: str = "--input",
    **options: Any,
) -> int:
    """Run `ringmain save`; return the exit code. `option` is what `input_` was given as."""
    from ringmain.cli.session import Session, uses_tls
    from ringmain.cli.stats import Present, figures
    from ringmain.endpoint import Endpoint
    from ringmain.flow import copying, kernel
    from ringmain.flow.descriptor import open_input
    from ringmain.outcome import Outcome
    from ringmain.progress import progress_line

    session = Session(options)
    tls = uses_tls(Endpoint.parse(endpoint), options)
    saver = ringmain.save(endpoint, listen=listen, listen_once=listen_once, **options)
    source = open_input(input_, option)
    kernel.may_pump(path, source, tls=tls)

    def on_end(outcome: Outcome) -> None:
        row, counters = figures(outcome, saver.refused), outcome.counters
        session.record(row, counters.bytes_in, counters.bytes_out, outcome)

    def look() -> tuple[int, int, float]:
        bytes_in, bytes_out = session.moved(saver.counters)
        return bytes_in, bytes_out - saver.unacknowledged_bytes, saver.fullness

    async def work() -> None:
        saver.on_end = on_end
        try:
            async with saver:
                with session.announced((saver, saver.endpoint, tls)):
                    await copying.from_input(saver, source, path)
        finally:
            source.close()

    def stop() -> bool:
        source.stop()
        return saver.stop()

    def present() -> Present:
        counters = saver.counters
        size = counters.bytes_out - saver.unacknowledged_bytes if counters is not None else 0
        return Present(int(counters is not None), saver.refused, size, counters)

    return session.run(work, stop, look, progress_line, present)
