"""How a connection ends from our side: close_notify, FIN, and whether the peer's kernel has every byte before them."""

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
from collections.abc import Callable
from typing import Any

from ringmain._libssl import may_reject_us, send_close_notify
from ringmain._tls_sender import TlsSender
from ringmain.errors import reason
from ringmain.net.connection import Connection, finish
from ringmain.net.liveness import watch_peer

# Where the kernel cannot say what is unacknowledged: how long the peer may take to close after our FIN.
_LINGER = 2.0
# How long a TLS 1.3 server that has asked for our certificate gets to answer it, once its kernel has everything.
_VERDICT = 5.0
_TCP_CLOSE = 7  # <netinet/tcp.h>


class Ending:
    """What is known of a connection that is sent on, and its end.

    `failure` is why nothing can be sent any more, `peer_ended` tells that the peer sends nothing more; `on_failure` is
    called when the first comes true. `duplex`: others read from the socket.
    """

    def __init__(self, connection: Connection, on_failure: Callable[[], None] | None, *, duplex: bool) -> None:
        self._loop = asyncio.get_running_loop()
        self.connection = connection
        self._sock = connection.sock
        self._fd = self._sock.fileno()
        self._sslobj: Any = getattr(self._sock, "_sslobj", None)
        self._tls = TlsSender(self._sock) if isinstance(self._sock, ssl.SSLSocket) else None
        self._duplex = duplex
        self.failure: OSError | None = None
        self.on_failure = on_failure
        self.peer_ended = False
        self._changed: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._unjudged = not duplex and _may_be_rejected(connection)
        self._awaits_verdict = False
        self._goodbye_due = False  # close_notify waits until it costs nothing to read
        self._fin = 0  # what close_notify and FIN add to the bytes that are unacknowledged, once they are on their way
        self._closed = False
        self._hang_up: select.epoll | None = None
        self._cancel_watch = watch_peer(self._loop, self._sock, self._vanished)

    async def _say_goodbye(self) -> None:
        """Send close_notify (under TLS) and FIN; without libssl not before there is nothing more to read."""
        if self._tls is not None:
            before = self.unacknowledged() or 0
            if not await self._send_close_notify():
                self._goodbye_due = True
                return
            # Too little if bytes were acknowledged meanwhile: then a reset counts as one.
            self._fin = max(0, (self.unacknowledged() or 0) - before)
        self._send_fin()

    async def _send_close_notify(self) -> bool:
        """Send close_notify; False where that cannot be done without losing what has come."""
        while not self._closed and self.failure is None:
            try:
                if send_close_notify(self._sslobj):
                    return True
                if self._duplex:
                    return False
                self._shut_down_by_python()
            except ssl.SSLWantWriteError:
                await self._until_writable()
                continue
            except (OSError, ValueError):  # it is gone, as those who read will hear
                pass
            return True
        return True

    def _shut_down_by_python(self) -> None:
        """Send close_notify and read what the peer has sent, which may be its last word."""
        try:
            self._sslobj.shutdown()
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError, ssl.SSLSyscallError):
            raise
        except ssl.SSLError as error:
            if "alert" in reason(error):
                self._fail(error)

    def _send_fin(self) -> None:
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._sock, socket.SHUT_WR)
            self._fin += 1

    async def drain(self) -> None:
        """Return once the peer's kernel has every byte, and the peer is known to accept our certificate."""
        if self._goodbye_due:
            with contextlib.suppress(OSError, ValueError):
                self._sslobj.shutdown()
            self._send_fin()
        await self.until_acknowledged()
        await self._hear_verdict()

    async def until_acknowledged(self) -> None:
        """Return once the peer's kernel has every byte that was sent."""
        pause, deadline = 0.0005, self._loop.time() + _LINGER
        while (left := self.unacknowledged()) != 0:
            if self.failure is None and (self.peer_ended or self._duplex):  # nobody reads any more
                self._look_for_reset()
            if self.failure is not None:
                # The peer had every byte when it closed for good.
                if left is not None and left <= self._fin and self._is_judged():
                    return
                raise self.failure
            if left is None and (self.peer_ended or self._loop.time() > deadline):
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._change()
            pause = min(2 * pause, 0.05)

    async def _hear_verdict(self) -> None:
        """Wait until the peer has said anything, if it may still say that it rejects us; not for ever.

        With TLS 1.3 our side of the handshake is over before the server has seen our certificate. Its first record,
        its end, or an alert is its answer. One that says nothing at all has rejected nothing.
        """
        self._awaits_verdict = True
        try:
            async with asyncio.timeout(_VERDICT) as limit:
                while not self._is_judged():
                    if self.failure is not None:
                        raise self.failure
                    await self._change()
        except TimeoutError:
            if not limit.expired():
                raise
        finally:
            self._awaits_verdict = False

    def _is_judged(self) -> bool:
        """Tell whether the peer has accepted us, or cannot but do so."""
        if self._unjudged and not self._closed:
            session = self._sslobj.session  # read-only; a ticket is a record that is never handed out
            self._unjudged = not (self.peer_ended or (session is not None and session.has_ticket))
        return not self._unjudged

    def read_to_end(self) -> None:
        """Hear that the peer has ended, from those who read what it sends; a reset may still come."""
        self.peer_ended = True
        if not self._closed and self._hang_up is None:
            self._watch_for_hang_up()

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

    def _vanished(self) -> None:
        self._fail(OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)))
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

    async def _until_writable(self) -> None:
        """Wait until the socket takes bytes, or will never again."""
        if self._closed:  # and its number may belong to another
            return
        self._writable = ready = self._loop.create_future()
        try:
            self._loop.add_writer(self._fd, finish, ready)
        except RuntimeError:  # uvloop's handle has died of a reset, of which the next write will hear
            await asyncio.sleep(0)
            return
        try:
            await ready
        finally:
            self._writable = None
            if not self._closed:
                self._loop.remove_writer(self._fd)

    def _notify(self) -> None:
        """Wake up whoever waits for a change, and, after a failure, whoever waits to write."""
        if self._changed is not None:
            finish(self._changed)
        if self.failure is not None and self._writable is not None:
            finish(self._writable)

    def _shut(self) -> None:
        """Close the socket, once; whoever still waits hears that it is closed."""
        self._closed = True
        self._cancel_watch()
        if self._hang_up is not None:
            if not self._loop.is_closed():
                self._loop.remove_reader(self._hang_up.fileno())
            self._hang_up.close()
        self._sock.close()
        if self.failure is None:
            self.failure = ConnectionAbortedError(errno.ECONNABORTED, "it was closed meanwhile")
        if not self._loop.is_closed():
            self._notify()

    def unacknowledged(self) -> int | None:
        """Return how many bytes (a FIN counts as one) the peer's kernel has not acknowledged; None if unknown."""
        if self._closed:
            return None
        try:
            answer = fcntl.ioctl(self._fd, termios.TIOCOUTQ, bytes(4))
        except OSError:
            return None
        return int(struct.unpack("i", answer)[0])

    def _change(self) -> "asyncio.Future[None]":
        """Return a Future that is done when the peer sent anything, ended, or failed."""
        if self._changed is None or self._changed.done():
            self._changed = self._loop.create_future()
        return self._changed

    def _fail(self, error: OSError) -> None:
        # Whether it said goodbye matters to those who read; a goodbye that comes after ours is raised, not returned.
        if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            self.peer_ended = True
            return
        self.failure = self._cause(error)
        if self.on_failure is not None:
            self.on_failure()

    def _cause(self, error: OSError) -> OSError:
        """Return why a connection broke: a TLS peer that had ended, said so or not, has reset what came after that."""
        if self._tls is not None and self.peer_ended and isinstance(error, ConnectionError):
            return ssl.SSLZeroReturnError(ssl.SSL_ERROR_ZERO_RETURN, "the peer closed the connection")
        return error


def _may_be_rejected(connection: Connection) -> bool:
    """Tell whether the peer may still refuse our certificate: a TLS 1.3 server, if it has asked for one."""
    sock = connection.sock
    if not isinstance(sock, ssl.SSLSocket) or sock.server_side or connection.tls_version != "TLSv1.3":
        return False
    return may_reject_us(sock._sslobj)  # type: ignore[attr-defined]
