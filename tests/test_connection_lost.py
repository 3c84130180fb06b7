"""What a two-way connection tells of a peer that is lost, to those who read, write and leave it."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import peers
import pytest
import witness
from conforming import FIRST, SECOND, WITHOUT_END, Net
from conftest import Certificates
from streams import server_at
from test_liveness import fill, in_flight, probe_often, vanish

import ringmain

Run = Callable[[Coroutine[Any, Any, Any]], Any]
TCP_USER_TIMEOUT = 18  # <netinet/tcp.h>; in milliseconds


@contextlib.asynccontextmanager
async def peer_of(net: Net, **options: Any) -> AsyncIterator[tuple[ringmain.Connection, witness.Witness]]:
    """Yield a connection and its other end."""
    loop = asyncio.get_running_loop()
    with server_at() as listener:
        listener.setblocking(False)
        dialling = ringmain.connect(net.url(listener.getsockname()[1]), **options, **net.dialling)
        entering = asyncio.ensure_future(dialling.__aenter__())
        peer = witness.Witness((await loop.sock_accept(listener))[0], net.server(), server=True)
        with peer.sock:
            await peer.shake_hands()
            connection = await entering
            try:
                yield connection, peer
            finally:
                await dialling.__aexit__(TimeoutError, None, None)


async def write_until_lost(connection: ringmain.Connection) -> None:
    with pytest.raises(ringmain.SendError):  # a broken pipe, where those who read were told first
        while True:
            await connection.write(b"x")
            await asyncio.sleep(0.02)


async def read_until_lost(connection: ringmain.Connection) -> tuple[bytes, ringmain.TimedOutError]:
    got = bytearray()
    with pytest.raises(ringmain.TimedOutError) as caught:
        async for block in connection:
            with block:
                got += block
    return bytes(got), caught.value


@pytest.fixture
def watching(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let our own watch find a peer gone after two seconds."""
    monkeypatch.setattr("ringmain.net.dial.prepare", lambda sock, _: probe_often(sock))


@pytest.mark.parametrize("kernel", [False, True], ids=["our watch", "the kernel"])
@pytest.mark.parametrize("read", ["nothing", "as much as the ring holds", "all"])
def test_what_came_before_a_peer_vanished_can_be_read(
    run: Run, net: Net, request: pytest.FixtureRequest, kernel: bool, read: str
) -> None:
    async def main() -> None:
        data = peers.payload(100_000)
        async with peer_of(net, ring_size=1 << 16, block_size=1 << 14, keepalive=None) as (connection, peer):
            await peer.send(data)
            kept, got = [], b""
            while read == "all" and len(got) < len(data):
                got += await anext(connection)
            if read == "as much as the ring holds":
                kept.append(await anext(connection))
                while not connection.counters.stalls:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
            if kernel:
                connection._link.sock.setsockopt(socket.IPPROTO_TCP, TCP_USER_TIMEOUT, 500)
            vanish(peer.sock)
            await write_until_lost(connection)
            for block in kept:
                got += block
                block.release()
            rest, error = await read_until_lost(connection)
            assert peers.sha256(got + rest) == peers.sha256(data)
            assert error.limit == "keepalive"

    if not kernel:
        request.getfixturevalue("watching")
    run(main())


@pytest.mark.usefixtures("watching")
def test_a_reader_that_waits_hears_that_the_peer_has_vanished(run: Run, net: Net) -> None:
    async def main() -> None:
        async with peer_of(net) as (connection, peer):
            await peer.send(FIRST)
            reading = asyncio.ensure_future(read_until_lost(connection))
            while connection.counters.bytes_in < len(FIRST):  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            vanish(peer.sock)
            await write_until_lost(connection)
            got, error = await reading
            assert (got, error.limit) == (FIRST, "keepalive")

    run(main())


@pytest.mark.usefixtures("watching")
def test_an_end_that_was_read_stays_a_proper_end_when_the_peer_vanishes_later(run: Run, net: Net) -> None:
    async def main() -> None:
        async with peer_of(net) as (connection, peer):
            await peer.finish()
            assert await connection.read() is None
            vanish(peer.sock)
            await write_until_lost(connection)
            assert await connection.read() is None

    run(main())


def test_a_connection_that_is_known_to_be_lost_cannot_be_ended(run: Run, net: Net) -> None:
    async def main() -> None:
        with pytest.raises(ringmain.SendError, match="reset"):
            async with peer_of(net) as (connection, peer):
                await connection.write(FIRST)
                await peer.read_to_end(len(FIRST))
                peer.reset()
                with pytest.raises(ringmain.ReceiveError):
                    await connection.read()
                for _ in range(2):
                    with pytest.raises(ringmain.SendError, match="reset"):
                        await connection.write_eof()
                with pytest.raises(ringmain.SendError, match="reset"):
                    await connection.write(SECOND)
                await connection.__aexit__(None, None, None)

    run(main())


