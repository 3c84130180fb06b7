"""The conformance suite of all streams, its second part: calls out of turn.

Streams are left by an exception, called twice, called after they were closed, closed while another task waits, and
stopped at any time.
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any

import peers
import pytest
import witness
from conforming import FIRST, LARGE, PROPER, SECOND, WITHOUT_END, Net, coming, nothing_is_pending

import ringmain

Run = Callable[[Coroutine[Any, Any, Any]], Any]
SENDERS = pytest.mark.parametrize("verb", ["save", "connect"])
STREAMS = pytest.mark.parametrize("of_connections", [False, True], ids=["loader", "connection"])


class BoomError(Exception):
    """What a user's own code raises."""


def test_a_loader_left_by_an_exception_resets_its_peer(run: Run, net: Net) -> None:
    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            with pytest.raises(BoomError):
                async with ringmain.load(net.url(), **net.listening) as loader:
                    client = await stack.enter_async_context(coming(net, loader.port, FIRST, 1))
                    async for _ in loader:
                        raise BoomError
        assert client.end == "reset"
        nothing_is_pending()

    run(main())


@SENDERS
def test_a_sender_left_by_an_exception_resets_its_peer(run: Run, net: Net, verb: str) -> None:
    async def main() -> None:
        async with witness.serving(net.server(), b"", WITHOUT_END) as (port, servers):
            with pytest.raises(BoomError):
                async with getattr(ringmain, verb)(net.url(port), **net.dialling) as saver:
                    await saver.write(FIRST)
                    raise BoomError
        assert servers[0].end == "reset"
        nothing_is_pending()

    run(main())


def test_a_relay_left_by_an_exception_resets_both_peers(run: Run, net: Net) -> None:
    async def main() -> None:
        async with (
            witness.serving(net.server(), SECOND, WITHOUT_END) as (port, servers),
            contextlib.AsyncExitStack() as stack,
        ):
            with pytest.raises(BoomError):
                async with net.relay(port) as relayer:
                    client = await stack.enter_async_context(coming(net, relayer.port, FIRST, WITHOUT_END))
                    serving = asyncio.ensure_future(relayer.serve())
                    while not (servers and servers[0].received and client.received):  # noqa: ASYNC110 - both ways
                        await asyncio.sleep(0.001)
                    raise BoomError
            await asyncio.gather(serving, return_exceptions=True)
        assert (client.end, servers[0].end) == ("reset", "reset")
        nothing_is_pending()

    run(main())


@pytest.mark.parametrize("mode", ["rb", "wb"])
def test_a_file_left_by_an_exception_resets_its_peer(net: Net, mode: Any) -> None:
    def work(port: int) -> None:
        with ringmain.open(net.url(port), mode, **net.dialling) as file:
            if mode == "wb":
                file.write(FIRST)
            else:
                assert file.read(1) == FIRST[:1]
            raise BoomError

    async def main() -> None:
        data, expected = (b"", WITHOUT_END) if mode == "wb" else (FIRST, 1)
        async with witness.serving(net.server(), data, expected) as (port, servers):
            with pytest.raises(BoomError):
                await asyncio.to_thread(work, port)
        assert servers[0].end == "reset"

    asyncio.run(main())


@STREAMS
def test_a_second_receive_while_one_waits_is_refused_and_harms_nothing(
    run: Run, net: Net, of_connections: bool
) -> None:
    async def main() -> None:
        async with ringmain.load(net.url(), listen_once=True, **net.listening) as loader:
            client, go = await witness.connect(loader.port, net.client()), asyncio.Event()

            async def send_later() -> None:
                await client.shake_hands()
                await go.wait()
                await client.exchange(FIRST)

            sending = asyncio.ensure_future(send_later())
            stream: Any = await anext(loader.connections()) if of_connections else loader
            first = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="already waiting"):
                await anext(stream)
            go.set()
            got = bytes(await first) + b"".join([bytes(block) async for block in stream])
            await sending
        assert got == FIRST
        nothing_is_pending()

    run(main())


@SENDERS
def test_a_second_write_while_one_waits_is_refused_and_harms_nothing(run: Run, net: Net, verb: str) -> None:
    async def main() -> None:
        async with (
            witness.serving(net.server(), b"", WITHOUT_END) as (port, servers),
            getattr(ringmain, verb)(net.url(port), **net.dialling) as saver,
        ):
            first = asyncio.ensure_future(saver.write(LARGE))
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="already writing"):
                await saver.write(LARGE)
            await first
        assert peers.sha256(bytes(servers[0].received)) == peers.sha256(LARGE)
        assert servers[0].end in PROPER
        nothing_is_pending()

    run(main())


