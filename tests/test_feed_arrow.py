"""Blocks as Arrow buffers, arrays and record batches."""

import gc
import io
import time
from collections.abc import Callable
from typing import Any

import peers
import pytest
from feeding import LINES, library, numbered, schema, send

import ringmain
from ringmain import errors

pa = library("pyarrow")
csv = library("pyarrow.csv")
pj = library("pyarrow.json")
np = library("numpy")
arrow = library("ringmain.feeds.arrow")

SCHEMA = schema()
csv.read_csv(io.BytesIO(b"a\n1\n"))  # the first call in the main thread makes a pipe for signals, which it keeps
ROWS = b"".join(b'%d,"text ""%d""",%d.5\n' % (n, n * n, n) for n in range(5000))


def from_file(data: bytes, schema: Any = None) -> Any:
    return pj.read_json(io.BytesIO(data), parse_options=pj.ParseOptions(explicit_schema=schema))


def test_a_buffer_is_the_block_and_keeps_it() -> None:
    with ringmain.load("127.0.0.1:0", listen_once=True) as loader:
        thread = send(loader.port, b"0123456789")
        block = next(loader)
        thread.join()
        buffer = arrow.buffer(block)
        assert buffer.address == np.frombuffer(block, np.uint8).__array_interface__["data"][0]
        assert not buffer.is_mutable
        del block
        gc.collect()
        assert loader.ring.lent == 1
        assert buffer.to_pybytes() == b"0123456789"
        del buffer
        assert loader.ring.lent == 0


@pytest.mark.parametrize("block", [b"", b"\n", b"a\nbb\n", b"a\nbb", b"\n\n\n", b"x", b"caf\xe9\n\x00\n"])
def test_lines_are_an_array_over_the_block(block: bytes) -> None:
    array = arrow.lines(memoryview(block))
    array.validate(full=True)
    assert array.type == pa.large_binary()
    assert array.to_pylist() == block.splitlines(keepends=True)
    if block:
        assert array.buffers()[2].address == np.frombuffer(block, np.uint8).__array_interface__["data"][0]


@pytest.mark.parametrize("schema", [None, SCHEMA], ids=["inferred", "given"])
def test_ndjson_is_parsed_as_from_a_file(schema: Any) -> None:
    data = numbered(20_000) + b'\n \n{"a":1,"b":"unterminated","c":[]}'
    with ringmain.load("127.0.0.1:0", listen_once=True, **LINES) as loader:
        thread = send(loader.port, data)
        reader = arrow.record_batches(loader, schema=schema)
        assert isinstance(reader, pa.RecordBatchReader)
        batches = list(reader)
        assert loader.ring.lent == 0  # the batches have memory of their own
    thread.join()
    assert len(batches) > 100
    assert pa.Table.from_batches(batches).equals(from_file(data, schema).combine_chunks())


def test_async_for_gives_the_same(run: Callable[[Any], Any]) -> None:
    data = numbered(10_000)

    async def main() -> Any:
        async with ringmain.load("127.0.0.1:0", listen_once=True, **LINES) as loader:
            thread = send(loader.port, data)
            batches = [batch async for batch in arrow.batches(loader, threads=2)]
        thread.join()
        return pa.Table.from_batches(batches)

    assert run(main()).equals(from_file(data).combine_chunks())


@pytest.mark.parametrize("header", [True, False], ids=["header", "no header"])
def test_csv_is_parsed_as_from_a_file(header: bool) -> None:
    names = b"n,text,half\n" if header else b""
    schema = None if header else pa.schema({"n": pa.int32(), "text": pa.large_string(), "half": pa.float32()})
    with ringmain.load("127.0.0.1:0", listen_once=True, **LINES) as loader:
        thread = send(loader.port, names + ROWS)
        table = arrow.record_batches(loader, "csv", schema, header=header).read_all()
    thread.join()
    expected = csv.read_csv(
        io.BytesIO(b"n,text,half\n" + ROWS), convert_options=csv.ConvertOptions(column_types=schema)
    )
    assert table.equals(expected.combine_chunks())


def test_csv_may_have_newlines_in_quotes_and_a_dialect() -> None:
    data = b"n;text\n" + b"".join(b"%d;'%s'\n" % (n, b"line\n" * (n % 9)) for n in range(3000))
    parse = csv.ParseOptions(delimiter=";", quote_char="'")
    with ringmain.load("127.0.0.1:0", listen_once=True, **LINES) as loader:
        thread = send(loader.port, data)
        table = arrow.record_batches(loader, "csv", parse_options=parse).read_all()
    thread.join()
    whole = csv.ParseOptions(delimiter=";", quote_char="'", newlines_in_values=True)
    assert table.equals(csv.read_csv(io.BytesIO(data), parse_options=whole).combine_chunks())


