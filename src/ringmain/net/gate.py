"""The listener: open as long as the verb runs, one connection at a time, whatever else knocks."""

import asyncio
import collections
import errno
import functools
import logging
import socket
import ssl
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from ringmain.endpoint import Endpoint, host_and_port
from ringmain.errors import RingmainError, UsageError, reason
from ringmain.net.closing import reset
from ringmain.net.dial import Preface, prepare, shake_hands
from ringmain.net.link import Link
from ringmain.net.listeners import addresses_of, hold_back, let_in, open_listeners
from ringmain.net.readiness import finish
from ringmain.settings import Settings

if TYPE_CHECKING:
    import ipaddress

log = logging.getLogger("ringmain")

# A dropped SYN costs its sender a second, so short clients that come back to back must never meet the filter.
_HOLD_AFTER = 1.0
# Network errors of a client that has gone again, which accept(2) reports.
_CLIENT_GONE = (
    *(errno.ECONNABORTED, errno.EPROTO, errno.ENOPROTOOPT, errno.ENETDOWN, errno.ENETUNREACH),
    *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.EPERM),
)
# So many may knock before others get their turn, the client that is served and signals too. Where all of them have gone
# again, it is something else.
_MOST_AT_ONCE = 64


async def listen(endpoint: Endpoint, settings: Settings) -> "Gate":
    """Listen at every address of the endpoint, for one client at a time; raise ResolveError or BindError."""
    return Gate(await open_listeners(endpoint, settings), settings)


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

    def __init__(self, sockets: list[socket.socket], settings: Settings) -> None:
        self._loop = asyncio.get_running_loop()
        self._sockets = sockets
        self._settings = settings
        self._allowed = self._networks(settings.allow) if settings.allow else []
        self._arrived: collections.deque[tuple[socket.socket, str]] = collections.deque()
        self._welcoming: asyncio.Task[Link | None] | None = None  # the client that gets ready
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._guest: weakref.ref[Guest] | None = None  # weakly: a forgotten stream is to be collected
        self._looking_out = False  # for somebody else at the door, while the guest is silent
        self._held = False
        self._busy = False
        self._warned = False
        self._ended: Callable[[], Exception] | None = None  # what whoever waits for a client gets then
        self.refused = 0
        self._pause_until: asyncio.TimerHandle | None = None

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
                self.done()
                raise
            if link is not None:
                if self._settings.gate == "hold":
                    self._timer = self._loop.call_later(_HOLD_AFTER, self._look)
                return link
            self.done()
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
        while self._ended is None and not self._arrived:
            self._waiter = self._loop.create_future()
            self._watch(True)
            try:
                await self._waiter
            finally:
                self._waiter = None
                self._watch(False)
        if self._ended is not None:  # also where somebody came in the same turn of the loop
            raise self._ended()
        self._busy = True
        if self._settings.gate == "refuse":
            self._watch(True)
        return self._arrived.popleft()

    def watch_over(self, guest: Guest) -> None:
        """Turn away the client that was handed out last if it sends nothing while others wait."""
        self._guest = weakref.ref(guest)
        self._let_in()
        if self._timer is None:
            self._timer = self._loop.call_later(_HOLD_AFTER, self._look)

    def done(self) -> None:
        """Let the next client in; nothing is done with while one still gets ready."""
        if self._welcoming is not None:
            return
        self._busy = False
        self._guest = None
        self._look_out(False)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._let_in()
        if self._settings.gate == "refuse":
            self._watch(False)

    def stop(self) -> None:
        """Serve no other client: who waits for one, now or later, gets NoMoreClients."""
        self._end(NoMoreClients)

    def close(self) -> None:
        """Stop listening."""
        if self._timer is not None:
            self._timer.cancel()
        if self._pause_until is not None:
            self._pause_until.cancel()
        if not self._loop.is_closed():
            self._look_out(False)
            self._watch(False)
        why, remedy = "it was closed while a client was waited for", "keep it open meanwhile"
        self._end(lambda: UsageError("a listener", why, remedy))
        for sock, _ in self._arrived:
            reset(sock)
        self._arrived.clear()
        self._close_sockets()

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

    def _networks(self, allow: Sequence[str]) -> "list[ipaddress.IPv4Network | ipaddress.IPv6Network]":
        import ipaddress

        try:
            return [ipaddress.ip_network(text, strict=False) for text in allow]
        except ValueError as error:
            self._close_sockets()
            raise UsageError(f"allow={error}", "", "write it as 192.0.2.0/24 or 2001:db8::/32") from error

    def _close_sockets(self) -> None:
        for sock in self._sockets:
            sock.close()

    def _look(self) -> None:
        """Keep others away, or as long as the guest is silent look out for them."""
        self._timer = None
        silent = self._is_silent()
        if silent is None:
            self._timer = self._loop.call_later(_HOLD_AFTER, self._look)
        elif silent:
            self._look_out(True)
        elif self._settings.gate == "hold":
            self._hold()

    def _is_silent(self) -> bool | None:
        guest = self._guest() if self._guest is not None else None
        return guest is not None and self._settings.handshake_timeout is not None and guest.is_silent()

    def _look_out(self, on: bool) -> None:
        if on == self._looking_out:
            return
        self._looking_out = on
        if self._settings.gate != "refuse":  # which sees them come anyway
            self._watch(on, self._knocked)

    def _knocked(self) -> None:
        """Hear that somebody else waits, or has been refused, while the guest is silent."""
        self._look_out(False)
        if not self._is_silent():
            self._look()
        elif self._settings.handshake_timeout is not None:
            self._timer = self._loop.call_later(self._settings.handshake_timeout, self._turn_away)

    def _turn_away(self) -> None:
        """Turn the guest away, unless it has begun meanwhile."""
        self._timer = None
        guest = self._guest() if self._guest is not None and self._is_silent() else None
        if guest is not None:
            guest.turn_away(self._settings.handshake_timeout or 0.0)
        else:
            self._look()

    def _hold(self) -> None:
        self._held = True
        held = [hold_back(sock) for sock in self._sockets]
        if not all(held):
            log.info("this kernel takes no socket filter: other clients wait connected")

    def _let_in(self) -> None:
        if self._held:
            self._held = False
            for sock in self._sockets:
                let_in(sock)

    def _watch(self, on: bool, call: Callable[[], None] | None = None) -> None:
        for sock in self._sockets:
            if sock.fileno() == -1:
                continue
            if on and self._pause_until is None:
                self._loop.add_reader(sock.fileno(), call or self._accept_ready)
            else:
                self._loop.remove_reader(sock.fileno())

    def _accept_ready(self) -> None:
        """Take one waiting client, or while one is served turn others away; the loop calls again if there are more."""
        gone = 0
        for listener in self._sockets:
            for _ in range(_MOST_AT_ONCE):
                if self._arrived and not self._busy:
                    break
                try:
                    sock, address = listener.accept()
                except (BlockingIOError, InterruptedError):
                    break
                except OSError as error:
                    gone += 1
                    if error.errno in _CLIENT_GONE and gone < _MOST_AT_ONCE:
                        continue
                    self._back_off(error)
                    return
                self._warned = False
                self._admit(sock, address)
        if self._arrived and self._waiter is not None:
            finish(self._waiter)

    def _admit(self, sock: socket.socket, address: tuple[Any, ...]) -> None:
        peer = host_and_port(*address[:2])
        if self._allowed and not self._is_allowed(str(address[0])):
            self.refused += 1
            log.warning("%s: refused: not in allow=", peer)
            reset(sock)
        elif self._busy:
            self.refused += 1
            log.info("%s: refused: another client is being served", peer)
            reset(sock)
            if self._looking_out:
                self._knocked()
        else:
            sock.setblocking(False)
            self._arrived.append((sock, peer))

    def _is_allowed(self, host: str) -> bool:
        import ipaddress

        address = ipaddress.ip_address(host.partition("%")[0])
        mapped = getattr(address, "ipv4_mapped", None)
        return any((mapped or address) in network or address in network for network in self._allowed)

    def _back_off(self, error: OSError) -> None:
        """Wait until it may work again: the client stays in the backlog meanwhile."""
        if not self._warned:
            self._warned = True
            log.warning("cannot accept a client: %s; waiting until that changes", reason(error))
        self._watch(False)

        def again() -> None:
            self._pause_until = None
            if self._waiter is not None or (self._busy and self._settings.gate == "refuse"):
                self._watch(True)

        self._pause_until = self._loop.call_later(0.1, again)


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
