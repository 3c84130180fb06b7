"""Many connections at once, for a loader: their whole records as the blocks of one ring, or each by itself."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar, cast

from ringmain._merge import Merger
from ringmain.errors import ReceiveError, UsageError, reason
from ringmain.flow.blocks import Flow, until_given_back
from ringmain.flow.crowd import Crowd
from ringmain.flow.inflow import Inflow
from ringmain.net.link import Link
from ringmain.net.readiness import finish
from ringmain.waiting import Turn, let_go

Item = TypeVar("Item")


class Part(NamedTuple):
    """Whole records of one connection, which its link tells from others of the same peer.

    `offset` bytes of what it sent lie before them.
    """

    link: Link
    offset: int
    block: memoryview


class Many:
    """Take whole records of whoever is in a crowd (`next_of`), or each connection by itself (`next_inflow`).

    Which of the two is settled by the first call. To merge, a task lets clients in from then on, which goes on when
    whoever takes the records is cancelled. What `on_end` raises then, whoever takes next is raised, or who closes this.
    """

    def __init__(self, crowd: Crowd, flow: Flow) -> None:
        assert flow.cutter is not None
        self.crowd = crowd
        self._flow = flow
        self._merger = Merger(
            crowd.loop, flow.ring, flow.cutter, flow.ring.max_record, flow.terminator, flow.skips, flow.linger
        )
        self._admitting: asyncio.Task[None] | None = None
        self._apart: bool | None = None  # which of the two; None until that is settled
        self._closed = False
        self._failure: Exception | None = None  # what `on_end` has raised, and nobody was told of
        self._waiter: asyncio.Future[None] | None = None
        self._turn = Turn("another task is already waiting for this loader")
        self._turn.begin("a loader")

    @property
    def holds(self) -> bool:
        """Whether somebody is there, or has left and his records are not all done with."""
        return len(self.crowd) > 0 or self._merger.ring.fullness > 0

    def take(self) -> memoryview | None:
        """Return the next block of whole records if there is one already."""
        block = self._merger.take()
        return self._given(block) if block is not None else None

    def take_of_one(self) -> "Part | None":
        """Return the same of one connection."""
        taken = self._merger.take_tagged()
        if taken is None:
            return None
        member, block = taken
        return Part(cast(Link, member.link), member.taken - len(block), self._given(block))

    async def next_of(self, take: Callable[[], Item | None]) -> Item | None:
        """Return what one of these two returns next; None when there is none to come."""
        self._raise_failure()
        if (taken := take()) is not None:
            return taken
        with self._turn:
            while (taken := take()) is None and await self._until_more():
                pass
        return taken

    def leave(self, link: object) -> None:
        """Reset a connection whose records nobody wants any more; the others go on."""
        self.crowd.reset_link(link)

    async def next_inflow(self, new_flow: Callable[[], Flow]) -> Inflow | None:
        """Return the next connection, once there is a place for it; None when there is none to come."""
        if self._apart is False:
            raise UsageError("connections()", "blocks of this loader are merged already", "use another loader")
        self._apart = True
        with self._turn:
            return await self.crowd.next_inflow(new_flow) if not self._closed else None

    async def close(self, *, broken_off: bool) -> None:
        """Let nobody in any more; close all who are there at once, with a reset if they are `broken_off`."""
        self._end()
        try:
            with contextlib.ExitStack() as stack:  # what `on_end` raises keeps nothing open
                stack.callback(self._raise_failure)
                stack.callback(self._merger.close)
                self.crowd.close(broken_off=broken_off)
        finally:
            if self._admitting is not None and not self.crowd.loop.is_closed():
                await let_go([self._admitting])

    def abandon(self) -> None:
        """Close all at once, without a word to the peers."""
        self._end()
        self.crowd.abandon()
        self._merger.close()

    def _given(self, block: memoryview) -> memoryview:
        if not self._flow.copy:
            return block
        with block:
            return memoryview(bytes(block))

    async def _until_more(self) -> bool:
        """Return once there may be more to take; False if there is to be none."""
        if self._apart:
            raise UsageError("blocks", "this loader's connections are iterated over already", "use another loader")
        self._apart = False
        if self._closed:
            return False
        self._raise_failure()  # of whoever has ended meanwhile
        if self._admitting is None:
            self._admitting = self.crowd.loop.create_task(self._admit())
            self._admitting.add_done_callback(lambda _: self._wake())
        if self._admitting.done():
            if not self._admitting.cancelled() and self._admitting.exception() is not None:
                failed, self._admitting = self._admitting, None  # the next call lets clients in again
                try:
                    failed.result()
                finally:
                    del failed  # its traceback holds this frame
            if len(self.crowd) == 0:
                return False
        self._waiter = self._merger.wait()
        if self._merger.paused and self._merger.ring.starved:
            await until_given_back(self._merger.ring, self._waiter)
        else:
            await self._waiter
        return True

    async def _admit(self) -> None:
        """Let clients in, until no other is to be."""
        while (inflow := await self.crowd.next_inflow(lambda: self._flow)) is not None:
            try:
                inflow.merge_into(self._merger, self._on_end_of(inflow))
            except OSError as error:
                with self._keeping():
                    self.crowd.break_off(inflow, ReceiveError("cannot be served", reason(error)))
            del inflow  # while the next one is waited for

    def _on_end_of(self, inflow: Inflow) -> Callable[[], None]:
        def ended() -> None:
            with self._keeping():
                self.crowd.warn_of(self.crowd.retire(inflow), inflow)
            self._wake()

        return ended

    @contextlib.contextmanager
    def _keeping(self) -> Iterator[None]:
        """Keep what `on_end` raises, in a callback of the loop, for whoever takes next; one, for any number may end."""
        try:
            yield
        except Exception as error:
            if self._failure is None:
                self._failure = error
                self._wake()
            else:
                self.crowd.loop.call_exception_handler({"message": "on_end has failed once more", "exception": error})

    def _raise_failure(self) -> None:
        if self._failure is None:
            return
        error, self._failure = self._failure, None
        try:
            raise error
        finally:
            del error  # its traceback holds this frame

    def _end(self) -> None:
        self._closed = True
        if self._admitting is not None and not self.crowd.loop.is_closed():
            self._admitting.cancel()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self.crowd.loop.is_closed():
            finish(self._waiter)
