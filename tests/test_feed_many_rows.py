"""Rows of CSV and frames of one size of many connections: each record once, and who sends a bad one is named."""

import collections
import io
import random
from collections.abc import Callable
from typing import Any

import pytest
from feeding import MANY, all_given_back, library, senders

import ringmain
from ringmain import errors
from ringmain._records import CsvRecords

pa = library("pyarrow")
csv = library("pyarrow.csv")
arrow = library("ringmain.feeds.arrow")
np = library("numpy")
numpy = library("ringmain.feeds.numpy")

csv.read_csv(io.BytesIO(b"a\n1\n"))  # the first call in the main thread makes a pipe for signals, which it keeps
ROWS = pa.schema({"n": pa.int64(), "text": pa.string()})


def ticks(sender: int, count: int, order: str = ">") -> Any:
    """Return frames of 22 bytes, each with its length, who sends it and which it is."""
    kind = np.dtype([("length", f"{order}u2"), ("sender", "<u4"), ("number", "<u8"), ("more", "V8")])
    frames = np.zeros(count, kind)
    frames["length"], frames["sender"], frames["number"] = kind.itemsize - 2, sender, np.arange(count)
    return frames


@pytest.mark.parametrize("order", [">", "<"], ids=["be", "le"])
def test_frames_of_one_size_are_arrays_over_the_blocks_of_each_sender(order: str) -> None:
    sent = [ticks(sender, 2000, order) for sender in range(5)]
    options = {**MANY, "framing": "length:2be" if order == ">" else "length:2le"}
    got: collections.defaultdict[int, list[Any]] = collections.defaultdict(list)
    with ringmain.load("127.0.0.1:0", **options) as loader:
        with senders(loader.port, *(frames.tobytes() for frames in sent)):
            arrays, count = numpy.records(loader, sent[0].dtype), 0
            while count < 10_000:
                array = next(arrays)
                assert (array.dtype, array.flags.owndata, array.flags.writeable) == (sent[0].dtype, False, False)
                assert len(set(array["sender"])) == 1
                got[int(array["sender"][0])].append(array.copy())
                count += len(array)
                del array
        all_given_back(loader)
    assert {sender: b"".join(part.tobytes() for part in parts) for sender, parts in got.items()} == {
        sender: frames.tobytes() for sender, frames in enumerate(sent)
    }


@pytest.mark.parametrize("size", [0, 2, 19, 21, 42])
@pytest.mark.parametrize("before", [0, 1, 500])
def test_a_frame_of_another_size_is_named_and_costs_its_sender_only(size: int, before: int) -> None:
    good, bad = ticks(1, 2000), ticks(2, before)
    sent = bad.tobytes() + size.to_bytes(2) + bytes(size) + ticks(3, 100).tobytes()
    got: collections.Counter[int] = collections.Counter()
    found: list[errors.ParseError] = []
    with (
        ringmain.load("127.0.0.1:0", **{**MANY, "framing": "length:2be"}) as loader,
        senders(loader.port, good.tobytes(), sent) as ports,
    ):
        arrays = numpy.records(loader, good.dtype)
        while got[1] < len(good) or not found:
            try:
                got.update(next(arrays)["sender"].tolist())
            except errors.ParseError as error:
                found.append(error)
        assert [(error.connection, error.offset) for error in found] == [(f"127.0.0.1:{ports[1]}", bad.nbytes)]
        assert f"a frame has {size + 2} bytes, and a record of the dtype 22" in str(found[0])
        all_given_back(loader)
    assert got == {1: len(good), 2: before} if before else {1: len(good)}


def test_of_many_connections_only_frames_with_their_length_are_arrays() -> None:
    short, none = "it is shorter than the length alone; begin it", "do not begin with their length; give it framing="
    for framing, said in (("length:4be", short), (None, none), ("octet-counting", none), ("nul", none)):
        with (
            ringmain.load("127.0.0.1:0", **{**MANY, "framing": framing}) as loader,
            pytest.raises(errors.UsageError, match=said),
        ):
            numpy.records(loader, "<u2")


def csv_next(loader: ringmain.Loader, **options: Any) -> Callable[[], list[int]]:
    reader = arrow.record_batches(loader, "csv", ROWS, header=False, **options)
    return lambda: reader.read_next_batch()["n"].to_pylist()


