"""How many bytes of a connection may wait in the kernel, where that is not left to it."""

import logging
import socket

log = logging.getLogger("ringmain")

_MOST = (1 << 31) - 1  # an int of C


def set_receive_buffer(sock: socket.socket, size: int | None) -> None:
    """Give a socket a receive buffer of so many bytes, with None the kernel's own.

    To be called before it listens or connects: what is offered to a peer at the beginning follows from it.
    """
    if size is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, min(size, _MOST))


def warn_of_less(sock: socket.socket, size: int | None) -> None:
    """Warn if the kernel gave less than was asked for."""
    if size is None:
        return
    given = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2  # it doubles what it is asked for: socket(7)
    if given < size:
        log.warning("receive_buffer=%d: the kernel gives %d bytes at most; raise net.core.rmem_max", size, given)
