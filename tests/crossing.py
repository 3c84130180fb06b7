"""Many passages through one relay beside the test, which holds both peers of each."""

import asyncio
import contextlib
import os
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import peers
import witness
from conforming import nothing_is_pending
from conftest import Certificates

import ringmain

WAYS = ["kernel", "block", "tls to plain", "plain to tls"]


def pump_threads() -> int:
    """Return how many threads pump."""
    return sum(thread.name == "ringmain-pump" for thread in threading.enumerate())


def cores() -> int:
    return len(os.sched_getaffinity(0))


class Crossing:
    """A relay that serves, and what became of its passages."""

    def __init__(self, certificates: Certificates, way: str, most: int, **options: Any) -> None:
        source, destination = "tcps" if way == "tls to plain" else "tcp", "tcps" if way == "plain to tls" else "tcp"
        self._path = way if way in ("kernel", "block") else "auto"
        self._client = ssl.create_default_context(cafile=str(certificates.ca)) if source == "tcps" else None
        self._server: ssl.SSLContext | None = None
        if destination == "tcps":
            self._server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._server.load_cert_chain(certificates.server)
            options["destination_tls"] = ringmain.TlsSettings(cafile=str(certificates.ca))
        if source == "tcps":
            options["source_tls"] = ringmain.TlsSettings(certfile=str(certificates.server))
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.listener.setblocking(False)
        there = f"{destination}://127.0.0.1:{self.listener.getsockname()[1]}"
        self.relayer = ringmain.relay(f"{source}://127.0.0.1:0", there, max_connections=most, **options)
        self.outcomes: list[ringmain.RelayOutcome] = []
        self.relayer.on_end = self.outcomes.append
        self.serving: asyncio.Task[None] | None = None

    def begin(self) -> "asyncio.Task[None]":
        """Let the relay serve."""
        self.serving = asyncio.ensure_future(self.relayer.serve(self._path))
        return self.serving

    async def client(self) -> witness.Witness:
        """Return one that has connected, and whose handshake goes on by itself."""
        return await witness.connect(self.relayer.port, self._client)

    async def accept(self) -> witness.Witness:
        """Return the server's end of whatever the relay dials next, TLS not yet begun."""
        sock, _ = await asyncio.get_running_loop().sock_accept(self.listener)
        return witness.Witness(sock, self._server, server=True)

    async def pair(self) -> tuple[witness.Witness, witness.Witness]:
        """Return both ends of a passage that has just begun."""
        client = await self.client()
        shaking = asyncio.ensure_future(client.shake_hands())
        server = await self.accept()
        await server.shake_hands()
        await shaking
        return client, server

    async def pairs(self, count: int) -> list[tuple[witness.Witness, witness.Witness]]:
        """Return so many, a byte through each there and back: all of them are relayed at once."""
        pairs = [await self.pair() for _ in range(count)]
        for client, server in pairs:
            await ask(client, server)
        return pairs


async def ask(client: witness.Witness, server: witness.Witness, data: bytes = b"x") -> None:
    """Send there, and the same back."""
    for one, other in ((client, server), (server, client)):
        before = len(other.received)
        await one.send(data)
        await other.read_to_end(before + len(data))
        assert other.received[before:] == data


@contextlib.asynccontextmanager
async def crossing(certificates: Certificates, way: str, most: int, **options: Any) -> AsyncIterator[Crossing]:
    """Serve meanwhile; it is left in the end, with nothing going on."""
    it = Crossing(certificates, way, most, **options)
    with it.listener:
        async with it.relayer:
            it.begin()
            yield it
        if it.serving is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await it.serving
    nothing_is_pending()


async def until(condition: Callable[[], object]) -> None:
    """Let the loop run until something is true; the test's own limit ends it."""
    while not condition():  # noqa: ASYNC110 - of state that tells nobody
        await asyncio.sleep(0.005)


async def flood(end: witness.Witness) -> None:
    """Send without end."""
    while True:
        await end.send(bytes(1 << 20))


def stands_still(sock: socket.socket) -> bool:
    before = peers.unread(sock)
    return not any(peers.unread(sock) != before for _ in range(200))
