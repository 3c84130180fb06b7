"""The records of one connection, or of standard input, as messages of a NATS stream, and how they are cut."""

import asyncio
import functools
import logging
import re
from collections.abc import Iterator
from typing import Any

from ringmain._walk import Walk
from ringmain.engines.nats_publish import Publisher
from ringmain.engines.nats_session import Message
from ringmain.errors import UsageError, printable
from ringmain.flow.blocks import Flow, flow_for
from ringmain.settings import DELIMITER, LINGER, MAX_IN_FLIGHT, MESSAGE_SIZE

log = logging.getLogger("ringmain")

_LONGEST_PEER = 200
# What all clients together may have in rings of their own, with four blocks each; a block has no less than this.
_RINGS = 64 << 20
_LEAST_BLOCK = 16 << 10
# What all clients together may have in records that are longer than a block, of which no end has come.
_LONG = 256 << 20


class Cutting:
    """How what comes is cut into messages: the keywords, checked."""

    def __init__(
        self,
        *,
        delimiter: bytes = b"",
        framing: str | None = None,
        long_records: str = "raise",
        message_size: int = MESSAGE_SIZE,
        max_in_flight: int = MAX_IN_FLIGHT,
        linger: float = LINGER,
        connections: int = 1,
    ) -> None:
        if message_size < 1:
            raise UsageError(f"message_size={message_size}", "it holds nothing", "give at least 1")
        if max_in_flight < message_size:
            why = f"less than one message of {message_size} bytes"
            raise UsageError(f"max_in_flight={max_in_flight}", why, "raise it, or lower message_size=")
        self.max_in_flight = max_in_flight
        self._most = message_size
        self._connections = connections
        self._keywords: dict[str, Any] = {
            "delimiter": delimiter or (b"" if framing is not None else DELIMITER),
            "framing": framing,
            "long_records": long_records,
            "linger": linger,
        }
        self.flow(message_size)  # what is wrong with them is told before anything is opened

    def flow(self, max_message: int) -> Flow:
        """Return the memory of one connection, for a stream that takes messages of so many bytes.

        A record may be as long as these, unless so many connections may be there that all would have too much.
        """
        share = max(_LEAST_BLOCK, _RINGS // (4 * self._connections))
        block_size = min(self._most, max_message, share)
        ring_size = max(4 * block_size, self.max_in_flight // self._connections)
        max_record = min(max_message, max(block_size, _LONG // self._connections))
        return flow_for(ring_size=ring_size, block_size=block_size, max_record=max_record, **self._keywords)


class Records:
    """Put what one peer sends into the stream, whole records only; `finish` waits until all of it is stored.

    name: what tells it from all others, as "<uuid>.7". Messages have at most `flow.ring.block_size` bytes, or one
    longer record. `held` counts those that are not acknowledged.
    """

    def __init__(self, publisher: Publisher, flow: Flow, name: str, peer: str) -> None:
        self.size = 0  # in messages
        self.stored = 0  # of it, acknowledged
        self.dropped = 0  # of a last record without an end
        self.held = 0
        self._publisher = publisher
        self._flow = flow
        self._name = name
        self._peer = printable(peer).encode("ascii", "replace").decode()[:_LONGEST_PEER]
        self.subject = _subject_for(publisher.endpoint.name, name, peer)
        self._rest: tuple[int, bytes] | None = None
        self._change: asyncio.Future[None] | None = None

    async def put(self, block: memoryview, offset: int, *, ended: bool) -> None:
        """Put a block that begins at `offset` of what the peer has sent; it is released once it is stored.

        Only after the peer has `ended` may it have a last record without an end.
        """
        delimiter = self._flow.delimiter
        if block[-len(delimiter) :] != delimiter if delimiter else ended:
            size = sum(map(len, self._records_of(block, keeps_rest=False)))
            if size < len(block):
                self._rest = offset + size, bytes(block[size:])
            block = block[:size]
        for part in self._parts_of(block):
            size = len(part)
            await self._put(part, offset)
            offset += size

    async def until_room(self) -> None:
        """Return once the ring has blocks again besides those that are held for the stream.

        A ring that waits for its consumer for long takes that for a fault, and a server may be away for long. While a
        record is held that is longer than a block, another one may not fit.
        """
        ring = self._flow.ring
        while self.held and (ring.lent >= ring.block_count - 1 or ring.memory > ring.block_size * ring.block_count):
            await self._until_change()

    async def finish(self, verdict: str, offset: int, *, whole: bool) -> None:
        """Put the last record, and the message that says how it has ended; return once all is acknowledged.

        Where it has ended as a `whole` the last record is completed, else it is dropped if it has no end.
        """
        if self._rest is not None:
            at, rest = self._rest
            self._rest = None
            if whole:
                await self._put(rest + (self._flow.delimiter or DELIMITER), at)
            else:
                self.dropped = len(rest)
                offset = at
        headers = {"Ringmain-Verdict": verdict, "Ringmain-Bytes": str(self.size)}
        await self._put(b"", offset, headers)
        while self.held:
            await self._until_change()

    async def _put(self, payload: bytes | memoryview, offset: int, more: dict[str, str] | None = None) -> None:
        size = len(payload)
        headers = {
            "Nats-Msg-Id": f"{self._name}:{offset}",
            "Ringmain-Connection": self._name,
            "Ringmain-Offset": str(offset),
            "Ringmain-Peer": self._peer,
            **(more or {}),
        }
        self.held += 1
        try:
            stored = functools.partial(self._stored, size)
            await self._publisher.put(Message(self.subject, payload, headers, stored, self._name))
        except BaseException:
            self.held -= 1
            raise
        self.size += size

    def _records_of(self, block: memoryview, *, keeps_rest: bool) -> Iterator[memoryview]:
        """Yield the records of a block with all that came of them; what has no end is one if that is kept."""
        assert self._flow.cutter is not None
        walk = Walk(self._flow.cutter, True)
        walk.enter(block, keeps_rest)
        while (record := walk.take()) is not None:
            with record:
                yield record

    def _parts_of(self, block: memoryview) -> list[memoryview]:
        """Return a block in parts of at most a block's size, each of whole records: one that is longer for itself."""
        most = self._flow.ring.block_size
        if len(block) <= most:
            return [block] if len(block) else []
        parts, start, end = [], 0, 0
        for record in self._records_of(block, keeps_rest=True):
            if end + len(record) - start > most and end > start:
                parts.append(block[start:end])
                start = end
            end += len(record)
        parts.append(block[start:])
        return parts

    def _stored(self, size: int) -> None:
        self.held -= 1
        self.stored += size
        self.wake()

    def wake(self) -> None:
        """Have whoever waits look again."""
        if self._change is not None and not self._change.done():
            self._change.set_result(None)

    async def _until_change(self) -> None:
        if self._publisher.failure is not None:
            raise self._publisher.failure
        self._change = asyncio.get_running_loop().create_future()
        await self._change
        if self._publisher.failure is not None:
            raise self._publisher.failure


def _subject_for(subject: str, name: str, peer: str) -> str:
    """Return the subject of a connection's messages: an address has dots, which part a subject."""
    peer = re.sub(r"[^A-Za-z0-9_:%-]", "_", re.sub(r"[\[\]]", "", peer))[:_LONGEST_PEER]
    return subject.replace("{peer}", peer).replace("{connection}", name.replace(".", "-"))
