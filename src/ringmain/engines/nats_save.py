"""A save into a log: what Python writes, or standard input or a file has, into a NATS stream as whole records."""

import asyncio
import logging
import platform
import time
import uuid
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Literal, Unpack, cast

from ringmain._counters import Counters
from ringmain._ring import Ring
from ringmain.blocking import Blocking
from ringmain.endpoint import LogEndpoint
from ringmain.engines.nats_blocking import BlockingLogSaver
from ringmain.engines.nats_publish import Publisher
from ringmain.engines.nats_records import Cutting, Records
from ringmain.errors import ParseError, RecordTooLongError, RingmainError, SendError, TruncatedError, UsageError
from ringmain.flow.blocks import Flow
from ringmain.flow.descriptor import Input
from ringmain.outcome import Outcome, Verdict
from ringmain.settings import LONG_RECORDS, MAX_IN_FLIGHT, MESSAGE_SIZE, Framing, Options, settings_for
from ringmain.waiting import Turn, let_go

if TYPE_CHECKING:
    from typing_extensions import Buffer

log = logging.getLogger("ringmain")


def save(
    url: str,
    *,
    credentials: str | None = None,
    create_stream: str | None = None,
    delimiter: bytes = b"",
    framing: Framing | None = None,
    long_records: Literal["raise", "skip"] = LONG_RECORDS,
    message_size: int = MESSAGE_SIZE,
    max_in_flight: int = MAX_IN_FLIGHT,
    peer: str = "",
    **options: Unpack[Options],
) -> "LogSaver":
    """Return what `ringmain.save` does for a `nats://` endpoint; its docstring tells what the keywords are."""
    cutting = Cutting(
        delimiter=delimiter,
        framing=framing,
        long_records=long_records,
        message_size=message_size,
        max_in_flight=max_in_flight,
    )
    publisher = Publisher(
        LogEndpoint.parse(url),
        settings_for(save, Options, options),
        credentials,
        max_in_flight=max_in_flight,
        create_stream=create_stream,
    )
    return LogSaver(publisher, cutting, peer or platform.node())


