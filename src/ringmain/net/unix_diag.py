"""How many bytes the peer of a UNIX socket has yet to read, which no call on our end tells: asked of sock_diag(7).

TIOCOUTQ counts memory, in pieces of up to half a send buffer: to it who reads such a piece slowly stands still.
"""

import os
import socket
import struct

_SOCK_DIAG, _BY_FAMILY, _REQUEST = 4, 20, 1  # NETLINK_SOCK_DIAG, <linux/sock_diag.h>, <linux/netlink.h>
# <linux/unix_diag.h>: what is asked for, and the attributes that tell it.
_SHOW_PEER, _SHOW_QUEUES = 0x04, 0x10
_PEER, _QUEUES = 2, 4
_HEADER = "=IHHII"  # struct nlmsghdr: length, type, flags, sequence, port
_QUESTION = "=BBHIIIII"  # struct unix_diag_req: family, protocol, padding, states, inode, show, cookie
_ANSWER = 16  # the size of struct unix_diag_msg
_ANY = 0xFFFFFFFF
# The kernel answers within the call that asks.
_TIMEOUT = 1.0


class PeerQueue:
    """What the other end of a UNIX socket has received and not read."""

    def __init__(self) -> None:
        self._inode: int | None = None  # the other end's, once it was asked for

    def size(self, sock: socket.socket) -> int | None:
        """Return how many bytes it is for the other end of this; None where the kernel does not tell, or it is gone."""
        if self._inode is None and (found := _ask(os.fstat(sock.fileno()).st_ino, _SHOW_PEER, _PEER)) is not None:
            self._inode = struct.unpack("=I", found)[0] or None  # none before it was accepted
        found = _ask(self._inode, _SHOW_QUEUES, _QUEUES) if self._inode is not None else None
        return struct.unpack_from("=I", found)[0] if found is not None else None


def _ask(inode: int, show: int, wanted: int) -> bytes | None:
    """Return an attribute of the UNIX socket with that inode."""
    question = struct.pack(_QUESTION, socket.AF_UNIX, 0, 0, _ANY, inode & _ANY, show, _ANY, _ANY)
    header = struct.calcsize(_HEADER)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG) as sock:
            sock.settimeout(_TIMEOUT)
            sock.send(struct.pack(_HEADER, header + len(question), _BY_FAMILY, _REQUEST, 0, 0) + question)
            answer = sock.recv(4096)
    except OSError:  # no such protocol here, it is not allowed, or no descriptor is left
        return None
    size, kind = struct.unpack_from("=IH", answer)
    at = header + _ANSWER
    while kind == _BY_FAMILY and at + 4 <= size:
        length, name = struct.unpack_from("=HH", answer, at)
        if name == wanted:
            return answer[at + 4 : at + length]
        at += max(4, length + 3 & ~3)
    return None
