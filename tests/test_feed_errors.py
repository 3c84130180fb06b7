"""Records that a parser refuses: each is named, and what is before it is handed out."""

import asyncio
import contextlib
import io
import socket
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import peers
import pytest
from conftest import Certificates
from feeding import LINES, all_given_back, event, library, numbered, schema, send
from test_alerts import ALERT, MORE, answer_to
from test_alerts import BAD as BAD_TLS

import ringmain
from ringmain import errors

Run = Callable[[Any], Any]

pa = library("pyarrow")
csv = library("pyarrow.csv")
arrow = library("ringmain.feeds.arrow")
msgspec = library("msgspec")
lines = library("ringmain.feeds.msgspec")

csv.read_csv(io.BytesIO(b"a\n1\n"))  # the first call in the main thread makes a pipe for signals, which it keeps
SCHEMA = schema()
Event = event()


class Picky(msgspec.Struct):
    """A type that refuses some records in its own way."""

    a: int

    def __post_init__(self) -> None:
        if self.a < 0:
            raise LookupError(f"{self.a} is not there")


DEEP = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}\n"
REFUSED = {
    "invalid UTF-8": (Event, numbered(300), b'{"a":1,"b":"\xff","c":[]}\n', "codec can't decode"),
    "nested too deeply": (Any, numbered(300), DEEP, "recursion"),
    "not hashable": (set[Any], b"[1]\n" * 300, b"[[1]]\n", "unhashable"),
    "refused by its own type": (Picky, b'{"a":1}\n' * 300, b'{"a":-1}\n', "-1 is not there"),
    "in two lines": (Any, numbered(300), b'{"a":\n1}\n', "a part of a value"),
    "begun in a line before": (Any, numbered(300), b"]\n", "a part of a value"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_whatever_msgspec_makes_of_a_line_is_a_parse_error_after_what_was_good(kind: str) -> None:
    type_, good, bad, why = REFUSED[kind]
    with ringmain.load("127.0.0.1:0", **LINES) as loader:
        thread = send(loader.port, good + bad + good, good)
        feed, got = lines.decode_lines(loader, type_), []
        with pytest.raises(errors.ParseError, match=why) as caught:
            for part in feed:
                got += part
        assert got == msgspec.json.Decoder(type_).decode_lines(good)
        assert caught.value.offset == len(good)
        assert next(feed)
    thread.join()


NUMBERS, ROWS = numbered(300), b"".join(b"%d,x\n" % n for n in range(300))
TWO = pa.schema({"a": pa.int64(), "b": pa.string()})
REFUSED_BY_ARROW = {
    "invalid UTF-8": ("ndjson", SCHEMA, NUMBERS, b'{"a":1,"b":"\xff","c":[]}\n', "UTF8"),
    "invalid UTF-8, inferred": ("ndjson", None, NUMBERS, b'{"a":1,"b":"\xff","c":[]}\n', "UTF8"),
    "no object": ("ndjson", SCHEMA, NUMBERS, b"null\n", "not a whole JSON object"),
    "in two lines": ("ndjson", SCHEMA, NUMBERS, b'{"a":\n1}\n', "not a whole JSON object"),
    "nested too deeply": ("ndjson", SCHEMA, NUMBERS, DEEP, "changed from number to array"),
    "csv with invalid UTF-8": ("csv", TWO, ROWS, b"1,\xff\n", "invalid UTF8"),
    "csv with control characters": ("csv", TWO, ROWS, b"\x1b[31m,x\n", r"'\\x1b\[31m'"),
    "csv with a long field": ("csv", TWO, ROWS, b"y" * 3000 + b",x\n", r"y{200}\.\.\.$"),
}


@pytest.mark.parametrize("kind", REFUSED_BY_ARROW)
def test_whatever_arrow_makes_of_a_record_is_a_parse_error_after_what_was_good(kind: str) -> None:
    name, schema, good, bad, why = REFUSED_BY_ARROW[kind]
    options = {"header": False} if name == "csv" else {}
    with ringmain.load("127.0.0.1:0", **LINES) as loader:
        thread = send(loader.port, good + bad + good, good)
        reader, rows = arrow.record_batches(loader, name, schema, **options), 0
        with pytest.raises(errors.ParseError, match=why) as caught:
            for batch in reader:
                rows += len(batch)
        assert (rows, caught.value.offset) == (300, len(good))
        assert reader.read_next_batch().num_rows
        all_given_back(loader)
    thread.join()


FIRST = {
    "null": ("ndjson", None, b"null\n"),
    "null with a schema": ("ndjson", SCHEMA, b" null\n"),
    "null before an object": ("ndjson", SCHEMA, b'null {"a":1}\n'),
    "nested too deeply": ("ndjson", None, DEEP),
    "a name that is not UTF-8": ("ndjson", None, b'{"\xff":1}\n'),
    "fields without end": (
        "ndjson",
        None,
        b'{"a":{"b":[{' + b",".join(b'"%d":1' % n for n in range(20_000)) + b"}]}}\n",
    ),
    "columns without end": ("csv", None, b"," * 20_000 + b"\n"),
    "columns without end, with a schema": ("csv", TWO, b"," * 20_000 + b"\n"),
    "a header that is not UTF-8": ("csv", None, b"\xff,b\n1,2\n"),
    "a header that is not UTF-8, with a schema": ("csv", TWO, b"\xff,b\n1,2\n"),
    "a header that lacks a column": ("csv", TWO, b"b,c\n"),
}


@pytest.mark.parametrize("kind", FIRST)
def test_the_first_record_may_be_one_that_the_parser_breaks_at(kind: str) -> None:
    name, schema, bad = FIRST[kind]
    with ringmain.load("127.0.0.1:0", **LINES) as loader:
        thread = send(loader.port, bad, b"")
        with pytest.raises(errors.ParseError) as caught:
            arrow.record_batches(loader, name, schema).read_next_batch()
        assert caught.value.offset == 0
        next(loader.connections())  # or the thread would be reset
    thread.join()


def test_records_that_have_no_field_in_common_do_not_cost_a_cell_each() -> None:
    data = b"".join(b'{"%d":{"x":1}}\n' % n for n in range(9000))
    with ringmain.load("127.0.0.1:0", listen_once=True, delimiter=b"\n", min_block=len(data), linger=5.0) as loader:
        thread = send(loader.port, data)
        reader = arrow.record_batches(loader)
        with pytest.raises(errors.ParseError, match="different fields; give a schema"):
            for batch in reader:
                assert batch.num_columns * batch.num_rows < 1 << 22
    thread.join()


def test_rows_do_not_wait_for_the_end_of_a_quoted_field_behind_them() -> None:
    with ringmain.load("127.0.0.1:0", listen_once=True, **LINES) as loader, peers.connect(loader.port) as sock:
        sock.sendall(b'a,b\n1,5" pipe\n2,"x\n')
        reader = arrow.record_batches(loader, "csv")
        assert reader.read_next_batch().to_pylist() == [{"a": 1, "b": '5" pipe'}]
        sock.sendall(b'y"\n3,z\n')
        sock.shutdown(socket.SHUT_WR)
        assert reader.read_all().to_pylist() == [{"a": 2, "b": "x\ny"}, {"a": 3, "b": "z"}]


@pytest.mark.parametrize("blank", [b"\n", b"\r\n\n", b"\xef\xbb\xbf\n"])
def test_blank_lines_may_come_alone_before_the_header(blank: bytes) -> None:
    options: Any = {**LINES, "listen_once": True, "linger": 0}
    with ringmain.load("127.0.0.1:0", **options) as loader, peers.connect(loader.port) as sock:
        sock.sendall(blank)
        connection = next(loader.connections())
        # What is there now is taken before anything else is sent.
        timer = threading.Timer(0.1, lambda: (sock.sendall(b"a,b\n1,2\n"), sock.shutdown(socket.SHUT_WR)))
        timer.start()
        assert arrow.record_batches(connection, "csv").read_all().to_pylist() == [{"a": 1, "b": 2}]
        timer.join()


def test_a_quoted_field_without_an_end_is_refused_after_max_record_bytes() -> None:
    with ringmain.load("127.0.0.1:0", max_record=20_000, **LINES) as loader:
        thread = send(loader.port, b'a,b\n1,x\n2,"' + b"y\n" * 1_000_000, b"a,b\n3,z\n")
        reader = arrow.record_batches(loader, "csv")
        connection = loader._inflow
        assert connection is not None
        assert reader.read_next_batch().to_pylist() == [{"a": 1, "b": "x"}]
        with pytest.raises(errors.ParseError, match="does not end within 20000 bytes") as caught:
            reader.read_next_batch()
        assert caught.value.offset == len(b"a,b\n1,x\n")
        assert connection.taken < 20_000 + 2 * 4096
        assert reader.read_next_batch().to_pylist() == [{"a": 3, "b": "z"}]
        del caught, connection
    thread.join()


@pytest.mark.parametrize("feed", ["msgspec", "ndjson"])
def test_a_lack_of_memory_leaves_the_connection_and_no_hole(feed: str) -> None:
    with ringmain.load("127.0.0.1:0", **LINES) as loader:
        thread = send(loader.port, numbered(3000), numbered(1))
        feeds: Any = lines.decode_lines(loader, Event) if feed == "msgspec" else arrow.batches(loader, threads=1)
        decoder, name = (feeds._decoder, "decode_lines") if feed == "msgspec" else (feeds._parser, "_parse")
        real, calls = getattr(decoder, name), 0

        def parse(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == 2:
                raise MemoryError
            return real(*arguments)

        if feed == "msgspec":
            feeds._decoder = SimpleNamespace(decode_lines=parse)
        else:
            decoder._parse = parse
        first = len(next(feeds))
        with pytest.raises(MemoryError):
            next(feeds)
        assert 1 < first < 3000
        assert len(next(feeds)) == 1  # of the next connection
    thread.join()


LONG = b"L" * 5000 + b"\n"


@pytest.mark.parametrize(
    ("data", "header", "kept", "offset"),
    [
        (b"a,b\n5,y\n" + LONG + b"6,z\n", True, [5, 6], None),
        (LONG + b"5,y\n6,z\n", False, [5, 6], None),
        (LONG + b"5,y\n6,z\n", True, [], 0),
        (b'a,b\n5,y\n6,"begin\n' + LONG + b'end"\n7,z\n', True, [5], len(b"a,b\n5,y\n")),
        (b'a,b\n5,y\n6,"begin\n' + LONG, True, [5], len(b"a,b\n5,y\n")),
        (LONG, True, [], 0),
    ],
    ids=[
        "between rows",
        "before rows without a header",
        "the header",
        "within a quoted field",
        "at its end",
        "nothing else",
    ],
)
def test_lines_that_the_loader_skips_join_nothing_in_csv(
    data: bytes, header: bool, kept: list[int], offset: int | None
) -> None:
    schema, found, errors_at = pa.schema({"a": pa.int64(), "b": pa.string()}), [], []
    with ringmain.load("127.0.0.1:0", max_record=1000, long_records="skip", **LINES) as loader:
        names = b"a,b\n" * header
        thread = send(loader.port, names + b'1,x\nbad\n2,"open\n', data, names + b"9,z\n")
        batches = arrow.batches(loader, "csv", schema, header=header)
        while 9 not in found:
            try:
                found += next(batches).column("a").to_pylist()
            except errors.ParseError as error:
                errors_at.append(error.offset)
    thread.join()
    assert found == [1, *kept, 9]
    assert errors_at[1:] == ([] if offset is None else [offset])


@pytest.mark.parametrize("feed", ["msgspec", "ndjson", "ipc"])
def test_a_peer_of_a_feed_is_told_that_its_record_was_bad(certificates: Certificates, feed: str) -> None:
    answers = []
    with ringmain.load("tcps://127.0.0.1:0", certfile=certificates.server, **LINES) as loader:

        def work() -> None:
            for _ in range(20):
                with peers.connect_tls(loader.port, certificates.ca) as sock:
                    answers.append(answer_to(sock, BAD_TLS, *[MORE] * 20))
            loader.stop()

        thread = threading.Thread(target=work)
        thread.start()
        iterator = lines.decode_lines(loader) if feed == "msgspec" else arrow.batches(loader, feed)
        assert list(iterator) == []
        thread.join()
    assert answers == [ALERT] * 20


@pytest.mark.parametrize("kind", ["msgspec", "ndjson", "csv"])
def test_a_record_that_a_reset_cut_is_not_taken_for_a_shorter_one(kind: str) -> None:
    data = {"msgspec": b"1234\n1234", "ndjson": b'{"a":1}\n{"a":2}', "csv": b'a\n1234\n"x\n12'}[kind]
    with ringmain.load("127.0.0.1:0", listen_once=True, **LINES) as loader, peers.connect(loader.port) as sock:
        sock.sendall(data)
        connection = next(loader.connections())
        feed = lines.decode_lines(connection) if kind == "msgspec" else iter(arrow.batches(connection, kind, threads=1))
        assert len(next(feed)) == 1
        peers.close_with_reset(sock)
        with pytest.raises(errors.ReceiveError):
            next(feed)


@pytest.mark.parametrize("name", ["polars", "pandas"])
def test_frames_come_in_a_coroutine_too(name: str, run: Callable[[Any], Any]) -> None:
    library(name)
    feed = library(f"ringmain.feeds.{name}")

    async def main() -> int:
        async with ringmain.load("127.0.0.1:0", listen_once=True, **LINES) as loader:
            thread = send(loader.port, numbered(420))
            rows = 0
            async for frame in feed.frames(loader):
                rows += len(frame)
        thread.join()
        return rows

    assert run(main()) == 420


@pytest.mark.parametrize("patience", [0.1, 0.3], ids=["at once", "later"])
def test_the_error_of_a_stream_outlives_a_read_that_is_cancelled(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch, run: Run, patience: float
) -> None:
    monkeypatch.setattr("ringmain.net.resets._FAREWELL", 0.2)

    async def main() -> None:
        async with ringmain.load("tcps://127.0.0.1:0", certfile=certificates.server, **LINES) as loader:
            connecting = asyncio.ensure_future(asyncio.to_thread(peers.connect_tls, loader.port, certificates.ca))
            async for connection in loader.connections():
                with await connecting as sock:
                    socket.socket.sendall(sock, BAD_TLS)
                    records = lines.decode_lines(connection)
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(anext(records), patience)
                    await anext(records)

    with pytest.raises(errors.TruncatedError):
        run(main())
