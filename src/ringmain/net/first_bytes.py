"""What a client says first, looked at before anything is read: TLS, something else, or not a byte before its end."""

import asyncio
import enum
import select
import socket

from ringmain.net import queues
from ringmain.net.readiness import until

# A record of the handshake protocol, of whatever version of TLS, and what stands before one (RFC 8446, section 5.1).
_HELLO = b"\x16\x03"
_HEADER = 5
# So much of the first record counts as all of it: a receive buffer may be too small for more.
_ENOUGH = 1024
_PAUSE = 0.01


class First(enum.Enum):
    """What came first."""

    NOTHING = enum.auto()  # the end, or a reset, as from those who look whether anybody listens
    TLS = enum.auto()
    OTHER = enum.auto()


async def first_of(sock: socket.socket) -> First:
    """Wait until it can be told what a client says first, and is whole if that is TLS; raise OSError.

    A client of TLS sends its first record at once: who sends a part of one and no more has begun no handshake.
    """
    waits = False
    try:
        while True:
            try:
                start = sock.recv(_HEADER, socket.MSG_PEEK)
            except BlockingIOError:
                pass
            else:
                size = _size_of(start)
                if queues.unread(sock) >= size or _has_ended(sock):
                    break
                if waits:  # urgent data, and a UNIX socket, are told of all the time
                    await asyncio.sleep(_PAUSE)
                _wake_for(sock, size)  # else what is not read would be told of all the time
                waits = True
            await until(sock.fileno())
    except ConnectionResetError:
        return First.NOTHING
    _wake_for(sock, 1)
    if not start:
        return First.NOTHING
    return First.TLS if start.startswith(_HELLO) else First.OTHER


def _size_of(start: bytes) -> int:
    """Return how many bytes there have to be of what starts like this."""
    if not start or not (start.startswith(_HELLO) or _HELLO.startswith(start)):
        return 0
    if len(start) < _HEADER:
        return _HEADER
    return min(_ENOUGH, _HEADER + int.from_bytes(start[3:]))


def _wake_for(sock: socket.socket, size: int) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)


def _has_ended(sock: socket.socket) -> bool:
    """Tell whether nothing follows what can be read: then more is not to be waited for."""
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(0))
