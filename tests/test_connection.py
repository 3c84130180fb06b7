"""The two-way connection, against witnesses and against itself."""

import asyncio
import contextlib
import gc
import weakref
from collections.abc import Callable, Coroutine
from typing import Any

import peers
import pytest
import witness
from conforming import FIRST, LARGE, PROPER, SECOND, WITHOUT_END, Net, nothing_is_pending
from conftest import Certificates
from talking import echo, everything, send_all
from test_tls_verdict import SERVERS

import ringmain

Run = Callable[[Coroutine[Any, Any, Any]], Any]


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
            witness.serving(net.server(), LARGE * 5, 0) as (port, servers),
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
@pytest.mark.parametrize("how", ["leaving", "reading", "reading after writing"])
def test_a_rejected_client_certificate_is_an_error_of_reading_and_of_leaving(
    run: Run, bench: peers.Bench, certificates: Certificates, server: str, how: str
) -> None:
    async def main(port: int) -> None:
        for _ in range(10):
            with pytest.raises(ringmain.TlsError, match="alert"):
                async with ringmain.connect(f"tcps://127.0.0.1:{port}", cafile=str(certificates.ca)) as connection:
                    if how == "reading after writing":
                        with contextlib.suppress(ringmain.SendError):  # the reset may be heard of first
                            await connection.write(LARGE)
                    elif how == "leaving":
                        await connection.write(b"question")
                    if how != "leaving":
                        await connection.read()

    with SERVERS[server](bench, certificates) as port:
        run(main(port))


@pytest.mark.parametrize("call", ["read", "write"])
def test_what_stands_still_for_the_idle_time_out_is_reset_for_good(run: Run, net: Net, call: str) -> None:
    async def main() -> None:
        async with ringmain.serve(net.url(), lambda _: asyncio.sleep(60), **net.listening) as server:
            with pytest.raises(ringmain.SendError, match="timed out"):
                async with ringmain.connect(net.url(server.port), idle_timeout=0.2, **net.dialling) as connection:
                    with pytest.raises(ringmain.TimedOutError, match="nothing moved"):
                        await (connection.read() if call == "read" else connection.write(LARGE * 10))
                    with pytest.raises(ringmain.ReceiveError, match="timed out"):
                        await connection.read()
                    with pytest.raises(ringmain.SendError, match="timed out"):
                        await connection.write(b"")

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
            ringmain.connect(net.url(port), idle_timeout=1.0, **net.dialling) as connection,
        ):
            reading = asyncio.ensure_future(everything(connection))
            for _ in range(8):
                await connection.write(FIRST)
                await asyncio.sleep(0.2)
            await connection.write_eof()
            assert await reading == b""
        assert servers[0].received == FIRST * 8

    run(main())


def test_blocks_end_at_the_delimiter_and_sizes_that_make_no_sense_are_refused_at_once(run: Run, net: Net) -> None:
    async def main() -> None:
        async with (
            witness.serving(net.server(), b"one\ntwo\n" * 50_000 + b"rest", 0) as (port, _),
            ringmain.connect(net.url(port), delimiter=b"\n", block_size=4096, **net.dialling) as connection,
        ):
            blocks = [bytes(block) async for block in connection]
            assert len(blocks) > 2
            assert all(block.endswith(b"\n") for block in blocks[:-1])
            assert b"".join(blocks) == b"one\ntwo\n" * 50_000 + b"rest"

    run(main())
    for make in (
        lambda **sizes: ringmain.serve(net.url(), echo, **sizes),
        lambda **it: ringmain.connect(net.url(), **it),
    ):
        with pytest.raises(ringmain.UsageError, match="block_size"):
            make(block_size=0)
        with pytest.raises(ringmain.UsageError, match="did you mean"):
            make(idle_timeouts=1)


def test_a_connection_needs_no_collector(run: Run, net: Net) -> None:
    async def main() -> None:
        served: list[weakref.ref[Any]] = []

        async def talk(connection: ringmain.Connection) -> None:
            served.append(weakref.ref(connection))
            await echo(connection)

        async with ringmain.serve(net.url(), talk, **net.listening) as server:
            async with ringmain.connect(net.url(server.port), **net.dialling) as connection:
                served.append(weakref.ref(connection))
                await connection.write(FIRST)
                await connection.write_eof()
                assert await everything(connection) == FIRST
            del connection
            server.stop()
            await server.serve()
        assert [it() for it in served] == [None, None]

    gc.disable()
    try:
        run(main())
    finally:
        gc.enable()
