"""Feeds over many connections at once: each record once, and an error names its sender and the offset there."""

import collections
import contextlib
import gc
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import peers
import pytest
from feeding import all_given_back, library, numbered

import ringmain
from ringmain import errors

Run = Callable[[Any], Any]

pa = library("pyarrow")
arrow = library("ringmain.feeds.arrow")
msgspec = library("msgspec")
lines = library("ringmain.feeds.msgspec")
np = library("numpy")
numpy = library("ringmain.feeds.numpy")

MANY: Any = {"max_connections": 8, "block_size": 4096, "ring_size": 65536}
SCHEMA = pa.schema({"a": pa.int64(), "b": pa.string(), "c": pa.list_(pa.int64())})
Event = msgspec.defstruct("Event", [("a", int), ("b", str), ("c", list[int | None])])


def msgspec_next(loader: ringmain.Loader, **options: Any) -> Callable[[], list[int]]:
    feed = lines.decode_lines(loader, Event, **options)
    return lambda: [event.a for event in next(feed)]


def arrow_next(loader: ringmain.Loader, **options: Any) -> Callable[[], list[int]]:
    reader = arrow.record_batches(loader, schema=SCHEMA, **options)
    return lambda: reader.read_next_batch()["a"].to_pylist()


BOTH = pytest.mark.parametrize("feed", [msgspec_next, arrow_next], ids=["msgspec", "arrow"])


@contextlib.contextmanager
def senders(port: int, *parts: bytes) -> Iterator[list[int]]:
    """Send each part over a connection of its own, in pieces and all at the same time; yield their ports."""
    socks = [peers.connect(port) for _ in parts]

    def work(index: int) -> None:
        chance, view = random.Random(index), memoryview(parts[index])
        with contextlib.suppress(OSError):  # left by who had enough of it
            while len(view):
                size = chance.choice([1, 100, 5000, 20_000])
                socks[index].sendall(view[:size])
                view = view[size:]
            peers.send_no_more(socks[index])

    threads = [threading.Thread(target=work, args=[index]) for index in range(len(parts))]
    ports = [sock.getsockname()[1] for sock in socks]
    for thread in threads:
        thread.start()
    try:
        yield ports
    finally:
        for sock in socks:
            sock.close()
        for thread in threads:
            thread.join(peers.TIMEOUT)


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


@pytest.mark.parametrize("which", ["csv", "ipc", "framing"])
def test_what_begins_anew_with_each_connection_is_fed_by_connection(which: str) -> None:
    feeds: dict[str, Any] = {
        "csv": lambda loader: arrow.batches(loader, "csv", SCHEMA),
        "ipc": lambda loader: arrow.record_batches(loader, "ipc", SCHEMA),
        "framing": lambda loader: lines.decode_lines(loader, int),
    }
    options: Any = {"framing": "octet-counting"} if which == "framing" else {}
    said = "its blocks end anywhere" if which == "framing" else r"feed each stream of loader\.connections\(\) by itself"
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
