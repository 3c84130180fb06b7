"""The two ends of a relay: opened together, and connected one for the other, which PROXY headers may tell of.

How connections end is told by `resets`.
"""

import asyncio
import dataclasses
import socket
import time

from ringmain.endpoint import Endpoint
from ringmain.errors import ReceiveError, RingmainError, UsageError
from ringmain.net.backoff import Tally
from ringmain.net.dial import Preface, context_for, dial
from ringmain.net.gate import Guest, NoMoreClients
from ringmain.net.introduced import Introduced
from ringmain.net.link import Link
from ringmain.net.listening import Listening
from ringmain.net.readiness import until_gone
from ringmain.net.redial import Redial
from ringmain.net.renewable import Renewable
from ringmain.outcome import NOT_SERVED
from ringmain.settings import Settings, check_kind
from ringmain.waiting import unless


class End(Listening):
    """One side of a relay: where its connections come from."""

    def __init__(self, endpoint: Endpoint, settings: Settings, *, listening: bool) -> None:
        self.endpoint = endpoint
        self.settings = settings
        self.listening = listening
        self.redial: Redial | None = None  # where its connections come from that follow one another
        self.tally = Tally()

    @property
    def connect_failures(self) -> int:
        """How many tries to connect have failed."""
        return self.tally.failures

    @property
    def reconnects(self) -> int:
        """How many connections were made again after one was lost."""
        return self.tally.reconnects

    @property
    def tls(self) -> bool:
        """Whether its connections are protected; with `tls_auto` those that ask for it."""
        return self.endpoint.tls or self.settings.tls

    @property
    def context(self) -> Renewable | None:
        """How its connections are protected."""
        return self._context

    async def open(self) -> None:
        """Read the certificates, and listen if that is wanted."""
        self._context = context_for(self.endpoint, self.settings, listening=self.listening)
        if self.listening:
            self._turn = asyncio.Lock()
            self._gate = await self._listen(self.endpoint, self.settings)

    async def connect(self, preface: Preface | None) -> Link:
        """Wait for a client, or dial. Call `done` after it. Who waits longest gets a client first."""
        if self.listening:
            async with self._turn:
                if self._gate is None:  # it was closed meanwhile
                    raise NoMoreClients
                return await self._gate.next_connection(self._context, preface)
        if self.redial is not None:
            return await self.redial.next_connection(self._context)
        return await dial(self.endpoint, self.settings, self._context, preface, self.tally)

    async def read_header(self, sock: socket.socket, peer: str) -> Introduced:
        """Read the PROXY header that a client at this end begins with."""
        from ringmain.net.proxy import read_header

        told = await read_header(sock, peer, self.settings.handshake_timeout)
        return Introduced(told.peer if told is not None else peer, peer, told)

    def watch_over(self, link: Link, guest: Guest) -> None:
        """Turn a client away if it sends nothing while others wait."""
        if self._gate is not None:
            self._gate.watch_over(link, guest)

    def stop(self) -> None:
        """Let no other client in."""
        for gate in (self._gate, self.redial):
            if gate is not None:
                gate.stop()

    def done(self, link: Link) -> None:
        """Let the next client in, in place of this one."""
        if self._gate is not None:
            self._gate.done(link)

    def dismiss(self, link: Link) -> None:
        """Reset a connection, since a proper end would look like an empty answer, and let the next client in."""
        link.reset()
        self.done(link)

    def close(self) -> None:
        """Stop listening; who waits for a client gets NoMoreClients."""
        if self._gate is not None:
            self._gate.stop()
            self._gate.close()
            self._gate = None


