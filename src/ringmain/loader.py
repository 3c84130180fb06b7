"""Load: bytes from one connection at a time, as blocks."""

import asyncio
import logging
import ssl
from collections.abc import Callable
from typing import Any, Self, Unpack

from ringmain._receiver import PlainReceiver, Receiver
from ringmain._ring import Counters, Ring
from ringmain.connection import Connection, dial, send_close_notify, watch_idle
from ringmain.endpoint import Endpoint
from ringmain.errors import (
    BlocksHeldError,
    ReceiveError,
    RecordTooLongError,
    RingmainError,
    TimedOutError,
    TruncatedError,
    UsageError,
    reason,
)
from ringmain.gate import Listening, listen
from ringmain.settings import Options, Settings

log = logging.getLogger("ringmain")

RING_SIZE = 8 << 20
BLOCK_SIZE = 256 << 10
# A consumer that holds every block may still be giving one back from another thread; this long it may take.
_HELD_TIMEOUT = 5.0


def load(
    url: str,
    *,
    connect: bool = False,
    listen_once: bool = False,
    delimiter: bytes = b"",
    ring_size: int = RING_SIZE,
    block_size: int = BLOCK_SIZE,
    max_record: int = 64 << 20,
    **options: Unpack[Options],
) -> "Loader":
    """Receive from the endpoint `url`: listen there and serve one client after another, or with `connect` dial it.

    Use it as `async with`, then `async for block in loader`. A block is a read-only memoryview that owns its memory:
    keep it as long as you like, release it (or let it go) and the memory is received into again. No block holds bytes
    of two connections. With a `delimiter` of 1 to 16 bytes every block ends at one, except the last of a connection;
    a record longer than a block makes it grow, up to `max_record` bytes.

    At most `ring_size` bytes wait in blocks of `block_size`; then the peer waits. `listen_once` ends after the first
    connection, `connect` implies it. For the other keywords see `ringmain.Options`.

    Raises a `RingmainError` when the endpoint is malformed or cannot be opened, and, where there is but one
    connection, when that ends in any way but a proper end. A listener logs a warning and serves the next client.
    """
    return Loader(
        Endpoint.parse(url),
        Settings(**options),
        Ring(ring_size, block_size, _checked(delimiter), max_record),
        connect=connect,
        listen_once=listen_once,
    )


def _checked(delimiter: bytes) -> bytes:
    if len(delimiter) > 16:
        raise UsageError("delimiter", f"{len(delimiter)} bytes long", "give 1 to 16 bytes")
    return delimiter


