"""What the kernel tells of a TCP connection: retransmissions, round trips, the congestion window and what governs it.

Linux only, and TCP only: whatever else there is tells None.
"""

import re
import socket
import struct
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

# struct tcp_info of <linux/tcp.h>: tcpi_snd_mss, tcpi_rtt, tcpi_rttvar, tcpi_snd_cwnd and tcpi_total_retrans.
_FIGURES = struct.Struct("=16xI48x2I4xI16xI")
# Where it has tcpi_bytes_acked, 64 bits.
_BYTES_ACKED = 120
_LONGEST_NAME = 16  # TCP_CA_NAME_MAX
# What is told of the sender of a stream, in iperf3's names; without a round trip the first two.
OF_SENDER = ("retransmits", "max_snd_cwnd", "max_rtt", "min_rtt", "mean_rtt")


class TcpInfo(NamedTuple):
    """What is known of a connection at one time: segments sent again since its beginning, bytes, microseconds."""

    retransmits: int
    snd_cwnd: int
    rtt: int
    rttvar: int

    def since(self, before: "TcpInfo | None") -> dict[str, int]:
        """Return it in iperf3's names, the retransmits as those since then; no round trip where there was none yet."""
        retransmits = self.retransmits - (before.retransmits if before is not None else 0)
        trips = {"rtt": self.rtt, "rttvar": self.rttvar} if self.rtt else {}
        return {"retransmits": retransmits, "snd_cwnd": self.snd_cwnd, **trips}


def tcp_info(sock: socket.socket) -> TcpInfo | None:
    """Ask the kernel; None where it does not know, or the socket is closed. One system call."""
    data = _raw(sock)
    if len(data) < _FIGURES.size:
        return None
    segment, rtt, rttvar, window, retransmits = _FIGURES.unpack_from(data)
    return TcpInfo(retransmits, window * segment, rtt, rttvar)


def bytes_acknowledged(sock: socket.socket) -> int | None:
    """Return how many bytes a peer's kernel has acknowledged, also when the connection is broken.

    The SYN of one who dials counts as a byte: only what it grows by is known. Nothing becomes of it after a reset, so
    what the peer has read but not acknowledged before, a segment and more, is not in it.
    """
    data = _raw(sock)
    if len(data) < _BYTES_ACKED + 8:
        return None
    return int(struct.unpack_from("Q", data, _BYTES_ACKED)[0])


def congestion(sock: socket.socket) -> str | None:
    """Return the name of the algorithm that governs a connection's window, as "cubic"; None where there is none."""
    if sys.platform != "linux":
        return None
    try:
        name = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, _LONGEST_NAME)
    except OSError:
        return None
    return name.partition(b"\0")[0].decode("ascii", "replace") or None


def _raw(sock: socket.socket) -> bytes:
    if sys.platform != "linux":
        return b""
    try:
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    except OSError:
        return b""


def of_sender(first: TcpInfo | None, others: Sequence[TcpInfo]) -> dict[str, int] | None:
    """Return what became of a stream between the first look and the last of the others; None where nothing is known."""
    if not others:
        return None
    found = {
        "retransmits": others[-1].since(first)["retransmits"],
        "max_snd_cwnd": max(it.snd_cwnd for it in others),
    }
    trips = [it.rtt for it in others if it.rtt]  # 0 before the first one
    if trips:
        found |= {"max_rtt": max(trips), "min_rtt": min(trips), "mean_rtt": round(sum(trips) / len(trips))}
    return found


def read_sender(message: object, most: int) -> dict[str, int] | None:
    """Return what the other end tells of one of its streams; raise ValueError if it makes no sense."""
    if message is None:
        return None
    if not isinstance(message, dict) or message.keys() not in (set(OF_SENDER), set(OF_SENDER[:2])):
        raise ValueError("nothing of a stream")
    for value in message.values():
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < most:
            raise ValueError("no figure of a stream")
    return dict(message)


def read_congestion(message: object) -> str | None:
    """Return the algorithm that the other end names; raise ValueError if it is no name."""
    if message is None:
        return None
    if not isinstance(message, str) or re.fullmatch(rf"[\w.-]{{1,{_LONGEST_NAME}}}", message, re.ASCII) is None:
        raise ValueError("no name")
    return message


def in_all(parts: Sequence[dict[str, Any] | None]) -> dict[str, int]:
    """Return the retransmits of several streams as those of all, where any are known."""
    known = [part["retransmits"] for part in parts if part is not None and "retransmits" in part]
    return {"retransmits": sum(known)} if known else {}
