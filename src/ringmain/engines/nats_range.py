"""The messages of a stream from one sequence to another, read as often as anybody likes: nothing is acknowledged.

What was lost on the way is not sent again by the server. So each message has to be the next of its consumer, which is
made anew from the first one that is missing, where it is not or where the connection was lost.
"""

import asyncio
from collections import deque
from typing import Any, Unpack

from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from ringmain.endpoint import LogEndpoint
from ringmain.engines.nats_failures import failure_of, may_pass
from ringmain.engines.nats_loader import LogLoader
from ringmain.engines.nats_message import Message
from ringmain.engines.nats_papers import Papers
from ringmain.engines.nats_server import NatsServer, is_outage
from ringmain.errors import NotFoundError, RingmainError
from ringmain.flow.blocks import flow_for
from ringmain.net.backoff import Backoff
from ringmain.settings import BLOCK_SIZE, DELIMITER, LINGER, LogOptions, Settings, settings_for
from ringmain.waiting import unless

_AT_ONCE = 64  # messages
_PATIENCE = 10.0  # for those that were asked for
_TRIES = 10  # in a row that bring nothing
_LONGEST_PAUSE = 5.0
_FORGOTTEN = 300.0  # a consumer of whom nobody has asked for so long is deleted by the server
_NO_CONSUMER = 10014  # the server's err_code


def load_range(
    url: str, start: int, stop: int, *, credentials: str | None = None, **options: Unpack[LogOptions]
) -> LogLoader:
    """Return a loader of the messages `start` to `stop` of a stream, which acknowledges none; they are lines of text.

    Raises NotFoundError where the stream does not have the first of them any more.
    """
    settings, endpoint = settings_for(load_range, LogOptions, options), LogEndpoint.parse(url)
    flow = flow_for(
        delimiter=DELIMITER,
        framing=None,
        ring_size=None,
        block_size=BLOCK_SIZE,
        max_record=None,
        linger=LINGER,
        merges=True,
    )
    server = NatsServer(endpoint, settings, Papers(settings, credentials))
    return LogLoader(endpoint, settings, flow, server, Range(server, settings, endpoint.name, start, stop))


async def sequences(url: str, *, credentials: str | None = None, **options: Unpack[LogOptions]) -> tuple[int, int]:
    """Return the numbers of the first and of the last message that a stream has; the last is less if it has none."""
    endpoint = LogEndpoint.parse(url)
    settings = settings_for(sequences, LogOptions, options)
    server = NatsServer(endpoint, settings, Papers(settings, credentials))
    await server.open()
    try:
        asked = server.client.jetstream().stream_info(endpoint.name)
        state = (await server.ask(asked, f"stream {endpoint.name} at {endpoint}")).state
    finally:
        await server.close()
    return state.first_seq, state.last_seq


class Range:
    """Take messages of a stream as a `Puller` does: `next` waits for one. `ack` and `nak` have nobody to tell."""

    fullness = 0.0

    def __init__(self, server: NatsServer, settings: Settings, stream: str, start: int, stop: int) -> None:
        """Take the messages `start` to `stop`, both included."""
        self.what = f"stream {stream} at {server.endpoint}"
        self._server = server
        self._settings = settings
        self._stream = stream
        self._next, self._stop = start, stop
        self._messages: deque[Message] = deque()
        self._subscription: Any = None
        self._taken = self._left = 0  # of the present consumer: how many have come, and how many it has yet
        self._ended = asyncio.Event()

    async def open(self) -> None:
        """Look for the stream; raise NotFoundError where it does not have the first message any more."""
        self._jetstream = self._server.client.jetstream(timeout=_PATIENCE)
        state = (await self._server.ask(self._jetstream.stream_info(self._stream), self.what)).state
        if state.first_seq > self._next:
            why = f"messages from {self._next} to {state.first_seq - 1} are gone"
            raise NotFoundError(
                self.what, why, f"begin at {state.first_seq}, or keep messages for longer (nats stream edit)"
            )

    async def next(self, idle_timeout: float | None, *, ends: bool) -> Message | None:  # noqa: ARG002 - as a `Puller`
        """Return the next message that has bytes, all of which are there; None after the last one, or `stop`."""
        while not self._ended.is_set():
            while self._messages:
                message = self._messages.popleft()
                if message.data:
                    return message
            if self._next > self._stop:
                break
            await self._fetch()
        return None

    def take(self) -> Message | None:
        """Return the next message if there is one already."""
        while self._messages and not self._ended.is_set():
            message = self._messages.popleft()
            if message.data:
                return message
        return None

    def ack(self, message: Message) -> None:
        """Do nothing: it may be read again."""

    def nak(self, message: Message) -> None:
        """Do nothing: it may be read again."""

    def stop(self) -> None:
        """Let `next` return None from now on."""
        self._ended.set()

    def abandon(self) -> None:
        """Ask for no more."""
        self._ended.set()

    async def close(self) -> None:
        """Ask for no more: the server forgets the consumer by itself."""
        self._ended.set()

    async def _fetch(self) -> None:
        """Have more messages, or know that there are none."""
        at = self._next

        async def some() -> bool:
            try:
                if self._subscription is None:
                    await self._subscribe()
                if self._left == 0:
                    self._next = self._stop + 1
                elif not self._ended.is_set():
                    count = min(_AT_ONCE, self._left, self._stop - self._next + 1)
                    self._enter(await self._server.ask(self._subscription.fetch(count, timeout=_PATIENCE), self.what))
            except RingmainError:
                self._subscription = None
                raise
            if self._next == at:
                raise failure_of(TimeoutError(), self.what, self._settings)
            return True

        def goes_on(error: RingmainError) -> bool:
            return self._server.failure is None and (may_pass(error) or is_outage(error) or _is_forgotten(error))

        trying = Backoff(_LONGEST_PAUSE).keep_trying(some, goes_on, _TRIES)
        await unless(self._ended.wait(), trying)

    async def _subscribe(self) -> None:
        config = ConsumerConfig(
            ack_policy=AckPolicy.NONE,
            deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=self._next,
            inactive_threshold=_FORGOTTEN,
        )
        subscribing = self._jetstream.pull_subscribe("", stream=self._stream, config=config)
        subscription = await self._server.ask(subscribing, self.what)
        self._left = (await self._server.ask(subscription.consumer_info(), self.what)).num_pending
        self._taken, self._subscription = 0, subscription

    def _enter(self, batch: list[Any]) -> None:
        """Take what has come, as far as nothing is missing before it."""
        for raw in batch:
            if raw.metadata.sequence.consumer != self._taken + 1:
                self._subscription = None
                return
            self._taken += 1
            self._left = raw.metadata.num_pending
            message = Message(raw, 0.0)
            self._next = message.sequence + 1
            if message.sequence <= self._stop:
                self._messages.append(message)
        if self._left == 0:
            self._next = self._stop + 1


def _is_forgotten(error: RingmainError) -> bool:
    """Tell whether the server knows the consumer no more, as after it was started again."""
    return getattr(error.__cause__, "err_code", None) == _NO_CONSUMER
