"""One connection, plain or TLS: what is known of its peer, what an error of its socket means, and how it ends.

Whether it ends properly, over TLS with close_notify, or is reset: `Inflow.close`, `Outflow.end` and `Passage` decide.
"""

import asyncio
import contextlib
import errno
import os
import socket
import ssl
from collections.abc import Callable

from ringmain._tls import Session
from ringmain.errors import reason
from ringmain.net import queues
from ringmain.net.introduced import NOT_TOLD, Introduced
from ringmain.net.liveness import watch_peer
from ringmain.net.peer_certificate import certificate_of
from ringmain.net.readiness import finish
from ringmain.net.resets import hear_out, reset_when_closed
from ringmain.net.unix import credentials_of
from ringmain.net.unix_diag import PeerQueue
from ringmain.net.watched import Watched

# Where the kernel cannot say what is unacknowledged: how long the peer may take to close after our FIN.
_CLOSE_TIMEOUT = 2.0
# How long a TLS 1.3 server that has asked for our certificate gets to answer it, once its kernel has everything.
_VERDICT = 5.0
_SCRATCH = bytearray(1 << 16)


class Link(Watched):
    """A connected, non-blocking socket that is ready for data; whoever holds it closes it. Made inside the loop.

    `session` is None for a plain connection, and once it is closed; `tls_version` ("TLSv1.3") and `cipher` (OpenSSL's
    name of the suite) are None for a plain one. `failure` is why nothing can be sent any more, `peer_ended` tells that
    the peer sends nothing more, `heard_reset` that a reset was told to who sends. The kernel tells of one once: who
    reads finds an end afterwards, as if the peer had closed. `credentials` are those of a UNIX socket's peer.
    `prefix` is what the names of this end's options begin with.
    """

    def __init__(self, sock: socket.socket, peer: str, introduced: Introduced | None = None, prefix: str = "") -> None:
        super().__init__(sock)
        self.peer, self.prefix = peer, prefix
        self.introduced = introduced or NOT_TOLD
        self.credentials = credentials_of(sock)
        self.session = Session(sock) if isinstance(sock, ssl.SSLSocket) else None
        self.tls_version = self.session.version if self.session is not None else None
        self.cipher = self.session.cipher if self.session is not None else None
        self.certificate = certificate_of(sock) if isinstance(sock, ssl.SSLSocket) else None
        self.failure: OSError | None = None
        self.peer_ended = self.heard_reset = False
        self._on_failure: Callable[[], None] | None = None
        self._discards = False  # nobody reads what the peer sends
        self._changed: asyncio.Future[None] | None = None
        self._unjudged = False
        self._goodbye_due = False  # close_notify waits until it costs nothing to read
        self._fin = 0  # what close_notify and FIN add to the bytes that are unacknowledged, once they are on their way
        self._cancel_watch: Callable[[], None] | None = None
        self._peer_queue = PeerQueue()

    def until_change(self) -> "asyncio.Future[None]":
        """Return a Future that is done when the peer sent anything that was discarded, ended, or failed."""
        if self._changed is None or self._changed.done():
            self._changed = self.loop.create_future()
        return self._changed

    def _notify(self) -> None:
        """Wake up whoever waits for a change, and, after a failure, whoever waits to write."""
        if self._changed is not None:
            finish(self._changed)
        if self.failure is not None:
            self.wake_writer()

    def begin_to_send(self, on_failure: Callable[[], None], *, duplex: bool) -> None:
        """Watch over the peer from now on, for who sends to it.

        `on_failure` is called when there is a `failure`, and when the peer has ended. Unless others read what the
        peer sends (`duplex`) it is read and dropped: unread, it would turn the close into a reset.
        """
        self._on_failure = on_failure
        self._cancel_watch = watch_peer(self.loop, self.sock, self._vanished)
        if not duplex:
            self.discard_from_now_on(heard=False)

    def discard_from_now_on(self, *, heard: bool) -> None:
        """Read what the peer sends and drop it, since nobody else reads it; `heard` tells whether anything has come."""
        self._discards = True
        self._unjudged = not heard and self.session is not None and self.session.may_reject_us()
        self.watch_readable(self.discard)
        if self.session is not None:
            self.discard()  # read-ahead may hold what the peer sent with its handshake

    def discard(self) -> None:
        """Read and drop what the peer has sent, and hear so of its end; nothing where others read."""
        if not self._discards or self.closed:
            return
        read = self.sock.recv_into if self.session is None else self.session.read
        try:
            for _ in range(16):
                size = read(_SCRATCH)
                self._unjudged = self._unjudged and size == 0
                if size == 0:
                    self.peer_ended = True
                    break
            else:  # uvloop may not call again, if a reset is behind it
                self.loop.call_soon(self._discard_more)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        except OSError as error:
            self.fail(error)
        if self.peer_ended or self.failure is not None:
            self.ignore_readable()
            if self.failure is None and self.watch_hang_up(self._find_reset) and self._on_failure is not None:
                self._on_failure()
        self._notify()

    def _discard_more(self) -> None:
        if not self.closed and not self.peer_ended and self.failure is None:
            self.discard()

    def read_to_end(self) -> None:
        """Hear that the peer has ended, from those who read what it sends; a reset may still come."""
        self.peer_ended = True
        self.watch_hang_up(self._find_reset)

    def _find_reset(self) -> None:
        number = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            self.fail(OSError(number, os.strerror(number)))
        self._notify()

    def _vanished(self) -> None:
        self.give_up(errno.ETIMEDOUT)

    def give_up(self, number: int) -> None:
        """Take the connection for broken, by an error of the system's with this number."""
        self.fail(OSError(number, os.strerror(number)))
        self._notify()

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

    def fail(self, error: OSError) -> None:
        """Take note of an error of the socket: the connection is broken by it, or the peer has ended."""
        self.heard_reset |= isinstance(error, ConnectionResetError)
        # Whether it said goodbye matters to those who read; a goodbye that comes after ours is raised, not returned.
        if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            self.peer_ended = True
            return
        self.failure = self._cause(error)
        if self._on_failure is not None:
            self._on_failure()

    def cause_of(self, error: OSError) -> OSError:
        """Return why a write has failed: the peer's last words, an alert perhaps, say more than a broken pipe."""
        self.heard_reset |= isinstance(error, ConnectionResetError)
        self.discard()
        return self.failure or self._cause(error)

    def _cause(self, error: OSError) -> OSError:
        """Return why a connection broke: a TLS peer that had ended, said so or not, has reset what came after that."""
        if self.session is not None and self.peer_ended and isinstance(error, ConnectionError):
            return ssl.SSLZeroReturnError(ssl.SSL_ERROR_ZERO_RETURN, "the peer closed the connection")
        return error

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
                if not self._discards:
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
        await self._hear_verdict()

    async def until_acknowledged(self) -> None:
        """Return once the peer's kernel has every byte that was sent; at a UNIX socket, once the peer has read it."""
        pause, deadline = 0.0005, self.loop.time() + _CLOSE_TIMEOUT
        while (left := self.unacknowledged()) != 0:
            if self.failure is None and (self.peer_ended or not self._discards):  # nobody reads any more
                self._look_for_reset()
            if self.failure is not None:
                # The peer had every byte when it closed for good.
                if left is not None and left <= self._fin and self._is_judged():
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

    async def _hear_verdict(self) -> None:
        """Wait until the peer has said anything, if it may still say that it rejects us; not for ever.

        With TLS 1.3 our side of the handshake is over before the server has seen our certificate. Its first record,
        its end, or an alert is its answer. One that says nothing at all has rejected nothing.
        """
        try:
            async with asyncio.timeout(_VERDICT) as limit:
                while not self._is_judged():
                    if self.failure is not None:
                        raise self.failure
                    await self.until_change()
        except TimeoutError:
            if not limit.expired():
                raise

    def _is_judged(self) -> bool:
        """Tell whether the peer has accepted us, or cannot but do so."""
        if self._unjudged and self.session is not None:
            self._unjudged = not (self.peer_ended or self.session.has_ticket)
        return not self._unjudged

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
        if self._cancel_watch is not None:
            self._cancel_watch()
        super().close()
        self.session = self._on_failure = None
        if self.failure is None:
            self.failure = ConnectionAbortedError(errno.ECONNABORTED, "it was closed meanwhile")
        if not self.loop.is_closed():
            self._notify()
