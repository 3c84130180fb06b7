"""One client's way through a relay: two connections, and in each direction a state of its own."""

import asyncio
import contextlib
import errno
import logging
import time

from ringmain import kernel
from ringmain._ring import Counters
from ringmain.connection import Connection, reset_when_closed, watch_idle
from ringmain.errors import RingmainError, SendError, TimedOutError, TlsError, TruncatedError
from ringmain.sender import Sender, failure_of
from ringmain.stream import Flow, Owner, Stream

log = logging.getLogger("ringmain")

# When one peer is lost: how long what it sent, or what it was sent, may take to get through to the other.
_GRACE = 2.0


class Direction:
    """What one peer sends, to the other: the `Sink` of its stream.

    `state` is running, ending (the end is being passed on), or ended.
    """

    is_pipe = False
    pipe_size = 0
    name = "the destination"

    def __init__(self, stream: Stream, sender: Sender) -> None:
        self.stream = stream
        self.sender = sender
        sender.on_failure = self._sender_failed
        self.state = "running"
        self.fd = sender.connection.sock.fileno()
        self.obstacle = "is encrypted in blocks" if sender.connection.tls_version is not None else ""

    @property
    def counters(self) -> Counters:
        """What came, and what of it went on."""
        return self.stream.counters

    @property
    def fullness(self) -> float:
        """The part of what lies between the two peers that is filled, from 0 to 1."""
        return max(self.stream.fullness, self.sender.fullness)

    async def run(self, path: str, answering: Sender | None) -> None:
        """Move everything, then pass on the end; `answering` sends to the peer that this reads from, if anyone does."""
        if self.sender.failure is None:
            await self.stream.copy_to(self, path)
        error = self.stream.failure()
        if error is None and self.sender.failure is not None:
            error = self.failure(self.sender.failure)
        if error is not None:
            raise error
        if self.stream.verdict != "ended":
            return
        if answering is not None:
            if self.stream.tls is None and answering.was_reset():
                raise self.stream.lost(ConnectionResetError(errno.ECONNRESET, ""))
            answering.read_to_end()
        self.state = "ending"
        try:
            await self.sender.end()
        except OSError as cause:
            raise self.failure(cause) from cause
        self.state = "ended"

    async def write(self, view: memoryview, counters: Counters) -> None:
        """Send all of the view, counting it."""
        sent = self.sender.counters
        size, writes = sent.bytes_out, sent.writes
        try:
            await self.sender.send(view)
        except OSError as error:
            raise self.failure(error) from error
        finally:
            counters.bytes_out += sent.bytes_out - size
            counters.writes += sent.writes - writes

    def failure(self, error: OSError) -> RingmainError:
        """Return what a failed write means."""
        return failure_of(error, f"relay to {self.sender.connection.peer}")

    def _sender_failed(self) -> None:
        """Hear that the peer that this writes to is gone, also while there is nothing to write."""
        if self.sender.failure is not None:
            self.stream.stop()


class Passage:
    """Two connections and what goes between them, until both directions have ended or one has failed."""

    def __init__(
        self, source: Connection, destination: Connection, flows: tuple[Flow, Flow], owner: Owner, *, one_way: bool
    ) -> None:
        self.source = source
        self.destination = destination
        self.started = time.monotonic()
        self.verdict = "stopped"

        pumping = kernel.Pumping()

        def direction(origin: Connection, target: Connection, flow: Flow) -> Direction:
            stream = Stream(origin, flow, None, owner, verb="relay", pumping=pumping)
            return Direction(stream, Sender(target, duplex=not one_way))

        self.there = direction(source, destination, flows[0])
        self.back = None if one_way else direction(destination, source, flows[1])

    @property
    def directions(self) -> list[Direction]:
        """The ways that bytes go: there, and, unless it is one-way, back."""
        return [self.there] if self.back is None else [self.there, self.back]

    def stop(self) -> None:
        """Read no more: what was read is passed on, then both peers are reset, since this is not their streams' end."""
        for direction in self.directions:
            direction.stream.interrupt()

    async def run(self, path: str, idle_timeout: float | None) -> None:
        """Move everything both ways; raise what goes wrong. Both connections are closed afterwards, come what may."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(None) as limit:
                cancel = watch_idle(loop, idle_timeout, self._moved, lambda: limit.reschedule(loop.time()))
                try:
                    await self._move(path)
                    await self._drain_all()
                finally:
                    cancel()
            if all(direction.state == "ended" for direction in self.directions):
                self.verdict = "ended"
        except TimeoutError as error:
            self.verdict = "timed out"
            if not limit.expired():
                raise
            what = f"relay from {self.source.peer} to {self.destination.peer}"
            why = f"nothing moved for {idle_timeout:g} s"
            raise TimedOutError(what, why, "are both still alive? else raise --idle-timeout") from error
        except TruncatedError:
            self.verdict = "truncated"
            raise
        except RingmainError:
            self.verdict = "reset"
            raise
        finally:
            self._close()

    async def _move(self, path: str) -> None:
        """Run the directions; when one fails, let what the lost peer had sent or was sent get through to the other."""
        answering = [self.back.sender if self.back is not None else None, self.there.sender]
        tasks = [
            asyncio.ensure_future(direction.run(path, sender))
            for direction, sender in zip(self.directions, answering, strict=False)
        ]
        failed: asyncio.Task[None] | None = None
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            failed = next((task for task in tasks if task.done() and task.exception() is not None), None)
            if failed is None:
                return
            direction = self.directions[tasks.index(failed)]
            survivor: Direction | None = direction
            if isinstance(failed.exception(), SendError | TlsError):  # the other direction reads from whom this lost
                survivor = self.back if direction is self.there else self.there
                await asyncio.wait(tasks, timeout=_GRACE)
            if survivor is not None:
                with contextlib.suppress(OSError, RingmainError):
                    async with asyncio.timeout(_GRACE):
                        await self._drain(survivor)
            failed.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            for task in tasks:
                if not task.cancelled():
                    task.exception()  # it has been raised, or follows from what has
            tasks, failed = [], None  # whose tracebacks hold this frame: a cycle would keep what is theirs

    async def _drain_all(self) -> None:
        """See both ends through; that one peer is lost now takes nothing from the other."""
        try:
            await self._drain(self.there)
        except RingmainError:
            if self.back is not None:
                await self._drain(self.back)
            raise
        if self.back is not None:
            await self._drain(self.back)

    async def _drain(self, direction: Direction) -> None:
        try:
            await direction.sender.drain()
        except OSError as error:
            raise direction.failure(error) from error

    def _moved(self) -> int:
        """Return a number that grows while anything comes in, or is taken by a peer."""
        moved = 0
        for direction in self.directions:
            counters = direction.counters
            moved += counters.bytes_in + counters.bytes_out - (direction.sender.unacknowledged() or 0)
        return moved

    def _close(self) -> None:
        """Close both connections: after two proper ends as they are, else with resets."""
        for direction in self.directions:
            direction.stream.stop()
            if self.verdict != "ended":
                reset_when_closed(direction.stream.connection.sock)
                reset_when_closed(direction.sender.connection.sock)
        for direction in self.directions:
            direction.sender.on_failure = None  # no cycle is left that only the collector would free
            direction.sender.close()
        if self.back is None and self.verdict == "ended":
            self.there.stream.close()
        for direction in self.directions:
            direction.stream.abandon()
        sizes = " and ".join(f"{direction.counters.bytes_out} bytes" for direction in self.directions)
        log.info("%s to %s: %s after %s", self.source.peer, self.destination.peer, self.verdict, sizes)
