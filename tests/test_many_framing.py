"""Frames of many clients at once: whole ones only, those of each in order, and what becomes of one that sends none."""

import ast
import asyncio
import collections
import hashlib
import logging
import random
import re
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import peers
import pytest
import witness
from conforming import Net, nothing_is_pending
from framed import KINDS, LENGTHS, cut, framed

import ringmain
from ringmain import errors
from ringmain.outcome import Outcome

Run = Callable[[Coroutine[Any, Any, Any]], Any]
COUNTED = ["octet-counting", "length:1le", "length:4be"]
SMALL = {"ring_size": 1 << 16, "block_size": 1 << 12}
# Of each kind, what no frame begins with.
BAD = [
    *(("octet-counting", head) for head in (b"0 ", b"007 <13>", b"12345678901 ", b"5x", b"\x16\x03\x01" * 9, b"\n")),
    ("length:8be", b"\xff" * 8),
    ("length:8le", b"\xff" * 8 + bytes(20)),
]


def contents(kind: str, seed: int) -> list[bytes]:
    """Return what fits in frames of a kind: nothing, little, lines, more than a block, and more than 64 KiB."""
    chance = random.Random(seed)
    sizes = [1, 2, 9, 50, 200]
    if not kind.startswith("length:1"):
        sizes += [6_000, 60_000 if kind.startswith("length:2") else 70_000 + seed]
    found = [chance.randbytes(chance.choice(sizes)) for _ in range(60)]
    if kind not in LENGTHS:
        found = [it.translate(None, b"\0\r\n") for it in found]
        found += [b"<%d>%b" % (seed, it) for it in found[:20]]
    if kind != "octet-counting":
        found += [b""] * 20
    chance.shuffle(found)
    return [it for it in found if it or kind != "octet-counting"]


