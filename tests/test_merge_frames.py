"""Frames of many connections in one ring, against a cutter in plain Python: whatever comes, in whatever pieces."""

import asyncio
import collections
import itertools
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from framed import LENGTHS, Cut, cut, framed
from merging import Sockets, taken

from ringmain._counters import Counters
from ringmain._member import Member
from ringmain._merge import Merger
from ringmain.flow.blocks import flow_for

Run = Callable[[Coroutine[Any, Any, Any]], Any]
COUNTED = ["octet-counting", *LENGTHS]
MOST = 150
# How much is in a frame: none, little, more than a block of 64 bytes, more than the whole ring, too much.
SIZES = [0, 1, 3, 10, 60, 100, 140, 147, 148, 149, 150, 151, 200, 255]


def stream(kind: str, chance: random.Random) -> bytes:
    """Return frames, few of them too long, and often an end that is none, or no frame at all."""
    sizes = SIZES if chance.random() < 0.5 else SIZES[:7]
    frames = [chance.randbytes(chance.choice(sizes)) for _ in range(chance.randrange(40))]
    if kind == "octet-counting":
        frames = [chance.choice([b"", b"<"]) + (it or b"x") for it in frames]
    data = b"".join(framed(kind, it) for it in frames)
    if chance.random() < 0.3:
        data += chance.choice([b"<" + b"y" * 120, b"<" + b"z" * 150, b"junk", b"\xff" * 9, framed(kind, b"0" * 255)])
    return data[: len(data) - chance.choice([0, 0, 1, 2, 70])]


def expected_of(kind: str, data: bytes, *, skips: bool) -> tuple[Cut, bytes]:
    """Return what is in a stream, and what is to come of it: a last line is completed."""
    found = cut(kind, data, MOST, skips=skips)
    whole = b"".join(map(bytes, found.frames))
    return found, whole + (b"\n" if found.frames and not (found.frames[-1].head or found.frames[-1].tail) else b"")


async def merge(merging: Merger, sent: list[bytes], chance: random.Random) -> dict[Member, bytes]:
    """Send streams in pieces, in turns, and take now and then; return what came of each, in the order of `sent`."""
    got: dict[Member, bytearray] = collections.defaultdict(bytearray)
    ended: list[Member] = []

    def take() -> None:
        while (found := merging.take_tagged()) is not None:
            with found[1]:
                got[found[0]] += found[1]

    with Sockets() as sockets:
        pieces, members = [], []
        for data in sent:
            peer, link = sockets.connect()
            member = merging.add(link, Counters())
            member.on_end = lambda member=member: ended.append(member)
            members.append(member)
            edges = sorted({0, len(data), *(chance.randrange(len(data) + 1) for _ in range(chance.choice([0, 5, 60])))})
            pieces.append([(peer, data[start:end]) for start, end in itertools.pairwise(edges)] + [(peer, b"")])
        for peer, piece in itertools.chain(*itertools.zip_longest(*pieces, fillvalue=(None, b""))):
            if peer is not None and piece:
                peer.setblocking(False)
                peer.send(piece)  # little enough for the kernel
            elif peer is not None:
                peer.close()
            for _ in range(chance.choice([0, 2, 6])):
                await asyncio.sleep(0)
            if chance.random() < 0.2:
                take()
        while len(ended) < len(sent):
            take()
            if len(ended) < len(sent):
                await merging.wait()
        take()
    return {member: bytes(got[member]) for member in members}


@pytest.mark.parametrize("skips", [False, True], ids=["stop", "skip"])
@pytest.mark.parametrize("kind", COUNTED)
def test_what_comes_of_a_stream_does_not_depend_on_how_it_comes(run: Run, kind: str, skips: bool) -> None:
    chance = random.Random(kind)

    async def main() -> None:
        long_records = "skip" if skips else "raise"
        sizes = {"ring_size": 256, "block_size": 64, "max_record": MOST, "merges": True}
        for _ in range(20):
            flow = flow_for(delimiter=b"", framing=kind, linger=0.0, long_records=long_records, **sizes)
            assert flow.cutter is not None
            loop = asyncio.get_running_loop()
            linger = chance.choice([0.0, 0.001, 3600.0])
            merging = Merger(loop, flow.ring, flow.cutter, MOST, flow.terminator, skips, linger)
            sent = [stream(kind, chance) for _ in range(3)]
            got = await merge(merging, sent, chance)
            for data, (member, came) in zip(sent, got.items(), strict=True):
                is_as_expected(member, came, kind, data, skips=skips)
            assert taken(merging) == b""
            merging.close()

    run(main())


def is_as_expected(member: Member, came: bytes, kind: str, data: bytes, *, skips: bool) -> None:
    found, whole = expected_of(kind, data, skips=skips)
    assert came == whole
    causes = {"whole": None, "unfinished": EOFError, "bad": ValueError, "long": OverflowError}
    cause = causes[found.end]
    assert (type(member.error) if member.error is not None else None) is cause
    if found.end == "bad":
        assert isinstance(member.error, ValueError)
        offset, head = member.error.args
        assert offset == found.offset
        assert head
        assert data[offset : offset + 16].startswith(head)
    elif cause is not None:
        assert f" the record at offset {found.offset}" in f" {member.error}"
    skipped = sum(len(bytes(frame)) for frame in found.long)
    counters = member.counters
    assert (counters.skipped_records, counters.skipped_bytes) == (len(found.long), skipped)
    completed = bool(found.frames) and whole != b"".join(map(bytes, found.frames))
    assert counters.bytes_in == len(whole) - completed + skipped + member.dropped
