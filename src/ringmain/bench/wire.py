"""What the two ends of a measurement say to each other: a first line that tells connections apart, then JSON lines.

Every connection begins with that line in plain text, before TLS, so that it can be given to another process as it is.
"""

import asyncio
import functools
import json
import socket
import ssl
from collections.abc import Callable
from typing import Any, TypeVar

from ringmain.connection import Connection, until
from ringmain.errors import ReceiveError, reason

Result = TypeVar("Result")

_MAGIC = b"ringmain bench 1 "
TOKEN_SIZE = 32  # hexadecimal digits
_FIRST_LINE = len(_MAGIC) + TOKEN_SIZE + 1
# The results of many streams over a day fit.
_LONGEST = 64 << 20
# The token of a connection that begins a measurement instead of belonging to one.
CONTROL = "0" * TOKEN_SIZE


async def introduce(sock: socket.socket, token: str) -> None:
    """Send the first line of a connection."""
    await asyncio.get_running_loop().sock_sendall(sock, _MAGIC + token.encode() + b"\n")


async def introduced(sock: socket.socket) -> str | None:
    """Return the token of a connection's first line; None if it is no such line. Reads not a byte more."""
    data = b""
    loop = asyncio.get_running_loop()
    while len(data) < _FIRST_LINE:
        piece = await loop.sock_recv(sock, _FIRST_LINE - len(data))
        data += piece
        if not piece or not (_MAGIC.startswith(data) or data.startswith(_MAGIC)):
            return None
    token = data[len(_MAGIC) : -1]
    return token.decode() if token.isalnum() and token.isascii() and data.endswith(b"\n") else None


class Wire:
    """JSON objects, a line each, both ways over a connection, plain or TLS."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._sock = connection.sock
        self._received = bytearray()

    async def send(self, message: dict[str, Any]) -> None:
        """Send an object."""
        view = memoryview(json.dumps(message).encode() + b"\n")
        while len(view):
            # By pieces: after it had to wait, OpenSSL wants the same bytes again.
            view = view[await self._retried(functools.partial(self._sock.send, view[: 1 << 16]), writing=True) :]

    async def receive(self) -> dict[str, Any]:
        """Return the next object; raise ReceiveError when there is none."""
        what = f"bench with {self.connection.peer}"
        remedy = "is it a ringmain bench of the same version?"
        while b"\n" not in self._received:
            try:
                piece = await self._retried(lambda: self._sock.recv(1 << 16), writing=False)
            except OSError as error:
                raise ReceiveError(what, reason(error), "see the other end's log") from error
            if not piece:
                raise ReceiveError(what, "the peer closed the connection", "see the other end's log")
            self._received += piece
            if len(self._received) > _LONGEST:
                raise ReceiveError(what, "a message is too long", remedy)
        line, _, rest = bytes(self._received).partition(b"\n")
        self._received[:] = rest
        try:
            message = json.loads(line)
        except ValueError as error:
            raise ReceiveError(what, "a message is not understood", remedy) from error
        if not isinstance(message, dict):
            raise ReceiveError(what, "a message is not understood", remedy)
        return message

    async def _retried(self, call: Callable[[], Result], *, writing: bool) -> Result:
        while True:
            try:
                return call()
            except ssl.SSLWantReadError:
                await until(self._sock.fileno())
            except ssl.SSLWantWriteError:
                await until(self._sock.fileno(), writable=True)
            except BlockingIOError:
                await until(self._sock.fileno(), writable=writing)

    def close(self) -> None:
        """Close the connection."""
        self._sock.close()
