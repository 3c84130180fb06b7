"""The PROXY protocol: be told, or say, who is at the far end of a connection, before its first byte.

https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt
"""

import asyncio
import socket
import struct

from proxyprotocol import ProxyProtocol, ProxyProtocolIncompleteError
from proxyprotocol.build import build_socket_result
from proxyprotocol.detect import ProxyProtocolDetect
from proxyprotocol.result import ProxyResult, is_ipv4, is_ipv6
from proxyprotocol.v1 import ProxyProtocolV1
from proxyprotocol.v2 import ProxyProtocolV2

from ringmain.connection import until
from ringmain.endpoint import host_and_port
from ringmain.errors import ReceiveError, SendError, TimedOutError, reason

VERSIONS = ("v1", "v2")
# The longest header of version 1, with its line end.
_LINE = 107


async def read_header(sock: socket.socket, peer: str, timeout: float | None) -> ProxyResult:
    """Read a header of either version and not a byte more; raise ReceiveError or TimedOutError."""
    what = f"PROXY header from {peer}"
    data = b""
    try:
        async with asyncio.timeout(timeout):
            while True:
                try:
                    return ProxyProtocolDetect().unpack(data)
                except ProxyProtocolIncompleteError as error:
                    wanted = error.want_read
                if wanted.want_line and len(data) == _LINE:
                    raise ValueError("its line is too long")
                data += await _read(sock, wanted.want_bytes or 1)
    except TimeoutError as error:
        raise TimedOutError(what, f"not there within {timeout:g} s", "does it send one? see --accept-proxy") from error
    except EOFError as error:
        raise ReceiveError(what, "the peer closed the connection", "does it send one?") from error
    except (ValueError, struct.error) as error:
        raise ReceiveError(what, "not understood", "does it send one? see --accept-proxy") from error
    except OSError as error:
        raise ReceiveError(what, reason(error), "try again, or see the peer's log") from error


async def _read(sock: socket.socket, size: int) -> bytes:
    """Read that many bytes."""
    data = b""
    while len(data) < size:
        try:
            piece = sock.recv(size - len(data))
        except BlockingIOError:
            await until(sock.fileno())
            continue
        if not piece:
            raise EOFError
        data += piece
    return data


def peer_of(told: ProxyResult) -> str | None:
    """Return the address that a header tells, as "192.0.2.1:51234"; None if it tells none."""
    if is_ipv4(told) or is_ipv6(told):
        return host_and_port(str(told.source[0]), told.source[1])
    return None


async def send_header(
    sock: socket.socket, peer: str, version: str, source: socket.socket, told: ProxyResult | None
) -> None:
    """Send a header of the version that tells what was told of the source, or else who it is; raise SendError."""
    protocol: ProxyProtocol = ProxyProtocolV1() if version == "v1" else ProxyProtocolV2()
    try:
        known = told if told is not None and peer_of(told) is not None else build_socket_result(source)
    except OSError as error:
        raise ReceiveError(f"PROXY header to {peer}", "the client that it tells of has left") from error
    try:
        await asyncio.get_running_loop().sock_sendall(sock, protocol.pack(known))
    except OSError as error:
        raise SendError(f"PROXY header to {peer}", reason(error), "does it expect one? see --send-proxy") from error
