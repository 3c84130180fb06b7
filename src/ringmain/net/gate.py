"""The listener: open as long as the verb runs, so many connections at a time and no more, whatever else knocks."""

import asyncio
import enum
import functools
import logging
import socket
import ssl
import weakref
from collections.abc import Callable
from typing import Protocol

from ringmain.endpoint import Endpoint
from ringmain.errors import UsageError
from ringmain.net.arrivals import MOST_AT_ONCE, Arrivals
from ringmain.net.dial import Preface
from ringmain.net.link import Link
from ringmain.net.listeners import addresses_of, hold_back, let_in, open_listeners, port_of
from ringmain.net.readiness import finish
from ringmain.net.reception import OnFailed, Reception
from ringmain.net.resets import reset
from ringmain.outcome import Unserved
from ringmain.settings import Settings

log = logging.getLogger("ringmain")

# A dropped SYN costs its sender a second, so short clients that come back to back must never meet the filter.
_HOLD_AFTER = 1.0


class _Phase(enum.Enum):
    """Where the gate is with its guests."""

    OPEN = enum.auto()  # there is room for others
    FULL = enum.auto()  # since a moment ago, or for good where the filter is not wanted
    LOOKING_OUT = enum.auto()  # a guest is silent: is there anybody else?
    KNOCKED = enum.auto()  # there is: the silent guest has to begin, or go
    HELD = enum.auto()  # all guests are at work: the filter keeps others away


_WHY_REFUSED = ("another client is being served", "as many clients as may be are being served")
_SOMEBODY = object()  # who waits, where that cannot be told
_NEXT = {
    _Phase.OPEN: {_Phase.FULL},
    _Phase.FULL: {_Phase.LOOKING_OUT, _Phase.HELD, _Phase.OPEN},
    _Phase.LOOKING_OUT: {_Phase.KNOCKED, _Phase.FULL, _Phase.HELD, _Phase.OPEN},
    _Phase.KNOCKED: {_Phase.LOOKING_OUT, _Phase.FULL, _Phase.HELD, _Phase.OPEN},
    _Phase.HELD: {_Phase.FULL, _Phase.OPEN},
}


async def listen(endpoint: Endpoint, settings: Settings, sockets: list[socket.socket] | None = None) -> "Gate":
    """Listen at every address of the endpoint, or at sockets that are open already; raise ResolveError or BindError."""
    allowed = None
    if settings.allow:
        from ringmain.net.allow import Allowed

        allowed = Allowed(settings.allow)
    return Gate(Arrivals(sockets or await open_listeners(endpoint, settings), allowed), settings)


class NoMoreClients(Exception):  # noqa: N818 - not an error: the gate was told to stop
    """The gate was told to serve no other client."""


class Guest(Protocol):
    """A client that is served, as the gate sees it."""

    def is_silent(self) -> bool | None:
        """Tell whether not a byte has come yet; None while that cannot be told."""

    def turn_away(self, seconds: float) -> None:
        """End the connection: for so long it was silent while others waited."""


