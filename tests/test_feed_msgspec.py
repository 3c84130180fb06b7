"""Lines into objects by msgspec."""

import gc
from collections.abc import Callable
from typing import Any

import peers
import pytest
from feeding import LINES, event, library, numbered, send

import ringmain
from ringmain import errors

np = library("numpy")
msgspec = library("msgspec")
lines = library("ringmain.feeds.msgspec")

Event = event()


def test_objects_are_those_of_the_same_bytes_in_a_file() -> None:
    data = numbered(20_000) + b'{"a":1,"b":"unterminated","c":[]}'
    with ringmain.load("127.0.0.1:0", listen_once=True, **LINES) as loader:
        thread = send(loader.port, data)
        parts = list(lines.decode_lines(loader, Event))
    thread.join()
    assert len(parts) > 100
    assert [event for part in parts for event in part] == msgspec.json.Decoder(Event).decode_lines(data)


def test_async_for_gives_the_same(run: Callable[[Any], Any]) -> None:
    data = numbered(5000)

    async def main() -> list[Any]:
        async with ringmain.load("127.0.0.1:0", listen_once=True, **LINES) as loader:
            thread = send(loader.port, data)
            events = [event async for part in lines.decode_lines(loader) for event in part]
        thread.join()
        return events

    assert run(main()) == msgspec.json.Decoder().decode_lines(data)


def test_the_parser_reads_the_block_itself() -> None:
    with ringmain.load("127.0.0.1:0", listen_once=True, delimiter=b"\n") as loader:
        thread = send(loader.port, b'{"a":[1]}\n{"a":[2]}\n')
        raws = [raw for part in lines.decode_lines(loader, msgspec.Raw) for raw in part]
        thread.join()
        assert [bytes(raw) for raw in raws] == [b'{"a":[1]}', b'{"a":[2]}']
        first, second = (np.frombuffer(raw, np.uint8).__array_interface__["data"][0] for raw in raws)
        # Raw is a view of what the parser was given: a block has both lines in a row, and stays lent with them.
        assert second - first == len(b'{"a":[1]}\n')
        assert loader.ring.lent == 1
        copies = [raw.copy() for raw in raws]
        del raws
        gc.collect()
        assert loader.ring.lent == 0
        assert bytes(copies[1]) == b'{"a":[2]}'


def test_a_raw_is_at_the_address_of_its_block() -> None:
    with ringmain.load("127.0.0.1:0", listen_once=True, delimiter=b"\n") as loader:
        thread = send(loader.port, b'{"a":[1]}\n')
        connection = next(loader.connections())
        feed, seen = lines.decode_lines(connection, msgspec.Raw), []
        turn = feed._turn
        feed._turn = lambda piece: (seen.append(piece.block), turn(piece))
        [raw] = next(feed)
        addresses = [np.frombuffer(it, np.uint8).__array_interface__["data"][0] for it in (raw, seen[0])]
        assert addresses[0] == addresses[1]
        thread.join()


@pytest.mark.parametrize(
    "bad", [b'{"a":1,"b"\n', b'{"a":"x","b":"","c":[]}\n', b"\xff\n"], ids=["cut", "type", "garbage"]
)
def test_a_bad_line_is_named_loses_nothing_before_it_and_the_next_connection_is_read(bad: bytes) -> None:
    good = numbered(3000)
    with ringmain.load("127.0.0.1:0", **LINES) as loader:
        thread = send(loader.port, good + bad + good, good)
        feed = lines.decode_lines(loader, Event)
        got: list[Any] = []
        with pytest.raises(errors.ParseError) as caught:
            for part in feed:
                got += part
        assert got == msgspec.json.Decoder(Event).decode_lines(good)
        assert caught.value.offset == len(good)
        assert caught.value.connection.startswith("127.0.0.1:")
        assert f"offset {len(good)} from {caught.value.connection}" in str(caught.value)
        assert isinstance(caught.value.__cause__, msgspec.DecodeError)
        got.clear()
        while len(got) < 3000:
            got += next(feed)
        assert got == msgspec.json.Decoder(Event).decode_lines(good)
    thread.join()


def test_each_connection_may_have_a_feed_of_its_own() -> None:
    good = numbered(100)
    with ringmain.load("127.0.0.1:0", **LINES) as loader:
        thread = send(loader.port, good + b"bad\n" + good, good, b"")
        results: list[Any] = []
        for connection in loader.connections():
            count, offset = 0, None
            try:
                for part in lines.decode_lines(connection, Event):
                    count += len(part)
            except errors.ParseError as error:
                offset = error.offset
            results.append((count, offset))
            if len(results) == 3:
                break
    thread.join()
    assert results == [(100, len(good)), (100, None), (0, None)]


def test_a_line_that_a_reset_cut_is_the_fault_of_the_reset() -> None:
    with ringmain.load("127.0.0.1:0", delimiter=b"\n") as loader:
        connections = loader.connections()
        with peers.connect(loader.port) as sock:
            sock.sendall(b'{"a":1}\n{"a":')
            feed = lines.decode_lines(next(connections))
            assert next(feed) == [{"a": 1}]
            peers.close_with_reset(sock)
            with pytest.raises(errors.ReceiveError):
                next(feed)


def test_one_that_must_go_on_is_warned_of_a_reset(caplog: pytest.LogCaptureFixture) -> None:
    with ringmain.load("127.0.0.1:0", delimiter=b"\n") as loader:
        feed = lines.decode_lines(loader)
        with peers.connect(loader.port) as sock:
            sock.sendall(b'{"a":1}\n{"a":')
            assert next(feed) == [{"a": 1}]
            peers.close_with_reset(sock)
        thread = send(loader.port, b'{"a":2}\n')
        assert next(feed) == [{"a": 2}]
        thread.join()
    assert "reset" in caplog.text


def test_blocks_that_end_anywhere_are_refused() -> None:
    with ringmain.load("127.0.0.1:0") as loader, pytest.raises(errors.UsageError, match="delimiter"):
        lines.decode_lines(loader)