def test_each_connection_of_csv_has_a_header_of_its_own() -> None:
    with ringmain.load("127.0.0.1:0", **LINES) as loader:
        thread = send(loader.port, b"a,b\n1,x\n", b"b,a\ny,2\n", b"a,c\n3,z\n")
        reader = arrow.record_batches(loader, "csv")
        assert [reader.read_next_batch().to_pylist() for _ in range(2)] == [[{"a": 1, "b": "x"}], [{"a": 2, "b": "y"}]]
        with pytest.raises(errors.ParseError, match=r"offset 0 .*'b'.* does not exist"):
            reader.read_next_batch()
    thread.join()


def test_an_open_quote_does_not_reach_into_the_next_connection() -> None:
    schema = pa.schema({"a": pa.int64(), "b": pa.string()})
    with ringmain.load("127.0.0.1:0", **LINES) as loader:
        thread = send(loader.port, b"1,x\n" * 3000 + b"bad,y\n" + b'2,"' + b"z\n" * 9000, b"3,x\n")
        reader = arrow.record_batches(loader, "csv", schema, header=False)
        rows = 0
        with pytest.raises(errors.ParseError, match="offset 12000 "):
            for batch in reader:
                rows += batch.num_rows
        assert rows == 3000
        assert reader.read_next_batch().to_pylist() == [{"a": 3, "b": "x"}]
    thread.join()


def test_ipc_batches_are_views_of_the_blocks() -> None:
    table = from_file(numbered(5000))
    sink = io.BytesIO()
    for _ in range(2):  # two streams on one connection
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=500)
    with ringmain.load("127.0.0.1:0", listen_once=True) as loader:
        thread = send(loader.port, sink.getvalue())
        reader = arrow.record_batches(loader, "ipc")
        assert reader.schema == table.schema
        batches = list(reader)
        assert loader.ring.lent >= 1
        assert pa.Table.from_batches(batches).equals(pa.concat_tables([table, table]))
        del batches, reader
    thread.join()


def test_a_broken_ipc_stream_is_named_and_the_next_connection_is_read() -> None:
    table = from_file(numbered(100))
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
        begun = sink.tell()
        writer.write_table(table)
    data = sink.getvalue()
    with ringmain.load("127.0.0.1:0") as loader:
        thread = send(loader.port, b"", data[: begun + 200], b"garbage" * 9, data)
        reader = arrow.record_batches(loader, "ipc", table.schema)
        assert reader.read_next_batch().equals(table.to_batches()[0])
        with pytest.raises(errors.ParseError) as caught:
            reader.read_next_batch()
        assert caught.value.offset == begun
        with pytest.raises(errors.ParseError, match="offset 0 from"):
            reader.read_next_batch()
        assert reader.read_next_batch().equals(table.to_batches()[0])
    thread.join()


NUMBERS = numbered(3000)
BAD = [
    ("ndjson", b"", NUMBERS, b'{"a":1,"b"\n', "not a whole JSON object"),
    ("ndjson", b"", NUMBERS, b'{"a":1,"b"}\n', "Missing a colon"),
    ("ndjson", b"", NUMBERS, b'{"a":"x"}\n', "changed from number to string"),
    ("ndjson", b"", NUMBERS, b'{"a":1,"new":2}\n', "unexpected field"),
    ("csv", b"n,text,half\n", ROWS, b"1,2\n", "Expected 3 columns, got 2"),
    ("csv", b"n,text,half\n", ROWS, b'x,"two\nlines",1.5\n', "invalid value 'x'"),
]


@pytest.mark.parametrize(
    ("kind", "header", "good", "bad", "why"), BAD, ids=["cut", "malformed", "type", "field", "ragged", "text"]
)
def test_a_bad_record_is_named_loses_nothing_before_it_and_the_next_connection_is_read(
    kind: Any, header: bytes, good: bytes, bad: bytes, why: str
) -> None:
    count = 3000 if kind == "ndjson" else 5000
    with ringmain.load("127.0.0.1:0", **LINES) as loader:
        thread = send(loader.port, header + good + bad + good, header + good)
        reader = arrow.record_batches(loader, kind, threads=2)
        batches: list[Any] = []
        with pytest.raises(errors.ParseError, match=why) as caught:
            for batch in reader:
                batches.append(batch)
        first = pa.Table.from_batches(batches)
        assert caught.value.offset == len(header + good)
        assert caught.value.connection in str(caught.value)
        assert "Row #" not in str(caught.value)
        batches.clear()
        while sum(map(len, batches)) < count:
            batches.append(reader.read_next_batch())
        assert pa.Table.from_batches(batches).equals(first)
    thread.join()
    expected = from_file(good) if kind == "ndjson" else csv.read_csv(io.BytesIO(header + good))
    assert first.equals(expected.combine_chunks())


