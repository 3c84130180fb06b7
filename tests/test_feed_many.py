"""Feeds over many connections at once: each record once, and an error names its sender and the offset there."""

import collections
import contextlib
import gc
from collections.abc import Callable
from typing import Any

import peers
import pytest
from feeding import MANY, all_given_back, event, library, numbered, schema, senders

import ringmain
from ringmain import errors

Run = Callable[[Any], Any]

pa = library("pyarrow")
arrow = library("ringmain.feeds.arrow")
msgspec = library("msgspec")
lines = library("ringmain.feeds.msgspec")

SCHEMA = schema()
Event = event()


def msgspec_next(loader: ringmain.Loader, **options: Any) -> Callable[[], list[int]]:
    feed = lines.decode_lines(loader, Event, **options)
    return lambda: [event.a for event in next(feed)]


def arrow_next(loader: ringmain.Loader, **options: Any) -> Callable[[], list[int]]:
    reader = arrow.record_batches(loader, schema=SCHEMA, **options)
    return lambda: reader.read_next_batch()["a"].to_pylist()


BOTH = pytest.mark.parametrize("feed", [msgspec_next, arrow_next], ids=["msgspec", "arrow"])


@BOTH
def test_every_record_of_all_senders_comes_once_and_in_their_order(feed: Any) -> None:
    parts = [numbered(2000, 10_000 * sender) for sender in range(5)]
    got: collections.defaultdict[int, list[int]] = collections.defaultdict(list)
    with ringmain.load("127.0.0.1:0", **MANY) as loader, senders(loader.port, *parts):
        take = feed(loader)
        while sum(map(len, got.values())) < 10_000:
            for number in take():
                got[number // 10_000].append(number)
        all_given_back(loader)
    assert got == {sender: list(range(10_000 * sender, 10_000 * sender + 2000)) for sender in range(5)}


@BOTH
def test_a_bad_line_is_named_by_sender_and_offset_and_costs_that_one_only(feed: Any) -> None:
    parts = [numbered(2000, 10_000 * sender) for sender in range(5)]
    before = numbered(1000, 20_000)
    parts[2] = before + b'{"a":"no number"}\n' + numbered(1000, 25_000)
    got: collections.defaultdict[int, list[int]] = collections.defaultdict(list)
    found: list[errors.ParseError] = []
    with ringmain.load("127.0.0.1:0", **MANY) as loader, senders(loader.port, *parts) as ports:
        take = feed(loader)
        while sum(map(len, got.values())) < 9000 or not found:
            try:
                numbers = take()
            except errors.ParseError as error:
                found.append(error)
                continue
            for number in numbers:
                got[number // 10_000].append(number)
        assert [(error.connection, error.offset) for error in found] == [(f"127.0.0.1:{ports[2]}", len(before))]
        all_given_back(loader)
    assert got[2] == list(range(20_000, 21_000))  # all before it, nothing behind it
    for sender in (0, 1, 3, 4):
        assert got[sender] == list(range(10_000 * sender, 10_000 * sender + 2000))


@BOTH
def test_what_is_skipped_is_counted_for_each_sender(feed: Any, caplog: pytest.LogCaptureFixture) -> None:
    bad = b"null\n"
    parts = [b"".join(numbered(1, 1000 * sender + n) + bad for n in range(100)) for sender in range(3)]
    got: list[int] = []
    with ringmain.load("127.0.0.1:0", **MANY) as loader, senders(loader.port, *parts) as ports:
        take = feed(loader, on_error="skip")
        while len(got) < 300:
            got += take()
        loader.stop()
        with contextlib.suppress(StopIteration):
            while True:
                got += take()
    assert sorted(got) == [1000 * sender + n for sender in range(3) for n in range(100)]
    for port in ports:  # the 1st, 10th and 100th of each, however their blocks alternate
        told = [it.getMessage() for it in caplog.records if f"127.0.0.1:{port}:" in it.getMessage()]
        assert [message.rpartition("with it ")[2] for message in told if "skipped" in message] == [
            "1 records of 5 bytes",
            "10 records of 50 bytes",
            "100 records of 500 bytes",
        ]


@BOTH
def test_a_function_is_told_whose_record_it_is(feed: Any) -> None:
    parts = [numbered(50, 1000 * sender) + b"%d\n" % sender + numbered(50, 1000 * sender + 50) for sender in range(4)]
    told: list[tuple[str, int, bytes]] = []
    got: list[int] = []

    def hear(error: ringmain.ParseError, record: bytes) -> None:
        told.append((error.connection, error.offset, record))

    with ringmain.load("127.0.0.1:0", **MANY) as loader, senders(loader.port, *parts) as ports:
        take = feed(loader, on_error=hear)
        while len(got) < 400:
            got += take()
    assert sorted(told) == sorted(
        (f"127.0.0.1:{ports[sender]}", len(numbered(50, 1000 * sender)), b"%d\n" % sender) for sender in range(4)
    )


def test_an_offset_counts_what_the_loader_has_skipped() -> None:
    sent = b"1\n" + b"x" * 300 + b"\n2\nbad\n"
    options: Any = {"max_connections": 2, "max_record": 100, "long_records": "skip"}
    with ringmain.load("127.0.0.1:0", **options) as loader, senders(loader.port, sent):
        feed, got = lines.decode_lines(loader, int), []
        with pytest.raises(errors.ParseError) as caught:
            while True:
                got += next(feed)
    assert (got, caught.value.offset) == ([1, 2], sent.index(b"bad"))


def test_async_for_gives_the_same(run: Run) -> None:
    parts = [numbered(500, 1000 * sender) for sender in range(3)]

    async def main() -> list[int]:
        got: list[int] = []
        async with ringmain.load("127.0.0.1:0", **MANY) as loader:
            with senders(loader.port, *parts):
                async for batch in arrow.batches(loader, schema=SCHEMA):
                    got += batch["a"].to_pylist()
                    if len(got) == 1500:
                        return got
        return got

    assert sorted(run(main())) == [1000 * sender + n for sender in range(3) for n in range(500)]
    gc.collect()


@pytest.mark.parametrize("which", ["csv", "ipc", "framing"])
def test_what_begins_anew_with_each_connection_is_fed_by_connection(which: str) -> None:
    feeds: dict[str, Any] = {
        "csv": lambda loader: arrow.batches(loader, "csv", SCHEMA),
        "ipc": lambda loader: arrow.record_batches(loader, "ipc", SCHEMA),
        "framing": lambda loader: lines.decode_lines(loader, int),
    }
    options: Any = {"framing": "octet-counting"} if which == "framing" else {}
    said = (
        "its blocks may end within a line"
        if which == "framing"
        else r"feed each stream of loader\.connections\(\) by itself"
    )
    with ringmain.load("127.0.0.1:0", **MANY, **options) as loader, pytest.raises(errors.UsageError, match=said):
        feeds[which](loader)


def test_the_remedy_works() -> None:
    with ringmain.load("127.0.0.1:0", **MANY, delimiter=b"\n") as loader, senders(loader.port, b"a,b\n1,x\n2,y\n"):
        stream = next(loader.connections())
        assert arrow.record_batches(stream, "csv").read_all().to_pydict() == {"a": [1, 2], "b": ["x", "y"]}


@BOTH
def test_the_sender_of_a_bad_line_is_reset_and_what_else_it_sent_is_dropped(feed: Any) -> None:
    with ringmain.load("127.0.0.1:0", **MANY) as loader, peers.connect(loader.port) as bad:
        bad.sendall(b"bad\n" + numbered(3))
        take = feed(loader)
        with pytest.raises(errors.ParseError) as caught:
            take()
        with pytest.raises(ConnectionResetError):
            bad.recv(1)
        assert loader.served == 0
        with peers.connect(loader.port) as good:
            good.sendall(numbered(2, 7))
            got: list[int] = []
            while len(got) < 2:
                got += take()
        assert got == [7, 8]
        all_given_back(loader)  # although the error is still there
        assert caught.value.offset == 0
