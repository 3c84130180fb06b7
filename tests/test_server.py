"""What serves two-way connections: one client after another, until it is stopped or a handler fails."""

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Coroutine
from typing import Any

import faults
import peers
import pytest
import witness
from conforming import FIRST, PROPER, SECOND, WITHOUT_END, Net, coming, nothing_is_pending
from conftest import Certificates
from talking import echo, send_all

import ringmain

Run = Callable[[Coroutine[Any, Any, Any]], Any]


def test_a_handler_s_connection_error_is_logged_and_the_next_client_is_served(
    run: Run, net: Net, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with ringmain.serve(net.url(), echo, **net.listening) as server:
            client = await witness.connect(server.port, net.client())
            await client.shake_hands()
            await client.send(FIRST)
            await client.read_to_end(1)
            client.reset()
            async with coming(net, server.port, SECOND, len(SECOND)) as second:
                pass
            server.stop()
            await server.serve()
        assert second.received == SECOND
        assert second.end in PROPER

    with caplog.at_level(logging.WARNING, "ringmain"):
        run(main())
    assert len(caplog.records) == 1


@pytest.mark.parametrize("waits", [False, True])
def test_any_other_exception_of_a_handler_ends_the_server_and_resets_the_peer(run: Run, net: Net, waits: bool) -> None:
    async def main() -> None:
        over = asyncio.Event()

        async def fail(connection: ringmain.Connection) -> None:
            await connection.read()
            over.set()
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            async with (
                ringmain.serve(net.url(), fail, **net.listening) as server,
                coming(net, server.port, FIRST, WITHOUT_END) as client,
            ):
                if waits:
                    await server.serve()
                await over.wait()
        assert client.end in ("reset", None)  # None: the test has let go of it first
        nothing_is_pending()

    run(main())


def test_a_stopped_server_serves_its_client_to_the_end_and_nobody_else(run: Run, net: Net) -> None:
    async def main() -> None:
        async def stop_and_echo(connection: ringmain.Connection) -> None:
            server.stop()
            await echo(connection)

        async with (
            ringmain.serve(net.url(), stop_and_echo, **net.listening) as server,
            coming(net, server.port, FIRST, len(FIRST)) as client,
        ):
            await server.serve()
        assert client.received == FIRST
        assert client.end in PROPER
        stopped = ringmain.serve(net.url(), echo, **net.listening)
        stopped.stop()
        await stopped
        with pytest.raises(ringmain.UsageError, match="not open"):
            await stopped.serve()

    run(main())


def test_a_client_that_only_listens_is_not_taken_for_a_silent_one(run: Run, net: Net) -> None:
    async def main() -> None:
        async def tell(connection: ringmain.Connection) -> None:
            await connection.write(FIRST)
            await connection.read()

        async with ringmain.serve(net.url(), tell, handshake_timeout=0.2, **net.listening) as server:
            first = await witness.connect(server.port, net.client())
            await first.shake_hands()
            second = await witness.connect(server.port)
            await asyncio.sleep(1.7)
            await first.finish()
            await first.read_to_end()
            first.sock.close()
            second.sock.close()
        assert (first.received, first.end in PROPER) == (FIRST, True)

    run(main())


class End:
    """One end of a connection: what it sends, what came, whether that ended properly, and what went wrong."""

    def __init__(self, data: bytes) -> None:
        self.data, self.got, self.whole, self.left = data, bytearray(), False, False

    async def read(self, connection: ringmain.Connection) -> None:
        async for block in connection:
            with block:
                self.got += block
        self.whole = True

    async def talk(self, connection: ringmain.Connection) -> None:
        both = self.read(connection), send_all(connection, self.data)
        for it in await asyncio.gather(*both, return_exceptions=True):
            if isinstance(it, BaseException):
                raise it


async def through_faults(net: Net, seed: int) -> None:
    """Talk both ways at once through a proxy that may break the connection anywhere."""
    draw = random.Random(seed)
    dialled, served = (End(peers.payload(draw.choice([0, 1, 20_000, 1_000_000]), seed + it)) for it in (0, 1))
    kinds = draw.choice([[], ["reset"], ["cut"], ["reset", "cut", "stall"]])
    there, back = (faults.Way.drawn(draw, len(end.data) + 3000 * net.tls, kinds) for end in (dialled, served))
    limits: dict[str, Any] = {"idle_timeout": 1.0 if "stall" in kinds else None, "handshake_timeout": peers.TIMEOUT}
    async with (
        ringmain.serve(net.url(), served.talk, **limits, **net.listening) as server,
        faults.proxy(server.port, there, back) as port,
    ):
        with contextlib.suppress(ringmain.RingmainError):
            async with ringmain.connect(net.url(port), **limits, **net.dialling) as connection:
                await dialled.talk(connection)
            dialled.left = True
        server.stop()
        await server.serve()
    for end, other, way in ((dialled, served, back), (served, dialled, there)):
        assert other.data.startswith(end.got), seed
        # A cut is a FIN: of plain TCP nobody can tell that bytes are missing.
        assert not end.whole or end.got == other.data or (way.fault == "cut" and not net.tls), seed
    untouched = not there.fired and not back.fired and "stall" not in kinds  # a busy machine may look like a stall
    assert not untouched or (dialled.whole and served.whole and dialled.left), seed


def test_what_faults_on_the_way_leave_is_a_prefix_and_never_looks_whole(run: Run, net: Net) -> None:
    async def main() -> None:
        for first in range(0, 20, 5):
            await asyncio.gather(*(through_faults(net, seed) for seed in range(first, first + 5)))

    run(main())


ECHOES = {
    "socat": "socat TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr EXEC:cat",
    "ncat": "ncat -l 127.0.0.1 {port} -e /bin/cat",
    "socat tls": "socat OPENSSL-LISTEN:{port},bind=127.0.0.1,reuseaddr,cert={server},verify=0 EXEC:cat",
    "openssl": "openssl s_server -rev -quiet -naccept 1 -cert {server} -accept {port}",
}
CLIENTS = {
    "socat": "socat -t 10 - TCP:127.0.0.1:{port}",
    "nc": "nc.openbsd -N 127.0.0.1 {port}",
    "socat tls": "socat -t 10 - OPENSSL:localhost:{port},pf=ip4,cafile={ca}",
    "openssl": "openssl s_client -quiet -verify_return_error -CAfile {ca} -connect 127.0.0.1:{port}",
}


def command(template: str, port: int, certificates: Certificates) -> list[str]:
    peers.need(template.split()[0])
    return [word.format(port=port, ca=certificates.ca, server=certificates.server) for word in template.split()]