def test_a_second_read_of_a_connection_while_one_waits_is_refused_and_harms_nothing(run: Run, net: Net) -> None:
    async def main() -> None:
        async with (
            witness.serving(net.server(), SECOND, len(FIRST)) as (port, servers),
            ringmain.connect(net.url(port), min_tls_version="1.3", **net.dialling) as connection,
        ):
            first = asyncio.ensure_future(anext(connection))
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="already waiting"):
                await connection.read()
            await connection.write(FIRST)  # meanwhile
            got = bytes(await first) + b"".join([bytes(block) async for block in connection])
        assert (got, servers[0].received) == (SECOND, FIRST)
        nothing_is_pending()

    run(main())


async def ends(waiting: "asyncio.Future[Any]") -> None:
    """Hold that a call ends in a proper end of the iteration, or an error that says why."""
    await asyncio.wait([waiting])
    if not waiting.cancelled() and (error := waiting.exception()) is not None:
        assert isinstance(error, StopAsyncIteration | ringmain.RingmainError)


def test_a_loader_that_was_closed_brings_nothing_and_may_be_closed_again(run: Run, net: Net) -> None:
    async def main() -> None:
        loader = await ringmain.load(net.url(), **net.listening).__aenter__()
        async with coming(net, loader.port, FIRST, WITHOUT_END):
            connection = await anext(loader.connections())
            await anext(connection)
            await loader.__aexit__(None, None, None)
            for call in (loader.__anext__, connection.__anext__, loader.connections().__anext__):
                with pytest.raises((StopAsyncIteration, ringmain.RingmainError)):
                    await call()
            loader.stop()
            await loader.__aexit__(None, None, None)
        nothing_is_pending()

    run(main())


@SENDERS
def test_a_sender_that_was_closed_takes_nothing_and_may_be_closed_again(run: Run, net: Net, verb: str) -> None:
    async def main() -> None:
        async with witness.serving(net.server(), b"", WITHOUT_END) as (port, servers):
            async with getattr(ringmain, verb)(net.url(port), **net.dialling) as saver:
                await saver.write(FIRST)
            for data in (b"x", LARGE):
                with pytest.raises(ringmain.RingmainError):
                    await saver.write(data)
            if verb == "connect":
                with pytest.raises(ringmain.RingmainError):
                    await saver.read()
            await saver.__aexit__(None, None, None)
        assert servers[0].received == FIRST
        assert servers[0].end in PROPER
        nothing_is_pending()

    run(main())


def test_a_relay_that_was_closed_serves_nobody_and_may_be_closed_again(run: Run, net: Net) -> None:
    async def main() -> None:
        async with net.relay(peers.free_port()) as relayer:
            pass
        with pytest.raises(ringmain.UsageError):
            await relayer.serve()
        relayer.stop()
        await relayer.__aexit__(None, None, None)
        nothing_is_pending()

    run(main())


@pytest.mark.parametrize("mode", ["rb", "wb"])
def test_a_file_that_was_closed_says_so_and_may_be_closed_again(net: Net, mode: Any) -> None:
    def work(port: int) -> None:
        with ringmain.open(net.url(port), mode, **net.dialling) as file:
            call: Any = file.read if mode == "rb" else lambda: file.write(FIRST)
            call()
        with pytest.raises(ValueError, match="closed"):
            call()
        file.close()

    async def main() -> None:
        data, expected = (b"", WITHOUT_END) if mode == "wb" else (FIRST, 0)
        async with witness.serving(net.server(), data, expected) as (port, servers):
            await asyncio.to_thread(work, port)
        assert servers[0].end in PROPER

    asyncio.run(main())


@STREAMS
@pytest.mark.parametrize("client_has_come", [False, True])
def test_a_loader_closed_while_another_task_waits_ends_its_wait(
    run: Run, net: Net, of_connections: bool, client_has_come: bool
) -> None:
    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            loader = await ringmain.load(net.url(), **net.listening).__aenter__()
            stream: Any = loader.connections() if of_connections else loader
            if client_has_come:
                await stack.enter_async_context(coming(net, loader.port, FIRST, WITHOUT_END))
                first = await anext(stream)
                stream = first if of_connections else stream
                got = 0 if of_connections else len(first)
                while got < len(FIRST):
                    got += len(await anext(stream))
            waiting = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0.01)
            await loader.__aexit__(None, None, None)
            await ends(waiting)
        nothing_is_pending()

    run(main())


