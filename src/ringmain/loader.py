"""Load: bytes from one connection at a time, or from many at once, as blocks."""

import asyncio
import functools
import logging
import weakref
from collections.abc import Callable
from typing import Self

from ringmain._counters import Counters
from ringmain._ring import Ring
from ringmain.blocking import Blocking
from ringmain.endpoint import Endpoint, as_url
from ringmain.errors import RingmainError, UsageError
from ringmain.flow.blocks import Flow
from ringmain.flow.crowd import Crowd
from ringmain.flow.inflow import Inflow
from ringmain.flow.many import Many
from ringmain.iterators import Iterated
from ringmain.net.backoff import Tally
from ringmain.net.dial import context_for, dial
from ringmain.net.gate import NoMoreClients
from ringmain.net.link import Link
from ringmain.net.listening import Listening
from ringmain.outcome import Outcome
from ringmain.settings import Settings
from ringmain.stream import Stream
from ringmain.waiting import Turn, unless

log = logging.getLogger("ringmain")


class Loader(Listening, Iterated, Blocking):
    """What `load` returns: a context manager and an iterator of blocks, plain or asynchronous. One consumer at a time.

    `addresses` and `port` tell where it listens. `on_end` hears of each connection; what it raises, the iteration does.
    """

    _verb = "load"
    _inflow: Inflow | None = None  # of the connection that is served, where that is one at a time
    _many: Many | None = None  # those that are served, where that is many at once
    _stopped: asyncio.Event | None = None  # while it dials

    def __init__(
        self,
        endpoint: Endpoint,
        settings: Settings,
        flow: Flow,
        new_flow: Callable[..., Flow],
        connect: bool,
        listen_once: bool,
    ) -> None:
        self.endpoint = endpoint
        self.settings = settings
        self.connect = connect
        self.listen_once = listen_once
        self.on_end: Callable[[Outcome], None] | None = None
        self.flow = flow
        self._new_flow = new_flow
        self._given: Stream | None = None  # the same, where the user has it
        self._finished = False
        self._tally = Tally()
        self._turn = Turn("another task is already waiting for this loader")

    def __repr__(self) -> str:
        tls = self.endpoint.tls or self.settings.tls
        where = as_url((self.addresses or [self.endpoint.address])[0], tls=tls)
        state = "listening" if self._gate is not None else "closed" if self._inflow is None else "connected"
        return self._described(where, state, [self.counters.bytes_in] if self.counters is not None else [], self.served)

    async def _set_up(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._turn.begin("a loader")
        self._context = context_for(self.endpoint, self.settings, listening=not self.connect)
        if not self.connect:
            await self._open_gate()
        elif not self._finished:
            self._stopped = asyncio.Event()
            dialling = dial(self.endpoint, self.settings, self._context, tally=self._tally)
            if (link := await unless(self._stopped.wait(), dialling, Link.reset)) is not None:
                self._begin(link)
        if self._finished:
            self._hang_up()

    async def _open_gate(self) -> None:
        self._gate = gate = await self._listen(self.endpoint, self.settings)
        if self.merges:
            hear = weakref.WeakMethod(self._one_ended)  # the crowd's tasks must not keep a forgotten loader
            try:
                self._many = Many(Crowd(gate, self._context, self.settings, hear), self.flow)
            except BaseException:
                self._gate = None
                gate.close()
                raise

    def __enter__(self) -> Self:
        self._enter()
        return self

    async def _tear_down(self, error: BaseException | None, *, broken_off: bool) -> None:  # noqa: ARG002
        self._finished = True
        try:
            if self._inflow is not None:
                self._release(self._inflow, broken_off=broken_off)
            if self._many is not None:
                await self._many.close(broken_off=broken_off)
        finally:  # what `on_end` raises keeps nothing open
            self._close_gate()

    def _reset_all(self) -> None:
        self._finished = True
        if self._gate is not None:
            self._gate.stop()
        try:
            if self._inflow is not None:
                self._release(self._inflow, broken_off=True)
            if self._many is not None:
                self._many.crowd.close(broken_off=True)
        finally:
            self._close_gate()

    def _close_gate(self) -> None:
        gate, self._gate = self._gate, None
        if gate is not None:
            gate.close()

    def _leftovers(self) -> list[Callable[[], object]]:
        closers: list[Callable[[], object]] = [it.abandon for it in (self._inflow, self._many) if it is not None]
        return [*closers, self._gate.close] if self._gate is not None else closers

    async def __anext__(self) -> memoryview:
        inflow = self._inflow
        if inflow is not None and (block := inflow.take()) is not None:
            return block
        if self._many is not None:
            if (block := await self._many.next_of(self._many.take)) is None:
                raise StopAsyncIteration
            return block
        with self._turn:
            while (inflow := self._inflow or await self._next_inflow()) is not None:
                block = await inflow.next_block()
                if block is not None:
                    return block
                await inflow.hear_out()
                self.end(inflow)
        raise StopAsyncIteration

    def __next__(self) -> memoryview:
        inflow = self._inflow
        if inflow is not None and not self.in_loop and (block := inflow.take()) is not None:
            return block
        try:
            return self.run(self.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None

    def _verdict(self) -> str | None:
        return self._inflow.verdict if self._inflow is not None else None

    @property
    def merges(self) -> bool:
        """Whether many connections are served at once."""
        return self.settings.max_connections > 1

    @property
    def ring(self) -> Ring:
        """The blocks that all connections are received into."""
        return self.flow.ring

    @property
    def served(self) -> int:
        """How many connections are served right now."""
        return len(self._many.crowd) if self._many is not None else int(self._inflow is not None)

    @property
    def connect_failures(self) -> int:
        """How many tries to connect have failed."""
        return self._tally.failures

    @property
    def counters(self) -> Counters | None:
        """The counters of the connection being served, or None between two; of many the sums of all."""
        single = self._inflow.counters if self._inflow is not None else None
        return single if self._many is None else self._many.crowd.counters()

    @property
    def fullness(self) -> float:
        """The part of what lies between the peer and the consumer that is filled, from 0 to 1."""
        single = self._inflow.fullness if self._inflow is not None else 0.0
        return single if self._many is None else self.ring.fullness

    def stop(self) -> bool:
        """Receive no more: what our kernel has acknowledged can still be taken, then the iteration ends.

        May be called at any time, from any thread. No other client is served. False when nothing can be left to
        take, of a connection or of many that have ended.
        """
        self._finished = True
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._hang_up)
        return self._inflow is not None or (self._many is not None and self._many.holds)

    def _hang_up(self) -> None:
        if self._stopped is not None:
            self._stopped.set()
        if self._inflow is not None:
            self._inflow.hang_up()
        if self._many is not None:
            self._many.crowd.stop()
        if self._gate is not None:
            self._gate.stop()

    def _retire(self, inflow: Inflow) -> RingmainError | None:
        """Close an inflow whose last block was taken; return what became of it if that is an error."""
        if inflow is not self._inflow:
            return None
        error = inflow.failure()
        self._release(inflow, error)
        if self._counts(inflow, error):
            self._finished = True
        return error

    async def next_connection(self) -> Stream | None:
        """Leave the present connection, wherever it is, and return the next one; None when there is none to come."""
        if self._many is not None:
            if (inflow := await self._many.next_inflow(functools.partial(self._new_flow, small=True))) is None:
                return None
            stream = Stream(inflow, self._many.crowd.retire, self.run, self._many.crowd.leave)
            weakref.finalize(stream, self._many.crowd.forget, inflow)
            return stream
        with self._turn:
            inflow = self._inflow
            if inflow is None or self._given is not None:
                if inflow is not None and (error := self._retire(inflow)) is not None:
                    log.warning("%s", error)  # whoever left it has not heard of that
                inflow = await self._next_inflow()
            self._given = None if inflow is None else Stream(inflow, self._retire, self.run)
            return self._given

    def _one_ended(self, outcome: Outcome) -> None:
        if self.on_end is not None:
            self.on_end(outcome)

    @property
    def many(self) -> Many:
        """Those who are served at once; raises UsageError where there is but one at a time."""
        if self._many is None:
            why = "the loader is not open" if self.merges else "one connection at a time is served"
            raise UsageError(
                "blocks of one client each", why, "use it inside `async with load(..., max_connections=...)`"
            )
        return self._many

    async def _next_inflow(self) -> Inflow | None:
        """Begin with the next client, if there is to be one."""
        if self._finished:
            return None
        if self._gate is None:
            raise UsageError("a loader", "it is not open", "use it inside `async with`")
        try:
            link = await self._gate.next_connection(self._context)
        except NoMoreClients:
            return None
        if self._finished:  # since it was found, in this very turn of the loop
            link.reset()
            return None
        self._gate.watch_over(link, inflow := self._begin(link))
        return inflow

    def _begin(self, link: Link) -> Inflow:
        try:
            self._inflow = Inflow(link, self.flow, self.settings.idle_timeout)
        except BaseException:
            link.reset()
            if self._gate is not None:
                self._gate.done(link)
            raise
        return self._inflow

    def end(self, inflow: Inflow) -> None:
        """Close an inflow whose last byte was taken; raise what became of it, or warn and let the next one in."""
        if self._many is not None:
            self._many.crowd.warn_of(self._many.crowd.retire(inflow), inflow)
            return
        error = self._retire(inflow)
        if error is not None and self._counts(inflow, error):
            raise error
        if error is not None:
            log.warning("%s", error)

    def break_off(self, inflow: Inflow, error: RingmainError) -> None:
        """Reset an inflow whose bytes have nowhere to go; raise the error of an only connection, else warn."""
        if self._many is not None:
            self._many.crowd.break_off(inflow, error)
            return
        if inflow is self._inflow:
            self._release(inflow, error, broken_off=True)
        if self.connect or self.listen_once:
            raise error
        log.warning("%s: %s", inflow.link.peer, str(error))

    def _counts(self, inflow: Inflow, error: RingmainError | None) -> bool:
        """Tell whether this was the one connection that there is to be."""
        return self.connect or (self.listen_once and (error is None or inflow.counters.bytes_in > 0))

    def _release(self, inflow: Inflow, error: RingmainError | None = None, *, broken_off: bool = False) -> None:
        self._inflow = self._given = None
        inflow.close(broken_off=broken_off)
        if self._gate is not None:
            self._gate.done(inflow.link)  # first: what `on_end` raises is not to keep the next client away
        if self.on_end is not None:
            self.on_end(inflow.outcome(error))
