"""What an object says of itself in a debugger or a log: one line, at any time."""

import asyncio
from collections.abc import Callable
from typing import Any

import peers

import ringmain

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
