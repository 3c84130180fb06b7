"""Load from a log: the messages of a JetStream stream as blocks, shared by all who name the same consumer."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Self, Unpack

from ringmain._counters import Counters
from ringmain._ring import Ring
from ringmain.blocking import Blocking
from ringmain.endpoint import LogEndpoint
from ringmain.engines.nats_ahead import Ahead
from ringmain.engines.nats_consumer import Wanted
from ringmain.engines.nats_message import Message, Tag, tag_of
from ringmain.engines.nats_papers import Papers
from ringmain.engines.nats_pull import Puller
from ringmain.engines.nats_server import NatsServer
from ringmain.errors import RingmainError, UsageError
from ringmain.flow.blocks import Flow, flow_for
from ringmain.iterators import Connections, Items, Iterated
from ringmain.outcome import Outcome, Verdict
from ringmain.settings import BLOCK_SIZE, LINGER, RING_SIZE, Framing, LogOptions, Settings, settings_for
from ringmain.waiting import Turn, let_go, unless

if TYPE_CHECKING:
    from ringmain.engines.nats_range import Range


def load(
    url: str,
    *,
    consumer: str | None = None,
    from_sequence: int | None = None,
    until_sequence: int | None = None,
    filter: str | None = None,  # noqa: A002 - as NATS calls it
    credentials: str | None = None,
    delimiter: bytes = b"",
    framing: Framing | None = None,
    ring_size: int | None = None,
    **options: Unpack[LogOptions],
) -> "LogLoader":
    """Return what `ringmain.load` does for a `nats://` endpoint; its docstring tells what the keywords are."""
    settings = settings_for(load, LogOptions, options)
    endpoint = LogEndpoint.parse(url)
    if consumer is None:
        why = "it needs a consumer, which keeps the position"
        raise UsageError(f"load {endpoint}", why, "give consumer=, the same name for all loads that share the work")
    wanted = Wanted(
        stream=endpoint.name,
        consumer=consumer,
        from_sequence=from_sequence,
        until_sequence=until_sequence,
        filter=filter,
    )
    flow = flow_for(
        delimiter=delimiter,
        framing=framing,
        ring_size=ring_size,
        block_size=BLOCK_SIZE if ring_size is None else min(BLOCK_SIZE, max(1, ring_size // 4)),
        max_record=None,
        linger=LINGER,
        merges=True,
    )
    server = NatsServer(endpoint, settings, Papers(settings, credentials))
    return LogLoader(endpoint, settings, flow, server, Puller(server, wanted, ring_size or RING_SIZE))


class LogLoader(Iterated, Blocking):
    """What `load` returns for a log: a context manager and an iterator of blocks, plain or asynchronous, as a `Loader`.

    One consumer of blocks at a time. `on_end` hears of the whole when it is left; what it raises, leaving does.
    """

    _verb = "load"
    merges = True  # the records of many connections
    refused = probes = 0
    connect = True

    def __init__(
        self,
        endpoint: LogEndpoint,
        settings: Settings,
        flow: Flow,
        server: NatsServer,
        puller: "Puller | Range",
    ) -> None:
        """`puller` asks `server`, which this opens and closes."""
        self.endpoint = endpoint
        self.settings = settings
        self.flow = flow
        self.on_end: Callable[[Outcome], None] | None = None
        self.many = Ahead(self)
        self.counters = Counters()
        self.papers = server.papers
        self.papers.on_others = server.connect_again
        self._server = server
        self._fresh = puller
        self._puller: Puller | Range | None = None  # while it is open
        self._handed: deque[Message] = deque()  # and not acknowledged
        self._ahead = False  # a feed takes more than it has handed out
        self._stopped: asyncio.Event | None = None  # while it connects
        self._finished = False
        self._ended_well = False
        self._turn = Turn("another task is already waiting for this loader")

    def __repr__(self) -> str:
        state = "closed" if self._puller is None else "connected"
        return self._described(str(self.endpoint), state, [] if self._puller is None else [self.counters.bytes_in])

    async def _set_up(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._turn.begin("a loader")
        self._stopped = asyncio.Event()
        opened = None
        try:
            if not self._finished:
                opened = await unless(self._stopped.wait(), self._open())
        finally:
            if not opened:  # nor where nats-py has kept a cancellation to itself, and has gone on
                await let_go([asyncio.ensure_future(self._close())])
        if opened:
            self._puller = self._fresh
            self.counters.started = time.monotonic()

    async def _open(self) -> bool:
        await self._server.open()
        await self._fresh.open()
        return True

    def __enter__(self) -> Self:
        self._enter()
        return self

    async def _tear_down(self, error: BaseException | None, *, broken_off: bool) -> None:
        self._finished = True
        if self._puller is None:
            return
        if not broken_off and not self._ahead:
            self.settle(0)
        self._puller = None
        try:
            await let_go([asyncio.ensure_future(self._close())])
        finally:  # also where it was cancelled meanwhile
            self.counters.ended = time.monotonic()
            if self.on_end is not None:
                self.on_end(self._outcome(error))

    def _reset_all(self) -> None:
        self._finished = True
        self._hang_up()
        self._handed.clear()  # none is acknowledged any more

    async def _close(self) -> None:
        await self._fresh.close()
        await self._server.close()

    def _outcome(self, error: BaseException | None) -> Outcome:
        failure = error if isinstance(error, RingmainError) else None
        verdict = Verdict.of(failure) if failure else Verdict.ENDED if self._ended_well else Verdict.STOPPED
        tls, cipher = self._server.tls or (None, None)
        return Outcome(str(self.endpoint), tls, cipher, self.counters, self.counters.bytes_in, verdict, error=failure)

    def _leftovers(self) -> list[Callable[[], object]]:
        return [] if self._puller is None else [self._puller.abandon, self._server.abandon]

    async def __anext__(self) -> memoryview:
        if (message := await self.next_message()) is None:
            raise StopAsyncIteration
        return memoryview(message.data)

    def __next__(self) -> memoryview:
        try:
            return self.run(self.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None

    async def next_message(self, *, ends: bool = False) -> Message | None:
        """Acknowledge what was handed out, and return the next message; None when none is to come.

        ends: also those that tell how a connection has ended.
        """
        with self._turn:
            if (puller := self._opened()) is None:
                return None
            self.settle(0)
            message = await puller.next(self.settings.idle_timeout, ends=ends)
        self._ended_well = message is None and not self._finished
        return message if message is None else self._hand(message)

    def take_ahead(self, count: int) -> Message | None:
        """Return the next message if there is one; all but the last `count` that were handed out are acknowledged."""
        self._ahead = True
        if (puller := self._opened()) is None:
            return None
        self.settle(count)
        message = puller.take()
        return message if message is None else self._hand(message)

    def settle(self, count: int) -> None:
        """Acknowledge what was handed out, but the last `count`."""
        while len(self._handed) > count and self._puller is not None:
            self._puller.ack(self._handed.popleft())

    def give_back(self, is_meant: Callable[[Message], bool]) -> None:
        """Let the server send again what was handed out and not acknowledged, as far as `is_meant` says."""
        for message in [it for it in self._handed if is_meant(it)]:
            self._handed.remove(message)
            if self._puller is not None:
                self._puller.nak(message)

    def _opened(self) -> "Puller | Range | None":
        if self._puller is None and not self._finished:
            raise UsageError("a loader", "it is not open", "use it inside `async with`")
        return self._puller

    def _hand(self, message: Message) -> Message:
        self._handed.append(message)
        self.counters.bytes_in += len(message.data)
        self.counters.reads += 1
        self.counters.blocks += 1
        return message

    def _verdict(self) -> str | None:
        return None

    def connections(self) -> Connections:
        """Raise UsageError: others may get the next message of the same connection."""
        why = "several readers may share the messages of one connection"
        raise UsageError("connections() of a NATS stream", why, "use tagged(), which tells whose each block is")

    def tagged(self) -> "LogTagged":  # type: ignore[override]  # more than a peer is known
        """Iterate over (tag, block) instead: see `Tag`."""
        return LogTagged(self)

    @property
    def ring(self) -> Ring:
        """No block is received into it; feeds take so many of them ahead as it would have."""
        return self.flow.ring

    @property
    def addresses(self) -> list[str]:
        """Where it listens: nowhere."""
        return []

    @property
    def peers(self) -> list[str]:
        """The clients that are served: none."""
        return []

    @property
    def port(self) -> int:
        """The port listened at; raises UsageError, since there is none."""
        raise UsageError("the port of a NATS stream", "nothing is listened at", "see endpoint")

    @property
    def served(self) -> int:
        """1 while it is connected, until `on_end` hears of it; else 0."""
        return int(self.counters.started > 0 and self.counters.ended == 0)

    def reload_certificates(self) -> None:
        """Read certificates, CA files and credentials again, for the next connection: `Loader.reload_certificates`."""
        self.papers.reload_certificates()

    @property
    def certificates_changed(self) -> bool:
        """Whether one of these files is another than when it was last read, or was changed since."""
        return self.papers.certificates_changed

    @property
    def is_lost(self) -> bool:
        """Whether the connection is broken, and another one is tried."""
        return self._server.is_lost

    @property
    def reconnects(self) -> int:
        """How often another connection was made after a loss."""
        return self._server.tally.reconnects

    @property
    def connect_failures(self) -> int:
        """How many tries to connect have failed."""
        return self._server.tally.failures

    @property
    def fullness(self) -> float:
        """The part of `ring_size` that is filled with messages which nobody has taken, from 0 to 1."""
        return self._puller.fullness if self._puller is not None else 0.0

    def stop(self) -> bool:
        """Take no more messages: the iteration ends at the next block, and the server gives the others to who asks.

        May be called at any time, from any thread. False when it is not connected.
        """
        self._finished = True
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._hang_up)
        return self._puller is not None

    def _hang_up(self) -> None:
        if self._stopped is not None:
            self._stopped.set()
        if self._puller is not None:
            self._puller.stop()


class LogTagged(Items[tuple[Tag, memoryview]]):
    """What `LogLoader.tagged` returns: an iterator of (tag, block), plain or asynchronous."""

    def __init__(self, loader: LogLoader) -> None:
        super().__init__(loader)
        self._log = loader

    async def _next(self) -> tuple[Tag, memoryview] | None:
        message = await self._log.next_message(ends=True)
        return (tag_of(message), memoryview(message.data)) if message is not None else None