def rows(count: int, start: int = 0, end: bytes = b"\n") -> bytes:
    """Return rows of CSV, with quotes here and there, and the mark of UTF-8 where a stream begins."""
    return b"".join(
        b'%d,"a, ""b""%d"' % (n, n) + end if n % 3 else b"%d,text" % n + end for n in range(start, start + count)
    )


@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=repr)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["", "mark"])
def test_rows_of_csv_without_a_header_come_once_and_in_their_order(end: bytes, mark: bytes) -> None:
    parts = [mark + rows(2000, 10_000 * sender, end) for sender in range(5)]
    got: collections.defaultdict[int, list[int]] = collections.defaultdict(list)
    with ringmain.load("127.0.0.1:0", **MANY) as loader, senders(loader.port, *parts):
        take = csv_next(loader)
        while sum(map(len, got.values())) < 10_000:
            for number in take():
                got[number // 10_000].append(number)
        all_given_back(loader)
    assert got == {sender: list(range(10_000 * sender, 10_000 * sender + 2000)) for sender in range(5)}


# Rows that would go on behind the end of their line.
OPEN = {
    "newline in quotes": b'7,"two\nlines"\n',
    "no quote at the end": b'7,"open\n',
    "escaped newline": b"7,two\\\nlines\n",
}


@pytest.mark.parametrize("before", [0, 1, 1500])
@pytest.mark.parametrize("bad", OPEN.values(), ids=OPEN)
def test_a_row_that_does_not_end_in_its_line_is_named_and_costs_its_sender_only(bad: bytes, before: int) -> None:
    parts = [rows(2000), rows(before, 10_000) + bad + rows(1000, 20_000)]
    got: list[int] = []
    found: list[errors.ParseError] = []
    options = {"parse_options": csv.ParseOptions(escape_char="\\")}
    with ringmain.load("127.0.0.1:0", **MANY) as loader, senders(loader.port, *parts) as ports:
        take = csv_next(loader, **options)
        while len(got) < 2000 + before or not found:
            try:
                got += take()
            except errors.ParseError as error:
                found.append(error)
        assert [(error.connection, error.offset) for error in found] == [
            (f"127.0.0.1:{ports[1]}", len(rows(before, 10_000)))
        ]
        assert "a quoted field does not end in its line" in str(found[0])
        all_given_back(loader)
    assert sorted(got) == [*range(2000), *range(10_000, 10_000 + before)]


def test_what_tells_lines_of_csv_from_others_knows_where_every_record_ends() -> None:
    chance, count = random.Random(1), 0
    for _ in range(20_000):
        data = bytes(chance.choices(b'a",\n\r\\', k=chance.randrange(12))) + b"\n"
        records = CsvRecords(ord(","), ord('"'), ord("\\"))
        ends = set(records.ends(data))
        records.reset()
        whole = records.last_end(data) == len(data) and {at + 1 for at, it in enumerate(data) if it == 10} <= ends
        assert CsvRecords(ord(","), ord('"'), ord("\\")).are_lines(data) == whole, data
        count += whole
    assert 2000 < count < 18_000


def test_a_mark_of_utf8_is_no_part_of_the_first_row() -> None:
    mark = b"\xef\xbb\xbf"
    with ringmain.load("127.0.0.1:0", **MANY) as loader:
        take = csv_next(loader)
        with senders(loader.port, mark + b'"1","x"\n2,y\n'):
            got = take()
            while len(got) < 2:
                got += take()
            assert got == [1, 2]
        with senders(loader.port, mark + b'"1\n",x\n'), pytest.raises(errors.ParseError) as caught:
            take()
        assert caught.value.offset == 0


def test_a_row_that_does_not_end_in_its_line_may_be_skipped() -> None:
    sent = rows(10) + b'7,"open\n' + rows(10, 100)
    with ringmain.load("127.0.0.1:0", **MANY) as loader, senders(loader.port, sent):
        reader = arrow.record_batches(loader, "csv", ROWS, header=False, on_error="skip")
        got: list[int] = []
        while len(got) < 20:
            got += reader.read_next_batch()["n"].to_pylist()
    assert got == [*range(10), *range(100, 110)]
