"""A socket as the event loop knows it: the only place that registers connected sockets with it."""

import asyncio
import functools
import select
import socket
from collections.abc import Callable

from ringmain.net.readiness import finish


class Watched:
    """A non-blocking socket, registered with the running loop once for reading and once for writing, whoever waits."""

    def __init__(self, sock: socket.socket) -> None:
        self.loop = asyncio.get_running_loop()
        self.sock = sock
        self.fd = sock.fileno()
        self.closed = False
        self._on_writable: dict[Callable[[], object], None] = {}  # a set, that is smaller while it is empty
        self._waits_to_write: asyncio.Future[None] | None = None
        self._hang_up: select.epoll | None = None

    def watch_readable(self, call: Callable[[], object]) -> None:
        """Call whenever the socket is readable, until `ignore_readable`. One watcher at a time."""
        self.loop.add_reader(self.fd, call)
        if self.closed:  # meanwhile: its number may be another's soon
            self.loop.remove_reader(self.fd)

    def ignore_readable(self) -> None:
        """Watch no more for what the peer sends."""
        if not self.closed:
            self.loop.remove_reader(self.fd)

    def when_writable(self, call: Callable[[], object]) -> None:
        """Call once, when the socket takes bytes, unless it is closed before. Any number may wait."""
        self._on_writable[call] = None
        try:
            self.loop.add_writer(self.fd, self._now_writable)
        except BaseException:
            self._on_writable.pop(call, None)
            raise
        if self.closed:
            self.loop.remove_writer(self.fd)

    def _now_writable(self) -> None:
        calls, self._on_writable = self._on_writable, {}
        self.loop.remove_writer(self.fd)
        for call in calls:
            call()

    async def until_writable(self) -> None:
        """Wait until the socket takes bytes, or `wake_writer` is called since it never will again."""
        if self.closed:
            return
        self._waits_to_write = ready = self.loop.create_future()
        call = functools.partial(finish, ready)
        try:
            self.when_writable(call)
        except RuntimeError:  # uvloop's handle has died of a reset, of which the next write will hear
            await asyncio.sleep(0)
            return
        try:
            await ready
        finally:
            self._waits_to_write = None
            self._on_writable.pop(call, None)
            if not self._on_writable and not self.closed:
                self.loop.remove_writer(self.fd)

    def wake_writer(self) -> None:
        """Let whoever waits to write go on."""
        if self._waits_to_write is not None:
            finish(self._waits_to_write)

    def watch_hang_up(self, call: Callable[[], object]) -> bool:
        """Call once, when the connection is reset although there is nothing to read any more that would tell.

        False if that is watched already.
        """
        if self.closed or self._hang_up is not None:
            return False
        # An epoll of our own that asks for no event still hears of errors, and is itself readable then.
        try:
            hang_up = select.epoll()
        except OSError:  # no descriptor left: the next write finds out
            return True
        try:
            hang_up.register(self.fd, 0)
            self.loop.add_reader(hang_up.fileno(), self._hung_up, call)
        except OSError:  # the user may watch no more (epoll(7), max_user_watches)
            self.loop.remove_reader(hang_up.fileno())
            hang_up.close()
        else:
            self._hang_up = hang_up
        return True

    def _hung_up(self, call: Callable[[], object]) -> None:
        assert self._hang_up is not None
        self.loop.remove_reader(self._hang_up.fileno())
        call()

    def close(self) -> None:
        """Take the socket from the loop and close it."""
        self.closed = True
        if not self.loop.is_closed():
            self.loop.remove_reader(self.fd)
            self.loop.remove_writer(self.fd)
            if self._hang_up is not None:
                self.loop.remove_reader(self._hang_up.fileno())
        if self._hang_up is not None:
            self._hang_up.close()
        self._on_writable.clear()
        self.sock.close()
