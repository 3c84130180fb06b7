"""What a feed makes of a stream does not depend on where and when the network cuts it."""

import io
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import peers
import pytest
from feeding import library, numbered, schema

import ringmain

pa = library("pyarrow")
csv = library("pyarrow.csv")
pj = library("pyarrow.json")
np = library("numpy")
arrow = library("ringmain.feeds.arrow")

csv.read_csv(io.BytesIO(b"a\n1\n"))  # the first call in the main thread makes a pipe for signals, which it keeps
LINES: Any = {"delimiter": b"\n", "block_size": 512, "ring_size": 8192, "linger": 0, "listen_once": True}
SCHEMA = schema()
SEEDS = range(8)


def send_cut(port: int, data: bytes, seed: int) -> threading.Thread:
    """Send in pieces of random sizes, with pauses of random lengths between some."""
    rnd = random.Random(seed)
    longest = rnd.choice([1, 3, 20, 200, 5000]) if len(data) < 3000 else rnd.choice([300, 5000])

    def work() -> None:
        with peers.connect(port) as sock:
            at = 0
            while at < len(data):
                size = rnd.randint(1, longest)
                sock.sendall(data[at : at + size])
                at += size
                if rnd.random() < 0.2:
                    time.sleep(rnd.random() / 500)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def received(data: bytes, seed: int, consume: Callable[[ringmain.Loader], Any], **options: Any) -> Any:
    """Return what a consumer makes of the data, cut at random."""
    with ringmain.load("127.0.0.1:0", **{**LINES, **options}) as loader:
        thread = send_cut(loader.port, data, seed)
        result = consume(loader)
    thread.join()
    return result


def some_json(seed: int) -> bytes:
    """Return lines of JSON, some blank, some with a value that looks like the end of one."""
    rnd = random.Random(seed)
    lines = []
    for n in range(rnd.choice([0, 1, 10, 100])):
        text = "".join(rnd.choices(["}", "{", "\\n", '\\"', "é", ":", ",", "[", "x"], k=rnd.randint(0, 20)))
        lines.append(f'{{"a":{n},"b":"{text}","c":[{n},null]}}' + rnd.choice(["\n", "\r\n", " \n", "\n\n", "\n \t\n"]))
    return "".join(lines).encode().removesuffix(rnd.choice([b"\n", b""]))


def soup(seed: int) -> bytes:
    """Return octets that mean something to a parser of CSV, in any order."""
    rnd = random.Random(seed)
    return b"".join(rnd.choices([b'"', b'""', b"\n", b"\n", b"\r\n", b"\r", b"\\", b",", b"x", b"5", b" "], k=400))


@pytest.mark.parametrize("seed", SEEDS)
def test_ndjson_is_what_the_whole_is(seed: int) -> None:
    data = some_json(seed)
    table = received(data, seed, lambda loader: arrow.record_batches(loader, schema=SCHEMA).read_all())
    options = pj.ParseOptions(explicit_schema=SCHEMA, unexpected_field_behavior="error")
    whole = pj.read_json(io.BytesIO(data), parse_options=options) if data else SCHEMA.empty_table()
    assert table.equals(whole.combine_chunks())


DIALECTS = [
    {},
    {"escape_char": "\\"},
    {"double_quote": False},
    {"quote_char": False},
    {"ignore_empty_lines": False},
    {"quote_char": "5", "delimiter": "x", "escape_char": '"'},
]


@pytest.mark.parametrize("dialect", DIALECTS, ids=str)
@pytest.mark.parametrize("seed", SEEDS)
def test_csv_is_what_the_whole_is(seed: int, dialect: dict[str, Any]) -> None:
    data = rows_of(seed) if seed % 2 else b"5,x\n" + soup(seed)
    if seed % 4 == 3:
        data = b"\xef\xbb\xbf" + data
    parse = csv.ParseOptions(newlines_in_values=True, invalid_row_handler=lambda _: "skip", **dialect)
    schema = pa.schema({"a": pa.string(), "b": pa.string()})
    table = received(
        data,
        seed,
        lambda loader: arrow.record_batches(loader, "csv", schema, header=False, parse_options=parse).read_all(),
    )
    whole = csv.read_csv(
        io.BytesIO(data),
        csv.ReadOptions(column_names=schema.names, block_size=len(data) + 1),
        parse,
        csv.ConvertOptions(column_types=schema),
    )
    assert table.equals(whole.combine_chunks())


def rows_of(seed: int) -> bytes:
    """Return rows of two fields, quoted or not, with all that may be in them, marks at the beginning of rows too."""
    rnd = random.Random(seed)

    def field() -> bytes:
        text = b"".join(rnd.choices([b"x", b"5", b'"', b" ", b"\xef\xbb\xbf"], k=rnd.randint(0, 9)))
        if rnd.random() < 0.5:
            return text.lstrip(b'"')
        inside = b"".join(rnd.choices([b"\n", b",", b"\r", b"x\r\n", b'""', b"y"], k=rnd.randint(0, 9)))
        return b'"' + inside + b'"'

    ends = [b"\n", b"\n", b"\r\n", b"\r", b"\n\n", b"\r\n\r\n"]
    return b"".join(field() + b"," + field() + rnd.choice(ends) for _ in range(60))


