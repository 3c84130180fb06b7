"""One client's way through a relay that outlives its destination: one way, and what that never had comes again.

How a destination gets what a lost one never had: `clients`, `next_client`. A relay that does not reconnect: `passage`.
"""

import asyncio
import errno
import ssl
import time
import weakref

from ringmain._counters import Counters
from ringmain._cutter import Cutter
from ringmain.errors import RingmainError, SendError
from ringmain.flow.blocks import Flow
from ringmain.flow.clients import Clients
from ringmain.flow.cut import Cut
from ringmain.flow.idle_timeout import Deadline, Watch
from ringmain.flow.inflow import Inflow
from ringmain.log import log_ended
from ringmain.net.link import Link
from ringmain.net.redial import Redial
from ringmain.outcome import Outcome, RelayOutcome, State, Verdict
from ringmain.settings import Settings
from ringmain.waiting import let_go

# So much goes on at a time: that a slow destination takes any of it has to be seen.
_PIECE = 64 << 10


class PersistentPassage:
    """What one source brings, to a destination that is dialled again whenever it is lost, and that answers nothing.

    The source waits meanwhile. Where it ends properly, the destination is ended so once it has all; any other end of it
    is a reset for the destination, after all has got through. `source_due` tells whose fault it is that `run` has
    failed: the source's, if that was waited for. What the destination never had, and what has come: at most what our
    kernel's send buffer holds, the record that began before it, and a ring.
    """

    def __init__(
        self,
        links: tuple[Link, Link],
        flow: Flow,
        redial: Redial,
        settings: Settings,
        context: ssl.SSLContext | None,
        cutter: Cutter | None,
    ) -> None:
        """Begin with the first connection that `redial` has brought, to the other of the two links."""
        self.source, self.destination = links  # the first of the destination's
        self.started = time.monotonic()
        self.verdict = Verdict.STOPPED
        self.state = State.RUNNING
        self.source_due = False
        self.inflow = Inflow(self.source, flow, None, verb="relay")
        self.counters = self.inflow.counters
        self._cut = Cut(self.inflow)
        self._ends: list[Outcome] = []  # the last one of the destination's connections that is over
        self._losses = -1
        self._redial = redial
        self._turn = asyncio.Lock()  # of who sends, or connects again
        self._lost = asyncio.Event()
        self._watch: Watch | None = None  # over a destination that has more to take while nothing is sent
        hear, tell = weakref.WeakMethod(self._one_ended), self._lost.set
        self._clients = Clients(redial.endpoint, settings, hear, goes_on=True, cutter=cutter, verb="relay")
        self._clients.on_lost = tell
        self._clients.open(redial, context)
        self._clients.begin(self.destination)

    @property
    def directions(self) -> "list[PersistentPassage]":
        """The one way that bytes go, as `Passage` has them."""
        return [self]

    @property
    def fullness(self) -> float:
        """The part of what lies between the two peers that is filled, from 0 to 1."""
        outflow = self._clients.outflow
        return max(self.inflow.fullness, 0.0 if outflow is None else outflow.fullness)

    @property
    def taken(self) -> int:
        """How many bytes the destination's kernel has acknowledged, whichever connection they came by."""
        outflow = self._clients.outflow
        left = 0 if outflow is None else outflow.link.untaken()
        return max(0, self.counters.bytes_out - left - len(self._clients.carry.due))

    def is_silent(self) -> bool | None:
        """Tell whether not a byte has come yet; None while that cannot be told."""
        return self.inflow.is_silent()

    def turn_away(self, seconds: float) -> None:
        """End it: for so long the source was silent while other clients waited."""
        self.inflow.turn_away(seconds)

    def stop(self) -> None:
        """Read no more, connect no more: what has come goes to the destination that is there, then both are reset."""
        if self.state is State.RUNNING:
            self._cut.make()
        self._clients.stop()
        self._lost.set()

    async def run(self, _: str, idle_timeout: float | None) -> None:
        """Move everything; raise what goes wrong. Both connections are closed afterwards, come what may.

        The source may bring nothing for `idle_timeout` once the destination has all; a destination that takes nothing
        for so long is lost.
        """
        what = f"relay from {self.source.peer} to {self._redial.endpoint.address}"
        self._watch_destination(idle_timeout)
        try:
            async with Deadline(idle_timeout, self._moved, what, "nothing moved", "are both still alive?"):
                await self._move()
        except RingmainError as error:
            self.verdict = Verdict.of(error)
            raise
        finally:
            await self._close()

    async def _move(self) -> None:
        """Pass on what comes, and connect again while nothing does; raise what ends either."""
        tasks = [asyncio.ensure_future(work) for work in (self._pass_on(), self._keep_connected())]
        try:
            # The second one ends where it has failed, or after a stop.
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if tasks[1].done() and tasks[1].exception() is None:
                await asyncio.wait(tasks[:1])
            if not tasks[0].done():
                self.source_due = False
                tasks[1].result()
            tasks[0].result()
        finally:
            for task in tasks:
                task.cancel()
            try:
                await let_go(tasks)
            finally:
                for task in tasks:
                    if not task.cancelled():
                        task.exception()  # it has been raised, or follows from what has
                del tasks, task  # whose tracebacks hold this frame: a cycle would keep what is theirs

    async def _pass_on(self) -> None:
        """Send all that the source brings, then its end."""
        while (block := await self._next_block()) is not None:
            with block:
                for begin in range(0, len(block), _PIECE):
                    with block[begin : begin + _PIECE] as piece:
                        async with self._turn:
                            await self._clients.send(piece)
                        self.counters.bytes_out += len(piece)
        error = None if self._cut.made else self.inflow.failure()
        async with self._turn:
            if self._cut.made or self.inflow.verdict is not Verdict.ENDED:
                await self._settle()
            else:
                self.state = self.state.next
                await self._clients.finish()
                self.state, self.verdict = self.state.next, Verdict.ENDED
            self._clients.stop()  # a loss that was heard of before dials nobody for nothing
        self.source_due = error is not None
        try:
            if error is not None:
                raise error
        finally:
            del error  # whose traceback holds this frame: a cycle would keep what is the passage's

    async def _next_block(self) -> memoryview | None:
        self.source_due = True
        block = await self.inflow.next_block()
        self.source_due = False
        return block

    async def _settle(self) -> None:
        """Return once all has got through that has come, with no end behind it."""
        clients = self._clients
        while clients.outflow is not None or clients.carry.due:
            await clients.send(memoryview(b""))  # which pays what is due
            try:
                await clients.deliver()
            except RingmainError as error:  # what was not acknowledged is due now
                if clients.stopping or not self._redial.lost(error):
                    raise
            else:
                return

    async def _keep_connected(self) -> None:
        """Connect again once the destination is lost, also where the source brings nothing; return after a stop."""
        while not self._clients.stopping:
            await self._lost.wait()
            self._lost.clear()
            async with self._turn:
                try:
                    await self._clients.send(memoryview(b""))
                except SendError:
                    if not self._clients.stopping:
                        raise

    def _moved(self) -> int | None:
        """Return a number that grows while anything comes; None while it is the destination that is waited for."""
        outflow = self._clients.outflow
        if outflow is None or outflow.progress() is not None:
            return None
        return self.counters.bytes_in

    def _watch_destination(self, timeout: float | None) -> None:
        """Take the destination for lost once it takes nothing for so long, also while the source brings nothing."""

        def expired() -> None:
            if (outflow := self._clients.outflow) is not None:
                outflow.link.give_up(errno.ETIMEDOUT)
            self._watch_destination(timeout)

        self._watch = Watch(self.source.loop, timeout, self._has_taken, expired)

    def _has_taken(self) -> int | None:
        """Return a number that grows while the destination takes anything; None where it need not, or while we send."""
        outflow = self._clients.outflow
        return None if outflow is None or self._turn.locked() else outflow.progress()

    async def _close(self) -> None:
        """Close both connections: after a proper end as they are, else with resets.

        A source that was sent an alert gets to read it first, unless this is cancelled.
        """
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None  # which refers to this
        self._cut.end()
        self._clients.close()
        broken = self.verdict is not Verdict.ENDED and not self.inflow.was_alerted
        try:
            if not broken:
                await self.inflow.hear_out()
        finally:
            self.inflow.close(broken_off=broken)
            log_ended(self.outcome())

    def _one_ended(self, outcome: Outcome) -> None:
        """Hear of a connection of the destination that is over."""
        self._ends = [outcome]
        self._losses += 1
        self.counters.writes += outcome.counters.writes

    def outcome(self, error: RingmainError | None = None) -> RelayOutcome:
        """Return what became of it: of the destination the last connection, and how many there were before it."""
        link = self.source
        source = Outcome(
            *(link.peer, link.tls_version, link.cipher, self.counters, self.counters.bytes_out, self.verdict),
            state=self.state,
            proxy=link.introduced.proxy,
            credentials=link.credentials,
            certificate=link.certificate,
        )
        (last,) = self._ends
        destination = Outcome(
            *(last.peer, last.tls, last.cipher, Counters(), 0, self.verdict),
            credentials=last.credentials,
            certificate=last.certificate,
        )
        seconds = time.monotonic() - self.started
        return RelayOutcome(source, destination, seconds, self.verdict, error, reconnects=self._losses)
