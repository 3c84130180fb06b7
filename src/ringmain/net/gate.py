"""The listener: open as long as the verb runs, one connection at a time, whatever else knocks."""

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
from ringmain.errors import RingmainError, UsageError, reason
from ringmain.net.arrivals import MOST_AT_ONCE, Arrivals, has_left
from ringmain.net.closing import reset
from ringmain.net.dial import Preface, prepare, shake_hands
from ringmain.net.link import Link
from ringmain.net.listeners import addresses_of, hold_back, let_in, open_listeners
from ringmain.net.readiness import finish
from ringmain.settings import Settings

log = logging.getLogger("ringmain")

# A dropped SYN costs its sender a second, so short clients that come back to back must never meet the filter.
_HOLD_AFTER = 1.0


class _Phase(enum.Enum):
    """Where the gate is with its client."""

    FREE = enum.auto()  # nobody is served
    GETTING_READY = enum.auto()  # somebody is at the door, and not ready for data yet
    SERVING = enum.auto()
    LOOKING_OUT = enum.auto()  # the guest is silent: is there anybody else?
    KNOCKED = enum.auto()  # there is: the guest has to begin, or go
    HELD = enum.auto()  # the guest is at work: the filter keeps others away


_NEXT = {
    _Phase.FREE: {_Phase.GETTING_READY},
    _Phase.GETTING_READY: {_Phase.SERVING, _Phase.FREE},
    _Phase.SERVING: {_Phase.LOOKING_OUT, _Phase.HELD, _Phase.FREE},
    _Phase.LOOKING_OUT: {_Phase.KNOCKED, _Phase.SERVING, _Phase.HELD, _Phase.FREE},
    _Phase.KNOCKED: {_Phase.LOOKING_OUT, _Phase.SERVING, _Phase.HELD, _Phase.FREE},
    _Phase.HELD: {_Phase.SERVING, _Phase.FREE},
}


async def listen(endpoint: Endpoint, settings: Settings) -> "Gate":
    """Listen at every address of the endpoint, for one client at a time; raise ResolveError or BindError."""
    allowed = None
    if settings.allow:
        from ringmain.net.allow import Allowed

        allowed = Allowed(settings.allow)
    return Gate(Arrivals(await open_listeners(endpoint, settings), allowed), settings)


class NoMoreClients(Exception):  # noqa: N818 - not an error: the gate was told to stop
    """The gate was told to serve no other client."""


class Guest(Protocol):
    """A client that is served, as the gate sees it."""

    def is_silent(self) -> bool | None:
        """Tell whether not a byte has come yet; None while that cannot be told."""

    def turn_away(self, seconds: float) -> None:
        """End the connection: for so long it was silent while others waited."""


