"""The PROXY protocol: be told, or say, who is at the far end of a connection, before its first byte.

https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt
A header comes from the network: what the text does not allow, to the letter, is refused.
"""

import asyncio
import re
import socket
import struct
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from ringmain.endpoint import host_and_port
from ringmain.errors import ReceiveError, SendError, TimedOutError, reason
from ringmain.net.readiness import until

# The longest header of version 1, with its line end.
_LINE = 107
_PORT = rb"(0|[1-9][0-9]{0,4})"
_WORDS = re.compile(rb"PROXY (TCP4|TCP6) ([0-9A-Fa-f:.]+) ([0-9A-Fa-f:.]+) " + _PORT + b" " + _PORT + rb"\r\n")

_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_FIXED = 16  # the signature, version and command, family, size of the rest
_LOCAL, _PROXY = 0x20, 0x21
_UNSPECIFIED, _TCP4, _TCP6 = 0x00, 0x11, 0x21
# The size of both addresses with their ports. UDP and UNIX sockets are known to the protocol, but name no TCP peer.
_ADDRESS_SIZES = {_UNSPECIFIED: 0, _TCP4: 12, 0x12: 12, _TCP6: 36, 0x22: 36, 0x31: 216, 0x32: 216}
_CHECKSUM = 0x03

Address = tuple[IPv4Address | IPv6Address, int]


class Told(NamedTuple):
    """What a header tells: who is connected to whom, and what else (TLVs, as they were sent)."""

    source: Address
    destination: Address
    more: bytes = b""

    @property
    def peer(self) -> str:
        """The address of the source, as "192.0.2.1:51234"."""
        return host_and_port(str(self.source[0]), self.source[1])


async def read_header(sock: socket.socket, peer: str, timeout: float | None) -> Told | None:
    """Read a header of either version and not a byte more; None if it names no TCP addresses.

    Raises ReceiveError or TimedOutError.
    """
    what = f"PROXY header from {peer}"
    try:
        async with asyncio.timeout(timeout):
            data = await _read(sock, 8)
            if data == _SIGNATURE[:8]:
                data += await _read(sock, _FIXED - 8)
                return _told_by_v2(data, await _read(sock, int.from_bytes(data[14:16])))
            while data.startswith(b"PROXY ") and not data.endswith(b"\n") and len(data) < _LINE:
                data += await _read(sock, 1)
            return _told_by_v1(data)
    except TimeoutError as error:
        why = f"none came within {timeout:g} s"
        raise TimedOutError(what, why, "does it send one? see accept_proxy=;", limit="handshake_timeout") from error
    except EOFError as error:
        raise ReceiveError(what, "the peer closed the connection", "does it send one? see accept_proxy=") from error
    except ValueError as error:
        raise ReceiveError(what, "not understood", "does it send one? see accept_proxy=") from error
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


def _told_by_v1(line: bytes) -> Told | None:
    if re.fullmatch(rb"PROXY UNKNOWN( [^\r\n]*)?\r\n", line):
        return None
    match = _WORDS.fullmatch(line)
    if match is None:
        raise ValueError
    kind = IPv4Address if match[1] == b"TCP4" else IPv6Address
    source, destination = ((kind(match[at].decode()), int(match[at + 2])) for at in (2, 3))
    if max(source[1], destination[1]) > 65535:
        raise ValueError
    return Told(source, destination)


def _told_by_v2(fixed: bytes, rest: bytes) -> Told | None:
    command, family = fixed[12], fixed[13]
    if fixed[:12] != _SIGNATURE or command not in (_LOCAL, _PROXY):
        raise ValueError
    if command == _LOCAL:  # the proxy itself, which may say anything else
        return None
    size = _ADDRESS_SIZES.get(family)
    if size is None or len(rest) < size:
        raise ValueError
    more = rest[size:]
    try:
        at = _checksum_at(more)
    except ValueError:
        if family != _UNSPECIFIED:  # which may have addresses of any size, to be passed over
            raise
        at = None
    if at is not None:
        with_zeros = fixed + rest[:size] + more[:at] + bytes(4) + more[at + 4 :]
        if int.from_bytes(more[at : at + 4]) != _crc32c(with_zeros):
            raise ValueError
    if family not in (_TCP4, _TCP6):
        return None
    kind, width = (IPv4Address, 4) if family == _TCP4 else (IPv6Address, 16)
    ports = struct.unpack("!HH", rest[2 * width : size])
    source, destination = ((kind(rest[at * width : (at + 1) * width]), ports[at]) for at in (0, 1))
    return Told(source, destination, more)


def _checksum_at(more: bytes) -> int | None:
    """Return where the checksum is among TLVs, if it is; raise ValueError where one of them is cut off."""
    at, found = 0, None
    while at < len(more):
        size = int.from_bytes(more[at + 1 : at + 3])
        if at + 3 + size > len(more):
            raise ValueError
        if more[at] == _CHECKSUM:
            if size != 4 or found is not None:
                raise ValueError
            found = at + 3
        at += 3 + size
    return found


def _crc32c(data: bytes) -> int:
    """Return the checksum of RFC 3309, appendix B; zlib's has another polynomial."""
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    checksum = 0xFFFFFFFF
    for byte in data:
        checksum = checksum >> 8 ^ table[(checksum ^ byte) & 0xFF]
    return checksum ^ 0xFFFFFFFF


def header_for(peer: str, version: str, source: socket.socket, told: Told | None) -> bytes:
    """Return a header of the version that tells what was told of the source, or else who it is; raise ReceiveError.

    Of a client of a UNIX socket it says that it is unknown.
    """
    try:
        known = told or _told_by_socket(source)
    except OSError as error:
        raise ReceiveError(f"PROXY header to {peer}", "the client that it names has left") from error
    return (_v1 if version == "v1" else _v2)(known)


async def send_header(sock: socket.socket, peer: str, header: bytes) -> None:
    """Send a header; raise SendError."""
    try:
        await asyncio.get_running_loop().sock_sendall(sock, header)
    except OSError as error:
        raise SendError(f"PROXY header to {peer}", reason(error), "does it expect one? see send_proxy=") from error


def _told_by_socket(sock: socket.socket) -> Told | None:
    if sock.family == socket.AF_UNIX:
        return None
    kind = IPv4Address if sock.family == socket.AF_INET else IPv6Address
    # A zone (fe80::1%eth0) is known to this machine only.
    source, destination = (
        (kind(name[0].partition("%")[0]), name[1]) for name in (sock.getpeername(), sock.getsockname())
    )
    return Told(source, destination)


def _v1(told: Told | None) -> bytes:
    if told is None:
        return b"PROXY UNKNOWN\r\n"
    (source, port), (destination, other_port) = told.source, told.destination
    return f"PROXY TCP{source.version} {source} {destination} {port} {other_port}\r\n".encode()


def _v2(told: Told | None) -> bytes:
    if told is None:
        return _SIGNATURE + struct.pack("!BBH", _PROXY, _UNSPECIFIED, 0)
    (source, port), (destination, other_port) = told.source, told.destination
    addresses = source.packed + destination.packed + struct.pack("!HH", port, other_port)
    family = _TCP4 if source.version == 4 else _TCP6
    fixed = _SIGNATURE + struct.pack("!BBH", _PROXY, family, len(addresses) + len(told.more))
    return fixed + addresses + told.more  # to the byte what was read, if that told more: its checksum holds
