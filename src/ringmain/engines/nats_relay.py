"""A relay into a log: what clients send into a NATS stream, and each is told of its end once the stream has all.

A proper end of ours is a client's receipt. So each connection is one that resets when it is closed, however that comes
to be, a SIGKILL included, until the stream has acknowledged all that came and the client has ended properly.
"""

import asyncio
import dataclasses
import functools
import logging
import time
import uuid
import weakref
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Literal, Unpack, cast

from ringmain._counters import Counters
from ringmain.blocking import Blocking
from ringmain.endpoint import Endpoint, LogEndpoint, as_url
from ringmain.engines.nats_blocking import BlockingLogRelayer
from ringmain.engines.nats_publish import Publisher
from ringmain.engines.nats_records import Cutting, Records
from ringmain.errors import NotFoundError, RecordTooLongError, RingmainError, UsageError
from ringmain.flow.inflow import Inflow
from ringmain.flow.serving import Serving
from ringmain.net.gate import NoMoreClients
from ringmain.net.link import Link
from ringmain.net.readiness import finish
from ringmain.net.relay_ends import End
from ringmain.net.resets import end_when_closed, reset_when_closed
from ringmain.outcome import Outcome, RelayOutcome, State, Verdict, total
from ringmain.settings import (
    LINGER,
    LONG_RECORDS,
    MAX_IN_FLIGHT,
    MESSAGE_SIZE,
    ConnectionOptions,
    Framing,
    Settings,
    TlsSettings,
    settings_for,
)
from ringmain.waiting import let_go, unless

log = logging.getLogger("ringmain")


def relay(
    source: str,
    destination: str,
    *,
    connect: bool = False,
    listen_once: bool = False,
    source_tls: TlsSettings | None = None,
    destination_tls: TlsSettings | None = None,
    accept_proxy: bool = False,
    linger: float = LINGER,
    max_connections: int = 1,
    credentials: str | None = None,
    create_stream: str | None = None,
    delimiter: bytes = b"",
    framing: Framing | None = None,
    long_records: Literal["raise", "skip"] = LONG_RECORDS,
    message_size: int = MESSAGE_SIZE,
    max_in_flight: int = MAX_IN_FLIGHT,
    **options: Unpack[ConnectionOptions],
) -> "LogRelayer":
    """Return what `ringmain.relay` does into a `nats://` endpoint; its docstring tells what the keywords are."""
    if connect and listen_once:
        raise UsageError("listen_once=True", "it needs a listener", "leave it out: one connection is relayed")
    if accept_proxy and connect:
        raise UsageError(
            "accept_proxy=True with connect=True", "only clients send PROXY headers", "leave one of them out"
        )
    if max_connections > 1 and (listen_once or connect):
        what = f"max_connections={max_connections} with {'listen_once=True' if listen_once else 'connect=True'}"
        raise UsageError(what, "there is only one connection", "leave one of them out")

    def settings(name: str, tls: TlsSettings | None) -> Settings:
        return settings_for(
            relay,
            ConnectionOptions,
            options,
            **dataclasses.asdict(tls or TlsSettings()),
            prefix=f"{name}_tls.",
            max_connections=max_connections,
        )

    cutting = Cutting(
        delimiter=delimiter,
        framing=framing,
        long_records=long_records,
        message_size=message_size,
        max_in_flight=max_in_flight,
        linger=linger,
        connections=max_connections,
    )
    publisher = Publisher(
        LogEndpoint.parse(destination),
        settings("destination", destination_tls),
        credentials,
        max_in_flight=max_in_flight,
        create_stream=create_stream,
    )
    end = End(Endpoint.parse(source), settings("source", source_tls), listening=not connect)
    return LogRelayer(end, publisher, cutting, listen_once=listen_once, accept_proxy=accept_proxy)


