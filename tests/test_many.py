"""Many clients at once: whole records of all, those of each in order, and nobody waits for a stranger."""

import asyncio
import binascii
import collections
import gc
import random
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import peers
import pytest
import witness
from conforming import Net, nothing_is_pending

import ringmain

Run = Callable[[Any], Any]


def records_of(number: int, count: int, largest: int) -> list[bytes]:
    """Return records that tell who sent them, which one each is, and a checksum of that and their filling."""
    chance = random.Random(number)
    records = []
    for index in range(count):
        filling = chance.choice([b"", "ø☃".encode() * chance.randrange(20), b"x" * chance.randrange(largest)])
        body = b"%d %d %s" % (number, index, filling)
        records.append(b"%s %08x" % (body, binascii.crc32(body)))
    return records


class Heard:
    """What came of each sender."""

    def __init__(self) -> None:
        self.of: collections.defaultdict[int, list[bytes]] = collections.defaultdict(list)
        self.count = 0

    def hear(self, block: memoryview) -> None:
        with block:
            data = bytes(block)
        assert data.endswith(b"\n")
        for record in data[:-1].split(b"\n"):
            body, _, checksum = record.rpartition(b" ")
            assert binascii.crc32(body) == int(checksum, 16)
            self.of[int(body.split(b" ", 1)[0])].append(record)
            self.count += 1


async def send(net: Net, port: int, data: bytes, seed: int = 0) -> None:
    """Send in pieces, some late, and end properly."""
    chance = random.Random(seed)
    client = await witness.connect(port, net.client())
    await client.shake_hands()
    while data:
        size = chance.choice([1, 7, 400, 65_000, 1 << 20])
        await client.send(data[:size])
        data = data[size:]
        if chance.random() < 0.05:
            await asyncio.sleep(0.01)
    await client.finish()
    await client.read_to_end()
    client.sock.close()


async def take_all(loader: ringmain.Loader, senders: list[Coroutine[Any, Any, None]], take: Any) -> None:
    """Take what senders send, all of it; then stop."""
    sending = asyncio.gather(*senders)
    sending.add_done_callback(lambda _: loader.stop())
    await take
    await sending


@pytest.mark.parametrize("most", [2, 7, 100], ids=["2 at once", "7 at once", "all at once"])
def test_every_record_of_every_client_comes_whole_once_and_in_order(run: Run, net: Net, most: int) -> None:
    sent = {number: records_of(number, 40, 150_000) for number in range(25)}
    heard = Heard()

    async def main() -> None:
        async with ringmain.load(net.url(), max_connections=most, **net.listening) as loader:

            async def take() -> None:
                async for block in loader:
                    heard.hear(block)

            senders = [send(net, loader.port, b"\n".join(sent[number]), number) for number in sent]
            await take_all(loader, senders, take())
        nothing_is_pending()

    run(main())
    assert heard.of == sent  # the last record of each was completed


def test_a_block_can_be_of_one_peer_only(run: Run, net: Net) -> None:
    sent = {number: records_of(number, 50, 5_000) for number in range(10)}
    heard: collections.defaultdict[str, Heard] = collections.defaultdict(Heard)

    async def main() -> None:
        async with ringmain.load(net.url(), max_connections=4, **net.listening) as loader:

            async def take() -> None:
                async for peer, block in loader.tagged():
                    heard[peer].hear(block)

            senders = [send(net, loader.port, b"\n".join(sent[number]) + b"\n", number) for number in sent]
            await take_all(loader, senders, take())

    run(main())
    assert len(heard) == len(sent)
    assert all(len(it.of) == 1 for it in heard.values())
    assert {number: records for it in heard.values() for number, records in it.of.items()} == sent


def test_each_connection_can_be_read_by_itself_at_the_same_time(run: Run, net: Net) -> None:
    count = 6
    data = {peers.payload(300_000, seed) for seed in range(count)}

    async def read(stream: ringmain.Stream, together: asyncio.Barrier) -> bytes:
        await together.wait()  # nobody's stream is over before everybody's has begun
        return b"".join([bytes(block) async for block in stream])

    async def main() -> set[bytes]:
        async with ringmain.load(net.url(), max_connections=count, **net.listening) as loader:
            together = asyncio.Barrier(count)
            senders = asyncio.gather(*(send(net, loader.port, it) for it in data))
            readers = []
            async for stream in loader.connections():
                readers.append(asyncio.ensure_future(read(stream, together)))
                if len(readers) == count:
                    break
            got = set(await asyncio.gather(*readers))
            await senders
        nothing_is_pending()
        return got

    assert run(main()) == data


def leave_alone(_: ringmain.Stream) -> None:
    """Forget it."""


@pytest.mark.parametrize("leave", [ringmain.Stream.close, leave_alone], ids=["closed", "forgotten"])
def test_a_stream_that_is_left_makes_room_for_the_next(run: Run, leave: Callable[[ringmain.Stream], None]) -> None:
    async def main() -> None:
        async with ringmain.load("127.0.0.1:0", max_connections=2, gate="queue") as loader:
            streams = loader.connections()
            with peers.connect(loader.port), peers.connect(loader.port), peers.connect(loader.port) as third:
                first, second = await anext(streams), await anext(streams)
                waiting = asyncio.ensure_future(anext(streams))
                await asyncio.sleep(0.1)
                assert not waiting.done()
                leave(first)
                del first
                gc.collect()
                stream = await waiting
                third.sendall(b"served")
                assert bytes(await anext(stream)) == b"served"
                del second

    run(main())


