"""What serves two-way connections: one client after another, until it is stopped or a handler fails."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import witness
from conforming import FIRST, PROPER, SECOND, WITHOUT_END, Net, coming, nothing_is_pending
from talking import echo

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

        limit = 5.0 if net.tls else 0.2  # handshakes take their time on a busy machine
        async with ringmain.serve(net.url(), tell, handshake_timeout=limit, **net.listening) as server:
            first = await witness.connect(server.port, net.client())
            await first.shake_hands()
            second = await witness.connect(server.port)
            await asyncio.sleep(limit + 1.5)
            await first.finish()
            await first.read_to_end()
            first.sock.close()
            second.sock.close()
        assert (first.received, first.end in PROPER) == (FIRST, True)

    run(main())
