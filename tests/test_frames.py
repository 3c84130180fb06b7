"""Frames in a ring, against a cutter in plain Python: wherever a stream is split, whatever its lengths say."""

import itertools
import struct
from typing import NamedTuple

import pytest
from framed import DELIMITERS, KINDS, LENGTHS, Cut, cut, framed
from hypothesis import given, settings
from hypothesis import strategies as st

from ringmain._ring import Ring
from ringmain._walk import Walk
from ringmain.flow.blocks import flow_for

CONTENTS = [b"a", b"<1>x", b"9 9", b"\r\r", b"<0>", b"b" * 13, b"<line\nof two", b"\n"]


class Got(NamedTuple):
    blocks: list[bytes]
    end: str
    skipped: tuple[int, int] = (0, 0)


def ring_for(kind: str, block: int, max_record: int, *, skips: bool = False) -> Ring:
    long_records = "skip" if skips else "raise"
    sizes = {"ring_size": 6 * block, "block_size": block, "max_record": max_record}
    return flow_for(delimiter=b"", framing=kind, linger=0.0, long_records=long_records, **sizes).ring


def through(ring: Ring, data: bytes, pieces: list[int], *, lazily: bool = False) -> Got:
    """Fill a ring with pieces of these sizes, over and over; take all at once, or lazily: when there is no room."""
    blocks: list[bytes] = []
    end = "whole"

    def take() -> None:
        while (view := ring.take()) is not None:
            blocks.append(bytes(view))

    sizes = itertools.cycle(pieces)
    try:
        while data and (rest := data[: next(sizes)]):
            data = data[len(rest) :]
            while rest:
                view = ring.reserve()
                if view is None:
                    take()
                    view = ring.reserve()
                assert view is not None
                size = min(len(view), len(rest))
                view[:size] = rest[:size]
                ring.commit(size)
                rest = rest[size:]
                if not lazily:
                    take()
        ring.reserve()
    except OverflowError:
        end = "long"
    except ValueError:
        end = "bad"
    ring.finish()
    take()
    return Got(blocks, end, (ring.skipped_records, ring.skipped_bytes))


def is_as_expected(got: Got, expected: Cut) -> None:
    assert b"".join(got.blocks) == b"".join(map(bytes, expected.frames))
    assert got.end == (expected.end if expected.end in ("bad", "long") else "whole")
    ends = {0, *itertools.accumulate(len(bytes(frame)) for frame in expected.frames)}
    assert ends.issuperset(itertools.accumulate(map(len, got.blocks)))


def stream(kind: str) -> bytes:
    return b"".join(framed(kind, content) for content in CONTENTS)


@pytest.mark.parametrize("block", [1, 7, 64])
@pytest.mark.parametrize("kind", KINDS)
def test_wherever_a_stream_is_split_blocks_hold_whole_frames(kind: str, block: int) -> None:
    data = stream(kind)
    assert cut(kind, data).end == "whole"
    for at in range(1, len(data)):
        is_as_expected(through(ring_for(kind, block, 100), data, [at, len(data)]), cut(kind, data))
    for lazily in (False, True):
        is_as_expected(through(ring_for(kind, block, 100), data, [1], lazily=lazily), cut(kind, data))


@pytest.mark.parametrize("kind", KINDS)
def test_wherever_a_stream_ends_no_counted_frame_is_handed_out_in_part(kind: str) -> None:
    data = stream(kind)
    for size in range(len(data)):
        expected = cut(kind, data[:size])
        is_as_expected(through(ring_for(kind, 16, 100), data[:size], [3]), expected)
        assert kind not in DELIMITERS or b"".join(map(bytes, expected.frames)) == data[:size]


@pytest.mark.parametrize("kind", [*LENGTHS, *DELIMITERS])
def test_empty_frames_are_frames(kind: str) -> None:
    data = framed(kind, b"") * 50 + framed(kind, b"full") + framed(kind, b"")
    assert [frame.content for frame in cut(kind, data).frames] == [b""] * 50 + [b"full", b""]
    for piece in (1, 3, 1000):
        is_as_expected(through(ring_for(kind, 16, 100), data, [piece]), cut(kind, data))


BAD_HEADS = [
    *(
        ("octet-counting", head)
        for head in (b"0 ", b"01 x", b" 1 x", b"x", b"\n<1>", b"1x", b"1\n", b"-1 x", b"12345678901")
    ),
    *((kind, struct.pack(LENGTHS[kind], (1 << 64) - 1)) for kind in ("length:8be", "length:8le")),
    *((kind, struct.pack(LENGTHS[kind], (1 << 63) - 8)) for kind in ("length:8be", "length:8le")),
]


