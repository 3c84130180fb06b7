"""Send on one connection, plain or TLS: back-pressure by await, half-close, and a close that loses no byte."""

import asyncio
import contextlib
import errno
import fcntl
import os
import select
import socket
import ssl
import struct
import termios
import time
from collections.abc import Awaitable, Callable
from typing import Any

from ringmain import kernel
from ringmain._libssl import send_close_notify
from ringmain._pump import Pump
from ringmain._ring import Counters
from ringmain.connection import Connection, finish, reset_when_closed
from ringmain.errors import RingmainError, SendError, TlsError, reason

# Where the kernel cannot say what is unacknowledged: how long the peer may take to close after our FIN.
_LINGER = 2.0
_PAUSE = 0.01
# What is no longer than the first is copied, to go out with its like in one system call of the second at most.
_SMALL = 16 << 10
_GATHER = 64 << 10
# OpenSSL takes a write whole or not at all: by pieces of a few records it can be told how far it came.
_PIECE = 64 << 10
_RECORD = 16 << 10
_TCP_CLOSE = 7  # <netinet/tcp.h>
_SCRATCH = bytearray(1 << 16)


class Sender:
    """Send to one peer; what it sends back is read and dropped, so that closing never resets it.

    Where others read what it sends back (`duplex`), they say so when that has ended: `read_to_end`.

    OSError and ssl.SSLError pass through to the caller, who knows what was being sent to whom.
    """

    def __init__(
        self,
        connection: Connection,
        on_failure: Callable[[], None] | None = None,
        *,
        keep_tail: bool = False,
        duplex: bool = False,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.connection = connection
        self._sock = connection.sock
        self._fd = self._sock.fileno()
        self._tls: Any = getattr(self._sock, "_sslobj", None)
        self._changed: asyncio.Future[None] | None = None
        self.failure: OSError | None = None
        self.on_failure = on_failure
        self.peer_ended = False
        self.pumping: Pump | None = None
        # What a plain peer's kernel has not acknowledged yet, for those who can give it to another peer.
        self.tail = bytearray()
        self._keep_tail = keep_tail and self._tls is None
        self._duplex = duplex
        self._goodbye_due = False  # close_notify waits until it costs nothing to read
        # Small writes that wait for the end of this turn of the loop, and the task that gives them to the kernel.
        self._gathered = bytearray()
        self._flushing: asyncio.Task[None] | None = None
        # What a cancelled write under TLS left inside OpenSSL, which takes nothing else before.
        self._unfinished = b""
        self.accepted = 0
        self._fin = 0  # what close_notify and FIN add to the bytes that are unacknowledged, once they are on their way
        self._closed = False
        self._hang_up: select.epoll | None = None
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
        """
        await self.flush()
        before = self.counters.bytes_out
        try:
            await self._send(view)
        finally:
            self.accepted += self.counters.bytes_out - before + len(self._unfinished)

    async def flush(self) -> None:
        """Give all that was gathered, or begun by a write that was cancelled, to the kernel."""
        if self._flushing is not None:
            await asyncio.wait([self._flushing])
        if self._gathered and self.failure is None:  # someone has cancelled the task
            await self._flush()
        if self._gathered and self.failure is not None:
            raise self.failure
        await self._complete()

    def unsent(self) -> bytes:
        """Return what was accepted and a lost peer cannot have: what was gathered, and, if that is kept, the tail."""
        return bytes(self.tail + self._unfinished + self._gathered)

    async def _flush(self) -> None:
        try:
            while self._gathered:
                await self._complete()
                # A copy: while it goes out more may be gathered.
                batch = memoryview(bytes(self._gathered))
                before = self.counters.bytes_out
                try:
                    await self._send(batch)
                finally:
                    del self._gathered[: self.counters.bytes_out - before + len(self._unfinished)]
        except OSError as error:
            if self.failure is None:
                self._fail(error)
            self.failure = self.failure or error
        finally:
            self._flushing = None

    async def _complete(self) -> None:
        """Send what a cancelled write has begun."""
        while self._unfinished:
            unfinished, self._unfinished = self._unfinished, b""
            await self._send(memoryview(unfinished))

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
        offset = 0
        while offset < len(view):
            if self.failure is not None:
                raise self.failure
            try:
                if self._tls is not None:
                    size = self._tls.write(view[offset : offset + _PIECE])
                else:
                    size = self._sock.send(view[offset:])
            except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError) as error:
                try:
                    await self._stalled(self._until_ready(error))
                except BaseException:
                    if self._tls is not None:
                        self._unfinished = bytes(view[offset : offset + _PIECE])
                    raise
            except OSError:
                self._discard()  # the peer's last words, an alert perhaps, say more than a broken pipe
                if self.failure is not None:
                    raise self.failure from None
                raise
            else:
                if self._keep_tail:
                    self.tail += view[offset : offset + size]
                    self._trim_tail()
                offset += size
                self.counters.bytes_out += size
                self.counters.writes += 1

    async def pump(self, pump: Pump) -> None:
        """Let a pump whose destination is this connection do the sending; raise what goes wrong with the connection."""
        self.pumping = pump
        if self.failure is not None:
            pump.stop()
        try:
            await kernel.run(pump)
        finally:
            self.pumping = None
        if pump.failed == "destination" and not pump.refused:
            self._discard()
        if self.failure is not None:
            raise self.failure
        if pump.failed == "destination" and not pump.refused and pump.error is not None:
            raise pump.error

    async def finish(self) -> None:
        """Send what was gathered, close_notify (under TLS) and FIN; return once the peer's kernel has every byte."""
        await self.end()
        await self.drain()

    async def end(self) -> None:
        """Send what was gathered, close_notify (under TLS) and FIN; what the peer sends can still be read."""
        await self.flush()
        if self._tls is not None:
            before = self.unacknowledged() or 0
            if not await self._say_goodbye():
                self._goodbye_due = True
                return
            # Too little if bytes were acknowledged meanwhile: then a reset counts as one.
            self._fin = max(0, (self.unacknowledged() or 0) - before)
        self._send_fin()

    async def _say_goodbye(self) -> bool:
        """Send close_notify; False where that cannot be done without losing what has come."""
        while True:
            try:
                if self._duplex:
                    return send_close_notify(self._tls)
                self._tls.shutdown()
            except ssl.SSLWantWriteError:
                await self._until_writable()
                continue
            except (OSError, ValueError):  # mostly "want read": the peer's close_notify need not be waited for
                pass
            return True

    def _send_fin(self) -> None:
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._sock, socket.SHUT_WR)
            self._fin += 1

    async def drain(self) -> None:
        """Return once the peer's kernel has every byte."""
        if self._goodbye_due:
            with contextlib.suppress(OSError, ValueError):
                self._tls.shutdown()
            self._send_fin()
        pause, deadline = 0.0005, self._loop.time() + _LINGER
        while (left := self.unacknowledged()) != 0:
            if self.failure is None and self.peer_ended:
                self._look_for_reset()
            if self.failure is not None:
                if left is not None and left <= self._fin:  # the peer had every byte when it closed for good
                    return
                raise self.failure
            if left is None and (self.peer_ended or self._loop.time() > deadline):
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._change()
            pause = min(2 * pause, 0.05)

    def read_to_end(self) -> None:
        """Hear that the peer has ended, from those who read what it sends; a reset may still come."""
        self.peer_ended = True
        if not self._closed and self._hang_up is None:
            self._watch_for_hang_up()

    def progress(self) -> int | None:
        """Return a number that grows while the peer takes bytes, or None while a pump has none for it to take."""
        left = self.unacknowledged() or 0
        if self.pumping is not None and not self.pumping.paused and left == 0:
            return None
        return self.counters.bytes_out - left

    @property
    def fullness(self) -> float:
        """The part of the kernel's send buffer that the peer has yet to take, from 0 to 1."""
        return min(1.0, (self.unacknowledged() or 0) / self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF))

    def abort(self) -> None:
        """Close with a reset, so that the peer cannot take it for a regular end."""
        reset_when_closed(self._sock)
        self.close()

    def close(self) -> None:
        """Close the socket; whatever `finish` has not seen through may be lost."""
        self._closed = True
        if not self._loop.is_closed():
            if self._flushing is not None:
                self._flushing.cancel()
            self._loop.remove_writer(self._fd)
            self._loop.remove_reader(self._fd)
            self._discard()
        if self._hang_up is not None:
            if not self._loop.is_closed():
                self._loop.remove_reader(self._hang_up.fileno())
            self._hang_up.close()
        self._trim_tail()
        self._sock.close()
        self.counters.ended = time.monotonic()

    def _trim_tail(self) -> None:
        surplus = len(self.tail) - max(0, (self.unacknowledged() or 0) - self._fin)
        if surplus > 0:
            del self.tail[:surplus]

    def _watch_for_hang_up(self) -> None:
        """Hear of a reset after the peer's FIN, when there is nothing to read any more that would tell."""
        # An epoll of our own that asks for no event still hears of errors, and is itself readable then.
        try:
            self._hang_up = select.epoll()
        except OSError:  # no descriptor left: the next write finds out
            return
        self._hang_up.register(self._fd, 0)
        self._loop.add_reader(self._hang_up.fileno(), self._hung_up)

    def _hung_up(self) -> None:
        assert self._hang_up is not None
        self._loop.remove_reader(self._hang_up.fileno())
        number = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            self._fail(OSError(number, os.strerror(number)))
        self._notify()

    def was_reset(self) -> bool:
        """Tell whether the connection is gone although we have not ended it.

        A reset is told once, by a read or a write, whichever is first: the other finds a plain end.
        """
        return self._fin == 0 and self._is_gone()

    def _is_gone(self) -> bool:
        return self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_CLOSE

    def _look_for_reset(self) -> None:
        """Hear of a reset after both sides' FIN, when epoll has nothing new to tell."""
        number = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number or (self._is_gone() and self.unacknowledged()):  # else the last acknowledgement has just come
            number = number or errno.ECONNRESET
            self._fail(OSError(number, os.strerror(number)))

    async def _until_ready(self, error: OSError) -> None:
        """Wait for what a write has said it wants."""
        if not isinstance(error, ssl.SSLWantReadError):
            await self._until_writable()
        elif self._duplex:  # others read, and do not say so; only TLS 1.2 ever comes here, when it negotiates anew
            await asyncio.sleep(_PAUSE)
        else:
            await self._change()

    async def _until_writable(self) -> None:
        """Wait until the socket takes bytes. It may be closed meanwhile, and its number belong to another."""
        ready = self._loop.create_future()
        try:
            self._loop.add_writer(self._fd, finish, ready)
        except RuntimeError:  # uvloop's handle has died of a reset, of which the next write will hear
            await asyncio.sleep(0)
            return
        try:
            await ready
        finally:
            if not self._closed:
                self._loop.remove_writer(self._fd)

    def _notify(self) -> None:
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    def unacknowledged(self) -> int | None:
        """Return how many bytes (a FIN counts as one) the peer's kernel has not acknowledged; None if unknown."""
        try:
            answer = fcntl.ioctl(self._fd, termios.TIOCOUTQ, bytes(4))
        except OSError:
            return None
        return int(struct.unpack("i", answer)[0])

    async def _stalled(self, wait: Awaitable[None]) -> None:
        since = time.monotonic()
        self.counters.stalls += 1
        try:
            await wait
        finally:
            self.counters.stalled_seconds += time.monotonic() - since

    def _change(self) -> "asyncio.Future[None]":
        """Return a Future that is done when the peer sent anything, ended, or failed."""
        if self._changed is None or self._changed.done():
            self._changed = self._loop.create_future()
        return self._changed

    def _fail(self, error: OSError) -> None:
        if isinstance(self._sock, ssl.SSLSocket):
            from ringmain._tls_receiver import true_error

            error = true_error(error, self._sock)
        # Whether it said goodbye matters to those who read; a goodbye that comes after ours is raised, not returned.
        if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            self.peer_ended = True
            return
        self.failure = error
        if self.pumping is not None:
            self.pumping.stop()
        if self.on_failure is not None:
            self.on_failure()

    def _discard_more(self) -> None:
        if not self._closed and not self.peer_ended and self.failure is None:
            self._discard()

    def _discard(self) -> None:
        """Read and drop what the peer sends: TLS needs to see it, and unread bytes would turn close into reset."""
        if self._duplex:
            return
        try:
            for _ in range(16):
                if self._tls is not None:
                    size = self._tls.read(len(_SCRATCH), _SCRATCH)
                else:
                    size = self._sock.recv_into(_SCRATCH)
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
    if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
        return TlsError(what, reason(error), "does the peer accept our certificate and settings?")
    return SendError(what, reason(error), "what was sent may not have arrived")
