"""Send on one connection, plain or TLS: back-pressure by await, half-close, and a close that loses no byte."""

import asyncio
import errno
import socket
import ssl
import time
from collections.abc import Awaitable, Callable

from ringmain._counters import Counters
from ringmain._pump import Pump
from ringmain.errors import RingmainError
from ringmain.flow import kernel
from ringmain.flow.idle_timeout import Watch
from ringmain.flow.next_client import Carry
from ringmain.net.link import Link
from ringmain.outcome import Outcome, Verdict

# How long a write waits that wants something read, where others read.
_PAUSE = 0.01
# What is no longer than the first is copied, to go out with its like in one system call of the second at most.
SMALL = 16 << 10
GATHER = 64 << 10
_TURN = 4 << 20
_TLS_RECORD = 16 << 10


class Outflow:
    """Send to the peer of a link; what it sends back is read and dropped, so that closing never resets it.

    Where others read what it sends back (`duplex`), they tell the link when that has ended: `Link.read_to_end`.
    `on_failure` is called when the link has failed, and when a TLS peer has ended. What passes on an inflow counts with
    the `counters` of that, whose times and stalls are its own. `grace`: a peer that has ended, which may still read, is
    taken for lost once it takes nothing for so many seconds.

    OSError and ssl.SSLError pass through to the caller, who knows what was being sent to whom.
    """

    def __init__(
        self,
        link: Link,
        on_failure: Callable[[], None] | None = None,
        *,
        carry: Carry | None = None,
        duplex: bool = False,
        counters: Counters | None = None,
        grace: float | None = None,
    ) -> None:
        self.link = link
        self.on_failure = on_failure
        self.pumping: Pump | None = None
        self._carry = carry
        self._duplex = duplex
        self._grace = grace
        self._watch: Watch | None = None  # over a peer that has ended
        # Small writes that wait for the end of this turn of the loop, and the task that gives them to the kernel.
        self._gathered = bytearray()
        self._flushing: asyncio.Task[None] | None = None
        self._batch_begun: int | None = None  # `counters.bytes_out` when what is being flushed began to go out
        self._held_up = False  # a write waits for the peer
        self._turn = _TURN  # how many bytes may still go out before others get their turn
        self.accepted = 0
        self.torn = False  # the last view was broken off when the kernel had a part of it, or TLS of a record
        self.undelivered = 0  # how many bytes were not acknowledged when it was closed, where the link tells
        self.counters = counters or Counters()
        self._times = self.counters if counters is None else Counters()
        self._times.started = time.monotonic()
        link.begin_to_send(self._link_failed, duplex=duplex)

    @property
    def failure(self) -> OSError | None:
        """Why nothing can be sent any more."""
        return self.link.failure

    def gather(self, view: memoryview) -> bool:
        """Copy a small view, to be sent at the end of this turn of the loop; False when it has to be sent by `send`."""
        if len(view) > SMALL or len(self._gathered) + len(view) > GATHER or self.failure is not None:
            return False
        if self.link.session is not None and self.link.peer_ended:
            return False
        self._gathered += view
        self.accepted += len(view)
        if self._flushing is None or self._flushing.done():
            self._flushing = self.link.loop.create_task(self._flush())
        return True

    async def send(self, view: memoryview) -> None:
        """Give all that was gathered, and all of a contiguous view of bytes, to the kernel.

        The view may be changed once this returns. After an exception, `accepted` has grown by what was taken of it.
        Once it was `torn` by being cancelled, nothing can follow but the rest of it.
        """
        self.torn = False
        await self.flush()
        before, session = self.counters.bytes_out, self.link.session
        try:
            await self._send(view)
        finally:
            taken = self.counters.bytes_out - before
            self.accepted += taken
            self.torn = taken < len(view) and (taken > 0 or (session is not None and session.begun > 0))

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
                self.link.fail(error)
            self.link.failure = self.failure or error
        finally:
            self._flushing = None

    async def _send(self, view: memoryview) -> None:
        write = self.link.sock.send if self.link.session is None else self.link.session.write
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
                raise self.link.cause_of(error) from None
            else:
                if self._carry is not None:
                    self._carry.sent(view[offset : offset + size])
                    self._trim()
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
            self.link.discard()
        if self.failure is not None:
            raise self.failure
        if pump.failed == "destination" and not pump.refused and pump.error is not None:
            raise pump.error

    async def deliver(self) -> None:
        """Return once the peer's kernel has every byte so far, with no end behind them."""
        await self.flush()
        await self.link.until_acknowledged()

    async def finish(self) -> None:
        """Send what was gathered, close_notify (under TLS) and FIN; return once the peer's kernel has every byte.

        Raises where the connection is gone before that: an end that was not sent reaches nobody.
        """
        await self.flush()
        if self.failure is None and self.link.was_reset():
            self.link.discard()  # an alert may lie before the reset, which says more
            if self.failure is None:
                self.link.give_up(errno.ECONNRESET)
        if self.failure is not None:
            raise self.failure
        await self.end()
        await self.link.drain()

    async def end(self) -> None:
        """Send what was gathered, close_notify (under TLS) and FIN; what the peer sends can still be read."""
        await self.flush()
        await self.link.half_close()

    def progress(self) -> int | None:
        """Return a number that grows while the peer takes bytes, or None while there are none for it to take."""
        left = self.link.untaken()
        if left == 0 and not (self._held_up or (self.pumping is not None and self.pumping.paused)):
            return None
        return self.counters.bytes_out - left

    def outcome(self, verdict: Verdict, error: RingmainError | None = None) -> Outcome:
        """Return what became of it, which only its owner knows."""
        link, counters = self.link, self.counters
        return Outcome(
            *(link.peer, link.tls_version, link.cipher, counters, counters.bytes_out, verdict, error),
            credentials=link.credentials,
            certificate=link.certificate,
        )

    @property
    def fullness(self) -> float:
        """The part of the kernel's send buffer that the peer has yet to take, from 0 to 1."""
        if self.link.closed:
            return 0.0
        buffer_size = self.link.sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        return min(1.0, (self.link.unacknowledged() or 0) / buffer_size)

    def abort(self) -> None:
        """Close the link with a reset, so that the peer cannot take it for a regular end; after a close do nothing."""
        self._let_go()
        self.link.reset()

    def close(self) -> None:
        """Close the link, unless it is closed; whatever `finish` has not seen through may be lost."""
        self._let_go()
        self.link.close()

    def _let_go(self) -> None:
        if self.link.closed:
            return
        self._trim()
        if self.link.counts_bytes:
            self.undelivered = self.link.undelivered()
        if self._flushing is not None and not self.link.loop.is_closed():
            self._flushing.cancel()
        if self._watch is not None:
            self._watch.cancel()
        self._times.ended = time.monotonic()

    def _trim(self) -> None:
        # What the peer of a UNIX socket has left unread is gone from the queue, as if it had been read.
        if self._carry is not None and not (self.link.credentials is not None and self.failure is not None):
            left = self.link.undelivered()
            if left and self.link.session is not None:
                # Of the wire: no fewer than they are as plain bytes. What is there of a record in part cannot be read.
                left += _TLS_RECORD
            self._carry.acknowledged(left)

    async def _until_ready(self, error: OSError) -> None:
        """Wait for what a write has said it wants."""
        if not isinstance(error, ssl.SSLWantReadError):
            await self.link.until_writable()
        elif self._duplex:  # others read, and do not say so; only TLS 1.2 ever comes here, when it negotiates anew
            await asyncio.sleep(_PAUSE)
        else:
            await self.link.until_change()

    async def _stalled(self, wait: Awaitable[None]) -> None:
        since = time.monotonic()
        self._times.stalls += 1
        self._held_up = True
        try:
            await wait
        finally:
            self._held_up = False
            self._times.stalled_seconds += time.monotonic() - since

    def _link_failed(self) -> None:
        if self.failure is not None and self.pumping is not None:
            self.pumping.stop()
        if self.failure is None and self._grace is not None and self._watch is None:
            link = self.link
            self._watch = Watch(link.loop, self._grace, self.progress, lambda: link.give_up(errno.EPIPE))
        if self.on_failure is not None and (self.failure is not None or self.link.session is not None):
            self.on_failure()
