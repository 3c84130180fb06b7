"""Whether a peer that owes us an acknowledgement is still there.

The kernel's keepalive asks a silent peer only while nothing is under way to it; then the kernel sends that again for a
quarter of an hour. TCP_USER_TIMEOUT would bound it, but it also ends a connection whose peer answers every probe that
its window is closed: a reader that merely stalls. How long one may stall is `flow.idle_timeout`'s.
"""

import asyncio
import socket
import sys
import weakref
from collections.abc import Callable

# Offsets in struct tcp_info, <linux/tcp.h>; times are milliseconds that have passed.
_PROBES, _UNACKED, _LAST_DATA_SENT, _LAST_ACK_RECEIVED, _SIZE = 3, 24, 44, 56, 60
# A peer is found to be gone at most this part of the time too late.
_LOOKS = 20


def watch_peer(
    loop: asyncio.AbstractEventLoop, sock: socket.socket, vanished: Callable[[], None]
) -> Callable[[], None]:
    """Call `vanished` when nothing answers what was sent for as long as the socket's keepalive takes; return a cancel.

    That is what `dial.prepare` has set, so that bytes under way make no difference. Without keepalive, never.
    The watch does not keep the object alive whose method `vanished` is.
    """
    if not hasattr(socket, "TCP_KEEPIDLE") or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE):
        return lambda: None
    idle, interval, count = (
        sock.getsockopt(socket.IPPROTO_TCP, option)
        for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
    )
    limit = idle + interval * count
    since, tell = loop.time(), weakref.WeakMethod(vanished)
    timer: asyncio.TimerHandle

    def look() -> None:
        nonlocal since, timer
        now, method = loop.time(), tell()
        if method is None or sock.fileno() == -1:
            return
        since = max(since, now - _unanswered(sock))
        if now - since >= limit:
            method()
        else:
            timer = loop.call_later(limit / _LOOKS, look)

    timer = loop.call_later(limit / _LOOKS, look)
    return lambda: timer.cancel()


def _unanswered(sock: socket.socket) -> float:
    """Return for how many seconds the peer has said nothing, 0 if nothing is owed: no data or probe is unanswered.

    That something is owed whenever one looks tells nothing: of a steady stream the newest bytes always are under way.
    """
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _SIZE)

    def field(offset: int) -> int:
        return int.from_bytes(info[offset : offset + 4], sys.byteorder)

    heard = field(_LAST_ACK_RECEIVED)
    owed = info[_PROBES] > 0 or (field(_UNACKED) > 0 and heard > field(_LAST_DATA_SENT))
    return heard / 1000 if owed else 0.0
