"""Closing by a call: `aclose`, `close` and `abort` do what leaving the block does; and nothing is opened twice."""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import peers
import pytest
import witness
from conforming import FIRST, LARGE, PROPER, SECOND, WITHOUT_END, Net, coming, nothing_is_pending

import ringmain

Run = Callable[[Coroutine[Any, Any, Any]], Any]
SENDERS = pytest.mark.parametrize("verb", ["save", "connect"])
COUNTS = pytest.mark.parametrize("count", [1, 2], ids=["one", "many"])


@COUNTS
@pytest.mark.parametrize("call", ["aclose", "abort"])
def test_a_loader_closed_inside_its_block_ends_the_iteration_and_tells_its_peer(
    run: Run, net: Net, call: str, count: int
) -> None:
    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            async with ringmain.load(net.url(), max_connections=count, delimiter=b"\n", **net.listening) as loader:
                await stack.enter_async_context(coming(net, loader.port, b"line\n", WITHOUT_END))
                await anext(loader)
                closing = getattr(loader, call)()
                if closing is not None:
                    await closing
                with pytest.raises(StopAsyncIteration):
                    await anext(loader)
                await loader.aclose()  # nothing more
                loader.abort()
            assert repr(loader) == f"<Loader {net.url()} closed>"
        nothing_is_pending()

    run(main())


@COUNTS
@pytest.mark.parametrize("call", ["aclose", "abort"])
def test_the_peer_of_a_loader_hears_which_call_it_was(run: Run, net: Net, call: str, count: int) -> None:
    async def main() -> None:
        async with (
            contextlib.AsyncExitStack() as stack,
            ringmain.load(net.url(), max_connections=count, delimiter=b"\n", **net.listening) as loader,
        ):
            client = await stack.enter_async_context(coming(net, loader.port, b"line\n", WITHOUT_END))
            await anext(loader)
            closing = getattr(loader, call)()
            if closing is not None:
                await closing
            while client.end is None:  # noqa: ASYNC110 - before the block is left
                await asyncio.sleep(0.001)
        assert (client.end in PROPER) == (call == "aclose"), client.end
        nothing_is_pending()

    run(main())


@SENDERS
@pytest.mark.parametrize("call", ["aclose", "abort"])
def test_a_sender_closed_inside_its_block_is_closed_then(run: Run, net: Net, verb: str, call: str) -> None:
    async def main() -> None:
        async with (
            witness.serving(net.server(), b"", WITHOUT_END) as (port, servers),
            getattr(ringmain, verb)(net.url(port), **net.dialling) as saver,
        ):
            await saver.write(FIRST)
            closing = getattr(saver, call)()
            if closing is not None:
                await closing
            while not servers or servers[0].end is None:  # noqa: ASYNC110 - before the block is left
                await asyncio.sleep(0.001)
            with pytest.raises(ringmain.RingmainError):
                await saver.write(b"x")
            await saver.aclose()
            saver.abort()
        if call == "aclose":
            assert (servers[0].received, servers[0].end in PROPER) == (FIRST, True)
        else:
            assert FIRST.startswith(bytes(servers[0].received))
            assert servers[0].end == "reset"
        nothing_is_pending()

    run(main())


def test_what_is_aborted_while_another_task_writes_ends_that_and_never_looks_whole(run: Run, net: Net) -> None:
    async def main() -> None:
        async with (
            witness.serving(net.server(), b"", WITHOUT_END) as (port, servers),
            ringmain.save(net.url(port), **net.dialling) as saver,
        ):
            writing = asyncio.ensure_future(saver.write(LARGE * 10))
            while not (servers and servers[0].received):  # noqa: ASYNC110 - it has begun
                await asyncio.sleep(0)
            saver.abort()
            with pytest.raises(ringmain.RingmainError):
                await writing
        assert len(servers[0].received) < len(LARGE) * 10
        assert servers[0].end == "reset"
        nothing_is_pending()

    run(main())


def test_many_who_are_sent_to_are_all_closed_by_one_call(run: Run, net: Net) -> None:
    async def main(call: str) -> None:
        async with (
            contextlib.AsyncExitStack() as stack,
            ringmain.save(net.url(), listen=True, max_connections=2, **net.listening) as saver,
        ):
            both = [await stack.enter_async_context(coming(net, saver.port, b"", len(FIRST))) for _ in range(2)]
            while saver.connections < 2:
                await saver.wait_for_peer()
                await asyncio.sleep(0.001)
            await saver.write(FIRST)
            closing = getattr(saver, call)()
            if closing is not None:
                await closing
            assert saver.connections == 0
        for client in both:
            assert (client.end in PROPER) == (call == "aclose")
            assert FIRST.startswith(bytes(client.received))
        nothing_is_pending()

    for call in ("aclose", "abort"):
        run(main(call))


