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

from ringmain.errors import ReceiveError, SendError, reason
from ringmain.net.link import Link
from ringmain.net.readiness import until

Result = TypeVar("Result")

_MAGIC = b"ringmain bench 2 "
TOKEN_SIZE = 32  # hexadecimal digits
_FIRST_LINE = len(_MAGIC) + TOKEN_SIZE + 1
# The longest line: what was found of all the streams that there may be takes a tenth of it.
_LONGEST = 64 << 10
# The last digits of a token number the streams, so that both ends mean the same one.
_NUMBER_SIZE = 2
# The token of a connection that begins a measurement instead of belonging to one.
CONTROL = "0" * TOKEN_SIZE


async def introduce(sock: socket.socket, token: str, peer: str) -> None:
    """Send the first line of a connection; raise SendError."""
    try:
        await asyncio.get_running_loop().sock_sendall(sock, _MAGIC + token.encode() + b"\n")
    except OSError as error:
        raise SendError(f"bench with {peer}", reason(error), "see the other end's log") from error


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


def new_token(random: Callable[[int], str]) -> str:
    """Return the token of the first stream of a measurement; `random` makes so many bytes as hexadecimal digits."""
    return numbered(random(TOKEN_SIZE // 2), 0)


def numbered(token: str, number: int) -> str:
    """Return the token of another stream of the same measurement."""
    return f"{token[:-_NUMBER_SIZE]}{number:0{_NUMBER_SIZE}x}"


def number_of(token: str) -> int | None:
    """Return which stream's token it is; None if it is none."""
    try:
        return int(token[-_NUMBER_SIZE:], 16)
    except ValueError:
        return None


def read_json(text: bytes) -> Any:
    """Return what a JSON text says; raise ValueError, whatever is wrong with it."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no number")

    try:
        return json.loads(text.decode(), parse_constant=refuse)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


class Wire:
    """JSON objects, a line each, both ways over a connection, plain or TLS."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self._sock = link.sock
        self._received = bytearray()

    async def send(self, message: dict[str, Any]) -> None:
        """Send an object; raise ReceiveError when the peer is gone."""
        view = memoryview(json.dumps(message).encode() + b"\n")
        while len(view):
            # By pieces: after it had to wait, OpenSSL wants the same bytes again.
            try:
                size = await self._retried(functools.partial(self._sock.send, view[: 1 << 16]), writing=True)
            except OSError as error:
                raise self._lost(reason(error)) from error
            view = view[size:]

    async def receive(self) -> dict[str, Any]:
        """Return the next object; raise ReceiveError when there is none."""
        while b"\n" not in self._received:
            try:
                piece = await self._retried(lambda: self._sock.recv(1 << 16), writing=False)
            except OSError as error:
                raise self._lost(reason(error)) from error
            if not piece:
                raise self._lost("the peer closed the connection")
            self._received += piece
            if len(self._received) > _LONGEST:
                raise self.foreign("a message is too long")
        line, _, rest = bytes(self._received).partition(b"\n")
        self._received[:] = rest
        try:
            message = read_json(line)
        except ValueError as error:
            raise self.foreign() from error
        if not isinstance(message, dict):
            raise self.foreign()
        return message

    def _lost(self, why: str) -> ReceiveError:
        return ReceiveError(f"bench with {self.link.peer}", why, "see the other end's log")

    def foreign(self, why: str = "a message is not understood") -> ReceiveError:
        """Return the error that what the other end says makes no sense."""
        remedy = "is it a ringmain bench of the same version?"
        return ReceiveError(f"bench with {self.link.peer}", why, remedy)

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
        self.link.close()
