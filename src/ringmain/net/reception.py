"""Between the door and a place: clients get ready for data (PROXY header, TLS handshake) side by side.

So many at once and no more: each costs memory and a descriptor. Where that many do, and others knock, whoever has not
even begun has had its time sooner: else a few strangers who say little or nothing would keep everybody waiting.
"""

import asyncio
import collections
import logging
import socket
import ssl
from collections.abc import Callable

from ringmain.errors import ReceiveError, RingmainError, TimedOutError, reason
from ringmain.net import queues
from ringmain.net.arrivals import MOST_AT_ONCE, Arrivals, has_left
from ringmain.net.dial import Preface, handshake_timed_out, prepare, shake_hands
from ringmain.net.first_bytes import First, first_of
from ringmain.net.link import Link
from ringmain.net.resets import reset
from ringmain.outcome import FAILED_HANDSHAKE, NOT_SERVED, Cause, Unserved
from ringmain.settings import Settings

log = logging.getLogger("ringmain")

# What hears of a client that is not served: its address, after how many seconds, why, and the verdict of its row.
OnFailed = Callable[[str, float, Exception, str], object]
# The part of the handshake's time-out that a client may take to begin where others could have its room, how many times
# as long one that has begun may take, and how often that is looked at meanwhile. Where there is no such time-out others
# could wait for ever: then it is so many seconds for this.
_PATIENCE = 1 / 5
_BEGUN = 3
_LOOKS = 5
_TIMEOUT = 5.0


class Newcomer:
    """Who gets ready, since when, by the loop's clock; `begun` once the first record of a handshake is there."""

    def __init__(self, sock: socket.socket, peer: str) -> None:
        self.sock = sock
        self.peer = peer
        self.fd = sock.fileno()  # which TLS takes over
        self.since = asyncio.get_running_loop().time()
        self.begun = False


