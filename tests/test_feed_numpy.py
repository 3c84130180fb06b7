"""Fixed-size records and line offsets by numpy."""

import gc
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import peers
import pytest
from feeding import library, send

import ringmain
from ringmain import errors

np = library("numpy")
feed = library("ringmain.feeds.numpy")

TICK = np.dtype([("time", "<u8"), ("price", "<f4"), ("flag", "u1")])  # 13 bytes: no block is a multiple of it


def test_records_are_those_of_the_same_bytes_in_a_file() -> None:
    data = peers.payload(TICK.itemsize * 100_000)
    with ringmain.load("127.0.0.1:0", listen_once=True, block_size=4096) as loader:
        thread = send(loader.port, data)
        arrays = [array.copy() for array in feed.records(loader, TICK)]
    thread.join()
    assert len(arrays) > 10
    assert np.concatenate(arrays).tobytes() == np.frombuffer(data, TICK).tobytes()
    assert all(array.dtype == TICK and len(array) for array in arrays)


def test_async_for_gives_the_same(run: Callable[[Any], Any]) -> None:
    data = peers.payload(8 * 10_000)

    async def main() -> bytes:
        async with ringmain.load("127.0.0.1:0", listen_once=True, block_size=1000) as loader:
            thread = send(loader.port, data)
            got = b"".join([array.tobytes() async for array in feed.records(loader, ">i8")])
        thread.join()
        return got

    assert run(main()) == data


def test_a_record_may_be_longer_than_blocks() -> None:
    data = peers.payload(5000 * 7)
    with ringmain.load("127.0.0.1:0", listen_once=True, block_size=512) as loader:
        thread = send(loader.port, data)
        assert b"".join(array.tobytes() for array in feed.records(loader, "S5000")) == data
    thread.join()


def test_an_array_is_the_block_and_keeps_it() -> None:
    with ringmain.load("127.0.0.1:0", listen_once=True) as loader:
        thread = send(loader.port, bytes(range(32)))
        records, seen = feed.records(next(loader.connections()), "<u4"), []
        turn = records._turn
        records._turn = lambda piece: (seen.append(piece.block), turn(piece))
        array = next(records)
        thread.join()
        assert array.__array_interface__["data"][0] == np.frombuffer(seen[0], np.uint8).__array_interface__["data"][0]
        assert not array.flags.writeable
        seen.clear()
        gc.collect()
        assert loader.ring.lent == 1
        assert array.tobytes() == bytes(range(32))
        del array
        assert loader.ring.lent == 0


def test_an_incomplete_record_is_an_error_and_the_next_connection_begins_anew() -> None:
    with ringmain.load("127.0.0.1:0") as loader:
        thread = send(loader.port, b"abcdefghij", b"ABCD")
        records = feed.records(loader, "S4")
        got = []
        with pytest.raises(errors.ParseError, match=r"offset 8 from 127.0.0.1:.* 2 bytes into a record of 4") as caught:
            for array in records:
                got += list(array)
        assert got == [b"abcd", b"efgh"]
        assert caught.value.offset == 8
        assert list(next(records)) == [b"ABCD"]
    thread.join()


def test_a_dtype_without_a_size_is_refused() -> None:
    with ringmain.load("127.0.0.1:0") as loader:
        for dtype in (object, "S0"):
            with pytest.raises(errors.UsageError, match="no fixed size"):
                feed.records(loader, dtype)


def test_a_loader_that_leaves_out_records_of_its_own_is_refused() -> None:
    with (
        ringmain.load("127.0.0.1:0", delimiter=b"\n", long_records="skip") as loader,
        pytest.raises(errors.UsageError, match="long_records"),
    ):
        feed.records(loader, "<u4")


@pytest.mark.parametrize("block", [b"", b"\n", b"a\nbb\n", b"a\nbb", b"\n\n\n", b"x"])
def test_line_offsets_cut_a_block_into_its_lines(block: bytes) -> None:
    offsets = feed.line_offsets(memoryview(block))
    assert offsets.dtype == np.int64
    cut = [block[start:end] for start, end in pairwise(offsets)]
    assert cut == block.splitlines(keepends=True)
