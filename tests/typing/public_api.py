"""What a type checker sees of the public API. Read by mypy --strict in `make lint`, never run."""

import io
from typing import assert_type

import ringmain


async def asynchronous() -> None:
    async with ringmain.load("tcp://127.0.0.1:0", delimiter=b"\n", listen_once=True, idle_timeout=5.0) as loader:
        assert_type(loader, ringmain.Loader)
        assert_type(loader.port, int)
        assert_type(loader.addresses, list[str])
        assert_type(loader.counters, ringmain.Counters | None)
        async for block in loader:
            assert_type(block, memoryview)
        async for connection in loader.connections():
            assert_type(connection, ringmain.Stream)
            assert_type(connection.peer, str)
            assert_type(connection.tls, str | None)
            assert_type(connection.verdict, str | None)
            assert_type(connection.counters, ringmain.Counters)
            assert_type(connection.counters.bytes_in, int)
            async for block in connection:
                assert_type(block, memoryview)
    async with ringmain.save("tcps://127.0.0.1:1", cafile="ca.pem", min_tls_version="1.3") as saver:
        assert_type(saver, ringmain.Saver)
        assert_type(await saver.write(b"bytes"), None)
        await saver.write(bytearray(1))
        await saver.write(memoryview(b"view"))
    async with ringmain.relay(
        "tcp://:0", "tcps://[::1]:1", destination_tls=ringmain.TlsSettings(), retry=-1
    ) as relayer:
        assert_type(relayer, ringmain.Relayer)
        assert_type(relayer.port, int)
        assert_type(await relayer.serve(), None)
        assert_type(relayer.counters, list[ringmain.Counters])
    assert_type(await ringmain.relay("tcp://:0", "tcp://[::1]:1", one_way=True, send_proxy="v2"), None)
    ringmain.relay("tcp://:0", "tcp://[::1]:1", cafile="ca.pem")  # type: ignore[call-arg]
    ringmain.load("127.0.0.1:0", gate="open")  # type: ignore[arg-type]
    ringmain.load("127.0.0.1:0", nonsense=True)  # type: ignore[call-arg]


def plain() -> None:
    with ringmain.load("tcp://127.0.0.1:0", connect=True) as loader:
        for block in loader:
            assert_type(block, memoryview)
        for connection in loader.connections():
            for block in connection:
                assert_type(block, memoryview)
    with ringmain.save("tcp://127.0.0.1:1", listen=True) as saver:
        saver.write(b"bytes")
        assert_type(saver.port, int)
    with ringmain.relay("tcp://127.0.0.1:1", "tcp://127.0.0.1:2", connect=True) as relayer:
        assert_type(relayer.addresses, list[str])
        relayer.serve()
    with ringmain.open("tcp://127.0.0.1:1") as reader:
        assert_type(reader, ringmain.Reader)
        assert_type(reader.readline(), bytes)
        assert_type(reader.read_buffer(10), memoryview)
    with ringmain.open("tcp://127.0.0.1:1", "wb") as writer:
        assert_type(writer, ringmain.Writer)
        assert_type(writer.write(b"bytes"), int)
        file: io.BufferedIOBase = writer
    assert_type(file.closed, bool)
    assert_type(ringmain.nics(), list[ringmain.Nic])
    assert_type(ringmain.Endpoint.parse("tcp://[::1]:80").tls, bool)
    assert_type(ringmain.TlsSettings(certfile="pem").certfile, str | None)


def failing() -> str:
    try:
        plain()
    except ringmain.TruncatedError as error:
        return assert_type(error.what, str)
    except ringmain.RingmainError as error:
        assert_type(error.exit_code, int)
        return assert_type(error.why + error.remedy, str)
    return ""