def test_unexpected_fields_may_be_ignored() -> None:
    with ringmain.load("127.0.0.1:0", listen_once=True, **LINES) as loader:
        thread = send(loader.port, b'{"a":1,"z":0}\n{"y":[],"a":2}\n')
        table = arrow.record_batches(loader, schema=SCHEMA, unexpected_fields="ignore").read_all()
    thread.join()
    assert table.schema == SCHEMA
    assert table["a"].to_pylist() == [1, 2]


def test_the_first_record_may_be_the_bad_one() -> None:
    with ringmain.load("127.0.0.1:0", **LINES) as loader:
        thread = send(loader.port, b"bad\n", b'{"a":1}\n')
        with pytest.raises(errors.ParseError, match="offset 0 from"):
            arrow.record_batches(loader)
        assert arrow.record_batches(loader).read_next_batch().to_pylist() == [{"a": 1}]
    thread.join()


def test_nothing_gives_an_empty_table() -> None:
    with ringmain.load("127.0.0.1:0", listen_once=True, **LINES) as loader:
        thread = send(loader.port, b"")
        assert arrow.record_batches(loader).read_all().num_rows == 0
    thread.join()


def test_an_unfinished_last_record_is_an_error() -> None:
    with ringmain.load("127.0.0.1:0", listen_once=True, **LINES) as loader:
        thread = send(loader.port, numbered(1000) + b'{"a":')
        with pytest.raises(errors.ParseError, match=f"offset {len(numbered(1000))} "):
            list(arrow.record_batches(loader))
    thread.join()


def test_what_a_reset_cut_is_the_fault_of_the_reset() -> None:
    with ringmain.load("127.0.0.1:0", listen_once=True, delimiter=b"\n") as loader:
        with peers.connect(loader.port) as sock:
            sock.sendall(b'{"a":1}\n{"a":')
            reader = arrow.record_batches(loader)
            assert reader.read_next_batch().to_pylist() == [{"a": 1}]
            peers.close_with_reset(sock)
        with pytest.raises(errors.ReceiveError):
            reader.read_next_batch()


def test_more_is_received_while_blocks_are_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    import ringmain.feeds._arrow_parsers as parsers

    parse = parsers.Ndjson._parse
    pauses = [0.2, 0.2]

    def slow(self: Any, job: Any, schema: Any) -> Any:
        time.sleep(pauses.pop() if pauses else 0)
        return parse(self, job, schema)

    monkeypatch.setattr(parsers.Ndjson, "_parse", slow)
    with ringmain.load("127.0.0.1:0", listen_once=True, delimiter=b"\n", block_size=1 << 16) as loader:
        thread = send(loader.port, numbered(100_000)[: 5 << 20])
        connection = next(loader.connections())
        reader = arrow.record_batches(connection, schema=SCHEMA, threads=1)
        reader.read_next_batch()
        # One block was taken from the connection's loop and parsed; others came while the thread was at it.
        assert connection.counters.bytes_in >= 4 * (1 << 16)
        reader.read_all()
        del reader, connection
    thread.join()


def test_arguments_that_make_no_sense_are_refused() -> None:
    with ringmain.load("127.0.0.1:0") as loader:
        with pytest.raises(errors.UsageError, match="delimiter"):
            arrow.record_batches(loader)
        with pytest.raises(errors.UsageError, match="ipc with threads"):
            arrow.record_batches(loader, "ipc", threads=1)
    with (
        ringmain.load("127.0.0.1:0", delimiter=b"\n", long_records="skip") as loader,
        pytest.raises(errors.UsageError, match="long_records"),
    ):
        arrow.record_batches(loader, "ipc")
    with ringmain.load("127.0.0.1:0", **LINES) as loader:
        with pytest.raises(errors.UsageError, match="format 'xml'"):
            arrow.record_batches(loader, "xml")
        with pytest.raises(errors.UsageError, match="give a schema"):
            arrow.record_batches(loader, "csv", header=False)
