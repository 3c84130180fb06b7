"""What serves two-way connections: one client after another, until it is stopped or a handler fails."""

import asyncio
import contextlib
import gc
import logging
import sys
import weakref
from collections.abc import Callable, Coroutine
from typing import Any

import peers
import pytest
import witness
from conforming import FIRST, LARGE, PROPER, SECOND, WITHOUT_END, Net, coming, nothing_is_pending
from talking import echo, everything

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


@pytest.mark.parametrize("then", ["returns", "reads on", "writes on"])
def test_leaving_ends_also_with_a_handler_that_loses_its_cancellation_and_serves_nobody_after_it(
    run: Run, net: Net, then: str
) -> None:
    async def main() -> None:
        begun, lost = asyncio.Event(), asyncio.Event()

        async def lose(connection: ringmain.Connection) -> None:
            assert not lost.is_set(), "another client is served while the server is left"
            with contextlib.suppress(asyncio.CancelledError):
                begun.set()
                await asyncio.Event().wait()
            lost.set()
            async with asyncio.timeout(peers.TIMEOUT):
                while then == "reads on" and await connection.read() is not None:
                    pass
                while then == "writes on":
                    await connection.write(FIRST)

        async with (
            ringmain.serve(net.url(), lose, gate="queue", **net.listening) as server,
            coming(net, server.port, FIRST, WITHOUT_END) as client,
        ):
            await begun.wait()
            second = await witness.connect(server.port)
            server_left = asyncio.ensure_future(server.__aexit__(None, None, None))
            await server_left
        second.sock.close()
        assert lost.is_set()
        assert client.end not in PROPER
        nothing_is_pending()

    run(main())


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="asyncio.wait_for loses no cancellation any more")
def test_leaving_ends_when_wait_for_loses_the_cancellation(run: Run, net: Net) -> None:
    async def main() -> None:
        for turns in range(5):
            blocks: asyncio.Queue[None] = asyncio.Queue()

            async def wait(connection: ringmain.Connection, blocks: asyncio.Queue[None] = blocks) -> None:
                while (block := await asyncio.wait_for(connection.read(), peers.TIMEOUT)) is not None:
                    block.release()
                    blocks.put_nowait(None)

            async with ringmain.serve(net.url(), wait, linger=0, **net.listening) as server:
                client = await witness.connect(server.port, net.client())
                await client.shake_hands()
                await client.send(FIRST[:1])
                await blocks.get()
                await client.send(FIRST[:1])
                for _ in range(turns):
                    await asyncio.sleep(0)
            await client.read_to_end()
            client.sock.close()
            assert client.end not in PROPER

    run(main())


