"""ringmain save."""

from typing import Any

import click

import ringmain
from ringmain.cli.command import Command
from ringmain.cli.options import max_connections, one_end, totals
from ringmain.cli.to_log import delimiter, run_save_to_log, take_log_options, to_log
from ringmain.cli.values import FILE, Size
from ringmain.endpoint import is_log
from ringmain.settings import SLOW, Settings

# What a client may have open: its socket, what tells of its reset, and what wakes its pump.
_DESCRIPTORS = 3


@click.command(cls=Command)
@one_end
@click.option("-l", "--listen", is_flag=True, help="Listen at ENDPOINT instead of connecting.")
@click.option("-o", "--listen-once", is_flag=True, help="End after the first connection; implies --listen.")
@click.option(
    "-I",
    "--input",
    "input_",
    envvar="RINGMAIN_SAVE_INPUT",
    metavar="FILE",
    type=FILE,
    default="-",
    help="Send FILE instead of standard input.",
)
@max_connections(
    "Serve up to N clients at once. A regular file goes whole to each, other input to all who are connected then."
)
@click.option(
    "--slow",
    type=click.Choice(SLOW),
    default=Settings.slow,
    show_default=True,
    help="A slow client makes all others wait, or is reset once its buffer is full (drop).",
)
@click.option(
    "--client-buffer",
    metavar="SIZE",
    type=Size(),
    default=Settings.client_buffer,
    show_default=Size.words(Settings.client_buffer),
    help="With --slow drop: how many bytes a client may be behind.",
)
@click.option(
    "--reconnect",
    is_flag=True,
    help="After a lost connection, go on with a new one; try forever, or --retry times. The last bytes may come twice.",
)
@delimiter
@to_log
@totals
def save(**options: Any) -> int:
    """Connect to ENDPOINT and send standard input.

    \b
    ringmain save tcp://127.0.0.1:8000 < events.ndjson
    ringmain save unix:/run/events.sock < events.ndjson
    ringmain save --listen --input events.ndjson tcp://:8000
    tail -f events.ndjson | ringmain save --listen --max-connections 20 tcp://:8000
    zstdcat dump.zst | ringmain save --retry forever tcps://example.org:4000
    tail -f events.ndjson | ringmain save --reconnect --delimiter '\\n' tcps://example.org:4000
    ringmain save nats://10.0.0.5:4222/events < events.ndjson

    With --listen, every client gets a regular file whole. Any other input is sent once: the next client gets what the
    last one did not, or with --max-connections all connected clients get it. On a signal, save sends what it has read.
    It then resets the connection if part of a file is missing, and closes it properly otherwise.

    With --reconnect, a new connection starts with what the peer's kernel has not acknowledged. So a record may arrive
    twice; with --delimiter it arrives whole. What the peer's kernel acknowledged but its program never read is lost.
    All data goes through blocks, even from a file. --retry limits the further attempts at the start (default 0) and,
    if it is given, those after a loss. A failed TLS handshake ends save, since the next would fail the same way.
    """
    ours = take_log_options(options["endpoint"], options)
    if is_log(options["endpoint"]):
        return run_save_to_log(ours=ours, **options)
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
    import time

    from ringmain._counters import Counters
    from ringmain.cli.descriptors import allow_descriptors
    from ringmain.cli.renewal import Renewal
    from ringmain.cli.session import Session
    from ringmain.cli.stats import Present, Side, figures
    from ringmain.cli.summary import Blame
    from ringmain.cli.tls import uses_tls
    from ringmain.endpoint import Endpoint
    from ringmain.flow import copying
    from ringmain.flow.descriptor import open_input
    from ringmain.flow.path import may_pump
    from ringmain.outcome import Outcome
    from ringmain.progress import Far, progress_line, waiting_line

    session = Session(options, endpoint)
    allow_descriptors(options["max_connections"], _DESCRIPTORS)
    tls = uses_tls(Endpoint.parse(endpoint), options)
    saver = ringmain.save(endpoint, listen=listen, listen_once=listen_once, **options)
    session.check_reloading(*([saver.settings] if tls else []))
    source = open_input(input_, option)
    session.share_terminal(source)
    may_pump(path, source, tls=tls)

    whole = source.size if not saver.reconnect else 0
    read = Counters()  # for many clients at once

    def on_end(outcome: Outcome) -> None:
        row, counters = figures(outcome, saver.refused), outcome.counters
        session.account.record(row, counters.bytes_in, counters.bytes_out, outcome, saver.connections)

    def look() -> tuple[int, int, float]:
        bytes_in, bytes_out = session.account.moved(saver.counters)
        return bytes_in + read.bytes_in, bytes_out - saver.unacknowledged_bytes, saver.fullness

    async def work() -> None:
        saver.on_end = on_end
        session.account.record_failures(saver)
        try:
            async with saver:
                with session.announced((saver, saver.endpoint, tls)):
                    await copying.from_input(saver, source, path, read)
        finally:
            source.close()

    def stop() -> bool:
        source.stop()
        return saver.stop()

    def present() -> Present:
        counters = saver.counters
        size = counters.bytes_out - saver.unacknowledged_bytes if counters is not None else 0
        waiting = waiting_line(saver.endpoint.address, saver.try_number) if saver.try_number else ""
        tries = saver.reconnects, saver.connect_failures
        sides, not_after = {"": Side(size, counters)}, {"destination": saver.not_after}
        return Present(saver.connections, saver.unserved, sides, waiting, *tries, not_after)

    def line(sizes: tuple[int, int], seconds: float, rates: tuple[float, float], fullness: float) -> str:
        if waiting := present().waiting:
            return waiting
        if saver.settings.max_connections > 1:
            return f"{saver.connections} connected  {progress_line(sizes, seconds, rates, fullness)}"
        counters, far = saver.counters, None
        if whole and counters is not None:
            size = counters.bytes_out - saver.unacknowledged_bytes
            far = Far(size, whole, time.monotonic() - counters.started)
        return progress_line(sizes, seconds, rates, fullness, far)

    def blame() -> Blame:
        waited = time.monotonic() - source.ended if source.ended is not None else 0.0
        return Blame("the peer", "the peer" if source.is_file else "the input", waited)

    return session.run(work, stop, look, line, present, renewal=Renewal([saver]), blame=blame)
