"""A stream as a Dask data frame: every row once, also where a worker dies under it."""

import sys
from pathlib import Path

import brokers
import feeding
import peers
import pytest

from ringmain import errors

feeding.library("dask")
pa = feeding.library("pyarrow")
feeding.library("distributed")

from ringmain.feeds import dask  # noqa: E402

SCHEMA = pa.schema([("a", pa.int64()), ("b", pa.string()), ("c", pa.list_(pa.int64()))])


@pytest.fixture
def broker(bench: peers.Bench) -> brokers.Broker:
    """Give a server with a stream EVENTS of 12,000 rows in 120 messages, and others between them."""
    it = brokers.Broker(bench)
    it.add_stream("EVENTS", "events.>")
    for at in range(0, 120, 40):
        it.publish("events.a", *(feeding.numbered(100, 100 * number) for number in range(at, at + 40)), b"")
    return it


def test_every_row_is_there_once_and_in_order(broker: brokers.Broker) -> None:
    frame = dask.read_nats(broker.url("EVENTS"), schema=SCHEMA, partitions=7)
    assert frame.npartitions == 7
    rows = frame.compute(scheduler="synchronous")
    assert list(rows["a"]) == list(range(12_000))
    assert list(rows["b"][:3]) == ["text 0", "text 1", "text 4"]
    again = dask.read_nats(broker.url("EVENTS"), schema=SCHEMA, partitions=3, start=11, stop=30)
    assert list(again["a"].compute(scheduler="threads")) == list(range(1000, 3000))


def test_a_server_that_is_killed_between_two_messages_costs_none(
    broker: brokers.Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ringmain.engines import nats_range

    monkeypatch.setattr(nats_range, "_AT_ONCE", 10)
    with nats_range.load_range(broker.url("EVENTS"), 1, 123) as loader:
        got = [bytes(next(loader)) for _ in range(25)]
        broker.kill()
        broker.start()
        got += [bytes(block) for block in loader]
    assert b"".join(got) == feeding.numbered(12_000)


def test_what_is_gone_is_an_error_and_not_a_gap(broker: brokers.Broker) -> None:
    frame = dask.read_nats(broker.url("EVENTS"), schema=SCHEMA, partitions=2)
    broker.run(lambda js: js.purge_stream("EVENTS", seq=10))
    with pytest.raises(errors.NotFoundError, match="messages from 1 to 9 are gone"):
        frame.compute(scheduler="synchronous")


def test_a_stream_without_messages_has_no_rows_and_no_such_stream_is_an_error(broker: brokers.Broker) -> None:
    broker.add_stream("EMPTY")
    rows = dask.read_nats(broker.url("EMPTY"), schema=SCHEMA, partitions=2).compute(scheduler="synchronous")
    assert (len(rows), list(rows.columns)) == (0, ["a", "b", "c"])
    with pytest.raises(errors.NotFoundError, match="stream NONE"):
        dask.read_nats(broker.url("NONE"), schema=SCHEMA, partitions=2)
    with pytest.raises(errors.UsageError, match="partitions=0"):
        dask.read_nats(broker.url("EMPTY"), schema=SCHEMA, partitions=0)
    with pytest.raises(errors.UsageError, match="did you mean idle_timeout"):
        dask.read_nats(broker.url("EMPTY"), schema=SCHEMA, partitions=1, idle_timout=1)  # type: ignore[call-arg]


def test_a_row_that_cannot_be_parsed_is_named(broker: brokers.Broker) -> None:
    broker.publish("events.a", b'{"a":"text"}\n')
    frame = dask.read_nats(broker.url("EVENTS"), schema=SCHEMA, partitions=2)
    with pytest.raises(errors.ParseError, match="message 124"):
        frame.compute(scheduler="synchronous")


def test_a_worker_that_dies_costs_no_row_and_brings_none_twice(bench: peers.Bench, broker: brokers.Broker) -> None:
    """In a program of its own: `distributed` keeps descriptors for as long as a process lives."""
    program = Path(__file__).with_name("dask_cluster.py")
    result = bench.folder / "rows"
    cluster = bench.start([sys.executable, str(program), broker.url("EVENTS"), str(result)])
    assert cluster.process.wait(5 * peers.TIMEOUT) == 0, cluster.stderr
    assert result.read_text() == " ".join(map(str, range(12_000)))
    assert "caused the cluster to lose" in cluster.stderr
