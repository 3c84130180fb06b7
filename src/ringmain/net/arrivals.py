"""Who has come to the listening sockets: accepted, and turned away where that is not allowed."""

import asyncio
import collections
import errno
import logging
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ringmain.endpoint import plain_address
from ringmain.errors import reason
from ringmain.net.resets import reset
from ringmain.net.unix import credentials_of
from ringmain.outcome import Cause, Unserved

if TYPE_CHECKING:
    from ringmain.net.allow import Allowed

log = logging.getLogger("ringmain")

# Network errors of a client that has gone again, which accept(2) reports.
_CLIENT_GONE = (
    *(errno.ECONNABORTED, errno.EPROTO, errno.ENOPROTOOPT, errno.ENETDOWN, errno.ENETUNREACH),
    *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.EPERM),
)
# So many may knock before others get their turn, the client that is served and signals too. Where all of them have gone
# again, it is something else.
MOST_AT_ONCE = 64


class Arrivals:
    """Accept clients, and keep those who are allowed until their turn has come.

    `unserved` counts those who are turned away, or fail later on their way to a place. Where none can be accepted, as
    without descriptors, that is warned of once and tried again: they stay in the backlog meanwhile.
    """

    def __init__(self, sockets: list[socket.socket], allowed: "Allowed | None") -> None:
        self.sockets = sockets
        self.waiting: collections.deque[tuple[socket.socket, str]] = collections.deque()  # with the peer's address
        self.unserved = Unserved()
        self._allowed = allowed
        self._loop = asyncio.get_running_loop()
        self._call: Callable[[], None] | None = None
        self._warned = False
        self._pause: asyncio.TimerHandle | None = None

    @property
    def stuck(self) -> bool:
        """Whether somebody is there who cannot be accepted right now."""
        return self._pause is not None

    def watch(self, call: Callable[[], None] | None) -> None:
        """From now on call this whenever somebody is there; with None look at nobody."""
        self._call = call
        for sock in self.sockets:
            if sock.fileno() == -1:
                continue
            if call is not None and self._pause is None:
                self._loop.add_reader(sock.fileno(), call)
            else:
                self._loop.remove_reader(sock.fileno())

    def accept(self, most: int) -> None:
        """Accept who is there, until so many wait; whoever watches is called again if there are more."""
        gone = 0
        for listener in self.sockets:
            for _ in range(MOST_AT_ONCE):
                if len(self.waiting) >= most:
                    break
                try:
                    sock, address = listener.accept()
                except (BlockingIOError, InterruptedError):
                    break
                except OSError as error:
                    gone += 1
                    if error.errno in _CLIENT_GONE and gone < MOST_AT_ONCE:
                        continue
                    self._back_off(error)
                    return
                self._warned = False
                self._admit(sock, address)

    def _admit(self, sock: socket.socket, address: tuple[Any, ...]) -> None:
        peer = str(credentials_of(sock) or plain_address(*address[:2]))
        if self._allowed is not None and not self._allowed.has(str(address[0])):
            self.unserved[Cause.NOT_ALLOWED] += 1
            log.warning("%s: refused: not in allow=", peer)
            reset(sock)
        else:
            sock.setblocking(False)
            self.waiting.append((sock, peer))

    def refuse(self, why: str) -> bool:
        """Turn away all who wait; tell whether that is anybody."""
        refused = len(self.waiting)
        self.unserved[Cause.BUSY] += refused
        while self.waiting:
            sock, peer = self.waiting.popleft()
            log.info("%s: refused: %s", peer, why)
            reset(sock)
        return refused > 0

    def close(self) -> None:
        """Stop listening, and turn away who waits."""
        if self._pause is not None:
            self._pause.cancel()
        if not self._loop.is_closed():
            self.watch(None)
        for sock, _ in self.waiting:
            reset(sock)
        self.waiting.clear()
        for sock in self.sockets:
            sock.close()

    def _back_off(self, error: OSError) -> None:
        """Look at nobody until it may work again."""
        if not self._warned:
            self._warned = True
            log.warning("cannot accept a client: %s; waiting until that changes", reason(error))

        def again() -> None:
            self._pause = None
            self.watch(self._call)

        if self._pause is not None:
            self._pause.cancel()
        self._pause = self._loop.call_later(0.1, again)
        self.watch(self._call)


def has_left(sock: socket.socket) -> bool:
    """Tell whether a client has ended its side without a byte; OSError: it has reset the connection, told once."""
    try:
        return socket.socket.recv(sock, 1, socket.MSG_PEEK) == b""  # of the bytes below TLS, if there is any
    except BlockingIOError:
        return False
