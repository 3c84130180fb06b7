"""Each verb with what the command line adds: descriptors, figures, progress. Returns exit codes."""

import asyncio
import contextlib
import dataclasses
import logging
import time
from typing import Any

from ringmain.cli.session import Session
from ringmain.endpoint import Endpoint
from ringmain.flow import copying, kernel
from ringmain.flow.descriptor import Output, open_input, open_output
from ringmain.loader import Loader, load
from ringmain.outcome import Outcome, RelayOutcome
from ringmain.progress import relay_line
from ringmain.relayer import relay
from ringmain.saver import save
from ringmain.settings import TlsSettings, keywords_given

log = logging.getLogger("ringmain")

# The options that wait for TLS in vain where there is none; all but the one that is never unset.
_TLS_OPTIONS = [field.name for field in dataclasses.fields(TlsSettings) if not field.default]


def run_load(endpoint: str, output: str, path: str, **options: Any) -> int:
    """Run `ringmain load`; return the exit code."""
    session = Session(options)
    tls = uses_tls(Endpoint.parse(endpoint), options)
    loader = load(endpoint, **options)
    with contextlib.closing(open_output(output)) as sink:
        kernel.may_pump(path, sink, tls=tls)
        return _load_into(sink, path, loader, session, tls=tls)


def _load_into(sink: Output, path: str, loader: Loader, session: Session, *, tls: bool) -> int:
    def on_end(outcome: Outcome) -> None:
        row = {**_figures(outcome), "refused": loader.refused, "verdict": outcome.verdict}
        session.record(row, outcome.counters.bytes_in, outcome.counters.bytes_out)

    def look() -> tuple[int, int, float]:
        return *session.moved(loader.counters), loader.fullness

    async def move() -> None:
        async with loader:
            with session.announced((loader, loader.endpoint, tls)):
                sink.begin()
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

    return session.run(work, loader.stop, look)


def run_save(endpoint: str, input_: str, path: str, *, listen: bool, listen_once: bool, **options: Any) -> int:
    """Run `ringmain save`; return the exit code."""
    session = Session(options)
    tls = uses_tls(Endpoint.parse(endpoint), options)
    saver = save(endpoint, listen=listen, listen_once=listen_once, **options)
    source = open_input(input_)
    kernel.may_pump(path, source, tls=tls)

    def on_end(outcome: Outcome) -> None:
        row = {**_figures(outcome), "refused": saver.refused, "verdict": outcome.verdict}
        session.record(row, outcome.counters.bytes_in, outcome.counters.bytes_out)

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

    return session.run(work, stop, look)


def run_relay(
    source: str,
    destination: str,
    path: str,
    *,
    source_tls: dict[str, Any],
    destination_tls: dict[str, Any],
    **options: Any,
) -> int:
    """Run `ringmain relay` between two endpoints; return the exit code."""
    session = Session(options)
    for name, url, tls in (("source", source, source_tls), ("destination", destination, destination_tls)):
        if not Endpoint.parse(url).tls:
            _warn_of_unused(tls, f"{name}_tls.", "a tcps:// endpoint")
    relayer = relay(
        source,
        destination,
        source_tls=TlsSettings(**source_tls),
        destination_tls=TlsSettings(**destination_tls),
        **options,
    )

    def on_end(outcome: RelayOutcome) -> None:
        row = {
            "source": {**_side(outcome.source), **({"proxy": outcome.source.proxy} if outcome.source.proxy else {})},
            "destination": _side(outcome.destination),
            "seconds": round(outcome.seconds, 6),
            "refused": relayer.refused,
            "verdict": outcome.verdict,
        }
        session.record(row, outcome.source.size, outcome.destination.size)

    def look() -> tuple[int, int, float]:
        there, back = [*relayer.taken, 0, 0][:2]
        return session.bytes_in + there, session.bytes_out + back, relayer.fullness

    async def work() -> None:
        relayer.on_end = on_end
        async with relayer:
            with session.announced(
                *((end, end.endpoint, end.endpoint.tls) for end in (relayer.source, relayer.destination))
            ):
                await relayer.serve(path)

    return session.run(work, relayer.stop, look, relay_line)


def _side(outcome: Outcome) -> dict[str, Any]:
    """Return the figures of one side of a relay: what it sent that reached the other, if it sends at all."""
    if outcome.state is None:
        return {"peer": outcome.peer, "tls": outcome.tls, "cipher": outcome.cipher}
    return {**_figures(outcome), "state": outcome.state}


def _figures(outcome: Outcome) -> dict[str, Any]:
    """Return what a stats file tells of a connection."""
    counters = outcome.counters
    return {
        "peer": outcome.peer,
        "tls": outcome.tls,
        "cipher": outcome.cipher,
        "bytes": outcome.size,
        "seconds": round(max(0.0, (counters.ended or time.monotonic()) - counters.started), 6),
        "reads": counters.reads,
        "blocks": counters.blocks,
        "writes": counters.writes,
        "stalls": counters.stalls,
        "stalled_seconds": round(counters.stalled_seconds, 6),
    }


def uses_tls(endpoint: Endpoint, options: dict[str, Any]) -> bool:
    """Tell whether an endpoint is to be used with TLS; warn of options that wait for it in vain."""
    tls = bool(options["tls"] or endpoint.tls)
    if not tls:
        prefix = options.get("prefix", "")  # relay's, where a file is at the other end
        _warn_of_unused(options, prefix, "a tcps:// endpoint" if prefix else "tls=True")
    return tls


def _warn_of_unused(options: dict[str, Any], prefix: str, wanted: str) -> None:
    if unused := keywords_given(options, _TLS_OPTIONS, prefix):
        log.warning("%s: ignored without %s, nothing is encrypted", unused, wanted)
