"""What a client says first, looked at before anything is read: TLS, something else, or not a byte before its end."""

import asyncio
import enum
import socket

from ringmain.net.readiness import until

# A record of the handshake protocol, of whatever version of TLS (RFC 8446, section 5.1).
_HELLO = b"\x16\x03"
_ESTABLISHED = 1  # <netinet/tcp.h>
_PAUSE = 0.01


class First(enum.Enum):
    """What came first."""

    NOTHING = enum.auto()  # the end, or a reset, as from those who look whether anybody listens
    TLS = enum.auto()
    OTHER = enum.auto()


async def first_of(sock: socket.socket, *, apart: bool) -> First:
    """Wait until it can be told what a client says first; raise OSError.

    Where TLS is not to be told `apart` from anything else, one byte is enough, and is no `NOTHING`.
    """
    alone = False
    try:
        while True:
            try:
                start = sock.recv(len(_HELLO), socket.MSG_PEEK)
            except BlockingIOError:
                pass
            else:
                if start != _HELLO[:1] or not apart or _has_ended(sock):
                    break
                if alone:  # urgent data, and a UNIX socket, are told of all the time
                    await asyncio.sleep(_PAUSE)
                _wake_for(sock, len(_HELLO))  # else one byte that is not read would be told of all the time
                alone = True
            await until(sock.fileno())
    except ConnectionResetError:
        return First.NOTHING
    _wake_for(sock, 1)
    if not start:
        return First.NOTHING
    return First.TLS if start == _HELLO else First.OTHER


def _wake_for(sock: socket.socket, size: int) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)


def _has_ended(sock: socket.socket) -> bool:
    """Tell whether nothing follows what can be read: then a second byte is not to be waited for."""
    if sock.family == socket.AF_UNIX:  # which nobody can ask; the time for it is limited
        return False
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != _ESTABLISHED
