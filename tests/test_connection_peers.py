"""The two-way connection through a proxy that injects faults, and with other people's programs."""

import asyncio
import contextlib
import random
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import faults
import peers
import pytest
from conforming import FIRST, LARGE, Net
from conftest import Certificates
from talking import echo, everything, send_all

import ringmain

Run = Callable[[Coroutine[Any, Any, Any]], Any]


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


@pytest.mark.parametrize("peer", ECHOES)
def test_an_echo_of_another_program_comes_back_whole(
    run: Run, bench: peers.Bench, certificates: Certificates, peer: str
) -> None:
    tls = "tls" in peer or peer == "openssl"
    net, port = Net(certificates, tls=tls), peers.free_port()
    bench.start(command(ECHOES[peer], port, certificates))
    answer = b"9876543210\n" if peer == "openssl" else FIRST  # which reverses lines

    async def main() -> None:
        async with ringmain.connect(net.url(port), retry=20, **net.dialling) as connection:
            if peer in ("ncat", "openssl"):  # they take our end for theirs, and a full pipe stops ncat
                await connection.write(b"0123456789\n" if peer == "openssl" else FIRST)
                got = b""
                while len(got) < len(answer):
                    got += await anext(connection)
                assert got == answer
            else:
                _, got = await asyncio.gather(send_all(connection, LARGE), everything(connection))
                assert peers.sha256(got) == peers.sha256(LARGE)

    run(main())


@pytest.mark.parametrize("peer", CLIENTS)
def test_another_program_gets_its_echo_whole(
    run: Run, bench: peers.Bench, certificates: Certificates, tmp_path: Path, peer: str
) -> None:
    tls = "tls" in peer or peer == "openssl"
    net, data = Net(certificates, tls=tls), bench.file(b"P" + LARGE.hex().encode())

    async def echo_all(connection: ringmain.Connection) -> None:
        left = data.stat().st_size
        while left > 0:  # s_client waits for our end
            with await anext(connection) as block:
                await connection.write(block)
                left -= len(block)

    async def main() -> None:
        async with ringmain.serve(net.url(), echo_all if peer == "openssl" else echo, **net.listening) as server:
            with data.open("rb") as source, (tmp_path / "got").open("wb") as sink:
                client = bench.start(command(CLIENTS[peer], server.port, certificates), stdin=source, stdout=sink)
            assert await asyncio.to_thread(client.wait) == 0
            server.stop()
            await server.serve()
        assert peers.sha256(tmp_path / "got") == peers.sha256(data)

    run(main())
