"""A relay into a log: what clients send into a NATS stream, and each is told of its end once the stream has all.

A proper end of ours is a client's receipt. So each connection is one that resets when it is closed, however that comes
to be, a SIGKILL included, until the stream has acknowledged all that came and the client has ended properly.
"""

import dataclasses
import functools
import logging
import time
import uuid
from collections.abc import Callable
from typing import Self, Unpack

from ringmain._ring import Counters
from ringmain.endpoint import Endpoint, LogEndpoint
from ringmain.engines.nats_publish import Publisher
from ringmain.engines.nats_records import Cutting, Records
from ringmain.errors import RecordTooLongError, RingmainError, UsageError
from ringmain.flow.inflow import Inflow
from ringmain.flow.serving import Serving
from ringmain.net.gate import NoMoreClients
from ringmain.net.link import Link
from ringmain.net.relay_ends import End
from ringmain.net.resets import end_when_closed, reset_when_closed
from ringmain.outcome import Outcome, RelayOutcome, State, Verdict, total
from ringmain.settings import ConnectionOptions, Settings, TlsSettings, settings_for
from ringmain.waiting import unless

log = logging.getLogger("ringmain")


def relay_to_log(
    source: str,
    destination: str,
    *,
    connect: bool = False,
    listen_once: bool = False,
    source_tls: TlsSettings | None = None,
    destination_tls: TlsSettings | None = None,
    accept_proxy: bool = False,
    max_connections: int = 1,
    credentials: str | None = None,
    create_stream: str | None = None,
    cutting: Cutting | None = None,
    **options: Unpack[ConnectionOptions],
) -> "LogRelayer":
    """Relay what clients at `source` send into the stream that takes the subject of `destination`.

    async with relay_to_log("tcp://:9000", "nats://host/events", max_connections=100) as relayer:
        await relayer.serve()

    Messages are whole records of one client each (`cutting`). A client that has ended properly is answered with a
    proper end once the stream has acknowledged all that it sent, else it is reset. Keywords as of `ringmain.relay`;
    `credentials` is a file, `create_stream` ("NAME", "NAME:3" with replicas) makes a stream where there is none.
    """
    if connect and listen_once:
        raise UsageError("listen_once=True", "it needs a listener", "leave it out: one connection is relayed")
    if accept_proxy and connect:
        raise UsageError(
            "accept_proxy=True with connect=True", "only clients send PROXY headers", "leave one of them out"
        )
    if max_connections > 1 and (listen_once or connect):
        what = f"max_connections={max_connections} with {'listen_once=True' if listen_once else 'connect=True'}"
        raise UsageError(what, "there is but one connection", "leave one of them out")

    def settings(name: str, tls: TlsSettings | None) -> Settings:
        return settings_for(
            relay_to_log,
            ConnectionOptions,
            options,
            **dataclasses.asdict(tls or TlsSettings()),
            prefix=f"{name}_tls.",
            max_connections=max_connections,
        )

    cutting = cutting or Cutting(connections=max_connections)
    publisher = Publisher(
        LogEndpoint.parse(destination),
        settings("destination", destination_tls),
        credentials,
        max_in_flight=cutting.max_in_flight,
        create_stream=create_stream,
    )
    end = End(Endpoint.parse(source), settings("source", source_tls), listening=not connect)
    return LogRelayer(end, publisher, cutting, listen_once=listen_once, accept_proxy=accept_proxy)


class LogRelayer:
    """What `relay_to_log` returns: `async with`, and `serve`. `on_end` hears of each client."""

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

    async def __aenter__(self) -> Self:
        await self._publisher.__aenter__()
        try:
            if self._preface is not None:
                from ringmain.net import proxy  # noqa: F401 - while there is a descriptor for it
            await self.source.open()
        except BaseException:
            await self.__aexit__()
            raise
        self._publisher.failed = self._hear_of_failure
        return self

    async def __aexit__(self, *_: object) -> None:
        self.source.close()
        await self._publisher.__aexit__()

    @property
    def refused(self) -> int:
        """How many clients were turned away."""
        return self.source.refused

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

        `serve` ends after that. False when there is no connection.
        """
        self._finished = True
        if self._serving is not None:
            self._serving.stopped.set()
        self.source.stop()
        for inflow in list(self._present):
            inflow.stop()
        return bool(self._present)

    async def serve(self) -> None:
        """Relay for one client after another, or for many at once. Cancelled, it resets all who are there."""
        self._serving = serving = Serving()
        try:
            while not self._finished and not serving.broken:
                await self._serve_next(serving)
            await serving.until_all_left()
        finally:
            try:
                await serving.break_off()
            finally:
                self._serving = None
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
                await self._serve_client(link)
            finally:
                self.source.dismiss(link)
        else:
            serving.begin(self._serve_client(link), functools.partial(self.source.dismiss, link))

    async def _serve_client(self, link: Link) -> None:
        """Put all that a client sends into the stream, and end it for what became of that."""
        reset_when_closed(link.sock)
        flow = self._cutting.flow(self._publisher.stream.max_message)
        inflow = Inflow(link, flow, self.source.settings.idle_timeout, verb="relay")
        self._count += 1
        records = Records(self._publisher, flow, f"{self._name}.{self._count}", link.peer)
        self._present[inflow] = records
        self.source.watch_over(link, inflow)
        error: RingmainError | None = None
        try:
            await records.until_room()
            while (block := await inflow.next_block()) is not None:
                await records.put(block, inflow.taken - len(block), ended=inflow.verdict is not None)
                await records.until_room()
            error = _failure_of(inflow)
            whole = error is None and inflow.verdict is Verdict.ENDED
            await records.finish(inflow.verdict or Verdict.STOPPED, inflow.taken, whole=whole)
            await inflow.hear_out()
            if whole:
                end_when_closed(link.sock)
            inflow.close(broken_off=not whole)
        except RingmainError as failure:
            error = failure
            raise
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
        if (error := _failure_of(inflow)) is not None:
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


def _failure_of(inflow: Inflow) -> RingmainError | None:
    """Return what is wrong with what came; a record may be as long as the server's messages."""
    error = inflow.failure()
    if isinstance(error, RecordTooLongError):
        remedy = "raise the server's max_payload, check the delimiter or framing=, or skip such records with "
        error = RecordTooLongError(error.what, error.why, remedy + 'long_records="skip"')
    return error
