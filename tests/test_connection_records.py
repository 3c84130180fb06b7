"""Single records of a two-way connection: all of them, and no part of one for a whole one."""

import asyncio
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import peers
import pytest
import witness
from conforming import Net
from talking import everything, send_all

import ringmain

Run = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.mark.parametrize("headers", [False, True])
def test_both_ends_read_records_and_the_last_without_its_end(run: Run, net: Net, headers: bool) -> None:
    lines = [b"%d" % number * (number % 50) for number in range(20_000)]
    end = b"\r\n" if headers else b""

    async def answer(connection: ringmain.Connection) -> None:
        async for record in connection.records():
            await connection.write(bytes(record)[::-1] + b"\r\n")

    async def main() -> list[bytes]:
        async with (
            ringmain.serve(net.url(), answer, delimiter=b"\r\n", **net.listening) as server,
            ringmain.connect(net.url(server.port), delimiter=b"\r\n", **net.dialling) as connection,
        ):
            sending = asyncio.ensure_future(send_all(connection, b"\r\n".join([*lines, b"the last"])))
            got = [bytes(record) async for record in connection.records(headers=headers)]
            await sending
            server.stop()
            await server.serve()
            return got

    assert run(main()) == [line[::-1] + end for line in [*lines, b"the last"]]


def test_blocks_and_records_go_on_where_the_other_stopped(run: Run, net: Net) -> None:
    async def main() -> None:
        async with (
            witness.serving(net.server(), b"one\ntwo\nthree", 0) as (port, _),
            ringmain.connect(net.url(port), delimiter=b"\n", **net.dialling) as connection,
        ):
            records = connection.records()
            got = [bytes(await anext(records))]
            got += [bytes(record) async for record in records]
            assert got == [b"one", b"two", b"three"]
            assert await everything(connection) == b""

    run(main())


@pytest.mark.parametrize("writes", [False, True], ids=["reads only", "writes, and hears of the reset there"])
def test_a_record_that_a_reset_has_cut_is_none(run: Run, writes: bool) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            url = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
            async with ringmain.connect(url, delimiter=b"\n") as connection:
                server, _ = listener.accept()
                server.sendall(b"one\ncut o")
                records = connection.records()
                assert bytes(await anext(records)) == b"one"
                peers.close_with_reset(server)
                if writes:
                    with pytest.raises(ringmain.SendError):
                        while True:
                            await connection.write(b"x" * 1_000_000)
                with pytest.raises(ringmain.ReceiveError):
                    await anext(records)
                connection.abort()

    run(main())


def test_without_a_delimiter_there_are_none(run: Run) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            async with ringmain.connect(f"tcp://127.0.0.1:{listener.getsockname()[1]}") as connection:
                with pytest.raises(ringmain.UsageError, match="give delimiter="):
                    connection.records()
                connection.abort()

    run(main())
