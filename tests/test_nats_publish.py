"""Messages into a stream by the publisher alone: its window, its order, and what it does while the server is away."""

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any

import nats
import peers
import pytest
from brokers import Broker
from nats.js.api import DiscardPolicy

from ringmain.endpoint import LogEndpoint
from ringmain.engines.nats_client import NatsClient
from ringmain.engines.nats_publish import Publisher
from ringmain.engines.nats_session import Message
from ringmain.errors import DeniedError, NotFoundError
from ringmain.settings import Settings

Run = Callable[[Coroutine[Any, Any, Any]], Any]


def publisher_to(url: str, max_in_flight: int = 1 << 20, **options: Any) -> Publisher:
    return Publisher(LogEndpoint.parse(url), Settings(), max_in_flight=max_in_flight, **options)


def message(number: int, stored: list[int], size: int = 100_000, subject: str = "events", lane: str = "") -> Message:
    headers = {"Nats-Msg-Id": f"test:{number}"}
    return Message(subject, b"%08d" % number + bytes(size - 8), headers, lambda: stored.append(number), lane)


def numbers_in(broker: Broker, stream: str = "EVENTS") -> list[int]:
    """Return the numbers of the messages that a stream has."""
    return [int(data[:8]) for data in broker.messages(stream)]


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110 - of state that tells nobody
        await asyncio.sleep(0.01)


def test_messages_are_stored_in_order_and_each_is_told_of(run: Run, broker: Broker) -> None:
    stored: list[int] = []

    async def work() -> None:
        async with publisher_to(broker.url("events")) as publisher:
            for number in range(50):
                await publisher.put(message(number, stored))
                assert publisher.fullness <= 1
            await until(lambda: len(stored) == 50)
            assert (publisher.stored, publisher.fullness) == (5_000_000, 0)

    run(work())
    assert numbers_in(broker) == sorted(stored) == list(range(50))


def test_while_the_server_stands_still_no_more_than_the_window_is_taken_and_nothing_is_lost(
    run: Run, broker: Broker
) -> None:
    stored: list[int] = []

    async def work() -> None:
        async with publisher_to(broker.url("events")) as publisher:
            broker.pause()
            taken: list[int] = []

            async def put(number: int) -> None:
                await publisher.put(message(number, stored))
                taken.append(number)

            waiting = [asyncio.ensure_future(put(number)) for number in range(30)]
            await until(lambda: len(taken) == 10)  # of 101,024 bytes each
            await asyncio.wait(waiting, timeout=0.5)
            assert taken == list(range(10))
            waiting[15].cancel()
            broker.resume()
            await until(lambda: len(stored) == 29)

    run(work())
    assert numbers_in(broker) == [number for number in range(30) if number != 15]


