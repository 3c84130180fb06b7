"""Feeds of a log: what they acknowledge, and when; what they refuse."""

import json
from typing import Any

import brokers
import feeding
import pytest

import ringmain
from ringmain import errors

SUBJECTS = ["events.>"]


def test_an_arrow_feed_reads_messages_and_acknowledges_none_before_its_time(broker: brokers.Broker) -> None:
    feeding.library("pyarrow")
    from ringmain.feeds import arrow

    sent = [feeding.numbered(100, 100 * number) for number in range(40)]
    broker.publish("events.a", *sent, headers=brokers.tags_of(40))
    with ringmain.load(broker.url("EVENTS"), consumer="c", until_sequence=40) as loader:
        rows: list[Any] = []
        for batch in arrow.record_batches(loader):
            done = broker.acknowledged("c")
            assert done * 100 <= len(rows)
            rows += batch.to_pylist()
    assert rows == [json.loads(line) for line in b"".join(sent).splitlines()]
    assert broker.acknowledged("c") == 40


def test_a_record_that_a_feed_refuses_is_named_and_its_message_is_not_lost(broker: brokers.Broker) -> None:
    feeding.library("msgspec")
    from ringmain.feeds import msgspec as lines

    broker.publish("events.a", b'{"a":1}\n', b'{"a":2}\n{"a":oh no}\n', b'{"a":3}\n', headers=brokers.tags_of(3))
    with ringmain.load(broker.url("EVENTS"), consumer="c") as loader:
        feed = lines.decode_lines(loader)
        assert next(feed) == [{"a": 1}]
        with pytest.raises(errors.ParseError) as caught:
            while True:
                assert next(feed) == [{"a": 2}]
        assert (caught.value.connection, caught.value.offset) == ("192.0.2.1:9", 1008)
    with ringmain.load(broker.url("EVENTS"), consumer="c", until_sequence=3) as loader:
        skipping = lines.decode_lines(loader, on_error="skip")
        got = {row["a"] for rows in skipping for row in rows}
        assert {2, 3} <= got <= {1, 2, 3}
        assert skipping.skipped == 1


def test_a_format_that_needs_a_whole_connection_is_refused(broker: brokers.Broker) -> None:
    feeding.library("pyarrow")
    from ringmain.feeds import arrow

    with ringmain.load(broker.url("EVENTS"), consumer="c") as loader:
        with pytest.raises(errors.UsageError):
            arrow.record_batches(loader, "ipc")
        with pytest.raises(errors.UsageError, match="use tagged"):
            loader.connections()
