"""Clients that another process has accepted: it hands them over, and hears of their ends. How: `channel`.

What the two say, a JSON object each. The process that accepts: {"go": true} to begin; {"guest": ID, "peer": TEXT} with
a socket; {"ask": ID}; {"turn_away": ID, "seconds": N}; its end is to be taken for SIGTERM. The one that serves:
{"ready": true, "resumes": true or false}; {"ended": ID}; {"silent": true, false or null, "guest": ID}; and what else
`cli/worker.py` tells of.
"""

import asyncio
import collections
import logging
import socket
import ssl
import weakref
from collections.abc import Callable

from ringmain.errors import ReceiveError
from ringmain.net.channel import Channel, Message
from ringmain.net.dial import Preface
from ringmain.net.gate import Guest, NoMoreClients
from ringmain.net.link import Link
from ringmain.net.readiness import finish
from ringmain.net.reception import Newcomer, OnFailed, get_ready
from ringmain.net.resets import reset
from ringmain.outcome import NOT_SERVED, Unserved
from ringmain.settings import Settings

log = logging.getLogger("ringmain")


class HandedDoor:
    """Hand out the clients that come over a channel, once they are ready: those that its other end has places for.

    `open` returns once that says so. `on_end` is called when the other end is closed,
    `on_other` with what else it says.
    """

    addresses: list[str] = []  # noqa: RUF012 - nothing is listened at
    port = 0
    on_failed: OnFailed | None = None

    def __init__(
        self,
        sock: socket.socket,
        settings: Settings,
        on_end: Callable[[], None],
        on_other: Callable[[Message], None] = lambda _: None,
    ) -> None:
        self.channel = Channel(sock, self._hear, on_end)
        self.unserved = Unserved()
        self._on_other = on_other
        self._loop = asyncio.get_running_loop()
        self._settings = settings
        self._began = self._loop.create_future()
        self._arrived: collections.deque[tuple[int, str, socket.socket]] = collections.deque()
        self._preparing: dict[asyncio.Task[Link | None], tuple[int, socket.socket]] = {}
        self._ready: collections.deque[tuple[int, Link]] = collections.deque()
        self._served: dict[Link, int] = {}
        # By their numbers, weakly: a forgotten stream is to be collected.
        self._guests: weakref.WeakValueDictionary[int, Guest] = weakref.WeakValueDictionary()
        self._expected: tuple[ssl.SSLContext | None, Preface | None] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._failure: BaseException | None = None
        self._ended = False

    @property
    def peers(self) -> list[str]:
        """Who is served."""
        return [link.peer for link in self._served]

    async def open(self, *, resumes: bool) -> None:
        """Say that all is ready for clients, and wait until they are to come.

        resumes: another process can go on where this one dies.
        """
        self.channel.send({"ready": True, "resumes": resumes})
        await self._began

    async def next_connection(self, context: ssl.SSLContext | None, preface: Preface | None = None) -> Link:
        """Return the next client that is ready for data; raise NoMoreClients after `stop`."""
        self._expected = (context, preface)
        self._welcome()
        while not self._ended:
            if self._failure is not None:
                raise self._failure
            if self._ready:
                number, link = self._ready.popleft()
                self._served[link] = number
                return link
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        raise NoMoreClients

    def watch_over(self, link: Link, guest: Guest) -> None:
        """Turn a client away when the other process says so, if it has sent nothing."""
        if link in self._served:
            self._guests[self._served[link]] = guest

    def done(self, link: Link) -> None:
        """Tell that a client's place is free."""
        if link in self._served:
            self._over(self._served.pop(link))

    def stop(self) -> None:
        """Serve no other client; those who are not yet served are reset."""
        self._ended = True
        for task in list(self._preparing):
            task.cancel()
        while self._ready:
            number, link = self._ready.popleft()
            link.reset()
            self._over(number)
        self._welcome()
        self._wake()

    def close(self) -> None:
        """Take no other client. The channel goes on: what became of those who were served is yet to be told."""
        if not self._loop.is_closed():
            self.stop()

    def _hear(self, message: Message, sock: socket.socket | None) -> None:
        """Take a message. A guest whose socket found no descriptor here is over."""
        if "guest" in message:
            if sock is None:
                error = ReceiveError(message["peer"], "cannot be served: too many open files", "see ulimit -n")
                log.warning("%s", error)
                if self.on_failed is not None:
                    self.on_failed(message["peer"], 0.0, error, NOT_SERVED)
                self._over(message["guest"])
            else:
                sock.setblocking(False)
                self._arrived.append((message["guest"], message["peer"], sock))
                self._welcome()
        elif "ask" in message:
            self._tell_of(message["ask"])
        elif "turn_away" in message:
            number = message["turn_away"]
            guest = self._guests.get(number)
            if guest is not None and guest.is_silent():
                guest.turn_away(message["seconds"])
            else:
                self._tell_of(number)
        elif "go" in message:
            finish(self._began)
        else:
            self._on_other(message)

    def _tell_of(self, number: int) -> None:
        """Tell whether a guest is silent: not to be told before it is served; one that is over is none any more."""
        guest = self._guests.get(number)
        self.channel.send({"guest": number, "silent": guest.is_silent() if guest is not None else None})

    def _welcome(self) -> None:
        """Let all get ready who have arrived, side by side, once it is known for what."""
        while self._arrived and (self._ended or self._expected is not None):
            number, peer, sock = self._arrived.popleft()
            if self._ended or self._expected is None:
                reset(sock)
                self._over(number)
                continue
            hears = self.unserved, self.on_failed
            work = get_ready(Newcomer(sock, peer), self._settings, *self._expected, *hears)
            task = self._loop.create_task(work)
            self._preparing[task] = number, sock
            task.add_done_callback(self._prepared)

    def _prepared(self, task: "asyncio.Task[Link | None]") -> None:
        number, sock = self._preparing.pop(task)
        link = None
        if task.cancelled() or task.exception() is not None:
            reset(sock)  # it may have been cancelled before its first step
        else:
            link = task.result()
        if link is not None and self._ended:
            link.reset()
            link = None
        if link is None:
            self._over(number)
        else:
            self._ready.append((number, link))
        self._failure = self._failure or (task.exception() if not task.cancelled() else None)
        self._wake()

    def _over(self, number: int) -> None:
        self._guests.pop(number, None)
        self.channel.send({"ended": number})

    def _wake(self) -> None:
        if self._waiter is not None and not self._loop.is_closed():
            finish(self._waiter)
