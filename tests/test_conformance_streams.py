"""One suite for all streams: loader and its connections, saver, relay, file, two-way: plain and TLS, on both loops.

Every call that can wait is cancelled at every point where it does, once and while it cleans up, and after each the
stream is either as if the call had not begun, or broken and says so. What the peer was sent is a prefix, and never ends
properly where something is missing. `test_conformance_calls.py` has the calls out of turn. The idea is trio's
`check_one_way_stream`.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import peers
import pytest
import witness
from conforming import FIRST, LARGE, PROPER, SECOND, WITHOUT_END, Net, coming, is_prefix, nothing_is_pending
from steps import at_every_point, cancelled_at
from talking import echo

import ringmain
from ringmain import errors

Run = Callable[[Coroutine[Any, Any, Any]], Any]
TIMES = pytest.mark.parametrize("times", [1, 2], ids=["once", "twice"])
SENDERS = pytest.mark.parametrize("verb", ["save", "connect"])
STREAMS = pytest.mark.parametrize("of_connections", [False, True], ids=["loader", "connection"])


class Consumer:
    """Takes all that a loader brings, by itself or by way of its connections, and can go on after a cancellation."""

    def __init__(self, loader: ringmain.Loader, *, of_connections: bool) -> None:
        self._loader, self._of_connections = loader, of_connections
        self._connection: Any = None
        self.got = bytearray()

    async def take(self) -> None:
        if self._of_connections and self._connection is None:
            self._connection = await anext(self._loader.connections())
        async for block in self._connection or self._loader:
            self.got += block
            block.release()


@TIMES
@STREAMS
def test_a_receive_cancelled_anywhere_loses_nothing(run: Run, net: Net, of_connections: bool, times: int) -> None:
    async def attempt(number: int) -> bool:
        async with (
            ringmain.load(net.url(), listen_once=True, block_size=4096, **net.listening) as loader,
            coming(net, loader.port, FIRST + SECOND) as client,
        ):
            consumer = Consumer(loader, of_connections=of_connections)
            reached = await cancelled_at(number, consumer.take(), times)
            if reached:
                await consumer.take()
        assert peers.sha256(bytes(consumer.got)) == peers.sha256(FIRST + SECOND)
        assert client.end in PROPER
        nothing_is_pending()
        return reached

    assert run(at_every_point(attempt)) > 1


@TIMES
def test_a_read_cancelled_anywhere_loses_nothing_while_the_same_connection_writes(
    run: Run, net: Net, times: int
) -> None:
    async def attempt(number: int) -> bool:
        got = bytearray()

        async def take() -> None:
            async for block in connection:
                got.extend(block)
                block.release()

        async with (
            witness.serving(net.server(), FIRST + SECOND, len(FIRST)) as (port, servers),
            ringmain.connect(net.url(port), block_size=4096, **net.dialling) as connection,
        ):
            await connection.write(FIRST)
            reached = await cancelled_at(number, take(), times)
            if reached:
                await take()
        assert peers.sha256(bytes(got)) == peers.sha256(FIRST + SECOND)
        assert (servers[0].received, servers[0].end in PROPER) == (FIRST, True)
        nothing_is_pending()
        return reached

    assert run(at_every_point(attempt)) > 0


@TIMES
@pytest.mark.parametrize("verb", ["load", "save", "connect"])
def test_opening_cancelled_anywhere_leaves_nothing_open(run: Run, net: Net, verb: str, times: int) -> None:
    how = {"connect": True} if verb == "load" else {}

    async def attempt(number: int) -> bool:
        async with witness.serving(net.server(), FIRST, 0) as (port, servers):
            # A name, which is waited for: a loop may connect to an address of this machine at once.
            url = f"{net.scheme}://localhost:{port}"
            manager = getattr(ringmain, verb)(url, **how, **net.dialling)
            streams = []

            async def open_it() -> None:
                streams.append(await manager.__aenter__())

            reached = await cancelled_at(number, open_it(), times)
            if reached:
                await open_it()  # as if the call had not begun
            if verb != "save":
                assert b"".join([bytes(block) async for block in streams[0]]) == FIRST
            await manager.__aexit__(None, None, None)
        assert servers[-1].end in PROPER
        nothing_is_pending()
        return reached

    assert run(at_every_point(attempt)) > 0


@TIMES
@SENDERS
def test_a_write_cancelled_anywhere_never_leaves_a_hole_with_a_proper_end(
    run: Run, net: Net, verb: str, times: int
) -> None:
    async def attempt(number: int) -> bool:
        async with witness.serving(net.server(), b"", WITHOUT_END) as (port, servers):
            reached = broken = False
            try:
                async with getattr(ringmain, verb)(net.url(port), **net.dialling) as saver:
                    await saver.write(FIRST)
                    reached = await cancelled_at(number, saver.write(LARGE), times)
                    await saver.write(SECOND)
            except errors.SendError:
                broken = True
        got, end = bytes(servers[0].received), servers[0].end
        if broken:
            assert reached
            assert end not in PROPER
            assert is_prefix(got, FIRST + LARGE)
        else:
            assert end in PROPER
            assert peers.sha256(got) == peers.sha256(FIRST + (b"" if reached else LARGE) + SECOND)
        nothing_is_pending()
        return reached

    assert run(at_every_point(attempt)) > 0


@TIMES
def test_a_write_cancelled_before_a_client_has_come_has_not_begun(run: Run, net: Net, times: int) -> None:
    async def attempt(number: int) -> bool:
        async with ringmain.save(net.url(), listen_once=True, **net.listening) as saver:
            reached = number < 2 and await cancelled_at(number, saver.write(FIRST), times)
            async with coming(net, saver.port, b"", WITHOUT_END) as client:
                await saver.write(SECOND)
                await saver.__aexit__(None, None, None)
        assert client.end in PROPER
        assert client.received == SECOND
        nothing_is_pending()
        return reached

    assert run(at_every_point(attempt)) == 1


@TIMES
@SENDERS
def test_leaving_cancelled_anywhere_ends_properly_only_what_is_whole(run: Run, net: Net, verb: str, times: int) -> None:
    async def attempt(number: int) -> bool:
        async with witness.serving(net.server(), b"", WITHOUT_END) as (port, servers):
            saver = await getattr(ringmain, verb)(net.url(port), **net.dialling).__aenter__()
            await saver.write(FIRST)
            await saver.write(LARGE[:1_000_000])
            reached = await cancelled_at(number, saver.__aexit__(None, None, None), times)
        got, end = bytes(servers[0].received), servers[0].end
        whole = FIRST + LARGE[:1_000_000]
        assert is_prefix(got, whole)
        assert end not in PROPER or len(got) == len(whole)
        assert reached or end in PROPER
        nothing_is_pending()
        return reached

    assert run(at_every_point(attempt)) > 0


@TIMES
@pytest.mark.parametrize("size", [10, 6_000_000], ids=["small", "large"])
def test_a_half_close_cancelled_anywhere_can_be_made_again_or_is_broken(
    run: Run, net: Net, size: int, times: int
) -> None:
    async def attempt(number: int) -> bool:
        got, reached, broken = b"", False, False
        async with witness.serving(net.server(), SECOND, WITHOUT_END) as (port, servers):
            try:
                async with ringmain.connect(net.url(port), **net.dialling) as connection:

                    async def write_and_end() -> None:
                        await connection.write(LARGE[:size])
                        await connection.write_eof()

                    reached = await cancelled_at(number, write_and_end(), times)
                    await connection.write_eof()
                    got = b"".join([bytes(block) async for block in connection])
            except errors.SendError:
                broken = True
        received, end = bytes(servers[0].received), servers[0].end
        assert is_prefix(received, LARGE[:size])
        assert broken != (end in PROPER)
        assert broken or (len(received) in (0, size) and got == SECOND)
        assert reached or not broken
        nothing_is_pending()
        return reached

    assert run(at_every_point(attempt)) > 0


@TIMES
def test_opening_a_server_cancelled_anywhere_leaves_nothing_open(run: Run, net: Net, times: int) -> None:
    async def attempt(number: int) -> bool:
        # A name, which is waited for: uvloop needs no time for an address.
        server = ringmain.serve(f"{net.scheme}://localhost:0", echo, family=4, **net.listening)
        reached = await cancelled_at(number, server.__aenter__(), times)
        if reached:
            await server.__aenter__()  # as if the call had not begun
        async with coming(net, server.port, FIRST, len(FIRST)) as client:
            pass
        await server.__aexit__(None, None, None)
        assert (client.received, client.end in PROPER) == (FIRST, True)
        nothing_is_pending()
        return reached

    assert run(at_every_point(attempt)) > 0


@TIMES
def test_leaving_a_server_cancelled_anywhere_leaves_nothing_open(run: Run, net: Net, times: int) -> None:
    async def attempt(number: int) -> bool:
        async def answer(connection: ringmain.Connection) -> None:
            async for _ in connection:
                await connection.write(SECOND)

        server = await ringmain.serve(net.url(), answer, **net.listening).__aenter__()
        async with coming(net, server.port, FIRST, WITHOUT_END) as client:
            while not client.received:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            reached = await cancelled_at(number, server.__aexit__(None, None, None), times)
        assert client.end == "reset"
        nothing_is_pending()
        return reached

    assert run(at_every_point(attempt)) > 0


@TIMES
def test_a_relay_cancelled_anywhere_ends_properly_only_what_is_whole(run: Run, net: Net, times: int) -> None:
    async def attempt(number: int) -> bool:
        async with (
            witness.serving(net.server(), SECOND, len(FIRST)) as (port, servers),
            net.relay(port) as relayer,
            coming(net, relayer.port, FIRST, len(SECOND)) as client,
        ):
            reached = await cancelled_at(number, relayer.serve(), times)
            if reached and client.end is None and not servers:
                # No client was taken: as if the call had not begun. Or it was, and has yet to notice its reset.
                again = asyncio.ensure_future(relayer.serve())
                while not again.done() and client.end is None:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
                if client.end == "reset":
                    again.cancel()
                    await asyncio.wait([again])
                else:
                    await again
        for it, whole in ((client, SECOND), *((server, FIRST) for server in servers)):
            assert is_prefix(bytes(it.received), whole)
            assert it.end not in PROPER or len(it.received) == len(whole)
        assert reached or (client.end in PROPER and servers[0].end in PROPER)
        nothing_is_pending()
        return reached

    assert run(at_every_point(attempt)) > 1