@pytest.mark.parametrize("call", ["aclose", "abort"])
def test_a_relay_closed_inside_its_block_ends_serve_and_resets_both_peers(run: Run, net: Net, call: str) -> None:
    async def main() -> None:
        async with (
            witness.serving(net.server(), SECOND, WITHOUT_END) as (port, servers),
            contextlib.AsyncExitStack() as stack,
            net.relay(port) as relayer,
        ):
            client = await stack.enter_async_context(coming(net, relayer.port, FIRST, WITHOUT_END))
            serving = asyncio.ensure_future(relayer.serve())
            while not (servers and servers[0].received and client.received):  # noqa: ASYNC110 - both ways
                await asyncio.sleep(0.001)
            closing = getattr(relayer, call)()
            if closing is not None:
                await closing
            await serving
            if call == "aclose":
                with pytest.raises(ringmain.UsageError, match="not open"):
                    await relayer.serve()
            else:
                await relayer.serve()  # which serves nobody
        assert (client.end, servers[0].end) == ("reset", "reset")
        nothing_is_pending()

    run(main())


def test_a_server_closed_inside_its_block_serves_nobody(run: Run) -> None:
    async def main() -> None:
        async with ringmain.serve("127.0.0.1:0", asyncio.sleep) as server:
            port = server.port
            await server.aclose()
            with pytest.raises(ConnectionRefusedError):
                peers.connect(port)
            with pytest.raises(ringmain.UsageError):
                await server.serve()

    run(main())


@pytest.mark.parametrize("call", ["close", "abort"])
def test_plain_forms_are_closed_by_plain_calls(call: str) -> None:
    with ringmain.load("127.0.0.1:0") as loader:
        port = loader.port
        with peers.connect(port) as sock:
            sock.sendall(b"some")
            assert bytes(next(loader)) == b"some"
            getattr(loader, call)()
            assert peers.ends_in_reset(sock) == (call == "abort")
        with pytest.raises(ringmain.UsageError, match="not open"):
            next(loader)
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        ringmain.save(f"127.0.0.1:{listener.getsockname()[1]}") as saver,
    ):
        sock, _ = listener.accept()
        saver.write(b"some")
        getattr(saver, call)()
        if call == "close":
            assert peers.read_all(sock) == b"some"
        else:
            assert peers.ends_in_reset(sock)
        sock.close()
        saver.close()
    with ringmain.relay("127.0.0.1:0", "127.0.0.1:1") as relayer:
        port = relayer.port
        relayer.close()
        with pytest.raises(ConnectionRefusedError):
            peers.connect(port)


@pytest.mark.parametrize("call", ["close", "abort"])
def test_a_plain_with_is_not_closed_while_another_thread_uses_it(call: str) -> None:
    """That one reads on, and the block closes what it has opened."""
    with ThreadPoolExecutor(1) as pool, ringmain.load("127.0.0.1:0") as loader, peers.connect(loader.port) as sock:
        sock.sendall(b"one")
        assert bytes(next(loader)) == b"one"
        reading = pool.submit(next, loader)
        peers.eventually(lambda: loader._runner is not None and loader._runner.get_loop().is_running(), "a read")
        with pytest.raises(ringmain.UsageError, match="another thread is using it"):
            getattr(loader, call)()
        sock.sendall(b"two")
        assert bytes(reading.result(peers.TIMEOUT)) == b"two"
        getattr(loader, call)()
        assert peers.ends_in_reset(sock) if call == "abort" else peers.read_all(sock) == b""


def test_each_form_is_closed_by_its_own_call(run: Run) -> None:
    async def main() -> None:
        async with ringmain.load("127.0.0.1:0") as loader:
            with pytest.raises(ringmain.UsageError, match="await aclose"):
                loader.close()
        with ringmain.load("127.0.0.1:0") as loader, pytest.raises(ringmain.UsageError, match="call close"):
            await loader.aclose()
        ringmain.load("127.0.0.1:0").close()
        await ringmain.load("127.0.0.1:0").aclose()

    run(main())


@pytest.mark.parametrize("mode", ["rb", "wb"])
def test_a_file_that_is_aborted_resets_its_peer(net: Net, mode: Any) -> None:
    def work(port: int) -> None:
        file = ringmain.open(net.url(port), mode, **net.dialling)
        if mode == "wb":
            file.write(FIRST)
            file.flush()
            file.write(b"more")
        else:
            assert file.read(1) == FIRST[:1]
        file.abort()
        assert file.closed
        file.abort()
        file.close()

    async def main() -> None:
        data, expected = (b"", WITHOUT_END) if mode == "wb" else (FIRST, 1)
        async with witness.serving(net.server(), data, expected) as (port, servers):
            await asyncio.to_thread(work, port)
        assert servers[0].end == "reset"

    asyncio.run(main())


@COUNTS
def test_a_stream_that_is_aborted_resets_its_peer_and_the_next_one_is_served(run: Run, count: int) -> None:
    async def main() -> None:
        async with ringmain.load("127.0.0.1:0", max_connections=count) as loader:
            connections = loader.connections()
            for call, is_reset in (("abort", True), ("close", False)):
                with peers.connect(loader.port) as sock:
                    sock.sendall(b"some")
                    stream = await anext(connections)
                    assert bytes(await anext(stream)) == b"some"
                    getattr(stream, call)()
                    assert await asyncio.to_thread(peers.ends_in_reset, sock) == is_reset
            del stream

    run(main())
