"""Loading frames: whole ones only, single records, and what is told of a stream that is not what it should be."""

import asyncio
import gc
import hashlib
import logging
import random
import struct
import subprocess
from collections.abc import Callable, Coroutine
from typing import Any

import peers
import pytest
import witness
from conforming import PROPER, Net, coming
from framed import DELIMITERS, KINDS, cut, framed

import ringmain
from ringmain import errors

Run = Callable[[Coroutine[Any, Any, Any]], Any]
COUNTED = ["octet-counting", "length:1le", "length:4be"]
SMALL = {"ring_size": 1 << 16, "block_size": 1 << 12}
# Of each kind, what no frame begins with.
BAD = {
    "octet-counting": [b"0 ", b"007 <13>", b"12345678901 ", b"5x", b"\x16\x03\x01", b" 5 hello", b"\n"],
    "length:8be": [b"\xff" * 8, struct.pack(">Q", (1 << 63) - 8)],
    "length:8le": [b"\xff" * 8],
}


def contents(seed: int, count: int, largest: int) -> list[bytes]:
    chance = random.Random(seed)
    return [chance.randbytes(chance.choice([1, 2, 50, largest])) for _ in range(count)]


async def load(
    net: Net, data: bytes, framing: Any, **options: Any
) -> tuple[list[bytes], errors.RingmainError | None, witness.Witness]:
    """Load what a client sends; return the blocks, the error and the client."""
    blocks: list[bytes] = []
    failure = None
    options = {"listen_once": True, "framing": framing, **net.listening, **options}
    async with ringmain.load(net.url(), **options) as loader, coming(net, loader.port, data) as client:
        try:
            async for block in loader:
                blocks.append(bytes(block))
                block.release()
        except errors.RingmainError as error:
            failure = error
    return blocks, failure, client


@pytest.mark.parametrize("kind", KINDS)
def test_frames_come_whole_and_in_order_however_large_they_are(run: Run, net: Net, kind: str) -> None:
    largest = 255 if kind.startswith("length:1") else 30_000
    data = b"".join(framed(kind, content) for content in contents(1, 300, largest))
    blocks, error, client = run(load(net, data, kind, **SMALL, max_record=100_000))
    assert error is None
    assert peers.sha256(b"".join(blocks)) == peers.sha256(data)
    for block in blocks:
        found = cut(kind, block)
        assert found.end == "whole"
        assert found.frames[-1].tail or found.frames[-1].head
    assert client.end in PROPER


@pytest.mark.parametrize("kind", ["octet-counting", "length:2be", "crlf"])
def test_wherever_a_stream_waits_the_frames_that_came_are_handed_out(run: Run, net: Net, kind: str) -> None:
    data = b"".join(framed(kind, content) for content in (b"a", b"<b>", b"c" * 12, b"<\r>"))

    async def main() -> None:
        async with ringmain.load(net.url(), framing=kind, linger=0.0, **net.listening) as loader:
            for at in range(1, len(data)):
                client = await witness.connect(loader.port, net.client())
                shaking = asyncio.ensure_future(client.shake_hands())
                stream = await anext(loader.connections())
                await shaking
                await client.send(data[:at])
                whole = b"".join(map(bytes, (it for it in cut(kind, data[:at]).frames if it.head or it.tail)))
                got = bytearray()
                while len(got) < len(whole):
                    got += await anext(stream)
                assert got == whole
                sending = asyncio.ensure_future(client.exchange(b""))
                await client.send(data[at:])
                async for block in stream:
                    got += block
                assert got == data
                await sending

    run(main())


