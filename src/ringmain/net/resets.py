"""Reset a socket, or close it so that its peer takes that for what it is.

Which ends become a reset: before data `gate`, `reception`, `arrivals`, `handing` and `relay_ends` decide, on the way to
another process `channel` and `cli.processes`, later `Inflow.close` (load; many at once `Crowd`), `flow.clients` (save;
many at once `audience`), `Passage` (relay), `Connection`, `server`, `bench.server` and `bench.replay`.
"""

import asyncio
import contextlib
import socket
import struct

# How long a peer gets to read why we turn away, in a TLS alert, before the connection is reset under it.
_FAREWELL = 1.0
# How much of what it goes on sending is read meanwhile: more than a hello, less than a file that would seem received.
_FAREWELL_SIZE = 8 << 20
# How often is looked meanwhile whether there is more.
_LOOK = 0.005


async def farewell(sock: socket.socket) -> None:
    """Close so that an alert on its way is read: a close with unread bytes would reset it away."""
    try:
        await hear_out(sock)
    finally:
        sock.close()


async def hear_out(sock: socket.socket) -> None:
    """Say that nothing follows (FIN), then read and drop until the peer has ended too: the socket may be closed then.

    A peer that sends on and on, or nothing at all, is reset by the close: it must not take all that for received. So
    is one that we have no time for, when this is cancelled.
    """
    left, ended = _FAREWELL_SIZE, False
    try:
        socket.socket.shutdown(sock, socket.SHUT_WR)
        async with asyncio.timeout(_FAREWELL):
            while left > 0 and not ended:
                try:
                    size = len(socket.socket.recv(sock, 1 << 16))
                except BlockingIOError:
                    # Not watched: whoever owns it may close it meanwhile, and its number be another's.
                    await asyncio.sleep(_LOOK)
                else:
                    left, ended = left - size, size == 0
                    await asyncio.sleep(0)
    except OSError:  # it was reset, or a time-out
        pass
    finally:
        if not ended:
            reset_when_closed(sock)


def reset(sock: socket.socket) -> None:
    """Close at once with a reset, so that the peer cannot take it for a regular end."""
    reset_when_closed(sock)
    sock.close()


def reset_when_closed(sock: socket.socket) -> None:
    """Let the close of a socket be a reset, in whichever process it comes."""
    _linger(sock, on=1)


def end_when_closed(sock: socket.socket) -> None:
    """Take that back."""
    _linger(sock, on=0)


def _linger(sock: socket.socket, *, on: int) -> None:
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", on, 0))