class Gate:
    """Hand out connections, `settings.max_connections` of them at a time: `next_connection`, and `done` for each.

    Clients get ready for data (PROXY header, TLS handshake) side by side, each in a task of its own: one that is slow
    keeps nobody waiting. Who is ready first is served first. The tasks go on when whoever waits for a client is
    cancelled: the next call gets it. While all places are taken, others are kept away as settings.gate says.
    "refuse" resets them (`Arrivals.refuse`). With "hold" the filter goes on once all guests have sent a byte, and the
    last one has lasted a second; before that it would hide that others wait, which a guest that sends nothing may let
    them do for settings.handshake_timeout only (`watch_over`).
    """

    def __init__(self, arrivals: Arrivals, settings: Settings) -> None:
        self._loop = asyncio.get_running_loop()
        self._sockets = arrivals.sockets
        self._arrivals = arrivals
        self._reception = Reception(arrivals, settings, self._reception_changed)
        self._settings = settings
        self._phase = _Phase.OPEN
        # Who is served, weakly: a forgotten stream is to be collected. None: nobody watches over it.
        self._guests: dict[Link, weakref.ref[Guest] | None] = {}
        self._waiter: asyncio.Future[None] | None = None  # of whoever waits for a client
        self._timer: asyncio.TimerHandle | None = None  # of a phase
        self._ended: Callable[[], Exception] | None = None  # what whoever waits for a client gets then

    @property
    def unserved(self) -> Unserved:
        """How many came and were not served."""
        return self._arrivals.unserved

    @property
    def on_failed(self) -> OnFailed | None:
        """What hears of the clients that are not served."""
        return self._reception.on_failed

    @on_failed.setter
    def on_failed(self, hear: OnFailed | None) -> None:
        self._reception.on_failed = hear

    @property
    def addresses(self) -> list[str]:
        """The addresses listened at, as "127.0.0.1:43211" or "[::1]:43211"."""
        return addresses_of(self._sockets)

    @property
    def port(self) -> int:
        """The port listened at, the same for every address; raise ValueError at a UNIX socket."""
        return port_of(self._sockets[0])

    @property
    def peers(self) -> list[str]:
        """Who is served, in the order in which they were let in."""
        return [link.peer for link in self._guests]

    @property
    def _is_full(self) -> bool:
        return len(self._guests) >= self._settings.max_connections

    async def next_connection(self, context: ssl.SSLContext | None, preface: Preface | None = None) -> Link:
        """Return the next client that is ready for data; warn of those that fail to get there. Call `done` after it.

        Waits for a place too. Raises NoMoreClients after `stop`. When it is cancelled, those at the door go on getting
        ready.
        """
        self._reception.expect(context, preface)
        while self._ended is None:
            if (error := self._reception.failure) is not None:
                self._reception.failure = None
                raise error
            if self._reception.ready and not self._is_full:
                return self._seat(self._reception.ready.popleft())
            self._waiter = self._loop.create_future()
            self._watch()
            if not self._is_full and self._arrivals.waiting:  # of whom no event tells
                self._look_at_door()
            try:
                await self._waiter
            finally:
                self._waiter = None
                self._watch()
        raise self._ended()

    def _seat(self, link: Link) -> Link:
        self._guests[link] = None
        if self._is_full:
            self._enter(_Phase.FULL)
            self._later(_HOLD_AFTER, self._look)
        return link

    def watch_over(self, link: Link, guest: Guest) -> None:
        """Turn a client that was handed out away if it sends nothing while others wait."""
        if link in self._guests:
            self._guests[link] = weakref.ref(guest)
            if self._is_full and self._timer is None:  # it took so long to come here that others are held already
                self._enter(_Phase.FULL)
                self._later(_HOLD_AFTER, self._look)

    def done(self, link: Link) -> None:
        """Let the next client in, in place of one that was handed out; nothing where that was done before."""
        if link in self._guests:
            del self._guests[link]
            self._enter(_Phase.OPEN)
            self._wake()

    def stop(self) -> None:
        """Serve no other client: who waits for one, now or later, gets NoMoreClients."""
        self._end(NoMoreClients)

    def close(self) -> None:
        """Stop listening."""
        if self._timer is not None:
            self._timer.cancel()
        why, remedy = "it was closed while a task waited for a client", "keep it open meanwhile"
        self._end(lambda: UsageError("a listener", why, remedy))
        self._arrivals.close()

    def _end(self, error: Callable[[], Exception]) -> None:
        self._ended = self._ended or error
        self._reception.close()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._loop.is_closed():
            finish(self._waiter)

    def _reception_changed(self) -> None:
        """See to those who are ready, which may be more than there are places for."""
        if self._is_full and self._reception.ready:
            self._look_at_door()
        self._watch()
        self._wake()

    def _watch(self) -> None:
        """Be called when somebody comes, where that is wanted."""
        if self._is_full:
            wanted = self._settings.gate == "refuse" or self._phase is _Phase.LOOKING_OUT
        else:
            wanted = self._waiter is not None and self._reception.has_room
        self._arrivals.watch(self._look_at_door if wanted else None)

    def _look_at_door(self) -> None:
        """See who has come: the next clients, or somebody else while all places are taken."""
        if not self._is_full:
            if self._ended is not None:  # since the loop heard of him: whoever has the socket next may serve him
                return
            self._reception.welcome(self._settings.max_connections - len(self._guests))
            if self._reception.ready:
                self._wake()
            self._watch()
        elif self._settings.gate == "refuse" or self._phase is _Phase.LOOKING_OUT:
            who = self._who_waits()
            if who is not None and self._phase is _Phase.LOOKING_OUT:
                self._knocked(who)

    def _enter(self, phase: _Phase) -> None:
        """Leave the present phase with all that belongs to it, and begin another."""
        if phase is self._phase:
            return
        before, self._phase = self._phase, phase
        assert phase in _NEXT[before], f"{before} to {phase}"
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if before is _Phase.HELD:
            for sock in self._sockets:
                let_in(sock)
        if phase is _Phase.HELD:
            held = [hold_back(sock) for sock in self._sockets]
            if not all(held):
                log.info("no socket filter here: other clients wait connected")
        self._watch()
        if phase is _Phase.LOOKING_OUT and self._reception.waiting():  # of whom no event tells
            self._loop.call_soon(self._look_at_door)

    def _later(self, seconds: float, call: Callable[[], None]) -> None:
        """Do something unless the phase is over by then."""

        def due() -> None:
            self._timer = None
            call()

        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(seconds, due)

    def _look(self) -> None:
        """Keep others away, or as long as a guest is silent look out for them."""
        silent = self._silent()
        if silent is None:
            self._enter(_Phase.FULL)  # look out for nobody meanwhile
            self._later(_HOLD_AFTER, self._look)
        elif silent:
            self._enter(_Phase.LOOKING_OUT)
        else:
            self._enter(_Phase.HELD if self._settings.gate == "hold" else _Phase.FULL)

    def _silent(self) -> list[Guest] | None:
        """Return the guests that are silent, who came first first; None while that cannot be told of one."""
        if self._settings.handshake_timeout is None:
            return []
        guests = [guest for it in self._guests.values() if it is not None and (guest := it()) is not None]
        told = [guest.is_silent() for guest in guests]
        silent = [guest for guest, is_silent in zip(guests, told, strict=True) if is_silent]
        return silent if silent or None not in told else None

    def _who_waits(self) -> object | None:
        """Return who waits longest for a place, or that somebody does; with "refuse" if one was refused just now.

        They are accepted: nothing else tells those apart who have left again.
        """
        arrivals = self._arrivals
        arrivals.accept(MOST_AT_ONCE)
        if self._settings.gate == "refuse":
            return _SOMEBODY if self._reception.refuse(_WHY_REFUSED[self._settings.max_connections > 1]) else None
        if waiting := self._reception.waiting():
            return waiting[0]
        if arrivals.stuck:
            return _SOMEBODY
        # Who has left is served in turn all the same: it may have ended one way only. But not any number of them.
        while len(arrivals.waiting) >= MOST_AT_ONCE:
            reset(arrivals.waiting.popleft()[0])
        return None

    def _knocked(self, who: object) -> None:
        """Hear that somebody else waits, or has been refused, while a guest is silent."""
        if not self._silent():
            self._look()
        elif self._settings.handshake_timeout is not None:
            self._enter(_Phase.KNOCKED)
            self._await_beginning(self._loop.time() + self._settings.handshake_timeout, who)

    def _await_beginning(self, until: float, who: object) -> None:
        """Give the silent guests until then to begin."""
        left = until - self._loop.time()
        if left <= 0:
            self._turn_away(who)
        elif not self._silent():
            self._look()
        else:
            self._later(min(left, _HOLD_AFTER), functools.partial(self._await_beginning, until, who))

    def _turn_away(self, who: object) -> None:
        """Turn silent guests away, one for each who waits; none if they have begun, or whoever waited has left."""
        silent = self._silent()
        timeout = self._settings.handshake_timeout or 0.0
        other = who if self._settings.gate == "refuse" or not silent else self._who_waits()
        if silent and other is who:
            for guest in silent[: max(1, len(self._reception.waiting()))]:
                guest.turn_away(timeout)
        elif silent and other is not None:  # who has come later, and of whom no event tells any more
            self._await_beginning(self._loop.time() + timeout, other)
        else:
            self._look()