class Reception:
    """Get clients ready, each in a task of its own: one that is slow keeps nobody waiting.

    `ready` are those that are, in that order; those that fail are counted by the arrivals, and `on_failed`, if it is
    set, hears of them. What fails, and is no fault of a client, is `failure`. `on_change` is called when any of that,
    or how many get ready, has changed.
    """

    def __init__(self, arrivals: Arrivals, settings: Settings, on_change: Callable[[], None]) -> None:
        self.arrivals = arrivals
        self.ready: collections.deque[Link] = collections.deque()
        self.failure: BaseException | None = None
        self.on_failed: OnFailed | None = None
        self._settings = settings
        self._on_change = on_change
        self._loop = asyncio.get_running_loop()
        self._context: ssl.SSLContext | None = None
        self._preface: Preface | None = None
        self._preparing: dict[asyncio.Task[Link | None], Newcomer] = {}  # who came first first
        self._timer: asyncio.TimerHandle | None = None  # while there is no room
        self._closed = False

    def expect(self, context: ssl.SSLContext | None, preface: Preface | None) -> None:
        """Get those who come from now on ready for this."""
        self._context, self._preface = context, preface

    @property
    def has_room(self) -> bool:
        """Whether others may get ready beside those who do."""
        return len(self._preparing) < MOST_AT_ONCE

    def welcome(self, places: int) -> None:
        """Let those in who are at the door: for so many places, or, where they have to get ready first, more."""
        arrivals = self.arrivals
        at_once = self._context is None and self._preface is None
        most = places - len(self.ready) if at_once else MOST_AT_ONCE - len(self._preparing)
        arrivals.accept(most)
        for _ in range(min(most, len(arrivals.waiting))):
            sock, peer = arrivals.waiting.popleft()
            if not at_once:
                newcomer, expected = Newcomer(sock, peer), (self._settings, self._context, self._preface)
                work = get_ready(newcomer, *expected, arrivals.unserved, self.on_failed)
                task = self._loop.create_task(work)
                self._preparing[task] = newcomer
                task.add_done_callback(self._prepared)
            elif (link := self._link_of(sock, peer)) is not None:
                self.ready.append(link)
        self._look_again()

    def waiting(self) -> list[socket.socket]:
        """Return those who wait and have not left, longest first; not those who still get ready.

        Who has reset the connection is let go here: the kernel tells that once, and it would be served as if it had
        ended properly.
        """
        waiting = []
        for link in list(self.ready):
            try:
                if not has_left(link.sock):
                    waiting.append(link.sock)
            except OSError as error:
                self._left(link.peer, error)
                self.ready.remove(link)
                link.reset()
        for guest in list(self.arrivals.waiting):
            try:
                if not has_left(guest[0]):
                    waiting.append(guest[0])
            except OSError as error:
                self._left(guest[1], error)
                self.arrivals.waiting.remove(guest)
                reset(guest[0])
        return waiting

    def refuse(self, why: str) -> bool:
        """Turn away all who wait; tell whether that is anybody."""
        while self.ready:
            link = self.ready.popleft()
            self.arrivals.waiting.append((link.sock, link.peer))
        return self.arrivals.refuse(why)

    def close(self) -> None:
        """Reset all who are ready, or get there; nobody else is let in."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for task in list(self._preparing):
            if not self._loop.is_closed():
                task.cancel()
        while self.ready:
            self.ready.popleft().reset()

    def _look_again(self) -> None:
        """Where there is no room, look now and then whether those who do not get ready keep others waiting."""
        patience = (self._settings.handshake_timeout or _TIMEOUT) * _PATIENCE
        if not self.has_room and self._timer is None and not self._closed:
            self._timer = self._loop.call_later(patience / _LOOKS, self._make_room, patience)

    def _make_room(self, patience: float) -> None:
        """Let go who has not begun for so long, or is not ready for longer, one for each who knocks.

        Without room nobody is told of those. Who waits for us to read what it has sent stays.
        """
        self._timer = None
        if self.has_room:
            return
        self.arrivals.accept(MOST_AT_ONCE)
        wanted = max(len(self.arrivals.waiting), self.arrivals.stuck)
        now = self._loop.time()
        for begun, limit in ((False, patience), (True, _BEGUN * patience)):
            for task, newcomer in list(self._preparing.items()):
                if wanted == 0 or newcomer.since > now - limit:
                    break
                if newcomer.begun is begun and not task.done() and not (begun and _is_unread(newcomer.fd)):
                    wanted -= 1
                    why = "its handshake was not done" if begun else "it was not ready to begin"
                    self.arrivals.unserved[Cause.TIMED_OUT if begun else Cause.SILENT] += 1
                    gone = TimedOutError(f"{newcomer.peer}: let go", f"{why} after {limit:g} s while others waited")
                    log.warning("%s", gone)
                    task.cancel()
                    self._tell(newcomer.peer, now - newcomer.since, gone, FAILED_HANDSHAKE)
        self._look_again()

    def _link_of(self, sock: socket.socket, peer: str) -> Link | None:
        try:
            prepare(sock, self._settings)
        except OSError as error:  # it has been reset meanwhile
            self._left(peer, error)
            reset(sock)
            return None
        return Link(sock, peer)

    def _left(self, peer: str, error: OSError) -> None:
        """Warn of one that is gone before it was served, and that has not spent a time that anybody knows."""
        gone = ReceiveError(peer, f"{reason(error)} before its turn")
        log.warning("%s", gone)
        self._tell(peer, 0.0, gone, NOT_SERVED)

    def _tell(self, peer: str, seconds: float, error: Exception, verdict: str) -> None:
        if self.on_failed is not None:
            self.on_failed(peer, seconds, error, verdict)

    def _prepared(self, task: "asyncio.Task[Link | None]") -> None:
        sock = self._preparing.pop(task).sock
        link = None
        if task.cancelled():
            reset(sock)  # it may have been cancelled before its first step
        elif task.exception() is not None:
            reset(sock)
            self.failure = task.exception()
        else:
            link = task.result()
        if link is not None and self._closed:
            link.reset()
        elif link is not None:
            self.ready.append(link)
        self._on_change()


def _is_unread(fd: int) -> bool:
    """Tell whether we have yet to read what has come."""
    sock = socket.socket(fileno=fd)
    try:
        return queues.unread(sock) > 0
    finally:
        sock.detach()


async def get_ready(
    newcomer: Newcomer,
    settings: Settings,
    context: ssl.SSLContext | None,
    preface: Preface | None,
    unserved: Unserved,
    on_failed: OnFailed | None = None,
) -> Link | None:
    """Get a client ready for data; None, counted as `unserved` and with a warning, if that fails; `on_failed` hears.

    One that ends before a byte of a TLS handshake is a health check, and nobody is warned.
    """
    introduced, sock, peer, loop = None, newcomer.sock, newcomer.peer, asyncio.get_running_loop()
    try:
        prepare(sock, settings)
        if preface is not None:
            introduced = await preface(sock, peer)
            peer = introduced.peer
        if context is not None:
            secured = await _secured(newcomer, peer, settings, context)
            if secured is None:
                log.info("%s: closed before a TLS handshake, as health checks do", peer)
                unserved[Cause.PROBE] += 1
                sock.close()
                return None
            sock = secured
        return Link(sock, peer, introduced, settings.prefix)
    except (RingmainError, OSError) as error:
        unserved[Cause.of(error)] += 1
        log.warning("%s", error if isinstance(error, RingmainError) else f"{peer}: {reason(error)}")
        reset(sock)  # a proper end would look like an empty answer; after a handshake it is closed already
        if on_failed is not None:
            on_failed(peer, loop.time() - newcomer.since, error, FAILED_HANDSHAKE)
        return None


async def _secured(newcomer: Newcomer, peer: str, settings: Settings, context: ssl.SSLContext) -> socket.socket | None:
    """Return a client's socket under TLS; None where it ends before it has said anything. Raises what fails.

    With `tls_auto` the socket of one that begins with anything else is returned as it is.
    """
    loop, sock = asyncio.get_running_loop(), newcomer.sock
    began = loop.time()
    first = await spoken(sock, peer, settings)
    if first is First.NOTHING:
        return None
    if first is First.OTHER and settings.tls_auto:
        return sock
    newcomer.begun = True
    return await shake_hands(sock, context, settings, peer, spent=loop.time() - began)


async def spoken(sock: socket.socket, peer: str, settings: Settings) -> First:
    """Wait for what a client says first; raise TimedOutError, or OSError, where the socket is closed."""
    try:
        async with asyncio.timeout(settings.handshake_timeout):
            return await first_of(sock)
    except (TimeoutError, asyncio.CancelledError) as error:
        if settings.tls_auto:  # to a plain client a proper end would look like an empty answer
            reset(sock)
        sock.close()
        if isinstance(error, TimeoutError):
            raise handshake_timed_out(peer, settings) from error
        raise
