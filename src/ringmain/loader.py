"""Load: bytes from one connection at a time, as blocks."""

import logging
import ssl
from collections.abc import Callable
from typing import Self, Unpack

from ringmain._ring import Counters, Ring
from ringmain.connection import Connection, dial
from ringmain.descriptor import Output
from ringmain.endpoint import Endpoint
from ringmain.errors import UsageError
from ringmain.gate import Listening, listen
from ringmain.settings import Options, Settings
from ringmain.stream import Stream

log = logging.getLogger("ringmain")

RING_SIZE = 8 << 20
BLOCK_SIZE = 256 << 10
LINGER = 0.001


def load(
    url: str,
    *,
    connect: bool = False,
    listen_once: bool = False,
    delimiter: bytes = b"",
    ring_size: int = RING_SIZE,
    block_size: int = BLOCK_SIZE,
    max_record: int = 64 << 20,
    linger: float = LINGER,
    **options: Unpack[Options],
) -> "Loader":
    """Receive from the endpoint `url`: listen there and serve one client after another, or with `connect` dial it.

    Use it as `async with`, then `async for block in loader`. A block is a read-only memoryview that owns its memory:
    keep it as long as you like, release it (or let it go) and the memory is received into again. No block holds bytes
    of two connections. With a `delimiter` of 1 to 16 bytes every block ends at one, except the last of a connection;
    a record longer than a block makes it grow, up to `max_record` bytes.

    At most `ring_size` bytes wait in blocks of `block_size`; then the peer waits. `listen_once` ends after the first
    connection, `connect` implies it. While data floods in, a byte may wait up to `linger` seconds for others to be read
    with it, which saves much CPU; 0 switches that off. For the other keywords see `ringmain.Options`.

    Raises a `RingmainError` when the endpoint is malformed or cannot be opened, and, where there is but one
    connection, when that ends in any way but a proper end. A listener logs a warning and serves the next client.
    """
    ring = Ring(ring_size, block_size, _checked(delimiter), max_record)
    endpoint = Endpoint.parse(url)
    return Loader(endpoint, Settings(**options), ring, connect=connect, listen_once=listen_once, linger=linger)


def _checked(delimiter: bytes) -> bytes:
    if len(delimiter) > 16:
        raise UsageError("delimiter", f"{len(delimiter)} bytes long", "give 1 to 16 bytes")
    return delimiter


class Loader(Listening):
    """What `load` returns: an asynchronous context manager and iterator of blocks. One consumer at a time."""

    def __init__(
        self, endpoint: Endpoint, settings: Settings, ring: Ring, *, connect: bool, listen_once: bool, linger: float
    ) -> None:
        if connect and listen_once:
            raise UsageError("listen_once", "it needs a listener", "leave out connect, which always ends after one")
        self.endpoint = endpoint
        self.settings = settings
        self.ring = ring
        self.connect = connect
        self.listen_once = listen_once
        self.linger = linger
        self.on_end: Callable[[Connection, Counters, str], None] | None = None
        self._tls = endpoint.tls or settings.tls
        self._context: ssl.SSLContext | None = None
        self._stream: Stream | None = None
        self._finished = False

    async def __aenter__(self) -> Self:
        if self._tls:
            from ringmain.tls import client_context, server_context

            self._context = (client_context if self.connect else server_context)(self.settings)
        if self.connect:
            self._begin(await dial(self.endpoint, self.settings, self._context))
        else:
            self._gate = await listen(self.endpoint, self.settings)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._stream is not None:
            await self._release(self._stream)
        if self._gate is not None:
            self._gate.close()
            self._gate = None
        self._finished = True

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> memoryview:
        while (stream := self._stream or await self._next_stream()) is not None:
            block = stream.take() or await stream.next_block()
            if block is not None:
                return block
            await self._end(stream)
        raise StopAsyncIteration

    async def copy_to(self, output: Output, path: str) -> None:
        """Write all that arrives to an output, in the kernel where both ends allow it; path: auto, kernel or block."""
        while (stream := self._stream or await self._next_stream()) is not None:
            await stream.copy_to(output, path)
            await self._end(stream)

    @property
    def counters(self) -> Counters | None:
        """The counters of the connection being served, or None between two."""
        return self._stream.counters if self._stream is not None else None

    @property
    def fullness(self) -> float:
        """The part of what lies between the peer and the consumer that is filled, from 0 to 1."""
        return self._stream.fullness if self._stream is not None else 0.0

    def stop(self) -> bool:
        """Receive no more: what came can still be taken, then the iteration ends. False when nothing is open."""
        self._finished = True
        if self._stream is None:
            return False
        self._stream.stop()
        return True

    async def _next_stream(self) -> Stream | None:
        """Begin with the next client, if there is to be one."""
        if self._finished:
            return None
        assert self._gate is not None, "a loader is used inside `async with`"
        return self._begin(await self._gate.next_connection(self._context))

    def _begin(self, connection: Connection) -> Stream:
        self._stream = Stream(connection, self.ring, self.settings, self.linger)
        return self._stream

    async def _end(self, stream: Stream) -> None:
        """Close a stream whose last byte was taken; raise what became of it, or warn and let the next one in."""
        error = stream.failure()
        await self._release(stream)
        if (self.connect or self.listen_once) and (error is None or self.connect or stream.counters.bytes_in):
            self._finished = True
            if error is not None:
                raise error
        elif error is not None:
            log.warning("%s", error)

    async def _release(self, stream: Stream) -> None:
        self._stream = None
        await stream.close()
        if self.on_end is not None:
            self.on_end(stream.connection, stream.counters, str(stream.verdict))
        if self._gate is not None:
            self._gate.done()
