"""`ringmain bench nats://...`: messages into a stream until it has stored them, and those out of it again.

What is published stays there: nobody but the stream's owner can tell what else may be deleted with it.
"""

import asyncio
import logging
import os
import re
import uuid
from collections.abc import Callable
from typing import Any

from ringmain._counters import Counters
from ringmain.bench.engines import Budget
from ringmain.bench.plan import Plan
from ringmain.bench.replay_result import Figures
from ringmain.bench.table import replay_table
from ringmain.endpoint import LogEndpoint
from ringmain.engines.nats_consumer import Wanted
from ringmain.engines.nats_message import Message as Pulled
from ringmain.engines.nats_papers import Papers
from ringmain.engines.nats_publish import Publisher
from ringmain.engines.nats_pull import Puller
from ringmain.engines.nats_server import NatsServer
from ringmain.engines.nats_session import Message
from ringmain.errors import ReceiveError, RingmainError, TimedOutError, UsageError
from ringmain.outcome import Verdict
from ringmain.settings import MAX_IN_FLIGHT, RING_SIZE, Settings

log = logging.getLogger("ringmain")

_PLACE = "Ringmain-Offset"


class LogRun:
    """Publishes to the subject of an endpoint, and pulls what it has published by a consumer that it makes for that.

    `results` has a test for each, once it is over. `on_test` hears its name before, and `on_interval` its intervals.
    """

    def __init__(self, endpoint: LogEndpoint, settings: Settings, plan: Plan, credentials: str | None) -> None:
        if "{" in endpoint.name:
            raise UsageError(f"subject {endpoint.name!r}", "bench has only one connection", "leave the braces out")
        self.results: dict[str, dict[str, Any]] = {}
        self.on_test: Callable[[str], None] = lambda _: None
        self.on_interval: Callable[[dict[str, Any]], None] = lambda _: None
        self._endpoint = endpoint
        self._settings = settings
        self._plan = plan
        self._credentials = credentials
        self._server = NatsServer(endpoint, settings, Papers(settings, credentials))
        self._name = uuid.uuid4().hex

    async def measure(self, create_stream: str | None) -> None:
        """Do both; raise RingmainError."""
        publisher = Publisher(
            self._endpoint,
            self._settings,
            self._credentials,
            max_in_flight=max(MAX_IN_FLIGHT, 2 * self._plan.message_size),
            create_stream=create_stream,
        )
        try:
            async with asyncio.timeout(2 * self._plan.limit) as limit, publisher:
                await self._server.open()
                try:
                    await self._measure(publisher)
                finally:
                    await self._server.close()
        except TimeoutError as error:
            if not limit.expired():
                raise
            why = f"it takes longer than the {2 * self._plan.limit:g} s that there are for it"
            raise TimedOutError(f"bench with {self._endpoint}", why, "is the server still running?") from error

    async def _measure(self, publisher: Publisher) -> None:
        stream, most = publisher.stream.name, publisher.stream.max_message
        if self._plan.message_size > most:
            why = f"a message of the stream {stream} has {most} bytes at most"
            raise UsageError(f"message_size={self._plan.message_size}", why, "give less")
        jetstream, what = self._server.client.jetstream(), f"stream {stream} at {self._endpoint}"
        info = await self._server.ask(jetstream.stream_info(stream), what)
        self.on_test("publish")
        count = await self._publish(publisher)
        consumer = f"ringmain-bench-{self._name}"
        wanted = Wanted(
            stream=stream, consumer=consumer, from_sequence=info.state.last_seq + 1, filter=self._endpoint.name
        )
        puller, opened = Puller(self._server, wanted, RING_SIZE), False
        try:
            await puller.open()
            opened = True
            self.on_test("pull")
            await self._pull(puller, count)
        finally:
            await puller.close()
            if opened:
                try:
                    await self._server.ask(jetstream.delete_consumer(stream, consumer), what)
                except RingmainError as error:
                    log.warning("the consumer %s is left there: %s", consumer, error)

    async def _publish(self, publisher: Publisher) -> int:
        """Publish as the plan says; return how many messages that were, once all are stored."""
        payload, counters, test = os.urandom(self._plan.message_size), Counters(), self._test()
        meter = test.measured(counters, self._plan.interval, sending=True)
        count = stored = 0
        changed = asyncio.Event()

        def on_stored(size: int) -> None:
            nonlocal stored
            stored += 1
            counters.bytes_out += size
            changed.set()

        publisher.failed = changed.set
        budget = Budget(self._plan)
        try:
            while (message := budget.take())[0]:
                size, pause = message
                if pause:
                    await asyncio.sleep(pause)
                headers = {"Nats-Msg-Id": f"{self._name}:{count}", "Ringmain-Connection": self._name}
                headers[_PLACE] = str(count)
                done = lambda size=size: on_stored(size)  # noqa: E731
                await publisher.put(Message(self._endpoint.name, payload[:size], headers, done))
                counters.writes += 1
                count += 1
            while stored < count:
                changed.clear()
                if publisher.failure is not None:
                    raise publisher.failure
                await changed.wait()
        finally:
            meter.end(0)
        self._end(test, "publish", count)
        return count

    async def _pull(self, puller: Puller, count: int) -> None:
        """Take so many messages of ours out of the stream, and acknowledge them."""
        counters, test = Counters(), self._test()
        meter = test.measured(counters, self._plan.interval, sending=False)
        missing = bytearray(b"\1") * count  # a message may come again
        left = count
        try:
            while left:
                message = await puller.next(self._plan.limit)
                if message is None:
                    raise ReceiveError(
                        puller.what, f"{left} of {count} messages are missing", "did somebody delete them?"
                    )
                if (place := self._place_of(message, count)) is not None:
                    left -= missing[place]
                    counters.bytes_in += len(message.data) * missing[place]
                    missing[place] = 0
                    counters.reads += 1
                puller.ack(message)
        finally:
            meter.end(0)
        self._end(test, "pull", count)

    def _place_of(self, message: Pulled, count: int) -> int | None:
        """Return which of `count` messages of ours it is; None if it is somebody else's."""
        place = message.headers.get(_PLACE, "")
        ours = message.headers.get("Ringmain-Connection") == self._name and re.fullmatch("[0-9]{1,18}", place)
        return int(place) if ours and int(place) < count else None

    def _test(self) -> Figures:
        """Return a test over the connection to the server."""
        transport = self._server.client._transport._io_writer.transport
        names = {"local": transport.get_extra_info("sockname"), "remote": transport.get_extra_info("peername")}
        version, cipher = self._server.tls or (None, None)
        stream = {f"{end}_{what}": name[at] for end, name in names.items() for at, what in enumerate(("host", "port"))}
        return Figures({**stream, "tls": version, "cipher": cipher}, lambda interval: self.on_interval(interval))

    def _end(self, test: Figures, name: str, count: int) -> None:
        plan, test.records, test.verdict = self._plan, count, Verdict.ENDED
        told = {"duration": plan.seconds or 0, "bytes": plan.size or 0, "blksize": plan.message_size}
        self.results[name] = test.whole(**told, protocol="NATS")

    def text(self, width: int) -> str:
        """Return the results as they are read."""
        return "\n\n".join(f"{name}: {replay_table(it, width)}" for name, it in self.results.items())
