"""`ringmain.load("nats://...")`: each message is a block, once if nothing goes wrong and again if something does."""

import asyncio
import gc
import hashlib
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Coroutine
from typing import Any

import brokers
import peers
import pytest
from conftest import FORGOTTEN

import ringmain
from ringmain import errors

Run = Callable[[Coroutine[Any, Any, Any]], Any]

SUBJECTS = ["events.>"]


def messages(count: int, size: int = 50_000) -> list[bytes]:
    return [peers.payload(size + number, number) for number in range(count)]


def digest(blocks: list[bytes]) -> str:
    return hashlib.sha256(b"".join(blocks)).hexdigest()


def test_every_message_is_one_block_in_order_until_a_sequence(broker: brokers.Broker, run: Run) -> None:
    sent = messages(60)
    broker.publish("events.a", *sent, b"beyond")

    async def work() -> list[bytes]:
        url = broker.url("EVENTS")
        async with ringmain.load(url, consumer="all", until_sequence=60, ring_size=200_000) as loader:
            return [bytes(block) async for block in loader]

    got = run(work())
    assert [len(block) for block in got] == [len(message) for message in sent]
    assert digest(got) == digest(sent)
    assert broker.acknowledged("all") == 60


def test_a_block_is_the_message_itself_and_not_a_copy_of_it(broker: brokers.Broker) -> None:
    broker.publish("events.a", b"x" * 1000)
    with ringmain.load(broker.url("EVENTS"), consumer="c", until_sequence=1) as loader:
        block = next(loader)
        assert isinstance(block.obj, bytes)
        assert block.readonly
        assert len(block) == 1000


def test_an_async_for_over_a_plain_with_is_refused_in_our_words(broker: brokers.Broker, run: Run) -> None:
    async def work() -> None:
        with ringmain.load(broker.url("EVENTS"), consumer="c") as loader:
            async for _ in loader:
                raise AssertionError

    with pytest.raises(ringmain.UsageError, match="a loader: it was opened by a plain `with`"):
        run(work())


def test_a_block_is_acknowledged_when_the_next_one_is_asked_for(broker: brokers.Broker) -> None:
    broker.publish("events.a", *messages(3))
    with ringmain.load(broker.url("EVENTS"), consumer="c") as loader:
        next(loader)
        assert broker.acknowledged("c") == 0
        next(loader)
        next(loader)
        peers.eventually(lambda: broker.acknowledged("c") == 2, "two acknowledged")
    assert broker.acknowledged("c") == 3  # left properly


def test_what_was_not_asked_past_comes_again_after_an_exception(broker: brokers.Broker, run: Run) -> None:
    sent = messages(4)
    broker.publish("events.a", *sent)

    async def fail() -> None:
        async with ringmain.load(broker.url("EVENTS"), consumer="c") as loader:
            await anext(loader)
            await anext(loader)
            raise KeyError("the handler's")

    async def rest() -> list[bytes]:
        async with ringmain.load(broker.url("EVENTS"), consumer="c", until_sequence=4) as loader:
            return [bytes(block) async for block in loader]

    with pytest.raises(KeyError):
        run(fail())
    assert digest(sorted(run(rest()))) == digest(sorted(sent[1:]))


def test_what_was_not_asked_past_comes_again_after_an_abort_and_none_is_opened_twice(
    broker: brokers.Broker, run: Run
) -> None:
    sent = messages(4)
    broker.publish("events.a", *sent)

    async def leave() -> None:
        async with ringmain.load(broker.url("EVENTS"), consumer="c") as loader:
            with pytest.raises(errors.UsageError, match="open already"):
                await loader.__aenter__()
            await anext(loader)
            await anext(loader)
            loader.abort()
            with pytest.raises(StopAsyncIteration):
                await anext(loader)
        with pytest.raises(errors.UsageError, match="open before"):
            await loader.__aenter__()

    async def rest() -> list[bytes]:
        async with ringmain.load(broker.url("EVENTS"), consumer="c", until_sequence=4) as loader:
            got = [bytes(block) async for block in loader]
            await loader.aclose()
            return got

    run(leave())
    assert digest(sorted(run(rest()))) == digest(sorted(sent[1:]))
    assert broker.acknowledged("c") == 4


def test_who_is_cancelled_while_waiting_loses_nothing(broker: brokers.Broker, run: Run) -> None:
    async def work() -> bytes:
        async with ringmain.load(broker.url("EVENTS"), consumer="c") as loader:
            for _ in range(5):
                waiting = asyncio.ensure_future(anext(loader))
                await asyncio.sleep(0.01)
                waiting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting
            await asyncio.to_thread(broker.publish, "events.a", b"late")
            return bytes(await anext(loader))

    assert run(work()) == b"late"
    assert broker.acknowledged("c") == 1


