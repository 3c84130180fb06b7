"""The sockets that are listened at: how they are opened, and made to answer nobody for a while.

The command opens them before it imports what serves clients, so this imports no event loop.
"""

import array
import contextlib
import errno
import socket
import struct
from typing import Any

from ringmain.endpoint import Endpoint, plain_address
from ringmain.errors import BindError, UsageError, reason
from ringmain.net.receive_buffer import set_receive_buffer, warn_of_less
from ringmain.settings import Settings

# As deep as the kernel allows (net.core.somaxconn): who finds it full loses a second, as if the filter were on.
_BACKLOG = 4096
# The numbers of <asm-generic/socket.h>; the socket module does not name them.
_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27
# One classic BPF instruction, "return 0": keep no byte of any packet (struct sock_filter, <linux/filter.h>).
_DROP_ALL = array.array("B", struct.pack("HBBI", 0x06, 0, 0, 0))


class HandedOver(socket.socket):
    """Such a socket that other processes have too, and others will have after us."""


async def open_listeners(endpoint: Endpoint, settings: Settings) -> list[socket.socket]:
    """Listen at every address of the endpoint, all on one port; raise ResolveError or BindError."""
    sockets = open_at_once(endpoint, settings)
    if sockets is None:
        from ringmain.net.dial import resolve

        sockets = _open_port(endpoint, settings, await resolve(endpoint, settings, listening=True))
    return sockets


def open_at_once(endpoint: Endpoint, settings: Settings) -> list[socket.socket] | None:
    """Do the same without an event loop; return None where a name has to be resolved."""
    if endpoint.path:
        from ringmain.net import unix

        return [unix.listen(endpoint, settings, _BACKLOG)]
    for name in ("socket_mode", "socket_owner"):
        if getattr(settings, name) is not None:
            raise UsageError(f"{name}= with {endpoint}", "it is for the file of a UNIX socket", "give a unix: endpoint")
    if endpoint.handed_over:
        from ringmain.net import activation

        sockets = activation.take(endpoint, settings)
        warn_of_less(sockets[0], settings.receive_buffer)
        return sockets
    rows = _numeric(endpoint, settings)
    return None if rows is None else _open_port(endpoint, settings, rows)


def _numeric(endpoint: Endpoint, settings: Settings) -> list[tuple[Any, ...]] | None:
    """Return the rows of `getaddrinfo` where host and port are numbers, which are not looked up; else None."""
    family = {0: socket.AF_UNSPEC, 4: socket.AF_INET, 6: socket.AF_INET6}[settings.family]
    flags = socket.AI_PASSIVE | socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    try:  # bytes: of a str Python makes a name of IDNA, whose tables are large
        host = endpoint.host.encode("ascii") or None
        return socket.getaddrinfo(host, endpoint.port, family, socket.SOCK_STREAM, 0, flags)
    except (socket.gaierror, UnicodeError):
        return None


def _open_port(endpoint: Endpoint, settings: Settings, rows: list[tuple[Any, ...]]) -> list[socket.socket]:
    """Listen at all these addresses on one port; raise BindError."""
    for attempt in range(20):
        try:
            sockets = _open_all(rows, settings, v6_only=len(rows) > 1 or settings.family == 6)
        except OSError as error:
            # A free port taken at the first address may be in use at the second: another one is tried.
            if error.errno == errno.EADDRINUSE and rows[0][4][1] == 0 and attempt < 19:
                continue
            remedy = {
                errno.EADDRINUSE: "stop what listens there, or choose another port (0 takes a free one)",
                errno.EACCES: "choose a port from 1024 up",
                errno.EADDRNOTAVAIL: "choose an address of this machine: ringmain nics lists them",
            }.get(error.errno or 0, "choose another address")
            raise BindError(f"listen on {endpoint}", reason(error), remedy) from error
        warn_of_less(sockets[0], settings.receive_buffer)
        return sockets
    raise AssertionError("the last attempt raises")


def addresses_of(sockets: list[socket.socket]) -> list[str]:
    """Return where sockets listen: "127.0.0.1:43211", "[::1]:43211", "[fe80::1%eth0]:43211" or "unix:/path"."""
    return [_written(sock.getsockname()) for sock in sockets]


def port_of(sock: socket.socket) -> int:
    """Return the port that a socket listens at; raise ValueError for a UNIX socket."""
    if sock.family == socket.AF_UNIX:
        raise ValueError("no port: a UNIX socket is listened at")
    return int(sock.getsockname()[1])


def _written(address: tuple[Any, ...] | str | bytes) -> str:
    if isinstance(address, str | bytes):
        from ringmain.net import unix

        return unix.written(address)
    zone = f"%{socket.if_indextoname(address[3])}" if address[3:] and address[3] else ""
    return plain_address(f"{address[0]}{zone}", address[1])


def _open_all(rows: list[tuple[Any, ...]], settings: Settings, *, v6_only: bool) -> list[socket.socket]:
    sockets: list[socket.socket] = []
    port = 0
    missing: OSError | None = None
    try:
        # IPv4 first, so that the port reported is the one most peers will use.
        for family, kind, protocol, _, address in sorted(rows, key=lambda row: row[0] != socket.AF_INET):
            try:
                place = (address[0], address[1] or port, *address[2:])
                sock = _open_one(family, kind, protocol, place, settings, v6_only=v6_only)
            except OSError as error:
                # A machine without IPv6 may still name ::1 in its hosts file.
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                missing = error
            else:
                sockets.append(sock)
                port = sock.getsockname()[1]
        if missing is not None and not sockets:
            raise missing
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def _open_one(
    family: int, kind: int, protocol: int, address: tuple[Any, ...], settings: Settings, *, v6_only: bool
) -> socket.socket:
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if settings.reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6 and v6_only:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        set_receive_buffer(sock, settings.receive_buffer)  # those whom it accepts have it too
        sock.bind(address)
        sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def hold_back(sock: socket.socket) -> bool:
    """Drop every packet that comes to a listening socket, so that connects there time out; tell whether it took."""
    if not _is_ours_to_filter(sock):
        return False
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", 1, _DROP_ALL.buffer_info()[0]))
    except OSError:
        return False
    return True


def _is_ours_to_filter(sock: socket.socket) -> bool:
    """Tell whether a filter may be set: not at a UNIX socket, which heeds none; nor where it would outlive us."""
    return sock.family != socket.AF_UNIX and not isinstance(sock, HandedOver)


def let_in(sock: socket.socket) -> None:
    """Undo `hold_back`: a client that still tries gets through with its next SYN."""
    if not _is_ours_to_filter(sock):
        return
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)
