"""What two processes of ours tell each other, and the sockets that one hands to the other (SCM_RIGHTS, unix(7)).

Goal: nothing that is sent is lost while both live, and nobody waits for a process that stands still. Cost: a system
call a message; what the other side has no room for waits here, with its socket.
"""

import asyncio
import collections
import errno
import json
import logging
import socket
from collections.abc import Callable
from typing import Any

from ringmain.net.resets import end_when_closed, reset, reset_when_closed

log = logging.getLogger("ringmain")

# A row of the stats file takes about 500 bytes. A longer message is torn.
_LONGEST = 64 << 10
# So many messages are heard before others get their turn.
_AT_ONCE = 64
# How long to wait where this user has too many sockets on their way, which no event ends.
_BACK_OFF = 0.1

Message = dict[str, Any]


class Channel:
    """One end of a pair of UNIX sockets that keep messages apart (SOCK_SEQPACKET); messages are JSON objects.

    `hear` is called with each message and the socket that came with it, which is then its own, and `on_end` once when
    the other end is closed and all that it had sent was heard.
    """

    def __init__(
        self, sock: socket.socket, hear: Callable[[Message, socket.socket | None], None], on_end: Callable[[], None]
    ) -> None:
        sock.setblocking(False)
        sock.set_inheritable(False)
        self._sock = sock
        self._hear = hear
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._outbox: collections.deque[tuple[bytes, socket.socket | None]] = collections.deque()
        self._pause: asyncio.TimerHandle | None = None
        self._ended = False
        self._loop.add_reader(sock.fileno(), self._read)

    @property
    def is_behind(self) -> bool:
        """Whether the other side has yet to make room for what was sent."""
        return bool(self._outbox)

    def send(self, message: Message, sock: socket.socket | None = None) -> None:
        """Send a message, now or once there is room; a socket goes with it, and is closed here.

        Where the other end is gone, goes before it takes it, or has no descriptor for it, the socket is reset.
        """
        if sock is not None:
            reset_when_closed(sock)
        self._outbox.append((json.dumps(message).encode(), sock))
        if len(self._outbox) == 1:
            self._flush()

    def shut(self) -> None:
        """Let the other side hear the end, after what was sent; what it sends is still heard."""
        self._outbox.append((b"", None))
        if len(self._outbox) == 1:
            self._flush()

    def finish(self) -> None:
        """Send the rest, however long the other side takes; for when the loop runs no more."""
        self._sock.setblocking(True)
        while self._outbox:
            self._flush()

    def close(self) -> None:
        """Close this end; sockets that were not sent are reset."""
        if self._pause is not None:
            self._pause.cancel()
        self._drop()
        if not self._loop.is_closed() and self._sock.fileno() != -1:
            self._loop.remove_reader(self._sock.fileno())
            self._loop.remove_writer(self._sock.fileno())
        self._sock.close()

    def _flush(self) -> None:
        """Send what the other side has room for."""
        while self._outbox:
            data, sock = self._outbox[0]
            try:
                if not data:
                    self._sock.shutdown(socket.SHUT_WR)
                elif sock is not None:
                    socket.send_fds(self._sock, [data], [sock.fileno()])
                else:
                    self._sock.send(data)
            except BlockingIOError:
                self._loop.add_writer(self._sock.fileno(), self._flush)
                return
            except OSError as error:
                if error.errno == errno.ETOOMANYREFS:
                    self._loop.remove_writer(self._sock.fileno())  # there is room: it would call on and on
                    self._pause = self._loop.call_later(_BACK_OFF, self._flush)
                else:  # it is gone, as whoever reads hears
                    self._drop()
                return
            self._outbox.popleft()
            if sock is not None:
                sock.close()
        if not self._loop.is_closed():
            self._loop.remove_writer(self._sock.fileno())

    def _drop(self) -> None:
        while self._outbox:
            _, sock = self._outbox.popleft()
            if sock is not None:
                reset(sock)

    def _read(self) -> None:
        """Hear what has come."""
        for _ in range(_AT_ONCE):
            try:
                data, fds, flags, _ = socket.recv_fds(self._sock, _LONGEST, 1, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return
            except ConnectionError:
                data, fds, flags = b"", [], 0
            if not data:
                self._loop.remove_reader(self._sock.fileno())
                self._on_end()
                return
            came = socket.socket(fileno=fds[0]) if fds else None
            if came is not None:
                end_when_closed(came)
            if (message := _parsed(data, flags)) is not None:
                self._hear(message, came)
            elif came is not None:
                reset(came)
            if self._sock.fileno() == -1:  # whoever heard it has closed this
                return


def _parsed(data: bytes, flags: int) -> Message | None:
    """Return a message, or None, with a warning, for what is none."""
    try:
        message = json.loads(data) if not flags & socket.MSG_TRUNC else None
    except ValueError:
        message = None
    if not isinstance(message, dict):
        log.warning("a message of another process is torn: %d bytes", len(data))
        return None
    return message
