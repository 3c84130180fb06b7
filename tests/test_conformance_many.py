"""The conformance suite of all streams, for a loader of many clients: whichever way it is iterated over.

What is read is cancelled at every point where it waits, left by an exception, called twice, called after it was closed,
closed while another task waits, and stopped at any time.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import peers
import pytest
import witness
from conforming import PROPER, WITHOUT_END, Net, coming, nothing_is_pending
from steps import at_every_point, cancelled_at
from test_conformance_calls import BoomError, ends

import ringmain

Run = Callable[[Coroutine[Any, Any, Any]], Any]
WAYS = pytest.mark.parametrize("way", ["merged", "tagged", "records", "connections", "records of each"])
TIMES = pytest.mark.parametrize("times", [1, 2], ids=["once", "twice"])
LINES = [
    b"".join(b"%s %03d %s\n" % (name, index, b"." * (index % 90)) for index in range(150)) for name in (b"a", b"b")
]


def loading(net: Net, **options: Any) -> ringmain.Loader:
    """Return a loader of two clients at once, with blocks that hold little of what they send."""
    return ringmain.load(
        net.url(), max_connections=2, delimiter=b"\n", block_size=2048, ring_size=8192, **options, **net.listening
    )


class Consumer:
    """Takes all that a loader brings in one of the ways, and can go on after a cancellation."""

    def __init__(self, loader: ringmain.Loader, way: str) -> None:
        self.loader, self.way = loader, way
        self.got = bytearray()
        self._streams: Any = loader.connections()
        self._items: Any = {"merged": lambda: loader, "tagged": loader.tagged, "records": loader.records}.get(
            way, lambda: None
        )()

    @property
    def of_each(self) -> bool:
        return self.way in ("connections", "records of each")

    async def next_item(self) -> bytes:
        """Return what comes next; StopAsyncIteration: all has come."""
        while True:
            if self._items is None:
                stream = await anext(self._streams)
                self._items = stream if self.way == "connections" else stream.records()
            try:
                item = await anext(self._items)
            except StopAsyncIteration:
                if not self.of_each:
                    raise
                self._items = None
                continue
            view = item[1] if self.way == "tagged" else item
            with view:
                return bytes(view) + (b"\n" if self.way.startswith("records") else b"")

    async def take(self) -> None:
        with contextlib.suppress(StopAsyncIteration):
            while True:
                self.got += await self.next_item()

    def sorted_out(self) -> list[bytes]:
        """Return the lines of each client."""
        lines = self.got.splitlines(keepends=True)
        return [b"".join(it for it in lines if it.startswith(name)) for name in (b"a ", b"b ")]


@contextlib.asynccontextmanager
async def both(net: Net, port: int, expected: int = 0) -> AsyncIterator[list[witness.Witness]]:
    """Yield two clients that send beside us, which are over in the end."""
    async with coming(net, port, LINES[0], expected) as one, coming(net, port, LINES[1], expected) as two:
        yield [one, two]


@TIMES
@WAYS
def test_a_receive_of_many_cancelled_anywhere_loses_nothing(run: Run, net: Net, way: str, times: int) -> None:
    async def attempt(number: int) -> bool:
        async with loading(net) as loader:
            clients = [await witness.connect(loader.port, net.client()) for _ in LINES]
            sending = asyncio.gather(*(it.exchange(lines) for it, lines in zip(clients, LINES, strict=True)))
            sending.add_done_callback(lambda _: loader.stop())
            consumer = Consumer(loader, way)
            reached = await cancelled_at(number, consumer.take(), times)
            if reached:
                await consumer.take()
            await sending
        assert consumer.sorted_out() == LINES
        assert all(it.end in PROPER for it in clients)
        nothing_is_pending()
        return reached

    assert run(at_every_point(attempt)) > 1


@TIMES
def test_opening_a_loader_of_many_cancelled_anywhere_leaves_nothing_open(run: Run, net: Net, times: int) -> None:
    async def attempt(number: int) -> bool:
        # A name, which is waited for: uvloop needs no time for an address.
        loader = ringmain.load(f"{net.scheme}://localhost:0", family=4, max_connections=2, **net.listening)
        reached = await cancelled_at(number, loader.__aenter__(), times)
        if reached:
            await loader.__aenter__()  # as if the call had not begun
        consumer = Consumer(loader, "merged")
        async with coming(net, loader.port, LINES[0]):
            while len(consumer.got) < len(LINES[0]):
                consumer.got += await consumer.next_item()
        await loader.__aexit__(None, None, None)
        assert consumer.got == LINES[0]
        nothing_is_pending()
        return reached

    assert run(at_every_point(attempt)) > 0


@WAYS
def test_a_loader_of_many_left_by_an_exception_resets_all_peers(run: Run, net: Net, way: str) -> None:
    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            with pytest.raises(BoomError):
                async with loading(net) as loader:
                    clients = await stack.enter_async_context(both(net, loader.port, WITHOUT_END))
                    consumer = Consumer(loader, way)
                    if consumer.of_each:
                        streams = [await anext(loader.connections()) for _ in clients]
                        for stream in streams:
                            await anext(stream)
                    else:
                        while not all(consumer.sorted_out()):
                            consumer.got += await consumer.next_item()
                    raise BoomError
        assert [it.end for it in clients] == ["reset"] * 2
        nothing_is_pending()

    run(main())


@WAYS
def test_a_second_receive_of_many_while_one_waits_is_refused_and_harms_nothing(run: Run, net: Net, way: str) -> None:
    async def main() -> None:
        async with loading(net) as loader:
            consumer = Consumer(loader, way)
            first = asyncio.ensure_future(consumer.next_item())
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="already waiting"):
                await Consumer(loader, way).next_item()
            async with both(net, loader.port):
                consumer.got += await first
                while len(consumer.got) < len(LINES[0] + LINES[1]):
                    consumer.got += await consumer.next_item()
                taking = asyncio.ensure_future(consumer.take())
            loader.stop()
            await taking
        assert consumer.sorted_out() == LINES
        nothing_is_pending()

    run(main())


@WAYS
def test_a_loader_of_many_that_was_closed_brings_nothing_and_may_be_closed_again(run: Run, net: Net, way: str) -> None:
    async def main() -> None:
        loader = await loading(net).__aenter__()
        async with both(net, loader.port, WITHOUT_END):
            consumer = Consumer(loader, way)
            consumer.got += await consumer.next_item()
            await loader.__aexit__(None, None, None)
            before = len(consumer.got)
            with contextlib.suppress(ringmain.RingmainError):
                await consumer.take()
            # A record may be taken whose block was.
            assert len(consumer.got) == before or way.startswith("records")
            with pytest.raises((StopAsyncIteration, ringmain.RingmainError)):
                await Consumer(loader, way).next_item()
            loader.stop()
            await loader.__aexit__(None, None, None)
        nothing_is_pending()

    run(main())


@WAYS
@pytest.mark.parametrize("clients_have_come", [False, True])
def test_a_loader_of_many_closed_while_another_task_waits_ends_its_wait(
    run: Run, net: Net, way: str, clients_have_come: bool
) -> None:
    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            loader = await loading(net).__aenter__()
            consumer = Consumer(loader, way)
            if clients_have_come:
                await stack.enter_async_context(both(net, loader.port, WITHOUT_END))
                enough = len(LINES[0]) * (1 if consumer.of_each else 2)
                while len(consumer.got) < enough:
                    consumer.got += await consumer.next_item()
            waiting = asyncio.ensure_future(consumer.next_item())
            await asyncio.sleep(0.01)
            await loader.__aexit__(None, None, None)
            await ends(waiting)
        nothing_is_pending()

    run(main())


@WAYS
@pytest.mark.parametrize("when", ["before it is opened", "before it waits", "while it waits", "while it serves"])
def test_a_loader_of_many_stopped_at_any_time_serves_no_other_client(run: Run, net: Net, way: str, when: str) -> None:
    async def main() -> None:
        loader = loading(net)
        if when == "before it is opened":
            loader.stop()
        async with contextlib.AsyncExitStack() as stack, loader:
            consumer = Consumer(loader, way)
            if when == "before it waits":
                loader.stop()
            taking = asyncio.ensure_future(consumer.take())
            await asyncio.sleep(0)
            if when == "while it waits":
                loader.stop()
            if when == "while it serves":
                await stack.enter_async_context(both(net, loader.port, WITHOUT_END))
                while not consumer.got:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
                loader.stop()
            await ends(taking)
            for lines, got in zip(LINES, consumer.sorted_out(), strict=True):
                assert lines.startswith(got)
        nothing_is_pending()

    run(main())


def test_a_cancelled_wait_for_a_client_leaves_its_place_to_the_next(run: Run, net: Net) -> None:
    async def main() -> None:
        async with loading(net) as loader:
            for _ in range(3):
                waiting = asyncio.ensure_future(anext(loader.connections()))
                await asyncio.sleep(0)
                waiting.cancel()
                await asyncio.wait([waiting])
                async with coming(net, loader.port, LINES[0]):
                    stream = await anext(loader.connections())
                    got = b"".join([bytes(block) async for block in stream])
                assert peers.sha256(got) == peers.sha256(LINES[0])
        nothing_is_pending()

    run(main())
