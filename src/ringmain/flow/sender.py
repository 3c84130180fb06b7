"""Send on one connection, plain or TLS: back-pressure by await, half-close, and a close that loses no byte."""

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import Awaitable, Callable

from ringmain._pump import Pump
from ringmain._ring import Counters
from ringmain.errors import RingmainError, SendError, TlsError, reason
from ringmain.flow import kernel
from ringmain.flow.carry import Carry
from ringmain.net.connection import Connection, reset_when_closed
from ringmain.net.ending import Ending
from ringmain.outcome import Outcome, Verdict

# How long a write waits that wants something read, where others read.
_PAUSE = 0.01
# What is no longer than the first is copied, to go out with its like in one system call of the second at most.
_SMALL = 16 << 10
_GATHER = 64 << 10
_RECORD = 16 << 10
_TURN = 4 << 20
_SCRATCH = bytearray(1 << 16)


class Sender(Ending):
    """Send to one peer; what it sends back is read and dropped, so that closing never resets it.

    Where others read what it sends back (`duplex`), they say so when that has ended: `read_to_end`.

    OSError and ssl.SSLError pass through to the caller, who knows what was being sent to whom.
    """

    def __init__(
        self,
        connection: Connection,
        on_failure: Callable[[], None] | None = None,
        *,
        carry: Carry | None = None,
        duplex: bool = False,
    ) -> None:
        super().__init__(connection, on_failure, duplex=duplex)
        self.pumping: Pump | None = None
        self._carry = carry if self._tls is None else None  # under TLS nobody can tell in terms of plain bytes
        # Small writes that wait for the end of this turn of the loop, and the task that gives them to the kernel.
        self._gathered = bytearray()
        self._flushing: asyncio.Task[None] | None = None
        self._batch_begun: int | None = None  # `counters.bytes_out` when what is being flushed began to go out
        self._turn = _TURN  # how many bytes may still go out before others get their turn
        self.accepted = 0
        self.torn = False  # the last view was broken off when the kernel had a part of it, or TLS of a record
        self.counters = Counters()
        self.counters.started = time.monotonic()
        if not duplex:
            self._loop.add_reader(self._fd, self._discard)
        if self._tls is not None:
            self._discard()  # read-ahead may hold what the peer sent with its handshake

    def gather(self, view: memoryview) -> bool:
        """Copy a small view, to be sent at the end of this turn of the loop; False when it has to be sent by `send`."""
        if len(view) > _SMALL or len(self._gathered) + len(view) > _GATHER or self.failure is not None:
            return False
        if self._tls is not None and self.peer_ended:
            return False
        self._gathered += view
        self.accepted += len(view)
        if self._flushing is None or self._flushing.done():
            self._flushing = self._loop.create_task(self._flush())
        return True

    async def send(self, view: memoryview) -> None:
        """Give all that was gathered, and all of a contiguous view of bytes, to the kernel.

        The view may be changed once this returns. After an exception, `accepted` has grown by what was taken of it.
        Once it was `torn` by being cancelled, nothing can follow but the rest of it.
        """
        self.torn = False
        await self.flush()
        before = self.counters.bytes_out
        try:
            await self._send(view)
        finally:
            taken = self.counters.bytes_out - before
            self.accepted += taken
            self.torn = taken < len(view) and (taken > 0 or (self._tls is not None and self._tls.begun > 0))

    async def flush(self) -> None:
        """Give all that was gathered to the kernel."""
        if self._flushing is not None:
            await asyncio.wait([self._flushing])
        if self._gathered and self.failure is None:  # someone has cancelled the task
            await self._flush()
        if self._gathered and self.failure is not None:
            raise self.failure

    def take_unsent(self) -> bytes:
        """Return, once, what was gathered and did not go out any more."""
        gone = 0 if self._batch_begun is None else self.counters.bytes_out - self._batch_begun
        rest = bytes(self._gathered[gone:])
        self._gathered.clear()
        return rest

    async def _flush(self) -> None:
        try:
            while self._gathered:
                # A copy: while it goes out more may be gathered. If this is cancelled, the next one begins as it did.
                batch = memoryview(bytes(self._gathered))
                self._batch_begun = self.counters.bytes_out
                try:
                    await self._send(batch)
                finally:
                    del self._gathered[: self.counters.bytes_out - self._batch_begun]
                    self._batch_begun = None
        except OSError as error:
            if self.failure is None:
                self._fail(error)
            self.failure = self.failure or error
        finally:
            self._flushing = None

    async def _send(self, view: memoryview) -> None:
        # Each record is a write of its own: corked, many leave in one segment, and the last at once when uncorked.
        corked = self._tls is not None and len(view) > _RECORD
        if corked:
            self._cork(True)
        try:
            await self._send_all(view)
        finally:
            if corked:
                self._cork(False)

    def _cork(self, on: bool) -> None:
        if hasattr(socket, "TCP_CORK"):
            with contextlib.suppress(OSError):
                self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, on)

    async def _send_all(self, view: memoryview) -> None:
        write = self._sock.send if self._tls is None else self._tls.write
        offset = 0
        while offset < len(view):
            if self._turn <= 0:  # a peer that is always ready must not keep timers and signals waiting
                self._turn = _TURN
                await asyncio.sleep(0)
            if self.failure is not None:
                raise self.failure
            try:
                size = write(view[offset : offset + _TURN])
            except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError) as error:
                self._turn = _TURN
                await self._stalled(self._until_ready(error))
            except OSError as error:
                self._discard()  # the peer's last words, an alert perhaps, say more than a broken pipe
                raise self.failure or self._cause(error) from None
            else:
                if self._carry is not None:
                    self._carry.sent(view[offset : offset + size])
                    self._trim(self._carry)
                offset += size
                self._turn -= size
                self.counters.bytes_out += size
                self.counters.writes += 1

    async def pump(self, pump: Pump) -> None:
        """Let a pump whose destination is this connection do the sending; raise what goes wrong with the connection."""
        self.pumping = pump
        if self.failure is not None:
            pump.stop()
        try:
            await kernel.Pumping().run(pump)
        finally:
            self.pumping = None
        if pump.failed == "destination" and not pump.refused:
            self._discard()
        if self.failure is not None:
            raise self.failure
        if pump.failed == "destination" and not pump.refused and pump.error is not None:
            raise pump.error

    async def deliver(self) -> None:
        """Return once the peer's kernel has every byte so far, with no end behind them."""
        await self.flush()
        await self.until_acknowledged()

    async def finish(self) -> None:
        """Send what was gathered, close_notify (under TLS) and FIN; return once the peer's kernel has every byte."""
        await self.end()
        await self.drain()

    async def end(self) -> None:
        """Send what was gathered, close_notify (under TLS) and FIN; what the peer sends can still be read."""
        await self.flush()
        await self._say_goodbye()

    def progress(self) -> int | None:
        """Return a number that grows while the peer takes bytes, or None while there are none for it to take."""
        left = self.unacknowledged() or 0
        if left == 0 and (self._awaits_verdict or (self.pumping is not None and not self.pumping.paused)):
            return None
        return self.counters.bytes_out - left

    def outcome(self, verdict: Verdict, error: RingmainError | None = None) -> Outcome:
        """Return what became of it, which only its owner knows."""
        _, peer, tls, cipher = self.connection
        return Outcome(peer, tls, cipher, self.counters, self.counters.bytes_out, verdict, error)

    @property
    def fullness(self) -> float:
        """The part of the kernel's send buffer that the peer has yet to take, from 0 to 1."""
        if self._closed:
            return 0.0
        return min(1.0, (self.unacknowledged() or 0) / self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF))

    def abort(self) -> None:
        """Close with a reset, so that the peer cannot take it for a regular end; after a close it does nothing."""
        if not self._closed:
            reset_when_closed(self._sock)
            self.close()

    def close(self) -> None:
        """Close the socket, unless it is closed; whatever `finish` has not seen through may be lost."""
        if self._closed:
            return
        if self._carry is not None:
            self._trim(self._carry)
        if not self._loop.is_closed():
            if self._flushing is not None:
                self._flushing.cancel()
            self._loop.remove_writer(self._fd)
            self._loop.remove_reader(self._fd)
            self._discard()
        self._shut()
        self.counters.ended = time.monotonic()

    def _trim(self, carry: Carry) -> None:
        carry.acknowledged(max(0, (self.unacknowledged() or 0) - self._fin))

    async def _until_ready(self, error: OSError) -> None:
        """Wait for what a write has said it wants."""
        if not isinstance(error, ssl.SSLWantReadError):
            await self._until_writable()
        elif self._duplex:  # others read, and do not say so; only TLS 1.2 ever comes here, when it negotiates anew
            await asyncio.sleep(_PAUSE)
        else:
            await self._change()

    async def _stalled(self, wait: Awaitable[None]) -> None:
        since = time.monotonic()
        self.counters.stalls += 1
        try:
            await wait
        finally:
            self.counters.stalled_seconds += time.monotonic() - since

    def _fail(self, error: OSError) -> None:
        super()._fail(error)
        if self.failure is not None and self.pumping is not None:
            self.pumping.stop()

    def _discard_more(self) -> None:
        if not self._closed and not self.peer_ended and self.failure is None:
            self._discard()

    def _discard(self) -> None:
        """Read and drop what the peer sends: TLS needs to see it, and unread bytes would turn close into reset."""
        if self._duplex:
            return
        try:
            for _ in range(16):
                size = self._sock.recv_into(_SCRATCH) if self._tls is None else self._tls.read(_SCRATCH)
                self._unjudged = self._unjudged and size == 0
                if size == 0:
                    self.peer_ended = True
                    break
            else:  # uvloop may not call again, if a reset is behind it
                self._loop.call_soon(self._discard_more)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        except OSError as error:
            self._fail(error)
        if self.peer_ended or self.failure is not None:
            self._loop.remove_reader(self._fd)
            if self.failure is None and self._hang_up is None:
                self._watch_for_hang_up()
                if self._tls is not None and self.on_failure is not None:
                    self.on_failure()
        self._notify()


def failure_of(error: OSError, what: str) -> RingmainError:
    """Return what a failure of the connection means to the user; an alert comes from a peer that rejects us."""
    why = reason(error)
    if isinstance(error, ConnectionAbortedError):  # our own doing has no words in the C library
        why = error.strerror or why
    elif isinstance(error, ssl.SSLZeroReturnError):
        why = "the peer closed the connection"
    failed: RingmainError = SendError(what, why, "what was sent may not have arrived")
    if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        failed = TlsError(what, why, "does the peer accept our certificate and settings?")
    failed.__cause__ = error
    return failed
