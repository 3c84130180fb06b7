"""The two-way connection and its server, against witnesses, itself, and other people's programs."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import peers
import pytest
import witness
from conforming import FIRST, LARGE, PROPER, SECOND, WITHOUT_END, Net, coming, nothing_is_pending
from conftest import Certificates
from test_tls_verdict import SERVERS

import ringmain

Run = Callable[[Coroutine[Any, Any, Any]], Any]


async def echo(connection: ringmain.Connection) -> None:
    async for block in connection:
        with block:
            await connection.write(block)


async def everything(connection: ringmain.Connection) -> bytes:
    return b"".join([bytes(block) async for block in connection])


async def send_all(connection: ringmain.Connection, data: bytes) -> None:
    for offset in range(0, len(data), 100_000):
        await connection.write(data[offset : offset + 100_000])
    await connection.write_eof()


def test_both_ways_at_the_same_time_carry_more_than_the_kernel_holds(run: Run, net: Net) -> None:
    async def main() -> None:
        back = peers.payload(30_000_000, 4)

        async def talk(connection: ringmain.Connection) -> None:
            _, got = await asyncio.gather(send_all(connection, back), everything(connection))
            assert peers.sha256(got) == peers.sha256(LARGE * 5)

        async with (
            ringmain.serve(net.url(), talk, **net.listening) as server,
            ringmain.connect(net.url(server.port), **net.dialling) as connection,
        ):
            _, got = await asyncio.gather(send_all(connection, LARGE * 5), everything(connection))
            assert peers.sha256(got) == peers.sha256(back)
            assert (connection.counters.bytes_in, connection.counters.bytes_out) == (len(back), 5 * len(LARGE))
            server.stop()
            await server.serve()
        nothing_is_pending()

    run(main())


def test_the_peer_may_end_first_and_go_on_reading(run: Run, net: Net) -> None:
    async def main() -> None:
        async with (
            witness.serving(net.server(), FIRST, 0) as (port, servers),
            ringmain.connect(net.url(port), **net.dialling) as connection,
        ):
            assert await everything(connection) == FIRST
            assert await connection.read() is None
            await connection.write(LARGE)
            await connection.write(SECOND)
        assert peers.sha256(bytes(servers[0].received)) == peers.sha256(LARGE + SECOND)
        assert servers[0].end in PROPER

    run(main())


def test_what_nobody_reads_turns_no_proper_end_into_a_reset(run: Run, net: Net) -> None:
    async def main() -> None:
        async with (
            witness.serving(net.server(), LARGE, 0) as (port, servers),
            ringmain.connect(net.url(port), **net.dialling) as connection,
        ):
            first = await connection.read()
            assert first is not None
            first.release()
            await connection.write(FIRST)
        assert servers[0].received == FIRST
        assert servers[0].end in PROPER

    run(main())


def test_writing_after_the_end_is_refused(run: Run, net: Net) -> None:
    async def main() -> None:
        async with (
            witness.serving(net.server(), SECOND, WITHOUT_END) as (port, servers),
            ringmain.connect(net.url(port), **net.dialling) as connection,
        ):
            await connection.write(FIRST)
            await connection.write_eof()
            with pytest.raises(ringmain.UsageError, match="write_eof"):
                await connection.write(FIRST)
            assert await everything(connection) == SECOND
        assert servers[0].received == FIRST
        assert servers[0].end in PROPER

    run(main())


def test_a_reset_is_told_to_those_who_read_and_to_those_who_write(run: Run, net: Net) -> None:
    async def main() -> None:
        heard = []

        async def talk(connection: ringmain.Connection) -> None:
            async def read() -> None:
                await everything(connection)

            async def write() -> None:
                while True:
                    await connection.write(LARGE)

            heard.extend(await asyncio.gather(read(), write(), return_exceptions=True))
            raise heard[0]

        async with ringmain.serve(net.url(), talk, **net.listening) as server:
            client = await witness.connect(server.port, net.client())
            await client.shake_hands()
            await client.send(FIRST)
            while len(client.received) < 1000:
                await client.read_to_end(1000)
            client.reset()
            while len(heard) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        assert isinstance(heard[0], ringmain.ReceiveError | ringmain.TruncatedError)
        assert isinstance(heard[1], ringmain.SendError)

    run(main())


def test_what_the_peer_sent_before_a_write_failed_can_still_be_read(run: Run) -> None:
    async def main() -> None:
        async def refuse(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(SECOND)
            await writer.drain()
            writer.close()  # with all that came unread: a reset

        async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            with pytest.raises(ringmain.SendError):
                async with ringmain.connect(f"tcp://127.0.0.1:{port}") as connection:
                    with pytest.raises(ringmain.SendError):
                        while True:
                            await connection.write(LARGE)
                    with pytest.raises(ringmain.ReceiveError):
                        await everything(connection)

    run(main())


def test_tls_without_close_notify_is_truncated(run: Run, certificates: Certificates) -> None:
    async def main() -> None:
        net = Net(certificates, tls=True)
        heard: list[BaseException] = []

        async def talk(connection: ringmain.Connection) -> None:
            try:
                await everything(connection)
            except ringmain.TruncatedError as error:
                heard.append(error)
            raise ringmain.InputError("cut short")

        async with ringmain.serve(net.url(), talk, **net.listening) as server:
            client = await witness.connect(server.port, net.client())
            await client.shake_hands()
            await client.send(FIRST)
            client.sock.shutdown(1)
            await client.read_to_end()
            client.sock.close()
        assert len(heard) == 1
        assert client.end not in PROPER

    run(main())


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("reads", [False, True])
def test_a_rejected_client_certificate_is_an_error_of_reading_and_of_leaving(
    run: Run, bench: peers.Bench, certificates: Certificates, server: str, reads: bool
) -> None:
    async def main(port: int) -> None:
        for _ in range(10):
            with pytest.raises(ringmain.TlsError, match="alert"):
                async with ringmain.connect(f"tcps://127.0.0.1:{port}", cafile=str(certificates.ca)) as connection:
                    if reads:
                        await connection.read()
                    else:
                        await connection.write(b"question")

    with SERVERS[server](bench, certificates) as port:
        run(main(port))


@pytest.mark.parametrize("call", ["read", "write"])
def test_what_stands_still_for_the_idle_time_out_is_reset(run: Run, net: Net, call: str) -> None:
    async def main() -> None:
        async with ringmain.serve(net.url(), lambda _: asyncio.sleep(60), **net.listening) as server:
            with pytest.raises(ringmain.TimedOutError, match="nothing moved"):
                async with ringmain.connect(net.url(server.port), idle_timeout=0.2, **net.dialling) as connection:
                    if call == "read":
                        await connection.read()
                    else:
                        await connection.write(LARGE * 10)

    run(main())


def test_a_time_out_that_one_task_hears_ends_the_wait_of_the_other(run: Run, net: Net) -> None:
    async def main() -> None:
        async with ringmain.serve(net.url(), lambda _: asyncio.sleep(60), **net.listening) as server:
            with pytest.raises(ringmain.SendError):
                async with ringmain.connect(net.url(server.port), idle_timeout=0.2, **net.dialling) as connection:
                    tasks = connection.read(), connection.write(LARGE * 10)
                    ended = await asyncio.gather(*tasks, return_exceptions=True)
                    assert all(isinstance(it, ringmain.RingmainError) for it in ended)
                    assert any(isinstance(it, ringmain.TimedOutError) for it in ended)

    run(main())


def test_traffic_one_way_keeps_the_other_from_timing_out(run: Run, net: Net) -> None:
    async def main() -> None:
        async with (
            witness.serving(net.server(), b"", WITHOUT_END) as (port, servers),
            ringmain.connect(net.url(port), idle_timeout=0.5, **net.dialling) as connection,
        ):
            reading = asyncio.ensure_future(everything(connection))
            for _ in range(10):
                await connection.write(FIRST)
                await asyncio.sleep(0.1)
            await connection.write_eof()
            assert await reading == b""
        assert servers[0].received == FIRST * 10

    run(main())


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


def test_an_awaited_server_serves_until_it_is_stopped(run: Run, net: Net) -> None:
    async def main() -> None:
        async def once(connection: ringmain.Connection) -> None:
            server.stop()
            await echo(connection)

        port = peers.free_port()
        server = ringmain.serve(net.url(port), once, **net.listening)
        serving = asyncio.ensure_future(server.__aenter__())
        await serving
        async with coming(net, server.port, FIRST, len(FIRST)) as client:
            await server.serve()
        await server.__aexit__(None, None, None)
        assert client.received == FIRST
        stopped = ringmain.serve(net.url(), once, **net.listening)
        stopped.stop()
        await stopped

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
        async for block in connection:
            with block:
                await connection.write(block)
            if connection.counters.bytes_in == data.stat().st_size:  # s_client waits for our end
                return

    async def main() -> None:
        async with ringmain.serve(net.url(), echo_all if peer == "openssl" else echo, **net.listening) as server:
            with data.open("rb") as source, (tmp_path / "got").open("wb") as sink:
                client = bench.start(command(CLIENTS[peer], server.port, certificates), stdin=source, stdout=sink)
            assert await asyncio.to_thread(client.wait) == 0
            server.stop()
            await server.serve()
        assert peers.sha256(tmp_path / "got") == peers.sha256(data)

    run(main())