def test_who_is_cancelled_while_connecting_leaves_nothing_open(broker: brokers.Broker, run: Run) -> None:
    async def work() -> None:
        for turns in range(40):
            loader = ringmain.load(broker.url("EVENTS"), consumer="c")
            opening = asyncio.ensure_future(loader.__aenter__())
            for _ in range(turns):
                await asyncio.sleep(0.0005)
            opening.cancel()
            try:
                await opening
            except asyncio.CancelledError:
                continue
            await loader.__aexit__(None, None, None)

    run(work())


def test_two_who_name_the_same_consumer_share_the_messages_each_once(broker: brokers.Broker, run: Run) -> None:
    sent = messages(120)  # more than one is given at once
    broker.publish("events.a", *sent)
    opened = [
        ringmain.load(broker.url("EVENTS"), consumer="shared", until_sequence=120, ring_size=80_000) for _ in range(2)
    ]

    async def read(loader: ringmain.LogLoader) -> list[bytes]:
        got = []
        async for block in loader:
            got.append(bytes(block))
            await asyncio.sleep(0.001)
        return got

    async def both() -> list[list[bytes]]:
        async with opened[0] as first, opened[1] as second:
            return list(await asyncio.gather(read(first), read(second)))

    first, second = run(both())
    assert digest(sorted(first + second)) == digest(sorted(sent))
    assert first
    assert second


READER = """
import sys, ringmain
with ringmain.load(sys.argv[1], consumer="c") as loader:
    for number, block in enumerate(loader, 1):
        print(number, flush=True)
        if number == 3:
            sys.stdin.read()
"""


def test_what_a_killed_one_had_comes_again(broker: brokers.Broker, bench: peers.Bench) -> None:
    sent = messages(10)
    broker.publish("events.a", *sent)
    broker.add_consumer("EVENTS", "c", ack_wait=2.0)
    reader = bench.start([sys.executable, "-c", READER, broker.url("EVENTS")], stdin=-1, stdout=-1)
    assert [reader.process.stdout.readline() for _ in range(3)] == [b"1\n", b"2\n", b"3\n"]
    peers.eventually(lambda: broker.acknowledged("c") == 2, "two acknowledged")
    reader.signal(signal.SIGKILL)
    with ringmain.load(broker.url("EVENTS"), consumer="c", until_sequence=10) as loader:
        got = [bytes(block) for block in loader]
    assert digest(sorted(got)) == digest(sorted(sent[2:]))


def test_the_end_waits_for_what_another_one_has(broker: brokers.Broker, run: Run) -> None:
    broker.publish("events.a", *messages(2))

    async def work() -> list[int]:
        url = broker.url("EVENTS")
        async with ringmain.load(url, consumer="c", until_sequence=2) as mine:
            async with ringmain.load(url, consumer="c", until_sequence=2, ring_size=4) as theirs:
                got = [await anext(mine)]
                waiting = asyncio.ensure_future(anext(theirs, None))
                await asyncio.sleep(0.2)
                if waiting.done():  # it was faster with the second
                    got.append(await waiting)
                    return [len(block) for block in got]
                second = await anext(mine)
                await asyncio.sleep(0.5)
                assert not waiting.done()
                got.append(second)
                assert await anext(mine, None) is None
                assert await waiting is None
            return [len(block) for block in got]

    assert run(work()) == [50_000, 50_001]


def test_a_filter_and_a_first_sequence_leave_out_the_rest(broker: brokers.Broker) -> None:
    for number in range(6):
        broker.publish(f"events.{'ab'[number % 2]}", b"%d" % number)
    url = broker.url("EVENTS")
    with ringmain.load(url, consumer="b", filter="events.b", until_sequence=5) as loader:
        assert [bytes(block) for block in loader] == [b"1", b"3"]
    with ringmain.load(url, consumer="late", from_sequence=3, until_sequence=6) as loader:
        assert [bytes(block) for block in loader] == [b"2", b"3", b"4", b"5"]
    with ringmain.load(url, consumer="late", until_sequence=6) as loader:
        assert list(loader) == []  # all that is done


def test_tags_tell_whose_a_block_is_and_where_it_was(broker: brokers.Broker) -> None:
    broker.publish("events.a", b"one", b"two", headers=brokers.tags_of(2))
    broker.publish("events.a", b"")  # a verdict, which is no block
    broker.publish("events.b", b"of somebody else")
    broker.publish("events.b", b"lies", headers=[{"Ringmain-Connection": "x", "Ringmain-Offset": "\u0661-1"}])
    with ringmain.load(broker.url("EVENTS"), consumer="c", until_sequence=5) as loader:
        got = [(tuple(tag), bytes(block)) for tag, block in loader.tagged()]
    assert got == [
        (("events.a", 1, "192.0.2.1:9", "c1", 0, "", 0), b"one"),
        (("events.a", 2, "192.0.2.1:9", "c1", 1000, "", 0), b"two"),
        (("events.b", 4, "", "", 0, "", 0), b"of somebody else"),
        (("events.b", 5, "", "", 0, "", 0), b"lies"),
    ]
    assert broker.acknowledged("c") == 5