def test_what_the_stream_has_no_room_for_waits_until_it_has(
    run: Run, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    broker.add_stream("SMALL", max_bytes=1_000_000, discard=DiscardPolicy.NEW)
    stored: list[int] = []

    async def work() -> None:
        async with publisher_to(broker.url("small")) as publisher:
            for number in range(12):
                await publisher.put(message(number, stored, subject="small"))
                if number == 9:
                    await until(lambda: "maximum bytes exceeded" in caplog.text)
                    await asyncio.to_thread(broker.run, lambda js: js.purge_stream("SMALL"))
            await until(lambda: len(stored) == 12)

    run(work())
    assert stored == list(range(12))
    assert "messages are stored again" in caplog.text


def test_what_fits_where_a_message_before_it_did_not_is_not_stored_before_it(
    run: Run, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    broker.add_stream("SMALL", max_bytes=1_000_000, discard=DiscardPolicy.NEW)
    stored: list[int] = []

    async def work() -> None:
        async with publisher_to(broker.url("small")) as publisher:
            for number, size in enumerate([900_000, 200_000, 8]):
                await publisher.put(message(number, stored, size, "small", "one"))
            await publisher.put(message(3, stored, 8, "small", "another"))
            await until(lambda: "maximum bytes exceeded" in caplog.text)
            await until(lambda: sorted(stored) == [0, 3])
            await asyncio.to_thread(broker.run, lambda js: js.purge_stream("SMALL", keep=1))
            await until(lambda: len(stored) == 4)

    run(work())
    assert numbers_in(broker, "SMALL") == [3, 1, 2]


@pytest.mark.parametrize("lanes", [1, 3])
def test_messages_are_under_way_side_by_side_and_are_sent_again_in_the_same_order(
    run: Run, broker: Broker, lanes: int
) -> None:
    """After a loss nobody knows which of them are in the stream, and those behind them wait until that is known."""
    stored: list[int] = []
    messages = [message(number, stored, lane=str(number % lanes)) for number in range(12)]

    async def work() -> None:
        async with publisher_to(broker.url("events"), max_in_flight=2 << 20) as publisher:
            broker.pause()
            for it in messages[:6]:
                await publisher.put(it)
            await until(lambda: all(it.first_sent is not None for it in messages[:6]))
            broker.kill()
            for it in messages[6:9]:
                await publisher.put(it)
            await asyncio.to_thread(broker.start)
            await until(lambda: len(stored) == 9)
            broker.pause()
            for it in messages[9:]:
                await publisher.put(it)
            await until(lambda: all(it.first_sent is not None for it in messages))
            broker.resume()
            await until(lambda: len(stored) == 12)

    run(work())
    assert numbers_in(broker) == stored == list(range(12))


@pytest.mark.parametrize("lanes", [1, 3])
def test_messages_of_others_in_between_change_no_order(run: Run, broker: Broker, lanes: int) -> None:
    stored: list[int] = []

    async def disturb() -> int:
        count = 0
        client = await nats.connect(f"nats://{broker.address}")
        try:
            while len(stored) < 600:
                await client.publish("events", b"99999999")
                await client.flush()
                count += 1
        finally:
            await client.close()
        return count

    async def work() -> None:
        async with publisher_to(broker.url("events")) as publisher:
            others = asyncio.ensure_future(disturb())
            for number in range(600):
                await publisher.put(message(number, stored, 10_000, lane=str(number % lanes)))
            await until(lambda: len(stored) == 600)
            assert await others > 0

    run(work())
    found = [number for number in numbers_in(broker) if number < 600]
    assert sorted(found) == list(range(600))
    for lane in range(lanes):
        assert [number for number in found if number % lanes == lane] == list(range(lane, 600, lanes))


def test_memory_is_given_back_once_all_is_stored_though_a_connection_had_not_sent_it(run: Run, broker: Broker) -> None:
    stored: list[int] = []
    memory = bytearray(64 << 20)  # more than the system takes for a server that reads nothing

    async def work() -> None:
        async with publisher_to(broker.url("events"), max_in_flight=65 << 20) as publisher:
            broker.pause()
            for number in range(64):
                headers = {"Nats-Msg-Id": f"test:{number}"}
                payload = memoryview(memory)[number << 20 : (number + 1 << 20) - 2000]
                done = functools.partial(stored.append, number)
                await publisher.put(Message("events", payload, headers, done, "one"))
            await until(lambda: publisher.is_lost)  # it has answered nothing for too long
            broker.resume()
            await until(lambda: len(stored) == 64)
            await until(lambda: is_free(memory))

    run(work())
    assert stored == list(range(64))


def is_free(memory: bytearray) -> bool:
    """Tell whether nobody looks at some memory."""
    try:
        memory.append(0)
    except BufferError:
        return False
    return True


def test_an_answer_of_somebody_else_than_the_stream_is_none(
    run: Run, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    stored: list[int] = []

    async def work() -> None:
        async with publisher_to(broker.url("events")) as publisher:
            client = await nats.connect(f"nats://{broker.address}")

            async def answer(it: Any) -> None:
                await client.publish(it.reply, b'{"status": "thanks"}')

            try:
                await client.jetstream().delete_stream("EVENTS")
                await client.subscribe("events", cb=answer)
                await client.flush()
                await publisher.put(message(0, stored))
                await until(lambda: stored or "who is no stream has answered" in caplog.text)
                assert not stored
            finally:
                await client.close()

    run(work())


def test_an_outage_that_is_longer_than_the_duplicate_window_is_warned_of(
    run: Run, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    broker.add_stream("SHORT", duplicate_window=0.1)
    stored: list[int] = []

    async def work() -> None:
        async with publisher_to(broker.url("short")) as publisher:
            broker.pause()
            it = message(0, stored, subject="short")
            await publisher.put(it)
            await until(lambda: it.first_sent is not None)
            broker.kill()
            await asyncio.sleep(0.2)
            await asyncio.to_thread(broker.start)
            await until(lambda: stored)

    run(work())
    assert "may be in it twice" in caplog.text
    assert "--dupe-window" in caplog.text


def test_a_stream_that_is_not_there_is_an_error_unless_one_is_to_be_made(
    run: Run, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        with pytest.raises(NotFoundError, match=r"a stream for other\.\* at .*: there is none"):
            async with publisher_to(broker.url("other.{peer}")):
                pass
        async with publisher_to(broker.url("other.{peer}"), create_stream="OTHER") as publisher:
            assert publisher.stream.name == "OTHER"
        assert "made the stream OTHER" in caplog.text
        caplog.clear()
        async with publisher_to(broker.url("other.{peer}"), create_stream="YET_ANOTHER") as publisher:
            assert publisher.stream.name == "OTHER"
        assert not caplog.text

    run(work())


def test_a_permission_that_is_missing_ends_it_at_once(run: Run, bench: peers.Bench) -> None:
    users = """authorization: { users: [
        { user: ann, password: secret, permissions: { publish: { deny: "events" } } }
        { user: boss, password: secret }
    ] }"""
    broker = Broker(bench, config=users)
    broker.run(lambda js: js.add_stream(name="EVENTS", subjects=["events"]), user="boss", password="secret")
    stored: list[int] = []

    async def work() -> None:
        async with publisher_to(broker.url("events", "ann:secret@")) as publisher:
            failed = asyncio.Event()
            publisher.failed = failed.set
            await publisher.put(message(0, stored))
            await failed.wait()
            with pytest.raises(DeniedError, match=r"(?i)permissions violation"):
                await publisher.put(message(1, stored))
        assert not stored

    run(work())


def test_a_cancellation_that_nats_py_keeps_to_itself_ends_what_connects_all_the_same(
    run: Run, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = NatsClient.connect
    connecting = asyncio.Event()

    async def keep_it(client: Any, *arguments: Any, **options: Any) -> None:
        connecting.set()
        try:
            await asyncio.sleep(peers.TIMEOUT)
        except asyncio.CancelledError:
            await connect(client, *arguments, **options)

    async def work() -> None:
        async with publisher_to(broker.url("events")):
            monkeypatch.setattr(NatsClient, "connect", keep_it)
            broker.kill()
            broker.start()
            await connecting.wait()
        opening = asyncio.ensure_future(publisher_to(broker.url("events")).__aenter__())
        connecting.clear()
        await connecting.wait()
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        await until(lambda: peers.established(broker.port) == 0)

    run(work())