def test_what_a_client_has_of_a_record_when_it_is_lost_is_dropped_and_warned_of(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> bytes:
        got = b""
        async with ringmain.load("127.0.0.1:0", max_connections=3) as loader:
            sock = peers.connect(loader.port)
            sock.sendall(b"whole\nhalf of a rec")
            while got != b"whole\n":
                got += await anext(loader)
            peers.close_with_reset(sock)
            ended = asyncio.Event()
            loader.on_end = lambda _: ended.set()
            waiting = asyncio.ensure_future(anext(loader))
            await ended.wait()
            with peers.connect(loader.port) as other:
                other.sendall(b"other\n")
                return got + bytes(await waiting)

    assert run(main()) == b"whole\nother\n"
    assert "connection reset by peer after 19 bytes" in caplog.text
    assert "dropped 13 bytes of a last record that has no end" in caplog.text


@pytest.mark.parametrize("long_records", ["raise", "skip"])
def test_a_record_that_is_too_long_costs_its_sender_only(
    run: Run, caplog: pytest.LogCaptureFixture, long_records: Any
) -> None:
    options: dict[str, Any] = {"max_record": 1000, "long_records": long_records, "max_connections": 3}

    async def main() -> bytes:
        got = b""
        async with ringmain.load("127.0.0.1:0", **options) as loader:
            with peers.connect(loader.port) as good, peers.connect(loader.port) as bad:
                bad.sendall(b"fine\n" + b"x" * 2000 + b"\nafter\n")
                good.sendall(b"good\n")
                wanted = {b"fine", b"good"} | ({b"after"} if long_records == "skip" else set())
                while set(got.split()) != wanted:
                    got += await anext(loader)
                if long_records == "raise":
                    await asyncio.to_thread(peers.until_reset, bad)
                good.sendall(b"still here\n")
                return got + bytes(await anext(loader))

    assert run(main()).endswith(b"still here\n")
    told = "is longer than 1000 bytes" if long_records == "raise" else "skipped the record at offset 5"
    assert told in caplog.text


def test_a_stream_of_its_own_has_a_small_ring(run: Run) -> None:
    async def main() -> None:
        async with ringmain.load("127.0.0.1:0", max_connections=2, delimiter=b"\n") as loader:
            with peers.connect(loader.port):
                stream = await anext(loader.connections())
                assert (stream.ring.max_record, stream.ring.block_size, stream.ring.block_count) == (
                    1 << 20,
                    1 << 18,
                    4,
                )

    run(main())


def test_stop_takes_what_has_come_of_all_and_ends(run: Run, net: Net) -> None:
    async def main() -> int:
        async with ringmain.load(net.url(), max_connections=3, **net.listening) as loader:
            clients = [await witness.connect(loader.port, net.client()) for _ in range(3)]
            waiting = asyncio.ensure_future(anext(loader))
            for client in clients:
                await client.shake_hands()
                await client.send(b"a line\nand a half")
            got = bytes(await waiting)
            while got.count(b"a line\n") < 3:
                got += await anext(loader)
            assert loader.stop()
            assert [block async for block in loader] == []
            for client in clients:
                client.sock.close()
        return got.count(b"\n")

    assert run(main()) == 3


def test_stop_while_nobody_is_there_ends_the_iteration(run: Run) -> None:
    async def main() -> None:
        async with ringmain.load("127.0.0.1:0", max_connections=3) as loader:
            waiting = asyncio.ensure_future(anext(loader, None))
            await asyncio.sleep(0.05)
            loader.stop()
            assert await waiting is None
            assert await anext(loader, None) is None

    run(main())


@pytest.mark.parametrize("leave", ["normally", "by an exception"])
def test_leaving_ends_the_connections_properly_or_resets_them(run: Run, net: Net, leave: str) -> None:
    async def main() -> list[str | None]:
        with_error = leave != "normally"
        try:
            async with ringmain.load(net.url(), max_connections=2, **net.listening) as loader:
                waiting = asyncio.ensure_future(anext(loader))
                clients = [await witness.connect(loader.port, net.client()) for _ in range(2)]
                for client in clients:
                    await client.shake_hands()
                    await client.send(b"begun\n")
                got = bytes(await waiting)
                while len(got) < 12:
                    got += await anext(loader)
                if with_error:
                    raise LookupError
        except LookupError:
            pass
        for client in clients:
            await client.read_to_end()
            client.sock.close()
        return [client.end for client in clients]

    proper = "close_notify" if net.tls else "fin"
    assert run(main()) == [proper if leave == "normally" else "reset"] * 2


def test_a_cancelled_wait_loses_nothing(run: Run) -> None:
    async def main() -> bytes:
        got = b""
        async with ringmain.load("127.0.0.1:0", max_connections=2) as loader:
            sending = asyncio.ensure_future(trickle(loader.port))
            while len(got) < 3 * 50:
                try:
                    async with asyncio.timeout(0.002):
                        got += await anext(loader)
                except TimeoutError:
                    pass
            await sending
        return got

    async def trickle(port: int) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        for number in range(50):
            writer.write(b"%02d\n" % number)
            await asyncio.sleep(0.003)
        writer.close()
        await writer.wait_closed()

    assert run(main()) == b"".join(b"%02d\n" % number for number in range(50))


def test_a_forgotten_loader_of_many_lets_go_of_all(run: Run) -> None:
    async def main() -> None:
        loader = await ringmain.load("127.0.0.1:0", max_connections=2).__aenter__()
        port = loader.port
        with peers.connect(port) as one, peers.connect(port) as two:
            one.sendall(b"x\n")
            assert bytes(await anext(loader)) == b"x\n"
            del loader
            for _ in range(10):
                gc.collect()
                await asyncio.sleep(0.01)
            for sock in (one, two):
                assert await asyncio.to_thread(_is_over, sock)
            with pytest.raises(ConnectionRefusedError):
                peers.connect(port)

    run(main())


def _is_over(sock: socket.socket) -> bool:
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True
