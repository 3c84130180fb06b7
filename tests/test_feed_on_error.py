"""What `on_error` makes of bad records: skipped, or given to a function; what is around them is handed out."""

import io
from collections.abc import Callable
from typing import Any

import pytest
from feeding import LINES, all_given_back, event, library, numbered, schema, send

import ringmain
from ringmain import errors

csv = library("pyarrow.csv")
arrow = library("ringmain.feeds.arrow")
msgspec = library("msgspec")
lines = library("ringmain.feeds.msgspec")

csv.read_csv(io.BytesIO(b"a\n1\n"))  # the first call in the main thread makes a pipe for signals, which it keeps
SCHEMA = schema()
Event = event()
BAD = b'{"a":"x"}\n'
MIXED = b"".join(numbered(7, 7 * n) + BAD * (n % 3) for n in range(60))
GOOD = numbered(420)
BAD_OFFSETS = [at for at in range(len(MIXED)) if MIXED.startswith(BAD, at)]
HEADER = b"a,b\n"
ROW, BAD_ROW = b'7,"x\ny"\n', b'z,"x\ny"\n'
ALL_ROWS = HEADER + (ROW * 5 + BAD_ROW) * 200


def refused_by(feed: str, data: bytes, on_error: Any) -> tuple[Any, Any]:
    """Return the rows of one connection, and the feed's iterator."""
    with ringmain.load("127.0.0.1:0", listen_once=True, **LINES) as loader:
        thread = send(loader.port, data)
        if feed == "msgspec":
            iterator = lines.decode_lines(loader, Event, on_error=on_error)
            rows = [msgspec.to_builtins(one) for part in iterator for one in part]
        elif feed == "polars":
            iterator = library("ringmain.feeds.polars").frames(loader, schema=SCHEMA, on_error=on_error)
            rows = [row for frame in iterator for row in frame.to_dicts()]
        elif feed == "pandas":
            iterator = library("ringmain.feeds.pandas").frames(
                loader, schema=SCHEMA, on_error=on_error, types_mapper=library("pandas").ArrowDtype
            )
            rows = [row for frame in iterator for row in frame.to_dict("records")]
        elif feed == "duckdb":
            duckdb = library("duckdb")
            iterator = library("ringmain.feeds.duckdb")
            with duckdb.connect() as database:
                relation = iterator.relation(loader, schema=SCHEMA, on_error=on_error, database=database)
                rows = [dict(zip(SCHEMA.names, row, strict=True)) for row in relation.fetchall()]
        else:
            schema = {"ndjson": SCHEMA, "csv": SCHEMA.remove(2)}.get(feed)
            iterator = arrow.batches(loader, feed.removesuffix(", inferred"), schema, on_error=on_error)
            rows = [row for batch in iterator for row in batch.to_pylist()]
    thread.join()
    return rows, iterator


@pytest.mark.parametrize("feed", ["msgspec", "ndjson", "ndjson, inferred", "polars", "pandas", "duckdb"])
def test_a_function_is_given_each_bad_record_and_what_is_around_them_is_handed_out(feed: str) -> None:
    seen: list[tuple[int, bytes]] = []
    rows, _ = refused_by(feed, MIXED, lambda error, record: seen.append((error.offset, record)))
    assert rows == msgspec.json.Decoder().decode_lines(GOOD)
    assert seen == [(offset, BAD) for offset in BAD_OFFSETS]


def test_bad_rows_of_csv_are_skipped_with_their_newlines() -> None:
    seen: list[tuple[int, bytes]] = []
    rows, _ = refused_by("csv", ALL_ROWS, lambda error, record: seen.append((error.offset, record)))
    assert rows == [{"a": 7, "b": "x\ny"}] * 1000
    each = len(ROW) * 5 + len(BAD_ROW)
    assert seen == [(len(HEADER) + n * each + 5 * len(ROW), BAD_ROW) for n in range(200)]


@pytest.mark.parametrize("feed", ["msgspec", "ndjson"])
def test_skipped_records_are_counted_and_a_few_of_them_warned_of(feed: str, caplog: pytest.LogCaptureFixture) -> None:
    rows, iterator = refused_by(feed, MIXED, "skip")
    assert len(rows) == 420
    assert (iterator.skipped, iterator.skipped_size) == (60, 60 * len(BAD))
    first, tenth = [record.getMessage() for record in caplog.records]
    assert f"the record at offset {BAD_OFFSETS[0]} from 127.0.0.1:" in first
    assert f"skipped, with it 1 records of {len(BAD)} bytes" in first
    assert f"offset {BAD_OFFSETS[9]} " in tenth
    assert f"10 records of {10 * len(BAD)} bytes" in tenth


@pytest.mark.parametrize("feed", ["msgspec", "ndjson", "ndjson, inferred"])
def test_a_block_may_have_nothing_but_bad_records(feed: str) -> None:
    rows, iterator = refused_by(feed, b"{\n" * 5000 + numbered(3), "skip")
    assert rows == msgspec.json.Decoder().decode_lines(numbered(3))
    assert (iterator.skipped, iterator.skipped_size) == (5000, 10_000)


@pytest.mark.parametrize("feed", ["msgspec", "ndjson"])
def test_what_the_function_raises_comes_after_exactly_what_was_before_that_record(feed: str) -> None:
    seen: list[Exception] = []

    def three_at_most(error: ringmain.ParseError, record: bytes) -> None:
        seen.append(error)
        if len(seen) > 3:
            raise RuntimeError("too many")

    with ringmain.load("127.0.0.1:0", **LINES) as loader:
        thread = send(loader.port, MIXED, GOOD)
        if feed == "msgspec":
            iterator = lines.decode_lines(loader, on_error=three_at_most, type=Event)
        else:
            iterator = arrow.batches(loader, schema=SCHEMA, on_error=three_at_most)
        rows = 0
        with pytest.raises(RuntimeError, match="too many"):
            for part in iterator:
                rows += len(part)
        assert rows == sum(line != BAD for line in io.BytesIO(MIXED[: BAD_OFFSETS[3]]))
        while rows < 450:  # the next connection's
            rows += len(next(iterator))
        assert len(seen) == 4
        all_given_back(loader)
    thread.join()


def test_a_header_that_cannot_be_read_is_raised_in_any_case() -> None:
    seen: list[Any] = []
    with pytest.raises(errors.ParseError, match="offset 0 "):
        refused_by("csv", b"\xff\n1\n", lambda *it: seen.append(it))
    assert not seen


def test_on_error_is_one_of_three() -> None:
    with ringmain.load("127.0.0.1:0", **LINES) as loader:
        makers: list[Callable[[], Any]] = [
            lambda: lines.decode_lines(loader, on_error="ignore"),
            lambda: arrow.record_batches(loader, schema=SCHEMA, on_error="ignore"),
            lambda: arrow.record_batches(loader, "ipc", SCHEMA, on_error="ignore"),
        ]
        for make in makers:
            with pytest.raises(errors.UsageError, match="'ignore'"):
                make()
