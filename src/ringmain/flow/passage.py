"""One client's way through a relay: two connections, and in each direction a state of its own."""

import asyncio
import contextlib
import time

from ringmain._counters import Counters
from ringmain.errors import RingmainError, SendError, TlsError
from ringmain.flow import kernel
from ringmain.flow.blocks import Flow
from ringmain.flow.cut import Cut
from ringmain.flow.idle_timeout import Deadline
from ringmain.flow.inflow import Inflow
from ringmain.flow.outflow import Outflow
from ringmain.log import log_ended
from ringmain.net.failures import failure_of, was_alerted
from ringmain.net.link import Link
from ringmain.net.resets import reset_when_closed
from ringmain.outcome import Outcome, RelayOutcome, State, Verdict
from ringmain.waiting import let_go

# When one peer is lost: how long the other may take nothing, while there is more of what the lost one sent.
_GRACE = 2.0


class Direction:
    """What one peer sends, to the other: the `Sink` of the one's inflow."""

    is_pipe = False
    pipe_size = 0
    name = "the destination"

    def __init__(self, inflow: Inflow, outflow: Outflow) -> None:
        self.inflow = inflow
        self.outflow = outflow
        outflow.on_failure = self._outflow_failed
        self.state = State.RUNNING
        self._cut = Cut(inflow)  # by us, in the middle
        self.fd = outflow.link.fd
        self.obstacle = "is encrypted in blocks" if outflow.link.tls_version is not None else ""

    @property
    def counters(self) -> Counters:
        """What came, and what of it went on."""
        return self.inflow.counters

    @property
    def fullness(self) -> float:
        """The part of what lies between the two peers that is filled, from 0 to 1."""
        return max(self.inflow.fullness, self.outflow.fullness)

    async def run(self, path: str, *, answering: bool) -> None:
        """Move everything, then pass on the end; `answering` tells whether the link that this reads from is sent on."""
        if self.outflow.failure is None:
            await self.inflow.copy_to(self, path)
        error = self.inflow.failure() if not self._cut.made else None
        if error is None and self.outflow.failure is not None:
            error = self.failure(self.outflow.failure)
        try:
            if error is not None:
                raise error
        finally:
            del error  # whose traceback holds this frame: a cycle would keep what is the passage's
        if self._cut.made or self.inflow.verdict is not Verdict.ENDED:
            return
        if answering:
            self.inflow.tell_end()
        self.state = self.state.next
        try:
            await self.outflow.end()
        except OSError as cause:
            raise self.failure(cause) from cause
        self.state = self.state.next

    async def write(self, view: memoryview, _: Counters) -> None:
        """Send all of the view, counting it in the counters of both flows."""
        try:
            await self.outflow.send(view)
        except OSError as error:
            raise self.failure(error) from error

    def cut(self) -> None:
        """Read what our kernel has acknowledged by now, and no more: `run` returns once that is passed on."""
        if self.state is State.RUNNING:
            self._cut.make()

    def end(self) -> None:
        """Read no more at all; what is to be heard of the peers is not heard here any more."""
        self._cut.end()
        self.outflow.on_failure = None

    async def drain(self) -> None:
        """Return once the other peer's kernel has every byte."""
        try:
            await self.outflow.link.drain()
        except OSError as error:
            raise self.failure(error) from error

    @property
    def taken(self) -> int:
        """How many bytes the other peer's kernel has acknowledged."""
        return max(0, self.counters.bytes_out - self.outflow.link.untaken())

    def moved(self) -> int:
        """Return a number that grows while anything comes in, or is taken by the other peer."""
        return self.counters.bytes_in + self.taken

    def failure(self, error: OSError) -> RingmainError:
        """Return what a failed write means."""
        return failure_of(error, f"relay to {self.outflow.link.peer}", self.outflow.link.prefix)

    def _outflow_failed(self) -> None:
        """Hear that the peer that this writes to is gone, also while there is nothing to write."""
        if self.outflow.failure is not None:
            self.inflow.stop()


