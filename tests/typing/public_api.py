"""What a type checker sees of the public API. Read by mypy --strict in `make lint`, never run."""

import io
from typing import Any, assert_type

import ringmain
from ringmain.feeds import arrow
from ringmain.feeds import msgspec as lines
from ringmain.feeds import numpy as records
from ringmain.testing import Measurement, Peer, PeerConnection, Peers, Throughput


async def echo(connection: ringmain.Connection) -> None:
    async for block in connection:
        await connection.write(block)


async def asynchronous() -> None:
    async with ringmain.load("tcp://127.0.0.1:0", delimiter=b"\n", listen_once=True, idle_timeout=5.0) as loader:
        assert_type(loader, ringmain.Loader)
        assert_type(loader.port, int)
        assert_type(loader.addresses, list[str])
        assert_type(loader.counters, ringmain.Counters | None)
        async for block in loader:
            assert_type(block, memoryview)
        async for record in loader.records(headers=True):
            assert_type(record, memoryview)
        async for connection in loader.connections():
            assert_type(connection, ringmain.Stream)
            assert_type(connection.peer, str)
            assert_type(connection.tls, str | None)
            assert_type(connection.verdict, str | None)
            assert_type(connection.counters, ringmain.Counters)
            assert_type(connection.counters.bytes_in, int)
            assert_type(connection.counters.skipped_records, int)
            async for block in connection:
                assert_type(block, memoryview)
            connection.close()
            connection.abort()
        await loader.aclose()
        loader.abort()
    async with ringmain.save("tcps://127.0.0.1:1", cafile="ca.pem", min_tls_version="1.3") as saver:
        assert_type(saver, ringmain.Saver)
        assert_type(await saver.write(b"bytes"), None)
        await saver.write(bytearray(1))
        await saver.write(memoryview(b"view"))
        assert_type(await saver.wait_for_peer(), None)
        assert_type(await saver.end_connection(), None)
        assert_type(await saver.break_off(), None)
        assert_type((saver.fullness, saver.stop()), tuple[float, bool])
    async with ringmain.save("tcp://:0", listen=True, max_connections=2, slow="drop", client_buffer=1) as saver:
        assert_type(saver.connections, int)
    async with ringmain.relay(
        "tcp://:0", "tcps://[::1]:1", destination_tls=ringmain.TlsSettings(), retry=-1
    ) as relayer:
        assert_type(relayer, ringmain.Relayer)
        assert_type(relayer.port, int)
        assert_type(await relayer.serve(), None)
        assert_type(relayer.counters, list[ringmain.Counters])
        assert_type(relayer.waiting_for, list[tuple[str, int]])
    assert_type(await ringmain.relay("tcp://:0", "tcp://[::1]:1", one_way=True, send_proxy="v2"), None)
    ringmain.relay("tcp://:0", "tcp://[::1]:1", cafile="ca.pem")  # type: ignore[call-overload]
    async with ringmain.connect("tcps://[::1]:1", cafile="ca.pem", delimiter=b"\n", linger=0.0) as both:
        assert_type(both, ringmain.Connection)
        assert_type((both.peer, both.tls, both.cipher), tuple[str, str | None, str | None])
        assert_type(both.counters, ringmain.Counters)
        assert_type(await both.read(), memoryview | None)
        assert_type([record async for record in both.records(headers=True)], list[memoryview])
        assert_type(await both.write(memoryview(b"view")), None)
        assert_type(await both.write_eof(), None)
        await both.aclose()
        both.abort()
        async for block in both:
            assert_type(block, memoryview)
    async with ringmain.serve("tcp://:0", echo, idle_timeout=5.0) as server:
        assert_type(server, ringmain.Server)
        assert_type((server.port, server.addresses, server.refused), tuple[int, list[str], int])
        assert_type(server.stop(), None)
        assert_type(await server.serve(), None)
    assert_type(await ringmain.serve("tcp://:0", echo), None)
    ringmain.serve("tcp://:0", print)  # type: ignore[arg-type]
    ringmain.connect("tcp://:0", nonsense=True)  # type: ignore[call-arg]
    ringmain.load("127.0.0.1:0", delimiter=b"\n", max_record=1 << 20, long_records="skip")
    ringmain.load("127.0.0.1:0", delimiter=b"\n", long_records="drop")  # type: ignore[call-overload]
    ringmain.load("127.0.0.1:0", gate="open")  # type: ignore[call-overload]
    ringmain.load("127.0.0.1:0", nonsense=True)  # type: ignore[call-overload]