class Gate:
    """Hand out connections one at a time: `next_connection`, then `done`, then the next one.

    A client gets ready for data (PROXY header, TLS handshake) in a task of its own, which goes on when whoever waits
    for it is cancelled: the next call gets it. While one is served, others are kept away as settings.gate says. With
    "hold" the filter goes on once a client has lasted a second and sent a byte; before that it would hide that others
    wait, which a client that sends nothing may let them do for settings.handshake_timeout only (`watch_over`).
    """

    def __init__(self, arrivals: Arrivals, settings: Settings) -> None:
        self._loop = asyncio.get_running_loop()
        self._sockets = arrivals.sockets
        self._arrivals = arrivals
        self._settings = settings
        self._phase = _Phase.FREE
        self._welcoming: asyncio.Task[Link | None] | None = None  # the client that gets ready
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None  # of a phase
        self._guest: weakref.ref[Guest] | None = None  # weakly: a forgotten stream is to be collected
        self._ended: Callable[[], Exception] | None = None  # in any phase: what whoever waits for a client gets then

    @property
    def refused(self) -> int:
        """How many were turned away because they are not in `allow`, or another client was served."""
        return self._arrivals.refused

    @property
    def addresses(self) -> list[str]:
        """The addresses listened at, as "127.0.0.1:43211" or "[::1]:43211"."""
        return addresses_of(self._sockets)

    @property
    def port(self) -> int:
        """The port listened at, the same for every address."""
        return int(self._sockets[0].getsockname()[1])

    async def next_connection(self, context: ssl.SSLContext | None, preface: Preface | None = None) -> Link:
        """Return the next client that is ready for data; warn of those that fail to get there. Call `done` after it.

        Raises NoMoreClients after `stop`. When it is cancelled, who is at the door goes on getting ready.
        """
        while self._ended is None:
            if self._welcoming is None:
                sock, peer = await self._accept()
                self._welcoming = self._loop.create_task(self._welcome(sock, peer, context, preface))
                self._welcoming.add_done_callback(functools.partial(_reset_if_lost, sock))
            await asyncio.wait([self._welcoming])
            task, self._welcoming = self._welcoming, None
            if task is None:
                continue
            try:
                link = task.result()
            except BaseException:
                self._enter(_Phase.FREE)
                raise
            if link is not None:
                self._enter(_Phase.SERVING)
                self._later(_HOLD_AFTER, self._look)
                return link
            self._enter(_Phase.FREE)
        raise self._ended()

    async def _welcome(
        self, sock: socket.socket, peer: str, context: ssl.SSLContext | None, preface: Preface | None
    ) -> Link | None:
        """Get a client ready for data; None, with a warning, if that fails."""
        try:
            prepare(sock, self._settings)
            if preface is not None:
                peer = await preface(sock, peer)
            if context is not None:
                sock = await shake_hands(sock, context, self._settings, peer)
            return Link(sock, peer)
        except (RingmainError, OSError) as error:
            log.warning("%s", error if isinstance(error, RingmainError) else f"{peer}: {reason(error)}")
            reset(sock)  # a proper end would look like an empty answer; after a handshake it is closed already
            return None

    async def _accept(self) -> tuple[socket.socket, str]:
        while self._ended is None and not self._arrivals.waiting:
            self._waiter = self._loop.create_future()
            self._arrivals.watch(self._look_at_door)
            try:
                await self._waiter
            finally:
                self._waiter = None
                self._arrivals.watch(None)
        if self._ended is not None:  # also where somebody came in the same turn of the loop
            raise self._ended()
        self._enter(_Phase.GETTING_READY)
        return self._arrivals.waiting.popleft()

    def watch_over(self, guest: Guest) -> None:
        """Turn away the client that was handed out last if it sends nothing while others wait."""
        self._guest = weakref.ref(guest)
        if self._timer is None:  # it took so long to come here that others are held already
            self._enter(_Phase.SERVING)
            self._later(_HOLD_AFTER, self._look)

    def done(self) -> None:
        """Let the next client in; nothing is done with while one still gets ready."""
        if self._welcoming is None:
            self._enter(_Phase.FREE)

    def stop(self) -> None:
        """Serve no other client: who waits for one, now or later, gets NoMoreClients."""
        self._end(NoMoreClients)

    def close(self) -> None:
        """Stop listening."""
        if self._timer is not None:
            self._timer.cancel()
        why, remedy = "it was closed while a client was waited for", "keep it open meanwhile"
        self._end(lambda: UsageError("a listener", why, remedy))
        self._arrivals.close()

    def _end(self, error: Callable[[], Exception]) -> None:
        self._ended = self._ended or error
        task, self._welcoming = self._welcoming, None
        if task is not None and task.done():
            _dismiss(task)
        elif task is not None and not self._loop.is_closed():
            task.add_done_callback(_dismiss)
            task.cancel()
        if self._waiter is not None and not self._loop.is_closed():
            finish(self._waiter)

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
                log.info("this kernel takes no socket filter: other clients wait connected")
        if phase is _Phase.FREE:
            self._guest = None
        refuses = self._settings.gate == "refuse" and phase is not _Phase.FREE
        self._arrivals.watch(self._look_at_door if refuses or phase is _Phase.LOOKING_OUT else None)

    def _later(self, seconds: float, call: Callable[[], None]) -> None:
        """Do something unless the phase is over by then."""

        def due() -> None:
            self._timer = None
            call()

        self._timer = self._loop.call_later(seconds, due)

    def _look(self) -> None:
        """Keep others away, or as long as the guest is silent look out for them."""
        silent = self._is_silent()
        if silent is None:
            self._later(_HOLD_AFTER, self._look)
        elif silent:
            self._enter(_Phase.LOOKING_OUT)
        else:
            self._enter(_Phase.HELD if self._settings.gate == "hold" else _Phase.SERVING)

    def _is_silent(self) -> bool | None:
        guest = self._guest() if self._guest is not None else None
        return guest is not None and self._settings.handshake_timeout is not None and guest.is_silent()

    def _look_at_door(self) -> None:
        """See who has come: the next client, or somebody else while one is served."""
        if self._phase is _Phase.FREE:
            self._arrivals.accept(1)
            if self._arrivals.waiting and self._waiter is not None:
                finish(self._waiter)
        elif self._others_wait() and self._phase is _Phase.LOOKING_OUT:
            self._knocked()

    def _others_wait(self) -> bool:
        """Tell whether there is anybody besides the guest; with "refuse" whether one was refused just now.

        They are accepted: nothing else tells those apart who have left again.
        """
        arrivals = self._arrivals
        arrivals.accept(MOST_AT_ONCE)
        if self._settings.gate == "refuse":
            return arrivals.refuse("another client is being served")
        if arrivals.stuck or not all(has_left(sock) for sock, _ in arrivals.waiting):
            return True
        # Who has left is served in turn all the same: it may have ended one way only. But not any number of them.
        while len(arrivals.waiting) >= MOST_AT_ONCE:
            reset(arrivals.waiting.popleft()[0])
        return False

    def _knocked(self) -> None:
        """Hear that somebody else waits, or has been refused, while the guest is silent."""
        if not self._is_silent():
            self._look()
        elif self._settings.handshake_timeout is not None:
            self._enter(_Phase.KNOCKED)
            self._await_beginning(self._loop.time() + self._settings.handshake_timeout)

    def _await_beginning(self, until: float) -> None:
        """Give the guest until then to begin."""
        left = until - self._loop.time()
        if left <= 0:
            self._turn_away()
        elif not self._is_silent():
            self._look()
        else:
            self._later(min(left, _HOLD_AFTER), functools.partial(self._await_beginning, until))

    def _turn_away(self) -> None:
        """Turn the guest away, unless it has begun meanwhile, or nobody waits any more."""
        guest = self._guest() if self._guest is not None and self._is_silent() else None
        if guest is not None and (self._settings.gate == "refuse" or self._others_wait()):
            guest.turn_away(self._settings.handshake_timeout or 0.0)
        else:
            self._look()


def _reset_if_lost(sock: socket.socket, task: "asyncio.Task[Link | None]") -> None:
    """Reset a client whose task came to nothing: it may have been cancelled before its first step."""
    if task.cancelled() or task.exception() is not None:
        reset(sock)


def _dismiss(task: "asyncio.Task[Link | None]") -> None:
    """Reset the client that nobody waits for any more."""
    link = task.result() if not task.cancelled() and task.exception() is None else None
    if link is not None:
        link.reset()


class Listening:
    """What a verb that may listen tells about its listener."""

    _gate: Gate | None = None

    @property
    def addresses(self) -> list[str]:
        """The addresses listened at, as "127.0.0.1:43211"; empty for a verb that connects."""
        return self._gate.addresses if self._gate is not None else []

    @property
    def port(self) -> int:
        """The port listened at, which port 0 leaves to the system."""
        if self._gate is None:
            raise ValueError("no port: nothing is listened at")
        return self._gate.port

    @property
    def refused(self) -> int:
        """How many clients were turned away."""
        return self._gate.refused if self._gate is not None else 0