def test_a_saver_closed_while_another_task_waits_ends_its_wait(run: Run, net: Net) -> None:
    async def main() -> None:
        saver = await ringmain.save(net.url(), listen_once=True, **net.listening).__aenter__()
        waiting = asyncio.ensure_future(saver.write(FIRST))
        await asyncio.sleep(0.01)
        with pytest.raises(ringmain.SendError, match="another task has not ended its write"):
            await saver.__aexit__(None, None, None)
        await ends(waiting)
        nothing_is_pending()

    run(main())


@SENDERS
def test_a_sender_closed_while_another_task_sends_never_ends_properly_with_a_part(
    run: Run, net: Net, verb: str
) -> None:
    async def main() -> None:
        async with witness.serving(net.server(), b"", WITHOUT_END) as (port, servers):
            saver = await getattr(ringmain, verb)(net.url(port), **net.dialling).__aenter__()
            waiting = asyncio.ensure_future(saver.write(LARGE))
            await asyncio.sleep(0)
            with pytest.raises(ringmain.SendError, match="another task has not ended its write"):
                await saver.__aexit__(None, None, None)
            await ends(waiting)
        assert LARGE.startswith(bytes(servers[0].received))
        assert servers[0].end not in PROPER or len(servers[0].received) == len(LARGE)
        nothing_is_pending()

    run(main())


def test_a_connection_closed_while_another_task_reads_ends_its_wait_with_an_error(run: Run, net: Net) -> None:
    async def main() -> None:
        async with witness.serving(net.server(), b"", WITHOUT_END) as (port, servers):
            async with ringmain.connect(net.url(port), **net.dialling) as connection:
                waiting = asyncio.ensure_future(connection.read())
                await asyncio.sleep(0.01)
            with pytest.raises(ringmain.ReceiveError, match="closed"):
                await waiting
        assert servers[0].end in PROPER
        nothing_is_pending()

    run(main())


@pytest.mark.parametrize("client_has_come", [False, True])
def test_a_relay_closed_while_another_task_serves_ends_that(run: Run, net: Net, client_has_come: bool) -> None:
    async def main() -> None:
        async with (
            witness.serving(net.server(), SECOND, WITHOUT_END) as (port, servers),
            contextlib.AsyncExitStack() as stack,
        ):
            async with net.relay(port) as relayer:
                serving = asyncio.ensure_future(relayer.serve())
                if client_has_come:
                    client = await stack.enter_async_context(coming(net, relayer.port, FIRST, WITHOUT_END))
                    while not (servers and servers[0].received and client.received):  # noqa: ASYNC110 - both ways
                        await asyncio.sleep(0.001)
                await asyncio.sleep(0.01)
            await ends(serving)
        for it in ([client] if client_has_come else []) + servers:
            assert it.end == "reset"
        nothing_is_pending()

    run(main())


@pytest.mark.parametrize("when", ["before it is opened", "before it waits", "while it waits", "while it serves"])
def test_a_loader_stopped_at_any_time_serves_no_other_client(run: Run, net: Net, when: str) -> None:
    async def main() -> None:
        loader = ringmain.load(net.url(), **net.listening)
        if when == "before it is opened":
            loader.stop()
        got = bytearray()

        async def take() -> None:
            async for block in loader:
                got.extend(block)

        async with loader, contextlib.AsyncExitStack() as stack:
            if when == "before it waits":
                loader.stop()
            taking = asyncio.ensure_future(take())
            await asyncio.sleep(0)
            if when == "while it waits":
                loader.stop()
            if when == "while it serves":
                await stack.enter_async_context(coming(net, loader.port, FIRST, WITHOUT_END))
                while not got:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
                loader.stop()
            await ends(taking)
            assert FIRST.startswith(bytes(got))
        nothing_is_pending()

    run(main())


@pytest.mark.parametrize("when", ["before it is opened", "before it serves", "while it waits", "while it serves"])
def test_a_relay_stopped_at_any_time_serves_no_other_client(run: Run, net: Net, when: str) -> None:
    async def main() -> None:
        async with (
            witness.serving(net.server(), SECOND, WITHOUT_END) as (port, servers),
            contextlib.AsyncExitStack() as stack,
        ):
            relayer = net.relay(port)
            if when == "before it is opened":
                relayer.stop()
            async with relayer:
                if when == "before it serves":
                    relayer.stop()
                serving = asyncio.ensure_future(relayer.serve())
                await asyncio.sleep(0)
                if when == "while it serves":
                    client = await stack.enter_async_context(coming(net, relayer.port, FIRST, WITHOUT_END))
                    while not (servers and servers[0].received and client.received):  # noqa: ASYNC110 - both ways
                        await asyncio.sleep(0.001)
                if when.startswith("while"):
                    relayer.stop()
                await ends(serving)
        assert len(servers) == (when == "while it serves")
        nothing_is_pending()

    run(main())
