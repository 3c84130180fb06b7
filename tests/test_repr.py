"""What an object says of itself in a debugger or a log: one line, at any time."""

import asyncio
import importlib
import inspect
import pkgutil
import socket
from collections.abc import Callable, Iterator
from typing import Any

import peers
import pytest
from feeding import library

import ringmain
from ringmain import feeds, testing
from ringmain.testing import Measurement, Round, Throughput

Run = Callable[[Any], Any]


def test_a_loader_and_its_stream_tell_their_state(run: Run) -> None:
    async def main() -> None:
        loader = ringmain.load("tcp://127.0.0.1:0")
        assert repr(loader) == "<Loader tcp://127.0.0.1:0 closed>"
        async with loader:
            where = f"tcp://127.0.0.1:{loader.port}"
            assert repr(loader) == f"<Loader {where} listening, no connection>"
            connections = loader.connections()
            with peers.connect(loader.port) as client:
                peer = f"127.0.0.1:{client.getsockname()[1]}"
                client.sendall(b"12345")
                stream = await anext(connections)
                await anext(stream)
                assert repr(loader) == f"<Loader {where} listening, 1 connection, 5 bytes>"
                assert repr(stream) == f"<Stream {peer} running, 5 bytes>"
            assert [block async for block in stream] == []
            assert repr(stream) == f"<Stream {peer} ended, 5 bytes>"
        assert repr(loader) == "<Loader tcp://127.0.0.1:0 closed>"

    run(main())


def test_a_saver_and_a_relayer_tell_their_state(run: Run) -> None:
    async def main() -> None:
        async with ringmain.load("127.0.0.1:0") as loader:
            destination = f"tcp://127.0.0.1:{loader.port}"
            async with ringmain.relay("127.0.0.1:0", destination) as relayer:
                source = f"tcp://127.0.0.1:{relayer.port}"
                assert repr(relayer) == f"<Relayer {source} to {destination} listening, no connection>"
                serving = asyncio.ensure_future(relayer.serve())
                async with ringmain.save(source) as saver:
                    await saver.write(b"12345")
                    assert bytes(await anext(loader)) == b"12345"
                    assert repr(saver) == f"<Saver {source} connected, 5 bytes>"
                    await asyncio.to_thread(peers.eventually, lambda: relayer.counters[0].bytes_out == 5)
                    text = f"<Relayer {source} to {destination} listening, 1 connection, 5 and 0 bytes>"
                    assert repr(relayer) == text
                    relayer.stop()
                    await serving
                    await saver.break_off(at_once=True)
                assert repr(saver) == f"<Saver {source} closed>"
            assert repr(relayer) == f"<Relayer tcp://127.0.0.1:0 to {destination} closed>"

    run(main())


def test_a_file_tells_what_its_connection_does() -> None:
    with ringmain.load("127.0.0.1:0", listen_once=True) as loader:
        where = f"tcp://127.0.0.1:{loader.port}"
        file = ringmain.open(where, "wb")
        file.write(b"12345")
        file.flush()
        assert repr(file) == f"<Writer {where} connected, 5 bytes>"
        file.close()
        assert repr(file) == f"<Writer {where} closed>"
        assert b"".join(bytes(block) for block in loader) == b"12345"
    with ringmain.load("127.0.0.1:0") as loader:
        reader = ringmain.open(f"127.0.0.1:{loader.port}")
        assert repr(reader) == f"<Reader tcp://127.0.0.1:{loader.port} connected, 0 bytes>"
        raw = reader.detach()
        assert repr(reader) == "<Reader detached>"
        raw.close()


def test_a_connection_and_a_server_tell_their_state(run: Run) -> None:
    async def answer(connection: ringmain.Connection) -> None:
        await connection.write(b"hello")
        assert await connection.read() is None

    async def main() -> None:
        server = ringmain.serve("127.0.0.1:0", answer)
        assert repr(server) == "<Server tcp://127.0.0.1:0 closed>"
        async with server:
            where = f"tcp://127.0.0.1:{server.port}"
            assert repr(server) == f"<Server {where} listening, no connection>"
            dialled = ringmain.connect(where)
            assert repr(dialled) == f"<connect {where} closed>"
            async with dialled as connection:
                assert repr(dialled) == f"<connect {where} open>"
                assert bytes(await connection.read() or b"") == b"hello"
                assert repr(server) == f"<Server {where} listening, 1 connection>"
                assert repr(connection) == f"<Connection 127.0.0.1:{server.port} open, 5 and 0 bytes>"
            assert repr(dialled) == f"<connect {where} closed>"
        assert repr(server) == "<Server tcp://127.0.0.1:0 closed>"

    run(main())


