"""ringmain load."""

from typing import TYPE_CHECKING, Any

import click

import ringmain
from ringmain.cli.options import linger, max_connections, one_end
from ringmain.cli.values import LongRecords, Octets, Size
from ringmain.errors import UsageError
from ringmain.settings import FRAMINGS, LONG_RECORDS, MAX_RECORD, MERGED_RECORD

if TYPE_CHECKING:
    from ringmain.cli.session import Session
    from ringmain.flow.descriptor import Output


@click.command()
@one_end
@click.option("-c", "--connect", is_flag=True, help="Connect to ENDPOINT instead of listening there.")
@click.option("-o", "--listen-once", is_flag=True, help="End after the first connection.")
@click.option("-k", "--keep-listening", is_flag=True, help="Serve one client after another: the default.")
@click.option("-O", "--output", metavar="FILE", default="-", help="Write to FILE instead of standard output.")
@max_connections("Serve so many clients at once, and merge their records.")
@click.option(
    "--delimiter",
    metavar="TEXT",
    type=Octets(),
    default=b"",
    help=r"Write whole records only, which end at this, as \n or \x1e. With several clients \n is the default.",
)
@click.option(
    "--framing",
    type=click.Choice(FRAMINGS),
    metavar="KIND",
    help="Check that what arrives has frames of this kind, and write whole ones only: octet-counting (syslog), "
    "length:4be (or 1, 2, 8 bytes; or le), nul or crlf.",
)
@click.option(
    "--max-record",
    metavar="SIZE",
    type=Size(),
    help=f"The longest record: {Size.words(MAX_RECORD)}, with several clients {Size.words(MERGED_RECORD)}.",
)
@click.option(
    "--long-records",
    type=LongRecords(),
    default=LongRecords.words(LONG_RECORDS),
    show_default=True,
    help="Reset the sender of a longer one, or leave it out.",
)
@linger
def load(connect: bool, listen_once: bool, keep_listening: bool, **options: Any) -> int:
    """Receive at ENDPOINT and write what arrives to standard output.

    \b
    ringmain load tcp://127.0.0.1:8000 > events.ndjson
    ringmain load --listen-once tcp://:8000 | zstd > dump.zst
    ringmain load --connect tcps://example.org:4000 | head -1
    ringmain load tcp://127.0.0.1:4000 --tls --certfile key_and_cert.pem
    ringmain load --max-connections 100 tcp://:8000 > events.ndjson
    """
    if connect and listen_once:
        raise UsageError("--connect with --listen-once", "there is nothing to listen at", "leave one of them out")
    if keep_listening and (connect or listen_once):
        other = "--connect" if connect else "--listen-once"
        raise UsageError(f"--keep-listening with {other}", "they contradict each other", "leave one of them out")
    return run_load(connect=connect, listen_once=listen_once, **options)


def run_load(endpoint: str, output: str, path: str, *, option: str = "--output", **options: Any) -> int:
    """Run `ringmain load`; return the exit code. `option` is what `output` was given as."""
    import contextlib

    from ringmain.cli.session import Session, allow_descriptors, uses_tls
    from ringmain.endpoint import Endpoint
    from ringmain.flow import kernel
    from ringmain.flow.descriptor import open_output

    session = Session(options)
    allow_descriptors(options["max_connections"], 1)
    tls = uses_tls(Endpoint.parse(endpoint), options)
    loader = ringmain.load(endpoint, **options)
    with contextlib.closing(open_output(output, option)) as sink:
        kernel.may_pump(path, sink, tls=tls, cut=loader.merges or loader.ring.cutter is not None)
        return _load_into(sink, path, loader, session, tls=tls)


def _load_into(sink: "Output", path: str, loader: "ringmain.Loader", session: "Session", *, tls: bool) -> int:
    import asyncio

    from ringmain._ring import Counters
    from ringmain.cli.stats import figures
    from ringmain.flow import copying
    from ringmain.outcome import Outcome
    from ringmain.progress import progress_line

    def on_end(outcome: Outcome) -> None:
        session.record(figures(outcome, loader.refused), outcome.counters.bytes_in, outcome.counters.bytes_out)

    written = Counters()  # of all connections, where they are merged

    def look() -> tuple[int, int, float]:
        bytes_in, bytes_out = session.moved(loader.counters)
        return bytes_in, bytes_out + written.bytes_out, loader.fullness

    async def move() -> None:
        async with loader:
            with session.announced((loader, loader.endpoint, tls)):
                sink.begin()
                if loader.merges:
                    await copying.merged_to_output(loader, sink, written)
                else:
                    await copying.to_output(loader, sink, path)

    async def work() -> None:
        loader.on_end = on_end
        moving = asyncio.ensure_future(move())
        leaving = asyncio.ensure_future(sink.reader_left())
        try:
            await asyncio.wait([moving, leaving], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (moving, leaving):
                task.cancel()
            await asyncio.wait([moving, leaving])
            sink.close()
        if not moving.cancelled():
            moving.result()

    return session.run(work, loader.stop, look, progress_line)