class Passage:
    """Two connections and what goes between them, until both directions have ended or one has failed."""

    def __init__(
        self,
        source: Link,
        destination: Link,
        flows: tuple[Flow, Flow],
        *,
        one_way: bool,
        threads: kernel.PumpThreads | None = None,
    ) -> None:
        self.source = source
        self.destination = destination
        self.started = time.monotonic()
        self.verdict = Verdict.STOPPED

        pumping = kernel.Pumping(threads)

        def direction(origin: Link, target: Link, flow: Flow) -> Direction:
            inflow = Inflow(origin, flow, None, verb="relay", pumping=pumping)
            return Direction(inflow, Outflow(target, duplex=not one_way, counters=inflow.counters))

        self.there = direction(source, destination, flows[0])
        self.back = None if one_way else direction(destination, source, flows[1])

    @property
    def directions(self) -> list[Direction]:
        """The ways that bytes go: there, and, unless it is one-way, back."""
        return [self.there] if self.back is None else [self.there, self.back]

    def is_silent(self) -> bool | None:
        """Tell whether not a byte has come yet, from either side; None while that cannot be told."""
        return self.there.inflow.is_silent() and (self.back is None or self.back.counters.bytes_in == 0)

    def turn_away(self, seconds: float) -> None:
        """End it: for so long the source was silent while other clients waited."""
        self.there.inflow.turn_away(seconds)

    def stop(self) -> None:
        """Read no more: what has come is passed on, then both peers are reset, since this is not their streams' end."""
        for direction in self.directions:
            direction.cut()

    async def run(self, path: str, idle_timeout: float | None) -> None:
        """Move everything both ways; raise what goes wrong. Both connections are closed afterwards, come what may."""
        what = f"relay from {self.source.peer} to {self.destination.peer}"
        try:
            async with Deadline(idle_timeout, self._moved, what, "nothing moved", "are both still alive?"):
                await self._move(path)
                await self._drain_all()
            if all(direction.state is State.ENDED for direction in self.directions):
                self.verdict = Verdict.ENDED
        except RingmainError as error:
            self.verdict = Verdict.of(error)
            raise
        finally:
            await self._close()

    async def _move(self, path: str) -> None:
        """Run the directions; when one fails, let what the lost peer had sent or was sent get through to the other."""
        tasks = [
            asyncio.ensure_future(direction.run(path, answering=self.back is not None)) for direction in self.directions
        ]
        failed: asyncio.Task[None] | None = None
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            failed = next((task for task in tasks if task.done() and task.exception() is not None), None)
            if failed is None:
                return
            direction = self.directions[tasks.index(failed)]
            survivor: Direction | None = direction
            sending = (
                isinstance(failed.exception(), SendError | TlsError)
                and direction.inflow.verdict is not Verdict.TRUNCATED
            )
            if sending:  # the other direction reads from whom this lost
                survivor = self.back if direction is self.there else self.there
            if survivor is not None:
                with contextlib.suppress(RingmainError):
                    async with Deadline(_GRACE, survivor.moved, "relay", "nothing moved"):
                        if direction is not survivor:
                            await asyncio.wait(tasks)
                        await survivor.drain()
            # An alert that was read tells more than a write that failed because of it.
            failed = next((it for it in tasks if it.done() and isinstance(it.exception(), TlsError)), failed)
            failed.result()
        finally:
            for task in tasks:
                task.cancel()
            try:
                await let_go(tasks)
            finally:
                for task in tasks:
                    if not task.cancelled():
                        task.exception()  # it has been raised, or follows from what has
                del tasks, task, failed  # whose tracebacks hold this frame: a cycle would keep what is theirs

    async def _drain_all(self) -> None:
        """See both ends through; that one peer is lost now takes nothing from the other."""
        try:
            await self.there.drain()
        except RingmainError:
            if self.back is not None:
                await self.back.drain()
            raise
        if self.back is not None:
            await self.back.drain()

    def _moved(self) -> int:
        """Return a number that grows while anything comes in, or is taken by a peer."""
        return sum(direction.moved() for direction in self.directions)

    async def _close(self) -> None:
        """Close both connections: after two proper ends as they are, else with resets.

        A peer that was sent an alert gets to read it first, unless this is cancelled.
        """
        alerted = []
        for direction in self.directions:
            direction.end()
        for link in (self.source, self.destination):
            if self.verdict is Verdict.ENDED:
                self._close_end(link)
            elif self._was_alerted(link):
                alerted.append(link)
            else:
                reset_when_closed(link.sock)
                self._close_end(link)
        try:
            for link in alerted:
                await link.hear_out()
        finally:
            for link in alerted:
                self._close_end(link)
            log_ended(self.outcome())

    def outcome(self, error: RingmainError | None = None) -> RelayOutcome:
        """Return what became of it."""

        def side(link: Link, direction: Direction | None) -> Outcome:
            counters = Counters() if direction is None else direction.counters
            return Outcome(
                *(link.peer, link.tls_version, link.cipher, counters, counters.bytes_out, self.verdict),
                state=None if direction is None else direction.state,
                proxy=link.introduced.proxy,
                credentials=link.credentials,
                certificate=link.certificate,
            )

        source, destination = side(self.source, self.there), side(self.destination, self.back)
        return RelayOutcome(source, destination, time.monotonic() - self.started, self.verdict, error)

    def _close_end(self, link: Link) -> None:
        for direction in self.directions:
            if direction.outflow.link is link:
                direction.outflow.close()
        for direction in self.directions:
            if direction.inflow.link is link:
                if self.back is None and self.verdict is Verdict.ENDED:
                    direction.inflow.close()  # with close_notify, which nobody else has sent
                direction.inflow.abandon()

    def _was_alerted(self, link: Link) -> bool:
        return any(
            (direction.inflow.link is link and direction.inflow.was_alerted)
            or (direction.outflow.link is link and was_alerted(direction.outflow.failure))
            for direction in self.directions
        )