@pytest.mark.parametrize("skips", [False, True])
@pytest.mark.parametrize(("kind", "head"), BAD_HEADS)
def test_a_length_that_no_stream_can_have_ends_it_behind_all_that_was_whole(
    kind: str, head: bytes, skips: bool
) -> None:
    before = stream(kind)
    for piece in (1, 2, 5, 1000):
        got = through(ring_for(kind, 16, 100, skips=skips), before + head + before, [piece])
        assert got.end == "bad"
        assert b"".join(got.blocks) == before


@pytest.mark.parametrize("kind", ["octet-counting", "length:2le", "length:4be", "length:8be"])
def test_a_length_above_max_record_ends_a_stream_before_its_bytes_come(kind: str) -> None:
    before = stream(kind)
    long = framed(kind, bytes(101))
    head = long[: len(long) - 101]
    for piece in (1, 1000):
        ring = ring_for(kind, 16, 100 + len(head))
        got = through(ring, before + head, [piece])
        assert (got.end, b"".join(got.blocks)) == ("long", before)
        assert ring.memory < 100


@pytest.mark.parametrize("piece", [1, 1000])
@pytest.mark.parametrize("size", [5_000_000_000, (1 << 63) - 9])
def test_a_frame_that_will_not_end_is_skipped_without_keeping_it(size: int, piece: int) -> None:
    ring = ring_for("length:8be", 16, 100, skips=True)
    head = struct.pack(">Q", size)
    got = through(ring, framed("length:8be", b"x") + head + bytes(30_000), [piece])
    assert got == Got([framed("length:8be", b"x")], "whole", (1, 30_008))
    assert ring.memory <= 6 * 16


def test_what_max_record_must_hold_is_told() -> None:
    for kind, least in (("octet-counting", 11), ("length:8le", 8), ("length:1be", 1), ("crlf", 2)):
        assert ring_for(kind, 1, least).max_record == least
        with pytest.raises(ValueError, match=f"give at least {least}"):
            ring_for(kind, 1, least - 1)


@st.composite
def streams(draw: st.DrawFn) -> tuple[str, bytes]:
    """Draw a kind, and a stream of frames with a mistake in it, or none."""
    kind = draw(st.sampled_from(KINDS))
    content = st.one_of(
        st.binary(min_size=1, max_size=20),
        st.builds(lambda line: b"<" + line, st.binary(max_size=20)),
        st.integers(1, 200).map(lambda size: b"z" * size),
    )
    parts = [framed(kind, it) for it in draw(st.lists(content, max_size=12))]
    if draw(st.booleans()):
        parts.insert(draw(st.integers(0, len(parts))), draw(st.binary(max_size=12)))
    data = b"".join(parts)
    return kind, data[: len(data) - draw(st.sampled_from([0, 0, 0, 1, 5]))]


@settings(max_examples=1500, deadline=None)
@given(
    what=streams(),
    pieces=st.lists(st.integers(1, 60), min_size=1, max_size=5),
    block=st.integers(1, 80),
    max_record=st.sampled_from([11, 16, 40, 1000]),
    skips=st.booleans(),
    lazily=st.booleans(),
)
def test_a_ring_cuts_as_plain_python_does(
    what: tuple[str, bytes], pieces: list[int], block: int, max_record: int, skips: bool, lazily: bool
) -> None:
    kind, data = what
    expected = cut(kind, data, max_record, skips=skips)
    got = through(ring_for(kind, block, max_record, skips=skips), data, pieces, lazily=lazily)
    is_as_expected(got, expected)
    assert got.skipped == (len(expected.long), sum(len(bytes(frame)) for frame in expected.long))


@settings(max_examples=500, deadline=None)
@given(what=streams(), whole=st.booleans(), headers=st.booleans())
def test_a_walk_finds_the_frames_of_a_block(what: tuple[str, bytes], whole: bool, headers: bool) -> None:
    kind, data = what
    frames = cut(kind, data).frames
    block = b"".join(map(bytes, frames))
    cutter = ring_for(kind, 1, 1000).cutter
    assert cutter is not None
    walk = Walk(cutter, headers)
    walk.enter(memoryview(block), whole)
    ended = [it for it in frames if whole or it.head or it.tail]
    assert list(iter(walk.take, None)) == [bytes(it) if headers else it.content for it in ended]