class Ends:
    """Both of them. With `reconnect` a source that is dialled is dialled again, and each destination has a `Redial`."""

    def __init__(
        self, source: End, destination: End, *, accept_proxy: bool, send_proxy: str | None, reconnect: bool = False
    ) -> None:
        self.source = source
        self.destination = destination
        self.reconnect = reconnect
        self.dials_again = reconnect and not source.listening  # the source
        self._redials: dict[Link, Redial] = {}  # of the destinations, by their clients
        self._reached = False  # the destination, by the source that is dialled again
        self.listening = source.listening or destination.listening
        source_first = source.listening or not destination.listening
        self._in_turn = (source, destination) if source_first else (destination, source)
        self._accept_proxy = accept_proxy
        self._send_proxy = send_proxy

    async def open(self) -> None:
        """Open both; `close` what was opened where that fails."""
        for end, other in ((self.source, self.destination), (self.destination, self.source)):
            if other.listening and other.endpoint.path and not end.endpoint.path:  # whose they are, then
                end.settings = dataclasses.replace(end.settings, socket_mode=None, socket_owner=None)
        # What a client needs is imported before the first is accepted, when there may be no descriptor left for it.
        if self._accept_proxy or self._send_proxy is not None:
            from ringmain.net import proxy  # noqa: F401
        "".encode("idna")  # the ssl module does that to the name of each server
        await self.source.open()
        await self.destination.open()
        if self.dials_again:
            self.source.redial = Redial(self.source.endpoint, self.source.settings, tally=self.source.tally)

    def stop(self) -> None:
        """Let no other client in."""
        self.source.stop()
        self.destination.stop()

    def done(self, links: tuple[Link, Link]) -> None:
        """Let the next clients in, in place of these."""
        self._redials.pop(links[0], None)
        if self.source.redial is not None:
            self.source.redial.pause()
        self.source.done(links[0])
        self.destination.done(links[1])

    def close(self) -> None:
        """Stop listening."""
        self.source.close()
        self.destination.close()

    async def next_client(self) -> Link:
        """Connect the end that comes first: the one that listens, whose clients the other end is dialled for.

        Call `connect_for` after it, or `dismiss`.
        """
        first, _ = self._in_turn
        return await first.connect(self._preface(first, None))

    async def connect_for(self, client: Link) -> tuple[Link, Link]:
        """Connect the other end for a client, and return the links of the source and of the destination.

        Call `done` after it, or `discard`; after an exception `dismiss`.
        """
        began = time.monotonic()
        try:
            return await self._connect_for(client)
        except RingmainError as error:
            self._tell_of_unserved(client, error, began)
            raise
        except BaseException:
            self._tell_of_unserved(client, _stopped(client), began)
            raise

    async def _connect_for(self, client: Link) -> tuple[Link, Link]:
        first, second = self._in_turn
        preface = self._preface(second, client)
        if self.reconnect:
            redial = Redial(second.endpoint, second.settings, preface, second.tally, again=self._reached)
            self._redials[client] = redial
            connecting = redial.next_connection(second.context)
        else:
            connecting = second.connect(preface)
        # Of a UNIX socket's peer that has sent all and closed one could not tell that it was no reset.
        gone = until_gone(client.fd) if client.credentials is None else asyncio.Event().wait()
        other = await unless(gone, connecting, second.dismiss)
        if other is None:
            raise ReceiveError(
                f"relay from {client.peer}", "the client reset the connection before the other side answered"
            )
        self._reached = self.dials_again
        return (client, other) if first is self.source else (other, client)

    def redial_for(self, client: Link) -> Redial | None:
        """Return what has connected the destination for a client, and does so again; None where nothing does."""
        return self._redials.get(client)

    @property
    def waiting_for(self) -> list[tuple[str, int]]:
        """The addresses that are dialled again, or are to be after a pause, and which try that is."""
        redials = [*self._redials.values(), *([self.source.redial] if self.source.redial is not None else [])]
        return [(it.endpoint.address, it.try_number) for it in redials if it.try_number]

    def lost_source(self, error: RingmainError) -> bool:
        """Hear how the source was lost, and warn of that; False where it is not dialled again."""
        return self.source.redial is not None and self.source.redial.lost(error)

    def dismiss(self, client: Link) -> None:
        """Reset a client that nothing was connected for, and let the next one in; nothing where it has left."""
        self._redials.pop(client, None)
        self._in_turn[0].dismiss(client)

    def discard(self, links: tuple[Link, Link], error: RingmainError | None = None) -> None:
        """Reset both connections, because of an error or since this was stopped, and let the next client in."""
        client = links[0 if self._in_turn[0] is self.source else 1]
        self._tell_of_unserved(client, error or _stopped(client), time.monotonic())
        self._redials.pop(links[0], None)
        self.source.dismiss(links[0])
        self.destination.dismiss(links[1])

    def _tell_of_unserved(self, client: Link, error: RingmainError, began: float) -> None:
        end = self._in_turn[0]
        if end.listening and end.on_failed is not None:
            end.on_failed(client.peer, time.monotonic() - began, error, NOT_SERVED)

    def _preface(self, end: End, source: Link | None) -> Preface | None:
        """Return what is exchanged with a peer before TLS; `source` is the client that it is dialled for."""
        if end is self.source and self._accept_proxy:
            return self.source.read_header
        if end is not self.destination or self._send_proxy is None or source is None:
            return None
        version, client, header = self._send_proxy, source, b""

        async def send(sock: socket.socket, peer: str) -> Introduced:
            from ringmain.net import proxy

            nonlocal header  # made once: where another connection is dialled, the client may have left
            header = header or proxy.header_for(peer, version, client.sock, client.introduced.told)
            await proxy.send_header(sock, peer, header)
            return Introduced(peer)

        return send


def _stopped(client: Link) -> RingmainError:
    return ReceiveError(f"relay from {client.peer}", "the relay was stopped before the other side answered")


def check_options(
    connect: bool,
    listen: bool,
    listen_once: bool,
    one_way: bool,
    max_connections: int,
    *,
    accept_proxy: bool,
    send_proxy: str | None,
    reconnect: bool,
    delimiter: bytes,
) -> None:
    """Raise UsageError where keywords of `relay` are none, or make no sense together."""
    given = {"connect": connect, "listen": listen, "listen_once": listen_once, "one_way": one_way}
    for name, value in {**given, "accept_proxy": accept_proxy, "reconnect": reconnect}.items():
        check_kind(name, value, bool)
    check_kind("max_connections", max_connections, int)
    why, leave = "", "leave one of them out"
    if accept_proxy and connect:
        what, why = "accept_proxy=True with connect=True", "only clients send PROXY headers"
    elif send_proxy is not None and listen:
        what, why = f"send_proxy={send_proxy} with listen=True", "only servers expect PROXY headers"
    elif send_proxy not in (None, "v1", "v2"):
        what, why, leave = f"send_proxy={send_proxy!r}", "not known", "choose v1 or v2"
    elif listen_once and connect and not listen:
        what, why, leave = "listen_once=True", "it needs a listener", "leave it out: one connection is relayed"
    elif max_connections > 1 and (listen_once or (connect and not listen)):
        what = f"max_connections={max_connections} with {'listen_once=True' if listen_once else 'connect=True'}"
        why = "there is only one connection"
    elif reconnect and listen:
        what, why = "reconnect=True with listen=True", "ringmain cannot reconnect to a destination that connects to it"
    elif reconnect and not one_way:
        what, why = "reconnect=True", "a new connection does not know what was asked on the lost one"
        leave = "add one_way=True, which drops answers"
    elif delimiter and not reconnect:
        what, why, leave = "delimiter=", "it says where a stream continues after a loss", "add reconnect=True"
    if why:
        raise UsageError(what, why, leave)