def test_records_are_found_in_the_messages(broker: brokers.Broker) -> None:
    broker.publish("events.a", b"one\ntwo\n", b"three\n", b"four")
    with ringmain.load(broker.url("EVENTS"), consumer="c", until_sequence=3) as loader:
        assert [bytes(record) for record in loader.records()] == [b"one", b"two", b"three", b"four"]


def test_stop_ends_the_wait_from_another_thread(broker: brokers.Broker) -> None:
    broker.publish("events.a", b"one")
    with ringmain.load(broker.url("EVENTS"), consumer="c") as loader:
        assert bytes(next(loader)) == b"one"
        timer = threading.Timer(0.2, loader.stop)
        timer.start()
        assert list(loader) == []
        timer.join()


def test_a_server_that_comes_back_is_read_from_on(broker: brokers.Broker, run: Run) -> None:
    sent = messages(40)
    broker.publish("events.a", *sent[:20])
    broker.add_consumer("EVENTS", "c", ack_wait=2.0)

    async def work() -> list[bytes]:
        got = []
        async with ringmain.load(broker.url("EVENTS"), consumer="c", until_sequence=40) as loader:
            async for block in loader:
                got.append(bytes(block))
                if len(got) == 10:
                    broker.kill()
                    await asyncio.to_thread(broker.start)
                    await asyncio.to_thread(broker.publish, "events.a", *sent[20:])
        return got

    got = run(work())
    assert digest(sorted(set(got))) == digest(sorted(sent))


def test_no_message_for_idle_timeout_is_an_error(broker: brokers.Broker) -> None:
    told = pytest.raises(errors.TimedOutError, match=r"no message for 0.2 s; .* raise idle_timeout=")
    with ringmain.load(broker.url("EVENTS"), consumer="c", idle_timeout=0.2) as loader, told:
        next(loader)


def test_a_consumer_that_is_deleted_ends_the_wait(broker: brokers.Broker, run: Run) -> None:
    async def work() -> None:
        async with ringmain.load(broker.url("EVENTS"), consumer="c") as loader:
            waiting = asyncio.ensure_future(anext(loader))
            await asyncio.sleep(0.1)
            await asyncio.to_thread(broker.run, lambda js: js.delete_consumer("EVENTS", "c"))
            with pytest.raises(errors.NotFoundError, match=r"consumer c of stream EVENTS .*deleted"):
                await waiting

    run(work())


def test_what_waits_here_is_bounded_by_bytes(broker: brokers.Broker, run: Run) -> None:
    count, size = 60, 500_000
    broker.publish("events.a", *[bytes([number]) * size for number in range(count)])

    async def work() -> None:
        async with ringmain.load(broker.url("EVENTS"), consumer="c", ring_size=4 << 20, until_sequence=count) as loader:
            for number in range(count):
                block = await anext(loader)
                assert block == bytes([number]) * size
                await asyncio.sleep(0.005)
                waiting = await asyncio.to_thread(broker.run, lambda js: js.consumer_info("EVENTS", "c"))
                assert waiting.num_ack_pending * size <= (4 << 20) + 2 * size
                if number == 5:
                    return

    run(work())


def test_no_more_is_asked_for_at_once_however_many_messages_have_come(broker: brokers.Broker, run: Run) -> None:
    count = 100
    broker.publish("events.a", *[bytes(256 << 10)] * count)

    async def main() -> None:
        async with ringmain.load(broker.url("EVENTS"), consumer="all") as loader:
            assert loader._puller is not None
            asked = loader._puller._share
            for _ in range(count):
                assert len(await anext(loader)) == 256 << 10
            assert loader._puller._share == asked

    run(main())


@FORGOTTEN
def test_a_forgotten_loader_closes_its_connection(broker: brokers.Broker) -> None:
    loader = ringmain.load(broker.url("EVENTS"), consumer="c")
    loader.__enter__()
    gone = weakref.ref(loader)
    del loader
    peers.eventually(lambda: gc.collect() >= 0 and gone() is None, "the collector")
    peers.eventually(lambda: peers.established(broker.port) == 0, "a closed connection")


def test_the_library_is_imported_only_where_a_log_is_used() -> None:
    code = "import ringmain, sys; ringmain.load('tcp://127.0.0.1:0'); assert 'nats' not in sys.modules"
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", code]) == 0