class Heard:
    """What came of each peer, as a hash, and that each block had whole frames only."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._sums: collections.defaultdict[str, Any] = collections.defaultdict(hashlib.sha256)
        self.size = 0

    def hear(self, peer: str, block: memoryview) -> None:
        with block:
            data = bytes(block)
        found = cut(self._kind, data)
        assert (found.end, b"".join(map(bytes, found.frames))) == ("whole", data)
        assert found.frames[-1].head or found.frames[-1].tail
        self._sums[peer].update(data)
        self.size += len(data)

    def sums(self) -> list[str]:
        return sorted(it.hexdigest() for it in self._sums.values())


async def send(net: Net, port: int, data: bytes, sizes: list[int], seed: int = 0) -> None:
    """Send in pieces, some late, and end properly."""
    chance = random.Random(seed)
    client = await witness.connect(port, net.client())
    if not net.tls:
        client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    await client.shake_hands()
    while data:
        size = chance.choice(sizes)
        await client.send(data[:size])
        data = data[size:]
        if chance.random() < 0.05:
            await asyncio.sleep(0.001)
    await client.finish()
    await client.read_to_end()
    client.sock.close()


async def take_tagged(loader: ringmain.Loader, heard: Heard, senders: list[Coroutine[Any, Any, None]]) -> None:
    """Take what senders send, all of it; then stop."""
    sending = asyncio.gather(*senders)
    sending.add_done_callback(lambda _: loader.stop())
    async for peer, block in loader.tagged():
        heard.hear(peer, block)
    await sending


@pytest.mark.parametrize("kind", KINDS)
def test_frames_of_all_come_whole_once_and_in_order(run: Run, net: Net, kind: str) -> None:
    sent = [b"".join(framed(kind, it) for it in contents(kind, seed)) for seed in range(6)]
    heard = Heard(kind)

    async def main() -> None:
        async with ringmain.load(net.url(), framing=kind, max_connections=4, **SMALL, **net.listening) as loader:
            sizes = [1, 7, 400, 65_000]
            await take_tagged(loader, heard, [send(net, loader.port, it, sizes, seed) for seed, it in enumerate(sent)])
        nothing_is_pending()

    run(main())
    assert heard.sums() == sorted(map(peers.sha256, sent))


@pytest.mark.parametrize("kind", ["octet-counting", "length:1be", "length:4le", "length:8be"])
def test_frames_may_come_one_byte_at_a_time(run: Run, net: Net, kind: str) -> None:
    empty = [] if kind == "octet-counting" else [b""] * 3
    frames = [b"a", b"<b>", *empty, b"c" * 12, b"<\r>", b"d" * 120]
    sent = [b"".join(framed(kind, it) for it in [*frames, b"%d" % seed, *empty]) for seed in range(4)]
    heard = Heard(kind)

    async def main() -> None:
        async with ringmain.load(net.url(), framing=kind, max_connections=4, **net.listening) as loader:
            await take_tagged(loader, heard, [send(net, loader.port, it, [1], seed) for seed, it in enumerate(sent)])

    run(main())
    assert heard.sums() == sorted(map(peers.sha256, sent))


@pytest.mark.parametrize("headers", [False, True])
@pytest.mark.parametrize("options", [{}, *({"framing": kind} for kind in KINDS)], ids=str)
def test_records_are_the_frames_of_all(run: Run, options: dict[str, Any], headers: bool) -> None:
    kind = options.get("framing", "octet-counting")  # which knows lines too
    whole = {seed: [b"<%d:%d>%b" % (seed, index, b"x" * (index % 150)) for index in range(400)] for seed in range(3)}

    async def main() -> None:
        net = Net(None, tls=False)  # type: ignore[arg-type] - which plain TCP does not look at
        got: dict[int, list[bytes]] = {seed: [] for seed in whole}
        async with ringmain.load("127.0.0.1:0", **options, **SMALL, max_connections=3) as loader:
            data = [b"".join(framed(kind, it) for it in frames) for frames in whole.values()]
            sending = asyncio.gather(*(send(net, loader.port, it, [1, 900], 1) for it in data))
            sending.add_done_callback(lambda _: loader.stop())
            async for record in loader.records(headers=headers):
                content = bytes(record)
                sender = re.search(rb"<(\d):\d+>", content)
                assert sender is not None
                got[int(sender[1])].append(content)
            await sending
        assert got == {seed: [framed(kind, it) if headers else it for it in frames] for seed, frames in whole.items()}

    run(main())


class Served:
    """What a client among others has sent and was told of."""

    def __init__(self, data: bytes, outcome: Outcome, lines: list[str]) -> None:
        self.data, self.outcome, self.error, self.lines = data, outcome, outcome.error, lines

    def dropped(self, size: int) -> str:
        """Return what is to be told of what was dropped."""
        return f"{self.outcome.peer}: dropped {size} bytes of a last record that has no end"


async def serve_beside_another(net: Net, kind: str, data: bytes, *, ends: bool, **options: Any) -> Served:
    """Send data, and an end where it `ends`, while another client is served before and after."""
    outcomes: asyncio.Queue[Outcome] = asyncio.Queue()
    got: collections.defaultdict[str, bytearray] = collections.defaultdict(bytearray)
    good = framed(kind, b"good")
    async with ringmain.load(net.url(), framing=kind, max_connections=2, **net.listening, **options) as loader:
        loader.on_end = outcomes.put_nowait

        async def consume() -> None:
            async for peer, block in loader.tagged():
                with block:
                    got[peer] += block

        consuming = asyncio.ensure_future(consume())
        other = await witness.connect(loader.port, net.client())
        await other.shake_hands()
        await other.send(good)
        client = await witness.connect(loader.port, net.client())
        await client.shake_hands()
        await client.send(data)
        if ends:
            await client.finish()
        outcome = await outcomes.get()  # where it does not end, nothing more need come
        await other.send(good)
        await other.finish()
        last = await outcomes.get()
        loader.stop()
        await consuming
        client.sock.close()
        other.sock.close()
    assert (bytes(got[last.peer]), last.error) == (good * 2, None)
    return Served(bytes(got[outcome.peer]), outcome, [])


def served(run: Run, caplog: pytest.LogCaptureFixture, *arguments: Any, **options: Any) -> Served:
    with caplog.at_level(logging.WARNING, "ringmain"):
        it: Served = run(serve_beside_another(*arguments, **options))
    it.lines += [line.getMessage() for line in caplog.records]
    return it


@pytest.mark.parametrize("skips", [False, True])
@pytest.mark.parametrize("large", [False, True], ids=["", "behind a large one"])
@pytest.mark.parametrize(("kind", "head"), BAD)
def test_what_no_frame_begins_with_ends_its_sender(
    run: Run, net: Net, caplog: pytest.LogCaptureFixture, kind: str, head: bytes, large: bool, skips: bool
) -> None:
    before = b"".join(framed(kind, b"x" * (size + 1)) for size in range(30))
    before += framed(kind, b"<" + b"y" * 200_000) if large else b""
    long_records = "skip" if skips else "raise"
    it = served(run, caplog, net, kind, before + head, ends=False, long_records=long_records, **SMALL)
    assert it.data == before
    assert isinstance(it.error, errors.ParseError)
    assert (it.error.offset, it.error.connection) == (len(before), it.outcome.peer)
    counters = it.outcome.counters
    assert 0 < counters.dropped_bytes == counters.bytes_in - len(before) <= len(head)
    told = re.fullmatch(
        r"the record at offset (\d+) from (\S+): it begins with (b.*), which is no frame of this kind; .*", it.lines[0]
    )
    assert told is not None
    assert told.groups()[:2] == (str(len(before)), it.outcome.peer)
    assert head[:16].startswith(ast.literal_eval(told[3]))
    assert it.lines[0] == str(it.error)
    assert it.lines[1:] == [it.dropped(counters.dropped_bytes)]


@pytest.mark.parametrize("kind", ["octet-counting", "length:4be", "length:8le"])
@pytest.mark.parametrize("large", [False, True], ids=["", "behind a large one"])
def test_a_size_above_max_record_resets_its_sender_at_once(
    run: Run, net: Net, caplog: pytest.LogCaptureFixture, kind: str, large: bool
) -> None:
    before = framed(kind, b"good") * 100 + (framed(kind, b"<" + b"y" * 149_000) if large else b"")
    head = framed(kind, bytes(150_000))[:-149_995]
    it = served(run, caplog, net, kind, before + head, ends=False, max_record=150_000, **SMALL)
    assert it.data == before
    assert isinstance(it.error, errors.RecordTooLongError)
    words = f"the record at offset {len(before)} is longer than 150000 bytes; raise max_record="
    assert f"load from {it.outcome.peer}: {words}" in it.lines[0] == str(it.error)
    assert it.lines[1:] == [it.dropped(it.outcome.counters.bytes_in - len(before))]


@pytest.mark.parametrize("kind", COUNTED)
def test_an_end_within_a_frame_is_told_and_the_rest_dropped(
    run: Run, net: Net, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    before, last = framed(kind, b"x" * 99) * 10, framed(kind, b"unfinished")
    for size in range(1, len(last)):
        caplog.clear()
        it = served(run, caplog, net, kind, before + last[:size], ends=True)
        assert it.data == before
        assert isinstance(it.error, errors.TruncatedError)
        assert isinstance(it.error.__cause__, EOFError)
        words = f": it ended within the record at offset {len(before)} after {len(before) + size} bytes;"
        assert words in it.lines[0] == str(it.error)
        assert it.lines[1:] == [it.dropped(size)]
        assert it.outcome.counters.dropped_bytes == size


@pytest.mark.parametrize("kind", ["octet-counting", "length:4le"])
@pytest.mark.parametrize("size", [1000, 100_000], ids=["short", "long"])
def test_a_large_frame_that_does_not_end_is_dropped(
    run: Run, net: Net, caplog: pytest.LogCaptureFixture, kind: str, size: int
) -> None:
    before, last = framed(kind, b"<a>"), framed(kind, bytes(size))[:-1]
    it = served(run, caplog, net, kind, before + last, ends=True, **SMALL)
    assert it.data == before
    assert f"within the record at offset {len(before)} after" in str(it.error)
    assert it.lines[1:] == [it.dropped(len(last))]


@pytest.mark.parametrize("data", [b"<1>one\n5 <2><\n<3>three", b"<1>one", b"5 <2><\n<1>" + b"x" * 90_000])
def test_a_last_line_is_completed(run: Run, net: Net, caplog: pytest.LogCaptureFixture, data: bytes) -> None:
    it = served(run, caplog, net, "octet-counting", data, ends=True, **SMALL)
    assert (it.data, it.error, it.lines) == (data + b"\n", None, [])


@pytest.mark.parametrize("kind", ["octet-counting", "length:1be", "length:4le", "crlf"])
def test_a_frame_of_max_record_bytes_is_none_too_long(
    run: Run, net: Net, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    frames = [framed(kind, it) for it in (b"<a>", b"0" * 96, b"0" * 97, b"<b>")]
    most = len(frames[1])
    it = served(run, caplog, net, kind, b"".join(frames), ends=False, max_record=most)
    assert it.data == b"".join(frames[:2])
    assert f"the record at offset {len(it.data)} is longer than {most} bytes" in str(it.error)


@pytest.mark.parametrize("kind", KINDS)
def test_frames_that_are_too_long_are_left_out(run: Run, net: Net, caplog: pytest.LogCaptureFixture, kind: str) -> None:
    most = 150 if kind.startswith("length:1") else 1000
    sent = [b"".join(framed(kind, it) for it in contents(kind, seed)) for seed in range(5)]
    found = [cut(kind, it, most, skips=True) for it in sent]
    outcomes: list[Outcome] = []
    heard = Heard(kind)

    async def main() -> None:
        options: dict[str, Any] = {"max_record": most, "long_records": "skip", **SMALL, **net.listening}
        async with ringmain.load(net.url(), framing=kind, max_connections=5, **options) as loader:
            loader.on_end = outcomes.append
            sizes = [1, 7, 400, 65_000]
            await take_tagged(loader, heard, [send(net, loader.port, it, sizes, seed) for seed, it in enumerate(sent)])
            assert loader.ring.memory <= (1 << 16) + most

    with caplog.at_level(logging.WARNING, "ringmain"):
        run(main())
    assert heard.sums() == sorted(peers.sha256(b"".join(map(bytes, it.frames))) for it in found)
    skipped = sorted((it.counters.skipped_records, it.counters.skipped_bytes) for it in outcomes)
    assert skipped == sorted((len(it.long), sum(len(bytes(frame)) for frame in it.long)) for it in found)
    assert all(it.error is None and it.counters.dropped_bytes == 0 for it in outcomes)
    first = sorted(data.index(bytes(it.long[0])) for data, it in zip(sent, found, strict=True))
    told = [re.search(r"skipped the record at offset (\d+), ", it.getMessage()) for it in caplog.records]
    assert sorted(int(it[1]) for it in told if it is not None) == first
    assert len(told) == len(first)


@pytest.mark.parametrize("kind", ["octet-counting", "length:2be"])
def test_an_end_within_what_is_left_out_is_told(
    run: Run, net: Net, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    long = framed(kind, bytes(5000))
    data = framed(kind, b"good") + long + framed(kind, b"<a>") + long
    at = len(data) - len(long)
    it = served(run, caplog, net, kind, data[:-1], ends=True, max_record=100, long_records="skip")
    assert it.data == framed(kind, b"good") + framed(kind, b"<a>")
    assert isinstance(it.error, errors.TruncatedError)
    assert f"within the record at offset {at} after" in str(it.error)
    counters = it.outcome.counters
    assert (counters.skipped_records, counters.skipped_bytes) == (2, 2 * len(long) - 1)
    assert counters.dropped_bytes == 0
    assert "skipped the record at offset" in it.lines[0]
    assert it.lines[1:] == [str(it.error)]


def test_who_is_stopped_within_a_frame_is_not_told_of(run: Run, net: Net, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> Outcome:
        outcomes: list[Outcome] = []
        async with ringmain.load(net.url(), framing="length:1be", max_connections=2, **net.listening) as loader:
            loader.on_end = outcomes.append
            waiting = asyncio.ensure_future(anext(loader))
            client = await witness.connect(loader.port, net.client())
            await client.shake_hands()
            await client.send(b"\1a\5half")
            assert bytes(await waiting) == b"\1a"
            loader.stop()
            assert [block async for block in loader] == []
            client.sock.close()
        return outcomes[0]

    with caplog.at_level(logging.WARNING, "ringmain"):
        outcome = run(main())
    assert (outcome.verdict, outcome.error) == ("stopped", None)
