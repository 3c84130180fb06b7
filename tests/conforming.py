"""What the conformance suite of all streams is run with: plain TCP or TLS, and clients beside us."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from typing import Any

import peers
import witness
from conftest import Certificates

import ringmain

FIRST, SECOND = peers.payload(20_000, 1), peers.payload(30_000, 2)
LARGE = peers.payload(6_000_000, 3)  # more than the kernel holds of a connection that nobody reads
PROPER = ("fin", "close_notify")
WITHOUT_END = 1 << 62


class Net:
    """Plain TCP or TLS: what ringmain and the witnesses need for it."""

    def __init__(self, certificates: Certificates, *, tls: bool) -> None:
        self._certificates, self.tls = certificates, tls
        self.scheme = "tcps" if tls else "tcp"
        self.listening: dict[str, Any] = {"certfile": str(certificates.server)} if tls else {}
        self.dialling: dict[str, Any] = {"cafile": str(certificates.ca)} if tls else {}

    def url(self, port: int = 0) -> str:
        return f"{self.scheme}://127.0.0.1:{port}"

    def relay(self, port: int) -> ringmain.Relayer:
        """Return a relay from us to a server at the port, for one client."""
        source, destination = ringmain.TlsSettings(**self.listening), ringmain.TlsSettings(**self.dialling)
        tls = {"source_tls": source, "destination_tls": destination} if self.tls else {}
        return ringmain.relay(self.url(), self.url(port), listen_once=True, **tls)

    def client(self) -> ssl.SSLContext | None:
        return ssl.create_default_context(cafile=str(self._certificates.ca)) if self.tls else None

    def server(self) -> ssl.SSLContext | None:
        if not self.tls:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._certificates.server)
        return context


@contextlib.asynccontextmanager
async def coming(net: Net, port: int, data: bytes = b"", expected: int = 0) -> AsyncIterator[witness.Witness]:
    """Yield a client that exchanges beside us, which is over in the end."""
    client = await witness.connect(port, net.client())
    exchange = asyncio.ensure_future(client.exchange(data, expected))
    try:
        yield client
        await exchange
    finally:
        exchange.cancel()
        await asyncio.gather(exchange, return_exceptions=True)


def is_prefix(got: bytes, whole: bytes) -> bool:
    return whole.startswith(got)


def nothing_is_pending() -> None:
    assert asyncio.all_tasks() == {asyncio.current_task()}