def test_an_end_that_a_reader_s_time_out_interrupts_is_none(run: Run, certificates: Certificates) -> None:
    async def is_interrupted() -> bool:
        """Try it; return False where close_notify has found room in the kernel, since that had looked at its window."""
        async with peer_of(Net(certificates, tls=True), idle_timeout=1.0) as (connection, _):
            sock = connection._link.sock
            peers.eventually(lambda: not fill(sock) and not in_flight(sock))  # no room for close_notify
            reading = asyncio.ensure_future(connection.read())
            await asyncio.sleep(0.1)
            ending = asyncio.ensure_future(connection.write_eof())
            await asyncio.wait([ending])
            if ending.exception() is None:
                reading.cancel()
                await asyncio.wait([reading])
                return False
            with pytest.raises(ringmain.RingmainError, match=r"timed out|nothing moved"):
                await ending
            with pytest.raises(ringmain.RingmainError):
                await reading
            with pytest.raises(ringmain.SendError, match="timed out"):
                await connection.write(FIRST)
            with pytest.raises(ringmain.SendError, match="timed out"):
                await connection.__aexit__(None, None, None)
        return True

    async def main() -> None:
        for _ in range(20):
            if await is_interrupted():
                return
        pytest.fail("close_notify always found room")

    run(main())


class Rejecting:
    """A TLS 1.3 server that asks for a certificate, and answers ours only when it is told to."""

    def __init__(self, certificates: Certificates, listener: socket.socket) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificates.server)
        self._context.load_verify_locations(certificates.ca)
        self._context.verify_mode = ssl.CERT_REQUIRED
        self._listener = listener

    async def greet(self) -> None:
        """Send all of a handshake that does not wait for the client's certificate."""
        self._loop = asyncio.get_running_loop()
        self.sock, _ = await self._loop.sock_accept(self._listener)
        self.sock.setblocking(False)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = self._context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        with contextlib.suppress(ssl.SSLWantReadError):
            await self._go_on()
        await self._loop.sock_sendall(self.sock, self._outgoing.read())

    async def answer(self) -> None:
        """Send the alert that tells why."""
        with pytest.raises(ssl.SSLError):
            await self._go_on()
        await self._loop.sock_sendall(self.sock, self._outgoing.read())

    async def _go_on(self) -> None:
        self._incoming.write(await self._loop.sock_recv(self.sock, 1 << 16))
        self._tls.do_handshake()


@pytest.mark.parametrize("answer", ["alert", "reset"])
@pytest.mark.parametrize("read", ["cancelled before", "cancelled while the peer reads an alert", "to the end"])
def test_a_rejection_that_was_received_before_is_told_when_the_block_is_left(
    run: Run, certificates: Certificates, answer: str, read: str
) -> None:
    async def main() -> None:
        told = ringmain.TlsError if answer == "alert" else ringmain.SendError
        with server_at() as listener:
            listener.setblocking(False)
            server, url = Rejecting(certificates, listener), f"tcps://127.0.0.1:{listener.getsockname()[1]}"
            greeting = asyncio.ensure_future(server.greet())
            with pytest.raises(told, match=answer):
                async with ringmain.connect(url, cafile=str(certificates.ca)) as connection:
                    await greeting
                    await connection.write(b"question")
                    reading = asyncio.ensure_future(connection.read())
                    while connection.counters.bytes_out == 0 or connection._link.unacknowledged():  # noqa: ASYNC110
                        await asyncio.sleep(0.001)
                    if read == "cancelled before":
                        reading.cancel()
                        await asyncio.wait([reading])
                    with server.sock:
                        await (server.answer() if answer == "alert" else reset(server.sock))
                        while connection._inflow.verdict is None:  # noqa: ASYNC110
                            await asyncio.sleep(0.001)
                        if read != "to the end":
                            reading.cancel()
                        await asyncio.gather(reading, return_exceptions=True)

    async def reset(sock: socket.socket) -> None:
        peers.close_with_reset(sock)

    run(main())


def test_a_connection_is_entered_by_one_task_at_a_time(run: Run, net: Net) -> None:
    async def main() -> None:
        async with witness.serving(net.server(), SECOND, WITHOUT_END) as (port, servers):
            dialled = ringmain.connect(net.url(port), **net.dialling)
            entered = await asyncio.gather(dialled.__aenter__(), dialled.__aenter__(), return_exceptions=True)
            assert [type(it) for it in entered] == [ringmain.Connection, ringmain.UsageError]
            await dialled.__aexit__(None, None, None)
            async with dialled as connection:
                await connection.write(FIRST)
        assert [bytes(it.received) for it in servers] == [b"", FIRST]

    run(main())


def test_dialling_that_comes_to_no_connection_resets_the_peer(
    run: Run, net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with witness.serving(net.server(), b"", WITHOUT_END) as (port, servers):
            monkeypatch.setattr("ringmain.connection.Outflow", no_memory)
            with pytest.raises(MemoryError):
                async with ringmain.connect(net.url(port), **net.dialling):
                    pass
            monkeypatch.setattr("ringmain.flow.clients.Outflow", no_memory)
            with pytest.raises(MemoryError):
                async with ringmain.save(net.url(port), **net.dialling):
                    pass
        assert [it.end for it in servers] == ["reset", "reset"]

    def no_memory(*_: Any, **__: Any) -> None:
        raise MemoryError

    run(main())