class Loader(Listening):
    """What `load` returns: an asynchronous context manager and iterator of blocks. One consumer at a time."""

    def __init__(self, endpoint: Endpoint, settings: Settings, ring: Ring, *, connect: bool, listen_once: bool) -> None:
        if connect and listen_once:
            raise UsageError("listen_once", "it needs a listener", "leave out connect, which always ends after one")
        self.endpoint = endpoint
        self.settings = settings
        self.ring = ring
        self.connect = connect
        self.listen_once = listen_once
        self.on_end: Callable[[Connection, Counters, str], None] | None = None
        self._tls = endpoint.tls or settings.tls
        self._context: ssl.SSLContext | None = None
        self._connection: Connection | None = None
        self._receiver: Receiver | None = None
        self._cancel_idle: Callable[[], None] = lambda: None
        self._finished = False

    async def __aenter__(self) -> Self:
        if self._tls:
            from ringmain.tls import client_context, server_context

            self._context = (client_context if self.connect else server_context)(self.settings)
        if self.connect:
            await self._begin(await dial(self.endpoint, self.settings, self._context))
        else:
            self._gate = await listen(self.endpoint, self.settings)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._receiver is not None:
            self._receiver.stop()
            self.ring.drop()
            await self._release()
        if self._gate is not None:
            self._gate.close()
            self._gate = None
        self._finished = True

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> memoryview:
        while True:
            receiver = self._receiver
            if receiver is not None:
                block = receiver.take()
                if block is not None:
                    return block
                if receiver.verdict is None:
                    await self._wait(receiver)
                    continue
                await self._end()
            if self._finished:
                raise StopAsyncIteration
            assert self._gate is not None, "a loader is used inside `async with`"
            await self._begin(await self._gate.next_connection(self._context))

    @property
    def counters(self) -> Counters | None:
        """The counters of the connection being served, or None between two."""
        return self._receiver.counters if self._receiver is not None else None

    def stop(self) -> bool:
        """Receive no more: what came can still be taken, then the iteration ends. False when nothing is open."""
        self._finished = True
        if self._receiver is None:
            return False
        self._receiver.stop()
        return True

    async def _wait(self, receiver: Receiver) -> None:
        waiter = receiver.wait()
        if not (receiver.paused and self.ring.starved):
            await waiter
            return
        held = f"all {self.ring.block_count} blocks of the ring"
        try:
            async with asyncio.timeout(_HELD_TIMEOUT):
                await waiter
        except TimeoutError as error:
            raise BlocksHeldError(held, "all are still held", "release or copy blocks, or raise ring_size") from error

    async def _begin(self, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        receiver: Any
        if isinstance(connection.sock, ssl.SSLSocket):
            from ringmain._tls_receiver import TlsReceiver

            receiver = TlsReceiver(loop, self.ring, connection.sock)
            receiver.start()
        else:
            receiver = _PlainProtocol(loop, self.ring)
            await loop.connect_accepted_socket(lambda: receiver, connection.sock)
        self._connection, self._receiver = connection, receiver
        self._cancel_idle = watch_idle(
            loop,
            self.settings.idle_timeout,
            lambda: None if receiver.paused else receiver.counters.bytes_in,
            lambda: receiver.stop("timed out"),
        )
        log.info("%s", connection)

    async def _end(self) -> None:
        """Close the connection whose last byte was taken; raise what became of it, or warn and let the next one in."""
        assert self._receiver is not None
        assert self._connection is not None
        receiver, peer = self._receiver, self._connection.peer
        error = _error_of(receiver, peer, self.settings)
        only_one = self.connect or self.listen_once
        await self._release()
        if only_one and (error is None or self.connect or receiver.counters.bytes_in):
            self._finished = True
            if error is not None:
                raise error
        elif error is not None:
            log.warning("%s", error)

    async def _release(self) -> None:
        assert self._receiver is not None
        assert self._connection is not None
        receiver, connection = self._receiver, self._connection
        self._receiver = self._connection = None
        self._cancel_idle()
        if isinstance(receiver, PlainReceiver):
            await receiver.closed
        if self.on_end is not None:
            self.on_end(connection, receiver.counters, str(receiver.verdict))
        if isinstance(connection.sock, ssl.SSLSocket):
            if receiver.verdict in ("ended", "stopped"):
                send_close_notify(connection.sock)
            connection.sock.close()
        log.info("%s: %s after %d bytes", connection.peer, receiver.verdict, receiver.counters.bytes_in)
        if self._gate is not None:
            self._gate.done()


class _PlainProtocol(PlainReceiver, asyncio.BufferedProtocol):
    """The plain receiver by the name that asyncio's own loop looks for; uvloop looks for `get_buffer`."""


def _error_of(receiver: Receiver, peer: str, settings: Settings) -> RingmainError | None:
    """Return the error that a verdict stands for, or None where all is well."""
    what, got, cause = f"load from {peer}", receiver.counters.bytes_in, receiver.error
    error: RingmainError | None = None
    if receiver.verdict == "truncated":
        why = "it ended without close_notify" if cause is None or isinstance(cause, ssl.SSLEOFError) else reason(cause)
        error = TruncatedError(what, f"{why} after {got} bytes", "what arrived may not be all that was sent")
    elif receiver.verdict == "reset":
        error = ReceiveError(
            what,
            f"{reason(cause or ConnectionResetError())} after {got} bytes",
            "what arrived may not be all that was sent",
        )
    elif receiver.verdict == "timed out":
        why = reason(cause) if cause is not None else f"nothing came for {settings.idle_timeout:g} s"
        error = TimedOutError(what, f"{why} after {got} bytes", "is the peer still alive? else raise --idle-timeout")
    elif isinstance(cause, OverflowError):
        error = RecordTooLongError(what, f"{cause}, at offset {got}", "raise max_record, or check the delimiter")
    if error is not None:
        error.__cause__ = cause
    return error