class LogSaver(Blocking):
    """What `save` returns for a log: a context manager, plain or asynchronous, with `write`. One task at a time.

    `counters` count what is written; `on_end` hears of the whole when it is left.
    """

    _verb = "save"

    def __init__(self, publisher: Publisher, cutting: Cutting, peer: str) -> None:
        self.endpoint = publisher.endpoint
        self.counters = Counters()
        self.on_end: Callable[[Outcome], None] | None = None
        self._publisher = publisher
        self._cutting = cutting
        self._peer = peer
        self._flow: Flow | None = None  # while it is open
        self._records: Records | None = None
        self._verdict = Verdict.STOPPED
        self._whole = True  # what was written has no hole
        self._ended = False
        self._turn = Turn("another task is already writing")

    def __repr__(self) -> str:
        state = "closed" if self._flow is None else "connected"
        return self._described(str(self.endpoint), state, [] if self._flow is None else [self.counters.bytes_in])

    def __enter__(self) -> BlockingLogSaver:
        self._enter()
        return cast(BlockingLogSaver, self)

    async def _set_up(self) -> None:
        self._loop = asyncio.get_running_loop()
        await self._publisher.__aenter__()
        self._flow = self._cutting.flow(self._publisher.stream.max_message)
        self._records = Records(self._publisher, self._flow, f"{uuid.uuid4().hex}.1", self._peer)
        self._publisher.failed = self._records.wake
        self.counters.started = time.monotonic()
        try:
            await self._publisher.until_taken(self._records.subject)
        except BaseException as error:
            await self._close(error)
            raise

    async def _tear_down(self, error: BaseException | None, *, broken_off: bool) -> None:
        try:
            if not broken_off and not self._ended:
                await self._end_properly()
        except BaseException as failure:
            error = failure
            raise
        finally:
            await self._close(error)

    def _reset_all(self) -> None:
        self._publisher.abandon()

    def _leftovers(self) -> list[Callable[[], object]]:
        return [] if self._flow is None else [self._publisher.abandon]

    @property
    def publisher(self) -> Publisher:
        """What stores messages."""
        return self._publisher

    def reload_certificates(self) -> None:
        """Read certificates, CA files and credentials again, for the next connection; raise what is wrong with one."""
        self._publisher.papers.reload_certificates()

    @property
    def served(self) -> int:
        """1 while something is being sent, else 0."""
        return int(self.counters.started > 0 and self.counters.ended == 0)

    @property
    def stored(self) -> int:
        """How many bytes the stream has acknowledged."""
        return self._publisher.stored

    @property
    def fullness(self) -> float:
        """The part of what may be unacknowledged that is, from 0 to 1."""
        return self._publisher.fullness

    def outcome(self, error: BaseException | None) -> Outcome:
        """Return what became of it; `error` is what has ended it."""
        failure = error if isinstance(error, RingmainError) else None
        return Outcome(str(self.endpoint), None, None, self.counters, self.stored, self._verdict, failure)

    def write(self, buffer: "Buffer") -> Coroutine[None, None, None]:
        """Put the whole records that a contiguous buffer completes into the stream; to be awaited in `async with`.

        It is copied, and may be changed once this returns. This waits while `max_in_flight` is unacknowledged. What has
        no end yet waits for the next write. One that is cancelled, or raises, leaves a hole: every later write, and
        leaving the block, raises SendError.
        """
        return self._awaited_or_done(self._write(buffer))

    async def _write(self, buffer: "Buffer") -> None:
        with self._turn:
            self._check()
            self._whole = False
            await self._take_in(memoryview(buffer).cast("B"))
            self._whole = True

    async def send(self, source: Input) -> None:
        """Send all of an input; return once all of it is stored. `source.stop` ends it after what was read."""
        records, ring = self._opened()

        def failed() -> None:
            source.wake()
            records.wake()

        self._publisher.failed = failed
        failure: RingmainError | None = None
        try:
            while (view := await source.read()) is None or len(view):
                if view is None:  # the stream takes nothing any more, which `finish` raises
                    break
                self.counters.reads += 1
                await self._take_in(view)
            _window(ring, source.name)
        except (RecordTooLongError, ParseError) as error:
            failure = error
        whole = failure is None and not (source.stopped and source.has_end)
        cut = await self._end(whole=whole)
        if failure is None and cut and not source.stopped:
            failure = self._truncated(cut)
        if failure is not None:
            raise failure

    async def _take_in(self, view: memoryview) -> None:
        records, ring = self._opened()
        self.counters.bytes_in += len(view)
        while len(view):
            await records.until_room()
            window = _window(ring, self._peer)
            assert window is not None
            size = min(len(window), len(view))
            window[:size] = view[:size]
            window.release()
            ring.commit(size)
            view = view[size:]
            await _put_all(ring, records, ended=False)

    async def _end_properly(self) -> None:
        with self._turn:
            self._check()
            if cut := await self._end(whole=True):
                raise self._truncated(cut)

    async def _end(self, *, whole: bool) -> int:
        """Put what is left, and how it has ended; once all is stored return how many bytes of a frame were cut off."""
        self._ended = True
        records, ring = self._opened()
        ring.finish()
        await _put_all(ring, records, ended=True)
        counters = self.counters
        counters.skipped_records, counters.skipped_bytes = ring.skipped_records, ring.skipped_bytes
        cut = max(0, counters.bytes_in - ring.taken - ring.skipped_bytes)
        if ring.skipped_records:
            words = "%s: skipped %d records longer than %d bytes"
            log.warning(words, self._peer, ring.skipped_records, ring.max_record)
        if whole and not cut:
            self._verdict = Verdict.ENDED
        await records.finish(self._verdict, ring.taken, whole=whole and not cut)
        return cut

    def _truncated(self, cut: int) -> TruncatedError:
        why = f"it ends within a frame, of which {cut} bytes came"
        return TruncatedError(f"save from {self._peer}", why, "check that it is whole")

    async def _close(self, error: BaseException | None) -> None:
        if self._flow is None:
            return
        self._flow = None
        try:
            await let_go([asyncio.ensure_future(self._publisher.__aexit__())])
        finally:  # also where it was cancelled meanwhile
            self.counters.ended = time.monotonic()
            if self._records is not None:
                self.counters.dropped_bytes = self._records.dropped
            if self.on_end is not None:
                self.on_end(self.outcome(error))

    def _opened(self) -> tuple[Records, Ring]:
        if self._flow is None or self._records is None:
            raise UsageError("a saver", "it is not open", "use it inside `async with`")
        return self._records, self._flow.ring

    def _check(self) -> None:
        self._opened()
        if not self._whole:
            raise SendError(f"save to {self.endpoint}", "an earlier write was cut off", "open it again")


async def _put_all(ring: Ring, records: Records, *, ended: bool) -> None:
    while (block := ring.take()) is not None:
        await records.put(block, ring.taken - len(block), ended=ended)


def _window(ring: Ring, name: str) -> memoryview | None:
    """Return where to read to; raise what is wrong with what was read."""
    try:
        return ring.reserve()
    except OverflowError as error:
        remedy = "raise the server's max_payload, check the delimiter or framing=, or skip such records with "
        remedy += 'long_records="skip"'
        raise RecordTooLongError(f"save from {name}", str(error), remedy) from error
    except ValueError as error:
        raise ParseError(name, ring.taken, str(error), "check framing=") from error