def test_what_iterates_tells_over_what() -> None:
    lines = library("ringmain.feeds.msgspec")
    loader = ringmain.load("127.0.0.1:0", delimiter=b"\n", max_connections=2)
    known = "<Loader tcp://127.0.0.1:0 closed>"
    assert repr(loader.records()) == f"<Records of {known}>"
    assert repr(loader.tagged()) == f"<Tagged of {known}>"
    assert repr(loader.connections()) == f"<Connections of {known}>"
    assert repr(lines.decode_lines(loader)) == f"<Lines of {known}>"


@pytest.mark.parametrize("name", ["polars", "pandas"])
def test_feeds_tell_their_source_and_what_they_have_skipped(name: str) -> None:
    arrow, feed = library("ringmain.feeds.arrow"), library(f"ringmain.feeds.{name}")
    with ringmain.load("127.0.0.1:0", listen_once=True, delimiter=b"\n") as loader:
        frames = feed.frames(loader, on_error="skip")
        with socket.create_connection(("127.0.0.1", loader.port)) as sock:
            sock.sendall(b'{"a":1}\n{\n')
        assert sum(len(frame) for frame in frames) == 1
        assert (frames.skipped, frames.skipped_size) == (1, 2)
        assert repr(frames) == f"<Frames of <Batches of {loader!r}, 1 record skipped>>"
        assert repr(arrow.batches(loader, "csv")) == f"<Batches of {loader!r}>"
    loader = ringmain.load("127.0.0.1:0")
    assert repr(arrow.batches(loader, "ipc")) == "<IpcBatches of <Loader tcp://127.0.0.1:0 closed>>"
    records = library("ringmain.feeds.numpy").records(loader, "<u4")
    assert repr(records) == "<Records of <Loader tcp://127.0.0.1:0 closed>>"


def test_a_ring_and_counters_tell_what_they_count() -> None:
    with ringmain.load("127.0.0.1:0", ring_size=4096, block_size=1024) as loader:
        assert repr(loader.ring) == "<Ring 4 blocks of 1024 bytes, 0 lent>"
        assert repr(ringmain.Counters()) == "<Counters not begun>"
        with socket.create_connection(("127.0.0.1", loader.port)) as sock:
            sock.sendall(b"12345")
            block = next(loader)
            assert repr(loader.ring) == "<Ring 4 blocks of 1024 bytes, 1 lent>"
            assert repr(loader.counters).startswith("<Counters running, bytes_in=5, reads=")
            block.release()


def test_a_peer_of_the_fixtures_tells_where_it_is_and_what_it_has_seen() -> None:
    made = testing.Peers()
    assert repr(made) == "<Peers none yet>"
    peer = made.loader()
    assert repr(made) == f"<Peers {peer.endpoint}>"
    assert repr(peer) == f"<Peer {peer.endpoint} listening, 0 connections ended>"
    peers.connect(peer.port).close()
    peer.wait()
    assert repr(peer) == f"<Peer {peer.endpoint} listening, 1 connection ended>"
    made.close()
    assert repr(peer) == f"<Peer {peer.endpoint} closed, 1 connection ended>"
    throughput = Throughput(made)
    assert repr(throughput) == "<Throughput not measured>"
    throughput.measurement = Measurement((Round(10**9, 1.0, 0.5),))
    assert repr(throughput) == "<Throughput 1 GB/s (1 to 1), 0.5 CPU s/GB, 1 x 1000 MB>"


def public_classes() -> Iterator[type]:
    """Yield what users get objects of: the classes of `ringmain`, and the iterators that it makes and its feeds are."""
    found = [getattr(ringmain, name) for name in ringmain.__all__] + [
        getattr(testing, name) for name in testing.__all__
    ]
    names = ["file", "flow.records", "iterators", "loader", "connection", "server", "stream", "engines.nats_loader"]
    names += [f"feeds.{it.name}" for it in pkgutil.iter_modules(feeds.__path__)]
    for name in names:
        try:
            module = importlib.import_module(f"ringmain.{name}")
        except (ImportError, ringmain.UsageError):
            continue  # of a library that is not installed
        own = [it for it in vars(module).values() if getattr(it, "__module__", None) == module.__name__]
        found += [it for it in own if hasattr(it, "__next__")]
    yield from {it: None for it in found if inspect.isclass(it)}


def test_no_public_object_is_told_by_its_address_alone() -> None:
    classes = list(public_classes())
    names = {it.__name__ for it in classes}
    assert {"Loader", "LogLoader", "LogTagged", "Records", "Connections", "Frames", "Lines", "IpcBatches"} <= names
    silent = [
        it.__qualname__
        for it in classes
        if it.__repr__ is object.__repr__
        and not it.__name__.startswith("_")
        and not hasattr(it, "__total__")  # a TypedDict, whose objects are dicts
        and not getattr(it, "_is_protocol", False)  # nor has a protocol any
    ]
    assert silent == []
