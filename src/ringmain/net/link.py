"""One connection, plain or TLS: what is known of its peer, what that has yet to acknowledge, and how it ends.

Whether it ends properly, over TLS with close_notify, or is reset: `Inflow.close`, `Outflow.end` and `Passage` decide.
"""

import asyncio
import contextlib
import errno
import os
import socket
import ssl

from ringmain._tls import Session
from ringmain.errors import reason
from ringmain.net import queues
from ringmain.net.heard import Heard
from ringmain.net.introduced import NOT_TOLD, Introduced
from ringmain.net.peer_certificate import certificate_of
from ringmain.net.resets import hear_out, reset_when_closed
from ringmain.net.unix import credentials_of
from ringmain.net.unix_diag import PeerQueue

# Where the kernel cannot say what is unacknowledged: how long the peer may take to close after our FIN.
_CLOSE_TIMEOUT = 2.0


class Link(Heard):
    """A connected, non-blocking socket that is ready for data; whoever holds it closes it. Made inside the loop.

    `tls_version` ("TLSv1.3") and `cipher` (OpenSSL's name of the suite) are None for a plain one. `credentials` are
    those of a UNIX socket's peer. `prefix` is what the names of this end's options begin with.
    """

    def __init__(self, sock: socket.socket, peer: str, introduced: Introduced | None = None, prefix: str = "") -> None:
        super().__init__(sock)
        self.peer, self.prefix = peer, prefix
        self.introduced = introduced or NOT_TOLD
        self.credentials = credentials_of(sock)
        self.tls_version = self.session.version if self.session is not None else None
        self.cipher = self.session.cipher if self.session is not None else None
        self.certificate = certificate_of(sock) if isinstance(sock, ssl.SSLSocket) else None
        self._goodbye_due = False  # close_notify waits until it costs nothing to read
        self._fin = 0  # what close_notify and FIN add to the bytes that are unacknowledged, once they are on their way
        self._peer_queue = PeerQueue()

    def was_reset(self) -> bool:
        """Tell whether the connection is gone although we have not ended it.

        A reset is told once, by a read or a write, whichever is first: the other finds a plain end.
        """
        return self.heard_reset or (self._fin == 0 and queues.is_gone(self.sock))

    def _look_for_reset(self) -> None:
        """Hear of a reset after both sides' FIN, when epoll has nothing new to tell."""
        number = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if not number and queues.is_gone(self.sock) and self.unacknowledged():  # else the last one has just come
            number = errno.ECONNRESET
        if number:
            self.fail(OSError(number, os.strerror(number)))

    def unread(self) -> int:
        """Return how many bytes wait in the kernel to be read."""
        return queues.unread(self.sock)

    def unacknowledged(self) -> int | None:
        """Return how many bytes (a FIN counts as one) the peer's kernel has not acknowledged; None if unknown.

        Of a UNIX socket it is memory, 0 only once the peer has read all: see `queues`.
        """
        return None if self.closed else queues.unacknowledged(self.sock)

    def untaken(self) -> int:
        """Return how many bytes the peer has to take, or at a UNIX socket to read, else the memory of those."""
        left = self.unacknowledged() or 0
        unread = self._peer_queue.size(self.sock) if left and self.credentials is not None else None
        return left if unread is None else unread

    @property
    def counts_bytes(self) -> bool:
        """Whether that is known in the bytes that were sent: not under TLS, nor of a UNIX socket."""
        return self.session is None and self.credentials is None

    def undelivered(self) -> int:
        """Return how many of them are not of our end: what was sent, in the bytes of the wire."""
        return max(0, (self.unacknowledged() or 0) - self._fin)

    async def half_close(self) -> None:
        """Send close_notify (under TLS) and FIN; without libssl not before there is nothing more to read."""
        if self.session is not None:
            before = self.unacknowledged() or 0
            if not await self._send_close_notify(self.session):
                self._goodbye_due = True
                return
            # Too little if bytes were acknowledged meanwhile: then a reset counts as one.
            self._fin = max(0, (self.unacknowledged() or 0) - before)
        self._send_fin()

    async def _send_close_notify(self, session: Session) -> bool:
        """Send close_notify; False where that cannot be done without losing what has come."""
        while not self.closed and self.failure is None:
            try:
                if session.send_close_notify():
                    return True
                if not self.discards:
                    return False
                self._shut_down_by_python(session)
            except ssl.SSLWantWriteError:
                await self.until_writable()
                continue
            except (OSError, ValueError) as error:  # it is gone, as those who read will hear
                self.heard_reset |= isinstance(error, ConnectionResetError)
            return True
        return True

    def _shut_down_by_python(self, session: Session) -> None:
        """Send close_notify and read what the peer has sent, which may be its last word."""
        try:
            session.shut_down()
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError, ssl.SSLSyscallError):
            raise
        except ssl.SSLError as error:
            if "alert" in reason(error):
                self.fail(error)

    def _send_fin(self) -> None:
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self.sock, socket.SHUT_WR)
            self._fin += 1

    async def drain(self) -> None:
        """Return once the peer's kernel has every byte, and the peer is known to accept our certificate."""
        if self._goodbye_due:
            if self.session is not None:
                with contextlib.suppress(OSError, ValueError):
                    self.session.shut_down()
            self._send_fin()
        await self.until_acknowledged()
        await self.hear_verdict()

    async def until_acknowledged(self) -> None:
        """Return once the peer's kernel has every byte that was sent; at a UNIX socket, once the peer has read it."""
        pause, deadline = 0.0005, self.loop.time() + _CLOSE_TIMEOUT
        while (left := self.unacknowledged()) != 0:
            if self.failure is None and (self.peer_ended or not self.discards):  # nobody reads any more
                self._look_for_reset()
            if self.failure is not None:
                # The peer had every byte when it closed for good.
                if left is not None and left <= self._fin and self.is_judged():
                    return
                raise self.failure
            if left is None and (self.peer_ended or self.loop.time() > deadline):
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self.until_change()
            pause = min(2 * pause, 0.05)
        if self.credentials is not None:  # a peer that leaves some unread takes all from the queue, and fails us first
            self._look_for_reset()
            if self.failure is not None:
                raise self.failure

    def cut(self) -> None:
        """Let what comes end with what our kernel has; that is no truncation. May raise OSError: it was reset."""
        if self.session is not None:
            self.session.expect_end()
        socket.socket.shutdown(self.sock, socket.SHUT_RD)

    def hang_up(self) -> None:
        """Say that nothing follows, and let the peer send no more: what our kernel has can still be read.

        Once both ways are shut, Linux answers what comes with a reset, and acknowledges nothing any more.
        """
        with contextlib.suppress(OSError):
            if self.session is not None:
                self.session.send_close_notify()
        with contextlib.suppress(OSError):  # it is reset already
            socket.socket.shutdown(self.sock, socket.SHUT_RDWR)

    async def hear_out(self) -> None:
        """Let a peer that was sent an alert read it, which closing at once would reset away."""
        if not self.closed:
            await hear_out(self.sock)

    def reset(self) -> None:
        """Close at once with a reset, so that the peer cannot take it for a regular end; after a close do nothing."""
        if not self.closed:
            reset_when_closed(self.sock)
            self.close()

    def close(self, *, goodbye: bool = False) -> None:
        """Close the socket, once, with close_notify before it if that is wanted; what was under way may be lost.

        Whoever still waits hears that it is closed.
        """
        if self.closed:
            return
        if not self.loop.is_closed():
            self.ignore_readable()
            self.discard()
        if goodbye and self.session is not None:
            with contextlib.suppress(OSError, ValueError):
                self.session.shut_down()
            with contextlib.suppress(OSError):
                socket.socket.shutdown(self.sock, socket.SHUT_WR)
        super().close()