def plain() -> None:
    with ringmain.load("tcp://127.0.0.1:0", connect=True) as loader:
        for block in loader:
            assert_type(block, memoryview)
        for connection in loader.connections():
            for block in connection:
                assert_type(block, memoryview)
    with ringmain.save("tcp://127.0.0.1:1", listen=True) as saver:
        assert_type(saver, ringmain.BlockingSaver)
        saver.write(b"bytes")
        saver.wait_for_peer()
        saver.end_connection()
        saver.break_off(at_once=True)
        saver.close()
        saver.abort()
        assert_type((saver.port, saver.addresses, saver.refused), tuple[int, list[str], int])
        assert_type(saver.counters, ringmain.Counters | None)
        assert_type((saver.fullness, saver.unacknowledged_bytes, saver.stop()), tuple[float, int, bool])
    with ringmain.relay("tcp://127.0.0.1:1", "tcp://127.0.0.1:2", connect=True) as relayer:
        assert_type(relayer, ringmain.BlockingRelayer)
        assert_type((relayer.port, relayer.addresses, relayer.refused), tuple[int, list[str], int])
        assert_type((relayer.counters, relayer.taken), tuple[list[ringmain.Counters], list[int]])
        assert_type((relayer.fullness, relayer.stop()), tuple[float, bool])
        assert_type(relayer.waiting_for, list[tuple[str, int]])
        relayer.serve()
        relayer.close()
    ringmain.load("tcp://127.0.0.1:0", retry="forever")  # type: ignore[call-overload]
    ringmain.open("tcp://127.0.0.1:1", "wb", linger=0.0)  # type: ignore[call-overload]
    with ringmain.open("tcp://127.0.0.1:1", block_size=1 << 16, linger=0.0) as reader:
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


def feeds(loader: ringmain.Loader, stream: ringmain.Stream) -> None:
    def put_aside(error: ringmain.ParseError, record: bytes) -> None:
        assert_type((error.connection, error.offset), tuple[str, int])

    feed = lines.decode_lines(loader, dict[str, int], on_error=put_aside)
    assert_type(feed, lines.Lines[dict[str, int]])
    assert_type(next(feed), list[dict[str, int]])
    assert_type((feed.skipped, feed.skipped_size), tuple[int, int])
    assert_type(lines.decode_lines(stream, on_error="skip"), lines.Lines[Any])
    assert_type(arrow.batches(stream, on_error="raise").skipped, int)
    records.records(loader, "<u4")
    lines.decode_lines(loader, on_error="ignore")  # type: ignore[call-overload]
    lines.decode_lines(loader, on_error=ord)  # type: ignore[arg-type]
    arrow.batches(loader, on_error="ignore")  # type: ignore[arg-type]


def failing() -> str:
    try:
        plain()
    except ringmain.TruncatedError as error:
        return assert_type(error.what, str)
    except ringmain.RingmainError as error:
        assert_type(error.exit_code, int)
        return assert_type(error.why + error.remedy, str)
    return ""


def testing(ringmain_peer: Peers, ringmain_throughput: Throughput) -> None:
    peer = ringmain_peer.saver(memoryview(b"payload"), times=2, tls=True)
    assert_type(peer, Peer)
    assert_type((peer.host, peer.port, peer.endpoint, peer.cafile), tuple[str, int, str, str | None])
    connection = ringmain_peer.loader(digest=False).wait(timeout=1)
    assert_type(connection, PeerConnection)
    assert_type((connection.size, connection.verdict, connection.error), tuple[int, str, str | None])
    assert_type(peer.connections, list[PeerConnection])
    measurement = ringmain_throughput.receive(lambda peer: peer.size, b"line\n", size=1, rounds=2, tls=True)
    assert_type(measurement, Measurement)
    assert_type(measurement.gb_per_second + measurement.rounds[0].cpu_seconds_per_gb, float)
    assert_type(ringmain_throughput.send(lambda peer: peer.port), Measurement)
    ringmain_throughput.send(lambda peer: peer.cafile)  # type: ignore[arg-type, return-value]


async def from_a_log() -> None:
    async with ringmain.load("nats://127.0.0.1:4222/EVENTS", consumer="parsers", until_sequence=9) as loader:
        assert_type(loader, ringmain.LogLoader)
        async for block in loader:
            assert_type(block, memoryview)
        async for tag, tagged in loader.tagged():
            assert_type(tagged, memoryview)
            assert_type((tag.peer, tag.connection, tag.offset, tag.sequence), tuple[str, str, int, int])
        arrow.record_batches(loader)
    ringmain.load("nats://127.0.0.1:4222/EVENTS", consumer="parsers", gate="hold")  # type: ignore[call-overload]