@pytest.mark.parametrize("seed", SEEDS)
def test_csv_with_a_header_is_what_the_whole_is(seed: int) -> None:
    rnd = random.Random(seed)
    begin = rnd.choice([b"", b"\xef\xbb\xbf"]) + rnd.choice([b"", b"\n", b"\r\n\n\r\r\n"])
    data = begin + rnd.choice([b"n,text\n", b'n,"te\nxt"\r\n'])
    data += b"".join(rnd.choice([b'%d,5" pipe\n', b'%d,"a\nb"\n', b"%d,x\n\n"]) % n for n in range(100))
    table = received(data, seed, lambda loader: arrow.record_batches(loader, "csv").read_all())
    assert table.equals(csv.read_csv(io.BytesIO(data), parse_options=csv.ParseOptions(newlines_in_values=True)))


@pytest.mark.parametrize("compression", [None, "zstd"])
@pytest.mark.parametrize("seed", SEEDS)
def test_ipc_is_what_the_whole_is(seed: int, compression: str | None) -> None:
    table = pj.read_json(io.BytesIO(numbered(300))).append_column(
        "d", pa.array(["p", "q", "r"] * 100).dictionary_encode()
    )
    sink = io.BytesIO()
    rnd = random.Random(seed)
    parts = [table.slice(0, rnd.randint(1, 100)), table]
    for part in parts:  # two streams on one connection
        with pa.ipc.new_stream(sink, part.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
            writer.write_table(part, max_chunksize=rnd.randint(1, 300))
    batches = received(
        sink.getvalue(),
        seed,
        lambda loader: arrow.record_batches(loader, "ipc").read_all(),
        delimiter=b"",
        ring_size=1 << 18,
    )
    assert (
        batches.equals(pa.concat_tables(parts).combine_chunks())
        or batches.to_pylist() == pa.concat_tables(parts).to_pylist()
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_lines_and_buffers_are_what_the_whole_is(seed: int) -> None:
    data = some_json(seed)
    lines = received(data, seed, lambda loader: [line for block in loader for line in arrow.lines(block).to_pylist()])
    assert lines == arrow.lines(memoryview(data)).to_pylist()
    parts = received(data, seed, lambda loader: [arrow.buffer(block).to_pybytes() for block in loader], delimiter=b"")
    assert b"".join(parts) == data


@pytest.mark.parametrize("seed", SEEDS)
def test_numpy_records_are_what_the_whole_is(seed: int) -> None:
    feed = library("ringmain.feeds.numpy")
    data = peers.payload(13 * random.Random(seed).choice([0, 1, 7, 300]))
    arrays = received(data, seed, lambda loader: [array.copy() for array in feed.records(loader, "S13")], delimiter=b"")
    assert b"".join(array.tobytes() for array in arrays) == np.frombuffer(data, "S13").tobytes()


@pytest.mark.parametrize("seed", SEEDS)
def test_msgspec_lines_are_what_the_whole_is(seed: int) -> None:
    msgspec, feed = library("msgspec"), library("ringmain.feeds.msgspec")
    data = some_json(seed)
    objects = received(data, seed, lambda loader: [one for part in feed.decode_lines(loader) for one in part])
    assert objects == msgspec.json.Decoder().decode_lines(data)


@pytest.mark.parametrize("kind", ["ndjson", "csv"])
@pytest.mark.parametrize("seed", SEEDS)
def test_frames_and_relations_are_what_the_whole_is(seed: int, kind: str) -> None:
    schema = pa.schema({"a": pa.int64(), "b": pa.string()})
    rows = random.Random(seed).choice([1, 3, 150])
    data = {
        "ndjson": b"".join(b'{"a":%d,"b":"x\\n%d"}\n' % (n, n) for n in range(rows)),
        "csv": b"a,b\n" + b"".join(b'%d,"x\n%d"\n' % (n, n) for n in range(rows)),
    }[kind]
    expected = [(n, f"x\n{n}") for n in range(rows)]
    polars, polars_feed = library("polars"), library("ringmain.feeds.polars")
    frame = received(data, seed, lambda loader: polars.concat(polars_feed.frames(loader, kind, schema)))
    assert frame.rows() == expected
    pandas, pandas_feed = library("pandas"), library("ringmain.feeds.pandas")
    frame = received(data, seed, lambda loader: pandas.concat(pandas_feed.frames(loader, kind, schema)))
    assert list(frame.itertuples(index=False, name=None)) == expected
    duckdb, duckdb_feed = library("duckdb"), library("ringmain.feeds.duckdb")
    with duckdb.connect() as database:

        def rows_found(loader: ringmain.Loader) -> Any:
            return duckdb_feed.relation(loader, kind, schema, database=database).fetchall()

        assert received(data, seed, rows_found) == expected


@pytest.mark.parametrize("seed", SEEDS)
def test_a_url_is_what_the_whole_is(seed: int) -> None:
    pandas = library("pandas")
    library("fsspec")
    data = b"n,text\n" + b"".join(b'%d,"x\n%d"\n' % (n, n) for n in range(100))
    port = peers.free_port()
    thread = threading.Thread(target=lambda: (peers.wait_for_port(port), send_cut(port, data, seed).join()))
    thread.start()
    frame = pandas.read_csv(f"tcp://127.0.0.1:{port}", storage_options={"listen": True})
    thread.join()
    pandas.testing.assert_frame_equal(frame, pandas.read_csv(io.BytesIO(data)))