@pytest.mark.parametrize("nested", [False, True])
def test_a_group_of_nothing_but_connection_errors_ends_no_server(
    run: Run, net: Net, nested: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async def talk(connection: ringmain.Connection) -> None:
            async with contextlib.AsyncExitStack() as stack:
                for _ in range(1 + nested):
                    group = await stack.enter_async_context(asyncio.TaskGroup())
                group.create_task(echo(connection))

        async with ringmain.serve(net.url(), talk, **net.listening) as server:
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

    with caplog.at_level(logging.WARNING, "ringmain"):
        run(main())
    assert len(caplog.records) == 1


def test_a_group_with_any_other_exception_comes_out_whole(run: Run, net: Net) -> None:
    async def main() -> None:
        async def fail(connection: ringmain.Connection) -> None:
            await connection.read()
            raise BaseExceptionGroup("both", [ringmain.InputError("cut short"), ZeroDivisionError()])

        with pytest.raises(ExceptionGroup) as caught:
            async with (
                ringmain.serve(net.url(), fail, **net.listening) as server,
                coming(net, server.port, FIRST, WITHOUT_END),
            ):
                await server.serve()
        assert [type(it) for it in caught.value.exceptions] == [ringmain.InputError, ZeroDivisionError]

    run(main())


def test_a_client_that_ends_while_its_handler_leaves_a_cancelled_write_behind_ends_no_server(
    run: Run, net: Net, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        served = 0

        async def talk(connection: ringmain.Connection) -> None:
            nonlocal served
            served += 1
            if served == 2:
                await echo(connection)
                return

            async def write() -> None:
                while True:
                    await connection.write(LARGE)

            writing, reading = asyncio.ensure_future(write()), asyncio.ensure_future(everything(connection))
            await asyncio.wait([writing, reading], return_when=asyncio.FIRST_COMPLETED)
            assert writing.cancel()  # and not awaited

        async with ringmain.serve(net.url(), talk, **net.listening) as server:
            client = await witness.connect(server.port, net.client())
            await client.shake_hands()
            await client.finish()
            async with coming(net, server.port, SECOND, len(SECOND)) as second:
                await client.read_to_end()
            client.sock.close()
            server.stop()
            await server.serve()
        assert client.end not in PROPER
        assert second.received == SECOND
        nothing_is_pending()

    with caplog.at_level(logging.WARNING, "ringmain"):
        run(main())
    assert "another task has not ended its write" in caplog.text


def test_a_cancelled_error_that_is_not_the_server_s_doing_resets_one_client_and_the_next_is_served(
    run: Run, net: Net, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        cancelled = asyncio.get_running_loop().create_future()
        cancelled.cancel()

        async def talk(connection: ringmain.Connection) -> None:
            block = await connection.read()
            assert block is not None
            if block[:1] == FIRST[:1]:
                await cancelled
            await connection.write(block)

        async with ringmain.serve(net.url(), talk, **net.listening) as server:
            async with coming(net, server.port, FIRST[:1], WITHOUT_END) as first:
                pass
            async with coming(net, server.port, SECOND[:1], 1) as second:
                pass
        assert first.end not in PROPER
        assert (second.received, second.end in PROPER) == (SECOND[:1], True)

    assert FIRST[:1] != SECOND[:1]
    with caplog.at_level(logging.WARNING, "ringmain"):
        run(main())
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "CancelledError" in caplog.text


def test_a_serving_task_that_is_cancelled_by_others_ends(run: Run, net: Net) -> None:
    """As at the end of `asyncio.run`, for a server that nobody has left."""

    async def main() -> None:
        over = asyncio.Event()

        async def wait(connection: ringmain.Connection) -> None:
            await connection.read()
            over.set()
            await asyncio.Event().wait()

        async with (
            ringmain.serve(net.url(), wait, **net.listening) as server,
            coming(net, server.port, FIRST, WITHOUT_END) as client,
        ):
            await over.wait()
            for task in asyncio.all_tasks():
                if "Server._serve" in repr(task.get_coro()):
                    task.cancel()
            await server.serve()
        assert client.end not in PROPER

    run(main())


def test_what_a_handler_raises_is_told_at_once_and_survives_what_the_body_raises(
    run: Run, net: Net, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async def fail(connection: ringmain.Connection) -> None:
            await connection.read()
            raise ZeroDivisionError("the handler's")

        with pytest.raises(KeyError) as caught:
            async with ringmain.serve(net.url(), fail, **net.listening) as server:
                port = server.port
                async with coming(net, port, FIRST, WITHOUT_END) as client:
                    pass
                assert client.end not in PROPER
                while not caplog.records:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
                with pytest.raises(ConnectionRefusedError):
                    await witness.connect(port)
                raise KeyError
        assert "ZeroDivisionError: the handler's" in caught.value.__notes__[0]

    with caplog.at_level(logging.WARNING, "ringmain"):
        run(main())
    assert [(it.levelname, it.exc_info) for it in caplog.records] == [("ERROR", None)]
    assert "the server ends: ZeroDivisionError" in caplog.text


def test_a_server_that_waits_for_the_next_client_keeps_nothing_of_the_last(run: Run, net: Net) -> None:
    async def main() -> None:
        served: list[weakref.ref[Any]] = []

        async def talk(connection: ringmain.Connection) -> None:
            served.append(weakref.ref(connection))
            await echo(connection)

        async with ringmain.serve(net.url(), talk, **net.listening) as server:
            async with coming(net, server.port, FIRST, len(FIRST)):
                pass
            async with asyncio.timeout(peers.TIMEOUT):
                while served[0]() is not None:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)

    gc.disable()
    try:
        run(main())
    finally:
        gc.enable()


def test_a_client_that_no_connection_can_be_made_of_is_reset(
    run: Run, net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        with pytest.raises(MemoryError):
            async with ringmain.serve(net.url(), echo, **net.listening) as server:
                monkeypatch.setattr(server, "_new_flow", no_memory)
                async with coming(net, server.port, FIRST, WITHOUT_END) as client:
                    await server.serve()
        assert client.end in ("reset", None)  # None: the test has let go of it first

    def no_memory() -> None:
        raise MemoryError

    run(main())


def test_a_server_is_entered_by_one_task_at_a_time(run: Run, net: Net) -> None:
    async def main() -> None:
        server = ringmain.serve(net.url(), echo, **net.listening)
        for _ in range(2):
            async with server:
                with pytest.raises(ringmain.UsageError, match="open already"):
                    await server
                async with coming(net, server.port, FIRST, len(FIRST)) as client:
                    pass
                assert client.received == FIRST
        entered = await asyncio.gather(server.__aenter__(), server.__aenter__(), return_exceptions=True)
        assert [type(it) for it in entered] == [ringmain.server.Server, ringmain.UsageError]
        await server.__aexit__(None, None, None)

    run(main())
