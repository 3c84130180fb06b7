"""One connection that is read from and written to."""

import asyncio
import contextlib
import errno
import os
import ssl
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar, cast

from ringmain._counters import Counters
from ringmain.errors import RingmainError, SendError, TimedOutError, UsageError
from ringmain.flow.blocks import Flow
from ringmain.flow.idle_timeout import Deadline
from ringmain.flow.inflow import Inflow
from ringmain.flow.outflow import Outflow
from ringmain.flow.records import Blocks, Records
from ringmain.net.failures import failure_of, has_hole, was_alerted
from ringmain.net.link import Link
from ringmain.outcome import Verdict
from ringmain.settings import Settings
from ringmain.waiting import Turn

if TYPE_CHECKING:
    from typing_extensions import Buffer

Result = TypeVar("Result")


class Connection:
    """What `connect` and `serve` give: one connection, read from by one task and written to by one at a time.

    `peer` is "host:port", `tls` "TLSv1.3" or the like and `cipher` the suite's name, both None without TLS. `counters`
    count both ways: `bytes_in` and `bytes_out`.
    """

    def __init__(self, link: Link, flow: Flow, settings: Settings) -> None:
        self.peer, self.tls, self.cipher = link.peer, link.tls_version, link.cipher
        self._link = link
        self._inflow = Inflow(link, flow, None, verb="read")
        self.counters: Counters = self._inflow.counters
        self._outflow = Outflow(link, self._link_failed, duplex=True, counters=self.counters)
        self._idle_timeout = settings.idle_timeout
        self._reading = Turn("another task is already waiting for this connection")
        self._writing = Turn("another task is already writing")
        self._ended = False  # by `write_eof`
        self._torn = False  # what was written has a hole
        self._left = self._aborted = False

    def __repr__(self) -> str:
        tls, state = f" {self.tls}" if self.tls else "", "closed" if self._link.closed else "open"
        return f"<Connection {self.peer}{tls} {state}, {self.counters.bytes_in} and {self.counters.bytes_out} bytes>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._left:
            return
        finished = False
        try:
            if kind is None and not self._aborted:
                if self._writing.taken:  # also by one that was cancelled and has yet to hear of that
                    why, remedy = "another task has not ended its write", "await that before leaving the `with`"
                    raise SendError(f"write to {self.peer}", why, remedy)
                with self._writing:
                    self._check_whole()
                    # The wait for the peer's answer to our certificate has a limit of its own: only bytes count here.
                    await self._guarded(self._finish(), "write to", self._outflow.progress)
                finished = True
        finally:
            self._left, self._outflow.on_failure = True, None
            if finished:
                self._outflow.close()
            else:
                self._outflow.abort()
            self._inflow.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> memoryview:
        block = await self.read()
        if block is None:
            raise StopAsyncIteration
        return block

    async def read(self) -> memoryview | None:
        """Return the next block, or None once the peer has ended properly.

        A block is a read-only memoryview that owns its memory: keep it as long as you like, release it (or let it go)
        and the memory is received into again. With a `delimiter` every block ends at one, except the last. Once all
        that came was taken, any other end raises: ReceiveError after a reset, TruncatedError where TLS ends without
        close_notify, TlsError, TimedOutError, RecordTooLongError; BlocksHeldError when all blocks are kept. Cancelling
        this loses nothing.
        """
        if (block := self._inflow.take()) is not None:
            return block
        with self._reading:
            block = await self._guarded(self._inflow.next_block(), "read from")
            if block is None:
                await self._hear_end()
            return block

    def records(self, *, headers: bool = False) -> Records:
        """Iterate over single records instead, `async for`, with `headers` all that came of each, as of a loader."""

        def verdict() -> Verdict | None:  # a last record without its end counts after a proper end of the stream only
            inflow = self._inflow
            return Verdict.ENDED if inflow.has_ended_well else inflow.verdict and Verdict.RESET

        return Records(cast(Blocks, self), self._inflow.ring.cutter, verdict, headers=headers)

    async def write(self, buffer: "Buffer") -> None:
        """Send all of a contiguous buffer, which may be changed once this returns.

        Large buffers go out uncopied, and this waits while the peer is slow; whoever never reads may make it wait for
        ever. Small ones are copied and go out together at the end of this turn of the loop; if that fails, the next
        write or the end of the block raises. Raises SendError when the connection is lost. What the peer sent before
        that can still be read, and reading tells more: where a TLS 1.3 server rejects our certificate, that it does.

        A write that is cancelled before a part of the buffer has gone out has done nothing. One that is cancelled later
        leaves a hole in the stream: every later write, and leaving the block, raises SendError and resets the peer.
        """
        with self._writing:
            self._check_whole()
            if self._ended:
                raise UsageError("a connection", "nothing can be written after write_eof", "write before it")
            view = memoryview(buffer)
            if view.nbytes and not self._outflow.gather(view := view.cast("B")):
                await self._sent(self._outflow.send(view))

    async def write_eof(self) -> None:
        """Send FIN, and close_notify before it under TLS: the peer reads an end, and reading its answer goes on.

        Does nothing the second time. Raises, and may be cancelled, as `write`.
        """
        with self._writing:
            self._check_whole()
            if not self._ended:
                await self._sent(self._outflow.flush())
                await self._sent(self._half_close())

    def is_silent(self) -> bool | None:
        """Tell the listener whether nothing has moved either way; None while that cannot be told."""
        return self.counters.bytes_out == 0 and self._inflow.is_silent()

    def turn_away(self, seconds: float) -> None:
        """End it for a listener's client that was silent for so many seconds while others waited: reading raises."""
        self._inflow.turn_away(seconds)

    async def aclose(self) -> None:
        """Do now what leaving the block by its end does; leaving it does nothing more then.

        Does nothing the second time. Cancelling it resets the peer. Raises SendError where that does not get all.
        """
        await self.__aexit__(None, None, None)

    def abort(self) -> None:
        """Reset the peer at once, as leaving the block by an exception does: it never takes a part for the whole.

        What was not sent is lost. What came can still be read, then reading raises, and writing at once. Leaving the
        block afterwards raises nothing.
        """
        self._aborted = True
        self.break_off()

    def break_off(self) -> None:
        """Reset the peer, for a server that is left: what came can still be read, then reading and writing raise."""
        self._outflow.abort()
        self._inflow.stop()

    async def _half_close(self) -> None:
        self._check_link()
        self._ended = True
        try:
            await self._outflow.end()
        except asyncio.CancelledError:
            self._torn = True
            raise
        self._check_link()

    def _check_link(self) -> None:
        if self._link.failure is not None:
            raise self._link.failure

    async def _finish(self) -> None:
        self._inflow.stop()
        self._check_accepted()
        if self._link.failure is None and self._inflow.verdict is not Verdict.RESET:  # uvloop's handle dies of one
            self._link.discard_from_now_on(heard=self.counters.bytes_in > 0)
        if not self._ended:
            await self._outflow.end()
        await self._link.drain()

    def _check_accepted(self) -> None:
        """Raise how the peer has broken off, read or not: by an alert, or before it has accepted us."""
        session, error = self._link.session, self._inflow.failure()
        cause = None if error is None else error.__cause__
        if session is None or not isinstance(cause, OSError) or isinstance(cause, ssl.SSLEOFError):
            return
        unjudged = self.counters.bytes_in == 0 and session.may_reject_us() and not session.has_ticket
        try:
            if unjudged or was_alerted(cause):
                raise cause
        finally:
            del cause, error  # whose traceback holds this frame: a cycle would keep what is the connection's

    async def _sent(self, work: Awaitable[None]) -> None:
        """Await what sends; note whether it leaves a hole."""
        try:
            await self._guarded(work, "write to")
        except asyncio.CancelledError:
            self._torn |= self._outflow.torn
            raise
        except BaseException:
            self._torn = True
            raise

    async def _guarded(
        self, work: Awaitable[Result], doing: str, moved: Callable[[], int | None] | None = None
    ) -> Result:
        """Await work, or the idle time-out, which resets the peer; say what a failure to send means."""
        what = f"{doing} {self.peer}"
        try:
            remedy = "is the peer still alive?"
            async with Deadline(self._idle_timeout, moved or self._moved, what, "nothing moved", remedy):
                return await work
        except TimedOutError:
            self._torn = True
            self._link.failure = OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
            self.break_off()
            raise
        except RingmainError:
            raise
        except OSError as cause:
            self._link.failure = self._link.failure or cause
            if was_alerted(cause):
                await self._link.hear_out()
            raise failure_of(cause, what, self._link.prefix) from cause

    def _moved(self) -> int:
        counters = self.counters
        return counters.bytes_in + counters.bytes_out - self._link.untaken()

    def _check_whole(self) -> None:
        if self._torn:
            what, failure = f"write to {self.peer}", self._link.failure
            raise has_hole(what) if failure is None else failure_of(failure, what, self._link.prefix)

    async def _hear_end(self) -> None:
        """Raise what became of the stream unless that ended properly; either way those who write hear of it."""
        inflow, link = self._inflow, self._link
        await inflow.hear_out()
        error = inflow.failure()
        if link.closed or (error is None and inflow.verdict is Verdict.STOPPED):
            error = inflow.lost(link.failure or ConnectionAbortedError(errno.ECONNABORTED, "it is being closed"))
        elif (
            isinstance(link.failure, TimeoutError)
            and not link.peer_ended
            and (error is None or isinstance(error.__cause__, ssl.SSLEOFError))  # the end of what our kernel had
        ):
            error = inflow.vanished(link.failure)
        if error is None:
            inflow.tell_end()
            return
        try:
            if isinstance(error.__cause__, OSError) and link.failure is None:
                link.fail(error.__cause__)
            raise error
        finally:
            del error  # whose traceback holds this frame: a cycle would keep what is the connection's

    def _link_failed(self) -> None:
        if isinstance(self._link.failure, TimeoutError):  # of any other failure those who read hear themselves
            with contextlib.suppress(OSError):  # the kernel itself has given up
                self._link.cut()
