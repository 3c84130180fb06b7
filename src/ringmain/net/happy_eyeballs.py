"""Connect to one of several addresses, whichever answers first: Happy Eyeballs, RFC 8305, 5."""

import asyncio
import collections
import contextlib
import errno
import os
import socket
import struct
from typing import Any

from ringmain.errors import ConnectError, reason
from ringmain.net.receive_buffer import set_receive_buffer

# How long an address may be silent before the next is tried besides: what RFC 8305, 5 recommends.
_ATTEMPT_DELAY = 0.25
# <netinet/tcp.h>, and where struct tcp_info of <linux/tcp.h> has tcpi_bytes_acked, 64 bits.
_TCP_CLOSE, _BYTES_ACKED = 7, 120
_REMEDIES = {
    errno.ECONNREFUSED: "is anything listening there?",
    errno.EINVAL: "an address of one link needs its interface: [fe80::1%eth0]",
    errno.EMFILE: "let this process open more files: ulimit -n",
    errno.ENFILE: "close some programs: the whole system has no more files",
    errno.EACCES: "a firewall on this machine forbids it",
    errno.EPERM: "a firewall on this machine forbids it",
}


async def first_that_answers(
    rows: list[tuple[Any, ...]], peer: str, receive_buffer: int | None = None
) -> socket.socket:
    """Connect to the address that accepts first: while one is silent the next is tried too (RFC 8305, 5).

    Raises ConnectError, or a TimeoutError where the kernel has given up. Cancelled at any point it leaves nothing.
    """
    trying: list[socket.socket] = []
    failures: list[OSError] = []
    try:
        for row in _interleaved(rows):
            try:
                trying.append(_begin(row, receive_buffer))
            except OSError as error:  # no such family or no route here, or no descriptor left
                failures.append(error)
                continue
            if (sock := await _answered(trying, failures, _ATTEMPT_DELAY)) is not None:
                return sock
        while trying:
            if (sock := await _answered(trying, failures, None)) is not None:
                return sock
    finally:
        for sock in trying:
            sock.close()
    # A refusal says most: the other family may lead nowhere on this machine.
    cause = next((it for it in failures if isinstance(it, ConnectionRefusedError)), failures[-1])
    if isinstance(cause, TimeoutError):
        raise cause
    remedy = _REMEDIES.get(cause.errno or 0, "check address and route")
    raise ConnectError(f"connect to {peer}", reason(cause), remedy) from cause


def _begin(row: tuple[Any, ...], receive_buffer: int | None) -> socket.socket:
    """Begin to connect to an address."""
    family, kind, protocol, _, address = row
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setblocking(False)
        set_receive_buffer(sock, receive_buffer)
        # Not the loop's own sock_connect: uvloop's looks the address up once more, and drops its zone.
        with contextlib.suppress(BlockingIOError):
            sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock


async def _answered(trying: list[socket.socket], failures: list[OSError], delay: float | None) -> socket.socket | None:
    """Take out of `trying` and return the first that is connected; None after a failure, or after the delay."""
    before = len(failures)
    # On one machine a connect is over at once: whoever looks later finds more of those that were reset meanwhile.
    sock = _look(trying, failures)
    if sock is None and len(failures) == before:
        await _any_writable(trying, delay)
        sock = _look(trying, failures)
    return sock


def _look(trying: list[socket.socket], failures: list[OSError]) -> socket.socket | None:
    for sock in list(trying):
        try:
            if _is_connected(sock):
                trying.remove(sock)
                return sock
        except OSError as error:
            failures.append(error.with_traceback(None))  # whose frames hold the list
            trying.remove(sock)
            sock.close()
    return None


def _was_reset(sock: socket.socket) -> bool:
    """Tell whether a connection that had come about is gone again; a refusal acknowledges no SYN."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    return info[0] == _TCP_CLOSE and struct.unpack_from("Q", info.ljust(256, b"\0"), _BYTES_ACKED)[0] > 0


async def _any_writable(socks: list[socket.socket], timeout: float | None) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    timer = loop.call_later(timeout, _finish, ready) if timeout is not None else None
    try:
        for sock in socks:  # which fails where the user may watch no more (epoll(7), max_user_watches)
            loop.add_writer(sock.fileno(), _finish, ready)
        await ready
    finally:
        for sock in socks:
            loop.remove_writer(sock.fileno())
        if timer is not None:
            timer.cancel()


def _is_connected(sock: socket.socket) -> bool:
    """Tell whether a connect has succeeded or is still under way; raise what it failed with."""
    if _was_reset(sock):
        return True  # whoever uses it hears of the reset, which is told once
    if number := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        raise OSError(number, os.strerror(number))
    try:
        address = sock.getpeername()
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            raise
        return False
    if sock.getsockname() == address:  # an unused port of the ephemeral range met itself
        raise ConnectionRefusedError(errno.ECONNREFUSED, "connection refused")
    return True


def _interleaved(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Let the families take turns, the resolver's first choice first: often a whole family leads nowhere."""
    turns: collections.Counter[int] = collections.Counter()
    first = rows[0][0]

    def turn(row: tuple[Any, ...]) -> tuple[int, bool]:
        turns[row[0]] += 1
        return turns[row[0]], row[0] != first

    return sorted(rows, key=turn)


def _finish(ready: "asyncio.Future[None]") -> None:
    if not ready.done():
        ready.set_result(None)