@pytest.mark.parametrize("skips", [False, True])
@pytest.mark.parametrize(("kind", "head"), [(kind, head) for kind, heads in BAD.items() for head in heads])
def test_a_bad_length_ends_the_stream_at_its_offset(run: Run, net: Net, kind: str, head: bytes, skips: bool) -> None:
    before = b"".join(framed(kind, content) for content in contents(2, 20, 300))
    options = {"long_records": "skip" if skips else "raise", "max_record": 5000}

    async def main() -> None:
        got = bytearray()
        async with ringmain.load(net.url(), framing=kind, listen_once=True, **net.listening, **options) as loader:
            client = await witness.connect(loader.port, net.client())
            shaking = asyncio.ensure_future(client.shake_hands())
            stream = await anext(loader.connections())
            await shaking
            await client.send(before + head)  # and it waits: nothing more need come
            with pytest.raises(errors.ParseError) as caught:
                async for block in stream:
                    got += block
            peer = stream.peer
            client.sock.close()
        assert got == before
        assert (caught.value.offset, caught.value.connection, caught.value.exit_code) == (len(before), peer, 8)
        assert str(caught.value).startswith(f"the record at offset {len(before)} from {peer}: it begins with b'")
        assert str(caught.value).endswith(", which is no frame of this kind; check framing=")

    run(main())


@pytest.mark.parametrize("kind", COUNTED[:1] + COUNTED[2:])
def test_a_length_above_max_record_is_told_at_once_with_its_offset(run: Run, net: Net, kind: str) -> None:
    before, long = framed(kind, b"good") * 100, framed(kind, bytes(5000))[:-4990]
    blocks, error, _ = run(load(net, before + long, kind, max_record=4000))
    assert b"".join(blocks) == before
    assert isinstance(error, errors.RecordTooLongError)
    assert f"the record at offset {len(before)} is longer than 4000 bytes; raise max_record=" in str(error)
    assert error.exit_code == 63


@pytest.mark.parametrize("kind", COUNTED)
def test_an_unfinished_frame_is_a_truncated_stream(run: Run, net: Net, kind: str) -> None:
    before, last = framed(kind, b"x" * 99) * 10, framed(kind, b"unfinished")
    for size in range(1, len(last)):
        blocks, error, client = run(load(net, before + last[:size], kind))
        assert b"".join(blocks) == before
        assert isinstance(error, errors.TruncatedError)
        assert error.exit_code == 18
        assert f": it ended within the record at offset {len(before)} after {len(before) + size} bytes;" in str(error)
        assert client.end in PROPER  # it has ended properly itself


def test_a_loader_that_is_stopped_within_a_frame_ends_behind_those_that_are_whole(run: Run, net: Net) -> None:
    whole = framed("length:4be", b"whole")

    async def main() -> None:
        got = bytearray()
        async with ringmain.load(net.url(), framing="length:4be", **net.listening) as loader:
            client = await witness.connect(loader.port, net.client())
            shaking = asyncio.ensure_future(client.shake_hands())
            stream = await anext(loader.connections())
            await shaking
            await client.send(whole + whole[:-1])
            got += await anext(stream)
            loader.stop()
            async for block in stream:
                got += block
            assert (got, stream.verdict) == (whole, "stopped")
            client.sock.close()

    run(main())


@pytest.mark.parametrize("kind", [*DELIMITERS, "octet-counting"])
def test_a_last_record_without_its_delimiter_is_handed_out(run: Run, net: Net, kind: str) -> None:
    data = framed(kind, b"<1>one") + b"<2>two"
    blocks, error, _ = run(load(net, data, kind))
    assert (b"".join(blocks), error) == (data, None)


def test_a_listener_warns_of_bad_and_unfinished_frames_and_goes_on(
    run: Run, net: Net, caplog: pytest.LogCaptureFixture
) -> None:
    good = framed("octet-counting", b"<13>good")

    async def main() -> None:
        got = bytearray()
        async with ringmain.load(net.url(), framing="octet-counting", **net.listening) as loader:

            async def consume() -> None:
                async for block in loader:
                    got.extend(block)

            consuming = asyncio.ensure_future(consume())
            for data in (good + b"9 half", good + b"junk", good * 2):
                async with coming(net, loader.port, data):
                    pass
            loader.stop()
            await consuming
        assert got == good * 4

    with caplog.at_level(logging.WARNING, "ringmain"):
        run(main())
    lines = [it.getMessage() for it in caplog.records]
    assert len(lines) == 2
    assert f"it ended within the record at offset {len(good)} " in lines[0]
    assert f"the record at offset {len(good)} from 127.0.0.1" in lines[1]


