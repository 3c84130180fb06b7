"""What is heard of a connection's peer: its end, a reset, that it has vanished, and its word on our certificate.

What it sends is read here only where nobody else reads it, to be dropped.
"""

import asyncio
import errno
import os
import socket
import ssl
from collections.abc import Callable

from ringmain._tls import Session
from ringmain.net.liveness import watch_peer
from ringmain.net.readiness import finish
from ringmain.net.watched import Watched

# How long a TLS 1.3 server that has asked for our certificate gets to answer it, once its kernel has everything.
_VERDICT = 5.0
_SCRATCH = bytearray(1 << 16)


class Heard(Watched):
    """A connected socket whose peer is watched by who sends to it.

    `session` is None for a plain connection, and once it is closed. `failure` is why nothing can be sent any more,
    `peer_ended` tells that the peer sends nothing more, `heard_reset` that a reset was told to who sends. The kernel
    tells of one once: who reads finds an end afterwards, as if the peer had closed. `discards` tells that nobody reads.
    """

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self.session = Session(sock) if isinstance(sock, ssl.SSLSocket) else None
        self.failure: OSError | None = None
        self.peer_ended = self.heard_reset = self.discards = False
        self._on_failure: Callable[[], None] | None = None
        self._changed: asyncio.Future[None] | None = None
        self._unjudged = False
        self._cancel_watch: Callable[[], None] | None = None

    def until_change(self) -> "asyncio.Future[None]":
        """Return a Future that is done when the peer sent anything that was discarded, ended, or failed."""
        if self._changed is None or self._changed.done():
            self._changed = self.loop.create_future()
        return self._changed

    def notify(self) -> None:
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
        self.discards = True
        self._unjudged = not heard and self.session is not None and self.session.may_reject_us()
        self.watch_readable(self.discard)
        if self.session is not None:
            self.discard()  # read-ahead may hold what the peer sent with its handshake

    def discard(self) -> None:
        """Read and drop what the peer has sent, and hear so of its end; nothing where others read."""
        if not self.discards or self.closed:
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
        self.notify()

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
        self.notify()

    def _vanished(self) -> None:
        self.give_up(errno.ETIMEDOUT)

    def give_up(self, number: int) -> None:
        """Take the connection for broken, by an error of the system's with this number."""
        self.fail(OSError(number, os.strerror(number)))
        self.notify()

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

    async def hear_verdict(self) -> None:
        """Wait until the peer has said anything, if it may still say that it rejects us; not for ever.

        With TLS 1.3 our side of the handshake is over before the server has seen our certificate. Its first record,
        its end, or an alert is its answer. One that says nothing at all has rejected nothing.
        """
        try:
            async with asyncio.timeout(_VERDICT) as limit:
                while not self.is_judged():
                    if self.failure is not None:
                        raise self.failure
                    await self.until_change()
        except TimeoutError:
            if not limit.expired():
                raise

    def is_judged(self) -> bool:
        """Tell whether the peer has accepted us, or cannot but do so."""
        if self._unjudged and self.session is not None:
            self._unjudged = not (self.peer_ended or self.session.has_ticket)
        return not self._unjudged

    def close(self) -> None:
        """Close the socket. Whoever still waits hears that it is closed."""
        if self._cancel_watch is not None:
            self._cancel_watch()
        super().close()
        self.session = self._on_failure = None
        if self.failure is None:
            self.failure = ConnectionAbortedError(errno.ECONNABORTED, "it was closed meanwhile")
        if not self.loop.is_closed():
            self.notify()
