"""The pipeline behind `arrow.batches`: blocks are parsed by a few threads while the loop receives more of them."""

import asyncio
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

import pyarrow as pa

from ringmain.feeds._arrow_parsers import Parser
from ringmain.feeds._arrow_search import Job, Outcome
from ringmain.feeds._feed import BlockFeed, Piece, Source
from ringmain.feeds._merged import pieces_of
from ringmain.feeds._refusal import Bad, OnError, Origin


class Batches(BlockFeed["pa.RecordBatch"]):
    """An iterator of record batches, plain or asynchronous, in the order of their bytes.

    `schema` is the given one, or None until the first batch was made.
    """

    def __init__(self, source: Source, parser: Parser, threads: int, on_error: OnError) -> None:
        super().__init__(pieces_of(source), on_error)
        self._parser = parser
        self._pool = ThreadPoolExecutor(threads, "ringmain-arrow")
        # Each pending block is one that the receiver cannot fill, and it needs some.
        self._depth = max(1, min(2 * threads, source.ring.block_count // 2))
        self._pending: deque[tuple[Origin, Future[Outcome]]] = deque()
        self._broken = False  # behind what is pending nothing of its connection can be read

    @property
    def schema(self) -> "pa.Schema | None":
        """What every batch has."""
        return self._parser.schema

    async def __anext__(self) -> "pa.RecordBatch":
        while not self._ready:
            await self._fill()
        return self._ready.popleft()

    def __next__(self) -> "pa.RecordBatch":
        while not self._ready:
            try:
                self._cursor.run(self._fill())
            except StopAsyncIteration:
                raise StopIteration from None
        return self._ready.popleft()

    def prime(self) -> None:
        """Wait until there is a schema, if there is to be one."""
        self._cursor.run(self._prime())

    async def _prime(self) -> None:
        while self._parser.schema is None:
            try:
                await self._fill()
            except StopAsyncIteration:
                return

    async def _fill(self) -> None:
        """Hand what has come to the threads and take what the next one made of it. While this waits, more comes."""
        self._raise_failed()
        while not self._broken and len(self._pending) < (self._depth if self._parser.ready else 1):
            piece = self._cursor.take()
            if piece is None:
                break
            self._try(piece)
        if self._pending:
            stream, future = self._pending[0]
            if not future.done():
                waiting = asyncio.wrap_future(future)
                await asyncio.wait([waiting])
                waiting.exception()  # it is raised below, and need not be told of twice
            self._pending.popleft()
            try:
                self._collect(stream, future.result())
            except BaseException:  # as in `_try`
                self._give_up(stream)
                self._cursor.leave(stream)
                raise
            return
        piece = await self._cursor.next()
        if piece is None:
            raise StopAsyncIteration
        self._try(piece)

    def _turn(self, piece: Piece) -> None:
        job = self._parser.admit(piece)
        if isinstance(job, Bad):
            self._broken = True
            self._pending.append((piece.stream, _settled(Outcome([job]))))
        elif job is not None:
            self._pending.append((piece.stream, self._submit(job)))

    def _submit(self, job: Job) -> "Future[Outcome]":
        return self._pool.submit(self._parser.run, job, self._refusals.most)

    def _collect(self, stream: Origin, outcome: Outcome) -> None:
        good: list[pa.RecordBatch] = []
        for part in outcome.parts:
            if not isinstance(part, Bad):
                good.append(part)
            elif not self._refuse(stream, part):
                self._give_up(stream)
                break
        else:
            if outcome.rest is not None:
                self._pending.appendleft((stream, self._submit(outcome.rest)))
        if len(outcome.parts) > 1 and good:  # what lay between bad records becomes one batch again
            good = pa.Table.from_batches(good).combine_chunks().to_batches()
        if self._parser.schema is None and good:
            self._parser.schema = good[0].schema
        self._ready.extend(good)

    def _give_up(self, stream: Origin) -> None:
        """Drop what is pending of a connection."""
        for origin, future in self._pending:
            if origin is stream:
                future.cancel()
        self._pending = deque(it for it in self._pending if it[0] is not stream)
        self._broken = False


def _settled(outcome: Outcome) -> "Future[Outcome]":
    future: Future[Outcome] = Future()
    future.set_result(outcome)
    return future
