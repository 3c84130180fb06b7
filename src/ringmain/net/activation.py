"""Listening sockets that a service manager has opened and hands over: sd_listen_fds(3) of systemd.

They are never closed for good, since they stay the manager's: each opening gets copies of the descriptors.
"""

import os
import socket

from ringmain.endpoint import Endpoint
from ringmain.errors import BindError, UsageError, reason
from ringmain.net import unix
from ringmain.net.listeners import HandedOver
from ringmain.net.receive_buffer import set_receive_buffer
from ringmain.settings import Settings

_FIRST = 3  # SD_LISTEN_FDS_START


def take(endpoint: Endpoint, settings: Settings) -> list[socket.socket]:
    """Return the sockets that were handed over by a name, or by a number from 3 up; raise BindError."""
    what, wanted = f"listen on {endpoint}", endpoint.port
    if settings.reuse_port:
        raise UsageError(
            f"reuse_port= with {endpoint}", "the service manager has opened it", "see ReusePort= of the socket unit"
        )
    names = _names()
    if not names:
        why = "no service manager has passed sockets to this process"
        raise BindError(what, why, "start it by a systemd socket unit, or give HOST:PORT")
    numbers = [fd for fd, name in names.items() if name == wanted] or [fd for fd in names if str(fd) == wanted]
    if not numbers:
        there = ", ".join(f"fd:{fd} (fd:{name})" if name else f"fd:{fd}" for fd, name in names.items())
        raise BindError(what, "no socket of this name was passed in", f"choose one of {there}")
    sockets: list[socket.socket] = []
    try:
        for fd in numbers:
            sockets.append(_listener(fd, what))
            if sockets[-1].family == socket.AF_UNIX:
                unix.refuse(endpoint, settings, "allow", "receive_buffer")
            set_receive_buffer(sockets[-1], settings.receive_buffer)
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def _names() -> dict[int, str]:
    """Return the descriptors that were handed over to this very process, and what they are called, "" for nothing."""
    given = os.environ
    if given.get("LISTEN_PID") != str(os.getpid()) or not given.get("LISTEN_FDS", "").isdecimal():
        return {}
    count = int(given["LISTEN_FDS"])
    names = given.get("LISTEN_FDNAMES", "").split(":")
    return {_FIRST + at: names[at] if at < len(names) else "" for at in range(count)}


def _listener(fd: int, what: str) -> socket.socket:
    """Return a copy of a descriptor as a socket that listens for streams; raise BindError where it is none."""
    try:
        os.set_inheritable(fd, False)  # as none of ours is
        copy = os.dup(fd)
    except OSError as error:
        raise BindError(
            what, f"descriptor {fd}: {reason(error)}", "LISTEN_FDS counts it: see the socket unit"
        ) from error
    try:
        sock = HandedOver(fileno=copy)
    except OSError as error:
        os.close(copy)
        raise BindError(what, f"descriptor {fd} is not a socket: {reason(error)}", "see the socket unit") from error
    kinds = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
    listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if sock.family not in kinds or sock.type != socket.SOCK_STREAM or not listens:
        sock.close()
        why = f"descriptor {fd} is not a listening stream socket"
        raise BindError(what, why, "the socket unit needs ListenStream= and Accept=no")
    sock.setblocking(False)
    return sock
