"""UNIX sockets, unix(7): their files, whom they connect to, and who their peers are.

What TCP has and they do not: a port, addresses of clients, keepalive, a socket filter, and a reset. Where a peer is
"reset" it hears ECONNRESET if we have left unread what it sent, EPIPE when it writes, and else a plain end.
"""

import asyncio
import contextlib
import errno
import grp
import os
import pwd
import socket
import stat
import struct
from pathlib import Path
from typing import Any

from ringmain.endpoint import Endpoint
from ringmain.errors import BindError, ConnectError, UsageError, reason
from ringmain.outcome import Credentials
from ringmain.settings import Settings

_CREDENTIALS = struct.Struct("3i")  # struct ucred
# How often is looked whether there is room in a backlog that is full, of which no event tells.
_LOOK = 0.01
_REMEDIES = {
    errno.ENOENT: "is anything listening there?",
    errno.ECONNREFUSED: "is anything listening there?",
    errno.EACCES: "this user may not: see the mode of the socket and of the folders on the way",
    errno.EMFILE: "let this process open more files: ulimit -n",
    errno.EPROTOTYPE: "it is for datagrams or packets, not for a stream",
}


def credentials_of(sock: socket.socket) -> Credentials | None:
    """Return who a peer was when it connected or began to listen; None where it is not of a UNIX socket."""
    if sock.family != socket.AF_UNIX:
        return None
    return Credentials(*_CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)))


def written(address: str | bytes) -> str:
    """Return what `getsockname` of a UNIX socket says as an endpoint is written."""
    text = os.fsdecode(address)
    return f"unix:@{text[1:]}" if text.startswith("\0") else f"unix:{text}"


def _address(endpoint: Endpoint) -> str | bytes:
    path = endpoint.path
    return b"\0" + os.fsencode(path[1:]) if path.startswith("@") else path


async def connect(endpoint: Endpoint, settings: Settings) -> socket.socket:
    """Connect, waiting where the backlog is full; raise ConnectError."""
    refuse(endpoint, settings, "receive_buffer")
    try:
        with contextlib.ExitStack() as stack:
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.setblocking(False)
            while True:
                try:
                    sock.connect(_address(endpoint))
                except BlockingIOError:
                    await asyncio.sleep(_LOOK)
                else:
                    stack.pop_all()
                    return sock
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "check the path")
        raise ConnectError(f"connect to {endpoint}", reason(error), remedy) from error


def refuse(endpoint: Endpoint, settings: Settings, *names: str) -> None:
    """Raise UsageError where one of these keywords is given, which mean nothing to a UNIX socket."""
    for name in names:
        if getattr(settings, name):
            what = f"{name}= with {endpoint}"
            remedy = f"leave {name}= out{', or that socket' if endpoint.handed_over else ''}"
            raise UsageError(what, "it has no meaning for a UNIX socket", remedy)


class Listener(socket.socket):
    """A listening UNIX socket, whose file is removed when it is closed unless another one stands there by then."""

    _path = ""
    _identity: tuple[int, int] | None = None

    def own(self, path: str) -> None:
        """Take the file for its own."""
        self._path, self._identity = path, _identity_of(path)

    def close(self) -> None:
        """Remove the file, and stop listening."""
        identity, self._identity = self._identity, None
        if identity is not None and identity == _identity_of(self._path):
            with contextlib.suppress(OSError):  # the folder may be gone, or be no longer ours
                Path(self._path).unlink()
        super().close()


def _identity_of(path: str) -> tuple[int, int] | None:
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def listen(endpoint: Endpoint, settings: Settings, backlog: int) -> socket.socket:
    """Listen at a UNIX socket, in place of one that nobody listens at any more; raise BindError."""
    refuse(endpoint, settings, "allow", "reuse_port", "receive_buffer")
    abstract = endpoint.path.startswith("@")
    if abstract:
        refuse(endpoint, settings, "socket_mode", "socket_owner")
    try:
        with contextlib.ExitStack() as stack:
            sock = stack.enter_context(Listener(socket.AF_UNIX))
            sock.setblocking(False)
            _bind(sock, endpoint)
            if not abstract:
                sock.own(endpoint.path)
                _give(endpoint.path, settings)
            sock.listen(backlog)  # only now can anybody connect
            stack.pop_all()
            return sock
    except OSError as error:
        remedy = "choose another path"
        if error.errno == errno.EADDRINUSE:
            remedy = f"stop what listens there, or {remedy}"
        elif error.errno == errno.EPERM and settings.socket_owner is not None:
            remedy = "run as root, or leave socket_owner= out"
        raise BindError(f"listen on {endpoint}", reason(error), remedy) from error


def _bind(sock: socket.socket, endpoint: Endpoint) -> None:
    """Bind, after removing the file of a socket that nobody listens at."""
    address: Any = _address(endpoint)
    try:
        sock.bind(address)
    except OSError as error:
        if error.errno != errno.EADDRINUSE or isinstance(address, bytes):
            raise
    else:
        return
    identity = _identity_of(address)
    if not stat.S_ISSOCK(os.lstat(address).st_mode):
        raise BindError(f"listen on {endpoint}", "a file that is not a socket is there", "choose another path")
    if _is_deserted(address) and identity == _identity_of(address):
        Path(address).unlink()
    sock.bind(address)


def _is_deserted(path: str) -> bool:
    """Tell whether a socket's file belongs to nobody any more. Whoever it belongs to hears nothing of that."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(path)
        except ConnectionRefusedError:
            return True
        except OSError:  # EPROTOTYPE: a stream's, whether or not it listens yet
            return False
        return False


def _give(path: str, settings: Settings) -> None:
    """Set who may connect: the mode, and the owner; raise UsageError for an owner that nobody is."""
    if settings.socket_owner is not None:
        user, _, group = settings.socket_owner.partition(":")
        try:
            uid = int(user) if user.isdecimal() else pwd.getpwnam(user).pw_uid if user else -1
            gid = int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid if group else -1
            os.chown(path, uid, gid)
        except (KeyError, ValueError, OverflowError) as error:
            what = f"socket_owner={settings.socket_owner}"
            raise UsageError(what, "no such user or group", "write USER, USER:GROUP or :GROUP") from error
    if settings.socket_mode is not None:
        Path(path).chmod(settings.socket_mode)
