"""A save into a log: what standard input or a file has into a NATS stream, as messages of whole records."""

import logging
import time
import uuid
from typing import Self, Unpack

from ringmain._ring import Counters, Ring
from ringmain.endpoint import LogEndpoint
from ringmain.engines.nats_publish import Publisher
from ringmain.engines.nats_records import Cutting, Records
from ringmain.errors import ParseError, RecordTooLongError, RingmainError, TruncatedError
from ringmain.flow.blocks import Flow
from ringmain.flow.descriptor import Input
from ringmain.outcome import Outcome, Verdict
from ringmain.settings import Options, settings_for

log = logging.getLogger("ringmain")


def save_to_log(
    url: str,
    *,
    credentials: str | None = None,
    create_stream: str | None = None,
    cutting: Cutting | None = None,
    **options: Unpack[Options],
) -> "LogSaver":
    """Return what sends an input to the stream that takes the subject of `url`; keywords as of `relay_to_log`."""
    cutting = cutting or Cutting()
    publisher = Publisher(
        LogEndpoint.parse(url),
        settings_for(save_to_log, Options, options),
        credentials,
        max_in_flight=cutting.max_in_flight,
        create_stream=create_stream,
    )
    return LogSaver(publisher, cutting)


class LogSaver:
    """What `save_to_log` returns: `async with`, and `send`. `counters` count what is read."""

    def __init__(self, publisher: Publisher, cutting: Cutting) -> None:
        self.counters = Counters()
        self._publisher = publisher
        self._cutting = cutting
        self._verdict = Verdict.STOPPED

    async def __aenter__(self) -> Self:
        await self._publisher.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._publisher.__aexit__()

    @property
    def stored(self) -> int:
        """How many bytes the stream has acknowledged."""
        return self._publisher.stored

    @property
    def fullness(self) -> float:
        """The part of what may be unacknowledged that is, from 0 to 1."""
        return self._publisher.fullness

    def outcome(self, error: RingmainError | None) -> Outcome:
        """Return what became of it; `error` is what `send` has raised."""
        return Outcome(str(self._publisher.endpoint), None, None, self.counters, self.stored, self._verdict, error)

    async def send(self, source: Input) -> None:
        """Send all of an input; return once all of it is stored. `source.stop` ends it after what was read."""
        flow = self._cutting.flow(self._publisher.stream.max_message)
        records = Records(self._publisher, flow, f"{uuid.uuid4().hex}.1", source.name)

        def failed() -> None:
            source.wake()
            records.wake()

        self._publisher.failed = failed
        self.counters.started = time.monotonic()
        failure: RingmainError | None = None
        try:
            await self._publisher.until_taken(records.subject)
            try:
                await self._read_all(source, flow, records)
            except (RecordTooLongError, ParseError) as error:
                failure = error
            flow.ring.finish()
            await _put_all(flow.ring, records, ended=True)
            counters, ring = self.counters, flow.ring
            counters.skipped_records, counters.skipped_bytes = ring.skipped_records, ring.skipped_bytes
            cut = counters.bytes_in - ring.taken - ring.skipped_bytes
            if ring.skipped_records:
                words = "%s: skipped %d records longer than max_record, %d bytes"
                log.warning(words, source.name, ring.skipped_records, ring.max_record)
            if failure is None and cut > 0 and not source.stopped:
                why = f"it ends within a frame, of which {cut} bytes came"
                failure = TruncatedError(f"read {source.name}", why, "check that it is whole")
            whole = failure is None and not (source.stopped and source.has_end)
            self._verdict = Verdict.ENDED if whole else Verdict.STOPPED
            await records.finish(self._verdict, ring.taken, whole=whole)
        finally:
            self.counters.ended = time.monotonic()
            self.counters.dropped_bytes = records.dropped
        if failure is not None:
            raise failure

    async def _read_all(self, source: Input, flow: Flow, records: Records) -> None:
        ring, counters = flow.ring, self.counters
        while (view := await source.read()) is None or len(view):
            if view is None:  # the stream takes nothing any more, which `finish` raises
                return
            counters.bytes_in += len(view)
            counters.reads += 1
            while len(view):
                await records.until_room()
                window = _window(ring, source)
                assert window is not None
                size = min(len(window), len(view))
                window[:size] = view[:size]
                window.release()
                ring.commit(size)
                view = view[size:]
                await _put_all(ring, records, ended=False)
        _window(ring, source)


async def _put_all(ring: Ring, records: Records, *, ended: bool) -> None:
    while (block := ring.take()) is not None:
        await records.put(block, ring.taken - len(block), ended=ended)


def _window(ring: Ring, source: Input) -> memoryview | None:
    """Return where to read to; raise what is wrong with what was read."""
    try:
        return ring.reserve()
    except OverflowError as error:
        remedy = "raise the server's max_payload, check the delimiter or framing=, or skip such records with "
        remedy += 'long_records="skip"'
        raise RecordTooLongError(f"save from {source.name}", str(error), remedy) from error
    except ValueError as error:
        raise ParseError(source.name, ring.taken, str(error), "check framing=") from error