@pytest.mark.parametrize("kind", ["octet-counting", "length:4le", "nul"])
def test_frames_that_are_too_long_are_skipped_by_their_length(
    run: Run, net: Net, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    data = b"".join(framed(kind, it.replace(b"\0", b"0")) for it in contents(3, 200, 3_000) + [bytes(100_000)])
    data += framed(kind, b"last")
    expected = cut(kind, data, 1000, skips=True)
    assert len(expected.long) > 20

    async def main() -> None:
        got = bytearray()
        options = {**SMALL, **net.listening, "max_record": 1000, "long_records": "skip", "listen_once": True}
        async with ringmain.load(net.url(), framing=kind, **options) as loader:
            async with coming(net, loader.port, data):
                async for stream in loader.connections():
                    async for block in stream:
                        assert data[stream.offset - len(block) : stream.offset] == block
                        got += block
                        block.release()
                    counters = stream.counters
                    assert counters.skipped_records == len(expected.long)
                    assert counters.skipped_bytes == sum(len(bytes(it)) for it in expected.long)
            assert loader.ring.memory <= (1 << 16) + 1000
        assert peers.sha256(bytes(got)) == peers.sha256(b"".join(map(bytes, expected.frames)))

    with caplog.at_level(logging.WARNING, "ringmain"):
        run(main())
    assert ["skipped the record" in it.getMessage() for it in caplog.records] == [True]


def test_a_skipped_frame_that_does_not_end_is_an_unfinished_one(run: Run, net: Net) -> None:
    data = framed("length:4be", b"good") + framed("length:4be", bytes(1000))
    blocks, error, _ = run(load(net, data[:-1], "length:4be", max_record=100, long_records="skip"))
    assert blocks == [framed("length:4be", b"good")]
    assert isinstance(error, errors.TruncatedError)
    assert "within the record at offset 8 after" in str(error)


@pytest.mark.parametrize("headers", [False, True])
@pytest.mark.parametrize("options", [{"delimiter": b"\r\n"}, *({"framing": kind} for kind in KINDS)], ids=str)
def test_records_are_the_contents_of_frames(run: Run, net: Net, options: dict[str, Any], headers: bool) -> None:
    kind = options.get("framing", "crlf")
    data = b"".join(framed(kind, it) for it in contents(4, 500, 250)) + (b"tail" if kind in DELIMITERS else b"")
    frames = cut(kind, data).frames

    async def main() -> None:
        loading = ringmain.load(net.url(), **options, **SMALL, **net.listening, listen_once=True)
        async with loading as loader, coming(net, loader.port, data):
            got = [bytes(record) async for record in loader.records(headers=headers)]
        assert got == [bytes(frame) if headers else frame.content for frame in frames]

    run(main())


def test_plain_loops_over_records_go_on_where_they_were_left() -> None:
    data = b"".join(b"%d\n" % number for number in range(50_000))
    got: list[bytes] = []
    with ringmain.load("127.0.0.1:0", delimiter=b"\n", **SMALL) as loader:
        thread = peers.send_in_thread(loader.port, data, data)
        for connection in loader.connections():
            records = connection.records()
            got.append(bytes(next(records)))
            for record in records:
                got.append(bytes(record))
                if len(got) == 3000:
                    break
            got += map(bytes, records)
            if len(got) == 100_000:
                break
        assert b"\n".join(got) + b"\n" == data * 2
        del record, records, connection
    thread.join()


def test_a_record_keeps_its_block_and_costs_no_copy() -> None:
    data = framed("length:1be", b"one") + framed("length:1be", b"two")
    with ringmain.load("127.0.0.1:0", framing="length:1be", listen_once=True, **SMALL) as loader:
        thread = peers.send_in_thread(loader.port, data)
        first, second = loader.records()
        assert first.obj is second.obj
        assert first.readonly
        assert loader.ring.lent == 1
        first.release()
        gc.collect()
        assert bytes(second) == b"two"
        second.release()
        assert loader.ring.lent == 0
    thread.join()


def test_a_record_that_a_broken_connection_cut_is_not_handed_out(run: Run, net: Net) -> None:
    async def main() -> None:
        got: list[bytes] = []
        async with ringmain.load(net.url(), delimiter=b"\n", listen_once=True, **net.listening) as loader:
            client = await witness.connect(loader.port, net.client())
            shaking = asyncio.ensure_future(client.shake_hands())
            records = loader.records()
            waiting = asyncio.ensure_future(anext(records))  # type: ignore[arg-type]
            await shaking
            await client.send(b"whole\ncut")
            got.append(bytes(await waiting))
            await asyncio.to_thread(peers.eventually, lambda: loader.counters and loader.counters.bytes_in == 9)
            client.reset()
            with pytest.raises(errors.ReceiveError):
                async for record in records:
                    got.append(bytes(record))
        assert got == [b"whole"]

    run(main())


def test_what_says_where_records_end_is_said_once() -> None:
    for options, words in (
        ({"framing": "nul", "delimiter": b"\n"}, "framing= with delimiter=: both say where records end; leave one"),
        ({"framing": "length:3be"}, "framing='length:3be': not known; choose one of octet-counting, length:1be"),
        ({"framing": "octet-counting", "max_record": 10}, "max_record=10: every record is longer; give at least 11"),
    ):
        with pytest.raises(errors.UsageError) as caught:
            ringmain.load("127.0.0.1:0", **options)  # type: ignore[arg-type]
        assert words in str(caught.value)
    with pytest.raises(errors.UsageError, match="without a delimiter or framing there are no records"):
        ringmain.load("127.0.0.1:0").records()


@pytest.mark.parametrize(
    ("end", "code", "words"),
    [
        (b"", 0, ""),
        (b"9 half", 18, "it ended within the record at offset 3500000 after 3500006 bytes"),
        (b"junk", 8, "the record at offset 3500000 from 127.0.0.1:"),
        (b"99999999 ", 63, "the record at offset 3500000 is longer than 67108864 bytes"),
    ],
)
def test_the_command_writes_whole_frames_as_they_came(bench: peers.Bench, end: bytes, code: int, words: str) -> None:
    data = (b"4 <1>\n" + b"<23> 4567\n" * 10 + b"31 " + bytes(31)) * 25_000
    assert len(data) == 3_500_000
    loader, port = bench.listening("load", "-o", "--framing", "octet-counting", stdout=subprocess.PIPE)
    thread = peers.send_in_thread(port, data + end)
    assert loader.process.stdout is not None
    got = loader.process.stdout.read()
    assert loader.wait() == code
    thread.join()
    assert hashlib.sha256(got).hexdigest() == peers.sha256(data)
    assert words in loader.stderr
    assert loader.stderr.count("ringmain: ") == (1 if code else 0)
    assert "check --framing" in loader.stderr or code != 8


def test_the_command_checks_frames_on_the_block_path_only(bench: peers.Bench) -> None:
    loader = bench.ringmain("load", "--framing", "nul", "--path", "kernel", "127.0.0.1:0", stdout=subprocess.PIPE)
    assert loader.wait() == 2
    assert "--path kernel: records are checked and cut in blocks; leave --path out" in loader.stderr
    loader = bench.ringmain("load", "--framing", "lines", "127.0.0.1:0")
    assert loader.wait() == 2
    assert "'lines' is not one of 'octet-counting'" in loader.stderr