class LogRelayer(Blocking):
    """What `relay` returns for a log: to be awaited, or a context manager, plain or asynchronous, with `serve`.

    `on_end` hears of each client.
    """

    _verb = "relay"

    def __init__(
        self, source: End, publisher: Publisher, cutting: Cutting, *, listen_once: bool, accept_proxy: bool
    ) -> None:
        self.source = source
        self.on_end: Callable[[RelayOutcome], None] | None = None
        self._publisher = publisher
        self._cutting = cutting
        self._once = listen_once or not source.listening
        self._preface = source.read_header if accept_proxy else None
        self._name = uuid.uuid4().hex
        self._count = 0
        self._present: dict[Inflow, Records] = {}
        self._finished = False
        self._serving: Serving | None = None

    def __repr__(self) -> str:
        where = f"{as_url((self.addresses or [self.source.endpoint.address])[0], tls=self.source.tls)} to "
        state = "open" if self._is_open else "closed"
        return self._described(where + str(self._publisher.endpoint), state, self.moved[:1], len(self._present))

    def __await__(self) -> Generator[Any, None, None]:
        return self._serve_all().__await__()

    async def _serve_all(self) -> None:
        async with self:
            await self._serve()

    def __enter__(self) -> BlockingLogRelayer:
        self._enter()
        return cast(BlockingLogRelayer, self)

    async def _set_up(self) -> None:
        self._loop = asyncio.get_running_loop()
        await self._publisher.__aenter__()
        try:
            if self._preface is not None:
                from ringmain.net import proxy  # noqa: F401 - while there is a descriptor for it
            await self.source.open()
        except BaseException:
            await self._tear_down(None, broken_off=True)
            raise
        hear = weakref.WeakMethod(self._hear_of_failure)  # the loop, which knows the publisher, must not keep this
        self._publisher.failed = lambda: (it := hear()) and it()

    async def _tear_down(self, error: BaseException | None, *, broken_off: bool) -> None:  # noqa: ARG002
        try:
            if self._serving is not None:  # in another task, which uses what is closed here
                self._reset_all()
                await let_go([self._serving.ended])
        finally:
            self.source.close()
            await self._publisher.__aexit__()

    def _reset_all(self) -> None:
        self._finished = True
        if self._serving is not None:
            self._serving.stopped.set()
            self._serving.left.set()
        self.source.close()

    def _leftovers(self) -> list[Callable[[], object]]:
        return [self.source.close, self._publisher.abandon]

    @property
    def addresses(self) -> list[str]:
        """The addresses listened at, as "127.0.0.1:43211"."""
        return self.source.addresses

    @property
    def port(self) -> int:
        """The port listened at."""
        return self.source.port

    def reload_certificates(self) -> None:
        """Read the files of the source again, as `Listening.reload_certificates` does, and those for the servers."""
        self.source.reload_certificates()
        self._publisher.papers.reload_certificates()

    @property
    def refused(self) -> int:
        """How many clients were turned away."""
        return self.source.refused

    @property
    def publisher(self) -> Publisher:
        """What stores messages."""
        return self._publisher

    @property
    def served(self) -> int:
        """How many clients are served right now."""
        return len(self._present)

    @property
    def counters(self) -> Counters:
        """The sums of what the present connections have brought."""
        return total(inflow.counters for inflow in self._present)

    @property
    def moved(self) -> tuple[int, int]:
        """How many bytes of the present connections have come, and how many the stream has acknowledged."""
        received = sum(inflow.counters.bytes_in for inflow in self._present)
        return received, sum(records.stored for records in self._present.values())

    @property
    def fullness(self) -> float:
        """The part of what may be unacknowledged that is, from 0 to 1."""
        return self._publisher.fullness

    def stop(self) -> bool:
        """Serve no other client, and read no more: what was read is stored, then its clients are reset.

        `serve` ends after that. May be called at any time, from any thread. False when there is no connection.
        """
        self._finished = True
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._hang_up)
        return bool(self._present)

    def _hang_up(self) -> None:
        if self._serving is not None:
            self._serving.stopped.set()
        self.source.stop()
        for inflow in list(self._present):
            inflow.stop()

    def serve(self) -> Coroutine[Any, Any, None]:
        """Relay for one client after another, or for many at once; to be awaited in `async with`.

        Cancelling it, or leaving the block meanwhile, resets all who are there.
        """
        return self._awaited_or_done(self._serve())

    async def _serve(self) -> None:
        if not self._is_open:
            raise UsageError("a relay", "it is not open", "use it inside `async with`")
        if self._serving is not None:
            raise RuntimeError("another task is already serving")
        self._serving = serving = Serving()
        try:
            while not self._finished and self._is_open and not serving.broken:
                await self._serve_next(serving)
            await unless(serving.left.wait(), serving.until_all_left())
        finally:
            try:
                await serving.break_off()
            finally:
                self._serving = None
                finish(serving.ended)
        if self._publisher.failure is not None:
            raise self._publisher.failure

    async def _serve_next(self, serving: Serving) -> None:
        try:
            link = await unless(serving.stopped.wait(), self.source.connect(self._preface), self.source.dismiss)
        except NoMoreClients:  # it was stopped
            return
        except RingmainError as error:
            if self._once:
                raise
            log.warning("%s", str(error))
            return
        if link is None:
            return
        if self._finished:  # since it was found, in this very turn of the loop
            self.source.dismiss(link)
        elif self._once:
            try:
                await unless(serving.left.wait(), self._serve_client(link))
            finally:
                self.source.dismiss(link)
        else:
            serving.begin(self._serve_client(link), functools.partial(self.source.dismiss, link))

    async def _serve_client(self, link: Link) -> None:
        """Put all that a client sends into the stream, and end it for what became of that."""
        reset_when_closed(link.sock)
        most = self._publisher.stream.max_message
        flow = self._cutting.flow(most)
        inflow = Inflow(link, flow, self.source.settings.idle_timeout, verb="relay")
        self._count += 1
        records = Records(self._publisher, flow, f"{self._name}.{self._count}", link.peer)
        self._present[inflow] = records
        self.source.watch_over(link, inflow)
        error: RingmainError | None = None
        try:
            await self._publisher.until_taken(records.subject)
            while (block := await inflow.next_block()) is not None:
                await records.put(block, inflow.taken - len(block), ended=inflow.verdict is not None)
                await records.until_room()
            error = _failure_of(inflow, most)
            whole = error is None and inflow.verdict is Verdict.ENDED
            await records.finish(inflow.verdict or Verdict.STOPPED, inflow.taken, whole=whole)
            await inflow.hear_out()
            if whole:
                end_when_closed(link.sock)
            inflow.close(broken_off=not whole)
        except RingmainError as failure:
            error = failure
            if self._once or failure is self._publisher.failure or not isinstance(failure, NotFoundError):
                raise
            log.warning("%s: %s", link.peer, failure)  # of this one's subject, which its address is in
        finally:
            inflow.close(broken_off=True)
            del self._present[inflow]
            inflow.counters.dropped_bytes += records.dropped
            self._tell(inflow, records, error)
            del error
        self._finished |= self._once
        self._warn_of(inflow, self._once)

    def _warn_of(self, inflow: Inflow, raises: bool) -> None:
        if inflow.counters.dropped_bytes:
            dropped = inflow.counters.dropped_bytes
            log.warning("%s: dropped %d bytes of a last record that has no end", inflow.link.peer, dropped)
        if (error := _failure_of(inflow, self._publisher.stream.max_message)) is not None:
            if raises:
                raise error
            log.warning("%s", str(error))

    def _tell(self, inflow: Inflow, records: Records, error: RingmainError | None) -> None:
        if self.on_end is None:
            return
        outcome, endpoint = inflow.outcome(error), self._publisher.endpoint
        proxy = inflow.link.introduced.proxy
        source = dataclasses.replace(outcome, size=records.stored, state=State.ENDED, proxy=proxy)
        destination = Outcome(str(endpoint), None, None, Counters(), 0, outcome.verdict)
        seconds = time.monotonic() - outcome.counters.started
        self.on_end(RelayOutcome(source, destination, seconds, outcome.verdict, error))

    def _hear_of_failure(self) -> None:
        """End all at once: nothing can be stored any more."""
        self._finished = True
        for inflow, records in self._present.items():
            inflow.stop()
            records.wake()
        if self._serving is not None:
            self._serving.stopped.set()


def _failure_of(inflow: Inflow, most: int) -> RingmainError | None:
    """Return what is wrong with what came; a message of the stream has at most so many bytes."""
    error = inflow.failure()
    if isinstance(error, RecordTooLongError):
        remedy = "raise the server's max_payload" if inflow.ring.max_record == most else "lower max_connections="
        remedy += ', check the delimiter or framing=, or skip such records with long_records="skip"'
        error = RecordTooLongError(error.what, error.why, remedy)
    return error
