"""What the kernel holds of a connection, and whether it is gone: by the kind of its socket."""

import fcntl
import socket
import struct
import termios

_TCP_CLOSE = 7  # <netinet/tcp.h>


def unread(sock: socket.socket) -> int:
    """Return how many bytes wait in the kernel to be read."""
    return _ask(sock, termios.FIONREAD)


def unacknowledged(sock: socket.socket) -> int | None:
    """Return how many bytes (a FIN counts as one) the peer's kernel has not acknowledged; None if unknown.

    Of a UNIX socket, whose bytes are with the peer at once: how much memory those take that it has not read. A piece
    of up to half of the send buffer counts until its last byte is read.
    """
    try:
        return _ask(sock, termios.TIOCOUTQ)
    except OSError:
        return None


def is_gone(sock: socket.socket) -> bool:
    """Tell whether TCP knows of no connection any more. A UNIX socket always says so by an error."""
    if sock.family == socket.AF_UNIX:
        return False
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_CLOSE


def _ask(sock: socket.socket, request: int) -> int:
    return int(struct.unpack("i", fcntl.ioctl(sock.fileno(), request, bytes(4)))[0])
