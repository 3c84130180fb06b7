"""One connection being loaded: from its first byte to its verdict, as blocks or by the kernel path."""

import asyncio
import logging
import ssl
import time
from collections.abc import Callable

from ringmain import kernel
from ringmain._coalesce import Coalescer
from ringmain._pump import Pump
from ringmain._receiver import CAP, PlainReceiver, Receiver
from ringmain._ring import Counters, Ring
from ringmain.connection import Connection, send_close_notify, watch_idle
from ringmain.descriptor import Output
from ringmain.errors import (
    BlocksHeldError,
    ReceiveError,
    RecordTooLongError,
    RingmainError,
    TimedOutError,
    TruncatedError,
    reason,
)
from ringmain.settings import Settings

log = logging.getLogger("ringmain")

# A consumer that holds every block may still be giving one back from another thread; this long it may take.
_HELD_TIMEOUT = 5.0


class Stream:
    """What one peer sends. Read it with `next_block` or `copy_to`, then `close` it, whatever happened."""

    def __init__(self, connection: Connection, ring: Ring, settings: Settings, linger: float) -> None:
        self.connection = connection
        self.counters = Counters()
        self.counters.started = time.monotonic()
        self._ring = ring
        self._settings = settings
        self._linger = linger
        self._engine: Receiver | Pump | None = None
        self._stopped: str | None = None
        self._cancel_idle: Callable[[], None] = lambda: None
        log.info("%s", connection)

    @property
    def verdict(self) -> str | None:
        """How the stream ended: ended, truncated, reset, timed out, or stopped; None while it goes on."""
        return self._engine.verdict if self._engine is not None else self._stopped

    @property
    def fullness(self) -> float:
        """The part of what lies between the peer and the consumer that is filled, from 0 to 1."""
        return self._engine.fullness if isinstance(self._engine, Pump) else self._ring.fullness

    def take(self) -> memoryview | None:
        """Return the next block if there is one already."""
        return self._engine.take() if isinstance(self._engine, Receiver) else None

    async def next_block(self) -> memoryview | None:
        """Return the next block, or None once there is a verdict and all that came before it was taken."""
        receiver = self._engine if isinstance(self._engine, Receiver) else await self._receive()
        while (block := receiver.take()) is None:
            if receiver.verdict is not None:
                return None
            await self._wait(receiver)
        return block

    async def copy_to(self, output: Output, path: str) -> None:
        """Write all that comes to an output; raise ReaderLeft or OutputError when that fails."""
        tls = self.connection.tls_version is not None
        if kernel.may_pump(path, output, tls=tls) and await self._pump(output, path):
            return
        while (block := await self.next_block()) is not None:
            await output.write(block, self.counters)
            block.release()

    def stop(self, verdict: str = "stopped") -> None:
        """End the stream from our side; what came can still be taken."""
        self._stopped = verdict
        if self._engine is not None:
            self._engine.stop(verdict)

    async def close(self) -> None:
        """Close the connection; what was not taken is lost."""
        self._cancel_idle()
        sock = self.connection.sock
        self.stop()
        if isinstance(self._engine, PlainReceiver):
            await self._engine.closed
        elif isinstance(sock, ssl.SSLSocket):
            if self.verdict in ("ended", "stopped"):
                send_close_notify(sock)
            sock.close()
        else:
            sock.close()
        self._ring.drop()
        log.info("%s: %s after %d bytes", self.connection.peer, self.verdict, self.counters.bytes_in)

    def failure(self) -> RingmainError | None:
        """Return the error that the verdict stands for, or None where all is well."""
        cause = self._engine.error if self._engine is not None else None
        what, got = f"load from {self.connection.peer}", self.counters.bytes_in
        lost = "what arrived may not be all that was sent"
        error: RingmainError | None = None
        if self.verdict == "truncated":
            silent = isinstance(cause, ssl.SSLEOFError)
            why = "it ended without close_notify" if cause is None or silent else reason(cause)
            error = TruncatedError(what, f"{why} after {got} bytes", lost)
        elif self.verdict == "reset":
            error = ReceiveError(what, f"{reason(cause or ConnectionResetError())} after {got} bytes", lost)
        elif self.verdict == "timed out":
            why = f"nothing came for {self._settings.idle_timeout:g} s" if cause is None else reason(cause)
            remedy = "is the peer still alive? else raise --idle-timeout"
            error = TimedOutError(what, f"{why} after {got} bytes", remedy)
        elif isinstance(cause, OverflowError):
            remedy = "raise max_record, or check the delimiter"
            error = RecordTooLongError(what, f"{cause}, at offset {got}", remedy)
        if error is not None:
            error.__cause__ = cause
        return error

    async def _receive(self) -> Receiver:
        """Begin to receive into the ring."""
        loop = asyncio.get_running_loop()
        sock = self.connection.sock
        receiver: Receiver
        if isinstance(sock, ssl.SSLSocket):
            from ringmain._tls_receiver import TlsReceiver

            receiver = tls = TlsReceiver(loop, self._ring, self.counters, self._linger, sock)
            self._begin(tls)
            tls.start()
        else:
            receiver = plain = _PlainProtocol(loop, self._ring, self.counters, self._linger)
            self._begin(plain)
            try:
                await loop.connect_accepted_socket(lambda: plain, sock)
            except BaseException:  # uvloop closes the transport then, and tells the protocol nothing
                plain.connection_lost(None)
                raise
        if self._stopped is not None:
            receiver.stop(self._stopped)
        return receiver

    async def _pump(self, output: Output, path: str) -> bool:
        """Move everything by the kernel path; False when it cannot be used."""
        sock = self.connection.sock
        cap = min(CAP, output.pipe_size) if output.is_pipe else CAP
        coalescer = Coalescer(sock.fileno(), self._linger, cap)
        pump = Pump(sock.fileno(), output.fd, self.counters, coalescer, through=not output.is_pipe)
        self._begin(pump)
        if self._stopped is not None:
            pump.stop(self._stopped)
        await kernel.run(pump)
        if pump.refused:
            self._engine = None
            kernel.refused(path, output)
            return False
        if pump.failed == "destination" and pump.error is not None:
            raise output.failure(pump.error)
        return True

    def _begin(self, engine: Receiver | Pump) -> None:
        self._engine = engine
        self._cancel_idle()
        self._cancel_idle = watch_idle(
            asyncio.get_running_loop(),
            self._settings.idle_timeout,
            lambda: None if engine.paused else self.counters.bytes_in,
            lambda: engine.stop("timed out"),
        )

    async def _wait(self, receiver: Receiver) -> None:
        waiter = receiver.wait()
        if not (receiver.paused and self._ring.starved):
            await waiter
            return
        held = f"all {self._ring.block_count} blocks of the ring"
        try:
            async with asyncio.timeout(_HELD_TIMEOUT):
                await waiter
        except TimeoutError as error:
            raise BlocksHeldError(held, "all are still held", "release or copy blocks, or raise ring_size") from error


class _PlainProtocol(PlainReceiver, asyncio.BufferedProtocol):
    """The plain receiver by the name that asyncio's own loop looks for; uvloop looks for `get_buffer`."""
