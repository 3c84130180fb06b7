"""What all feeds share: block after block of one connection or many, and where in its stream each begins."""

import contextlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, Self, TypeAlias, TypeVar

from ringmain.errors import UsageError
from ringmain.feeds._refusal import Bad, OnError, Origin, Refusals
from ringmain.loader import Loader
from ringmain.stream import Stream

if TYPE_CHECKING:
    from ringmain.engines.nats_loader import LogLoader

Source: TypeAlias = "Loader | LogLoader | Stream"
Item = TypeVar("Item")
Result = TypeVar("Result")


class Piece(NamedTuple):
    """A block, and where it was: `offset` bytes of the stream lie before it. An empty one ends its connection.

    The `left_out` bytes right before it were skipped by the loader. What came before one that `is_first` was of another
    connection.
    """

    stream: Origin
    offset: int
    block: memoryview
    is_first: bool
    left_out: int = 0


class Pieces(Protocol):
    """What walks over the blocks of a source."""

    @property
    def source(self) -> Source:
        """Whose blocks they are."""

    def take(self) -> Piece | None:
        """Return the next block if there is one already."""

    async def next(self) -> Piece | None:
        """Return the next block, None when none is to come."""

    def leave(self, origin: Origin, /) -> None:
        """Take no more from a connection."""

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run the private loop of a plain `with` until the work is done."""


class Cursor:
    """Walk over the blocks of a loader's connections, one after another, or of a single stream.

    With `lines`, a line that has no end because its connection broke is left out: only a connection that ended properly
    may end without a newline.
    """

    def __init__(self, source: Source, *, lines: bool = False) -> None:
        check_single(source)
        assert isinstance(source, Loader | Stream)
        self.source = source
        self._lines = lines
        self._stream = source if isinstance(source, Stream) else None
        self._ended: Stream | None = None
        self._fresh = True
        self._end = source.offset if isinstance(source, Stream) else 0  # of the last block

    def take(self) -> Piece | None:
        """Return the next block of the present connection if there is one already."""
        stream = self._stream
        if stream is None:
            return None
        block = stream.inflow.take()
        return self._piece(stream, stream.offset - len(block), block) if block is not None else None

    async def next(self) -> Piece | None:
        """Return the next block, an empty one at the end of each connection, None when none is to come.

        A connection that did not end properly raises its error after the empty block, or where others follow is warned
        of, as in a `for` over the loader itself.
        """
        if self._ended is not None:
            if isinstance(self.source, Stream):
                with contextlib.suppress(StopAsyncIteration):
                    await anext(self._ended)  # which closes it, and raises once what became of it
            else:
                await self._ended.inflow.hear_out()
                self.source.end(self._ended.inflow)
            self._ended = None
        if self._stream is None:
            self._stream = await self._next_stream()
            if self._stream is not None:
                self._fresh, self._end = True, self._stream.offset
        stream = self._stream
        if stream is None:
            return None
        while True:
            block = await stream.inflow.next_block()
            if block is None:
                self._ended, self._stream = stream, None
                left_out = 0 if broke(stream) else stream.counters.bytes_in - self._end
                return Piece(stream, self._end + left_out, memoryview(b""), self._fresh, left_out)
            piece = self._piece(stream, stream.offset - len(block), block)
            if piece is not None:
                return piece

    def _piece(self, stream: Stream, offset: int, block: memoryview) -> Piece | None:
        left_out, self._end = offset - self._end, offset + len(block)
        if self._lines and block[-1] != ord("\n") and broke(stream):
            block = block[: bytes(block).rfind(b"\n") + 1]
        if not block:
            return None
        is_first, self._fresh = self._fresh, False
        return Piece(stream, offset, block, is_first, left_out)

    async def _next_stream(self) -> Stream | None:
        return None if isinstance(self.source, Stream) else await self.source.next_connection()

    def leave(self, _: Origin, /) -> None:
        """Take no more from the present connection, which is the only one."""
        self._stream = self._ended = None

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run the private loop of a plain `with` until the work is done."""
        return self.source.run(work)


class Feed(ABC, Generic[Item]):
    """An iterator over what blocks are turned into: asynchronous, or plain. One consumer.

    Plain is for a plain `with`, and for a thread beside an `async with`, whose loop does the work then. `skipped`
    records of `skipped_size` bytes were left out, on all connections, because the parser refused them.
    """

    def __init__(self, cursor: Pieces, on_error: OnError = "raise") -> None:
        self._cursor = cursor
        self._refusals = Refusals(on_error)

    def __repr__(self) -> str:
        skipped = f", {self.skipped} record{'s' if self.skipped > 1 else ''} skipped" if self.skipped else ""
        return f"<{type(self).__name__} of {self._cursor.source!r}{skipped}>"

    @property
    def skipped(self) -> int:
        """How many records were left out."""
        return self._refusals.count

    @property
    def skipped_size(self) -> int:
        """How many bytes they had."""
        return self._refusals.size

    @abstractmethod
    async def __anext__(self) -> Item:
        """Return the next item. Cancelling it loses nothing."""

    def __aiter__(self) -> Self:
        return self

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Item:
        try:
            return self._cursor.run(self.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None


class BlockFeed(Feed[Item]):
    """A feed that turns one block after another."""

    def __init__(self, cursor: Pieces, on_error: OnError = "raise") -> None:
        super().__init__(cursor, on_error)
        self._ready: deque[Item] = deque()
        self._failed: Exception | None = None

    @abstractmethod
    def _turn(self, piece: Piece) -> None:
        """Append what a block gives to `_ready`; call `_refuse` where it is not what it should be."""

    async def __anext__(self) -> Item:
        while not self._ready:
            self._raise_failed()
            piece = self._cursor.take() or await self._cursor.next()
            if piece is None:
                raise StopAsyncIteration
            self._try(piece)
            del piece  # an error that is raised next has this frame
        return self._ready.popleft()

    def __next__(self) -> Item:
        if self._cursor.source.in_loop:
            return super().__next__()
        while not self._ready:
            self._raise_failed()
            piece = self._cursor.take() or self._cursor.run(self._cursor.next())
            if piece is None:
                raise StopIteration
            self._try(piece)
            del piece  # an error that is raised next has this frame
        return self._ready.popleft()

    def _try(self, piece: Piece) -> None:
        try:
            self._turn(piece)
        except BaseException:  # as a lack of memory, or an interrupt: nobody must take what follows for all there was
            self._cursor.leave(piece.stream)
            raise

    def _refuse(self, stream: Origin, bad: Bad) -> bool:
        """Return True if the record is skipped; else let the connection go, and raise once what came before is out."""
        self._failed = self._refusals.judge(stream, bad)
        if self._failed is not None:
            self._cursor.leave(stream)
        return self._failed is None

    def _raise_failed(self) -> None:
        error, self._failed = self._failed, None
        try:
            if error is not None:
                raise error
        finally:
            del error  # or it and this frame hold each other, and the connection, until the collector comes


def broke(origin: Origin) -> bool:
    """Tell whether a connection ended in any way but a proper end: its last record may lack a part.

    Of one of many, whose records are merged, only whole ones come.
    """
    return isinstance(origin, Stream) and origin.verdict not in (None, "ended")


def check_single(source: Source) -> None:
    """Raise UsageError if the source mixes what many connections bring."""
    if not isinstance(source, Stream) and source.merges:
        why = "this format is read from the beginning of a connection to its end"
        raise UsageError("a loader of many connections", why, "feed each stream of loader.connections() by itself")


def check_whole(source: Source) -> None:
    """Raise UsageError if the source leaves out records of its own, of which the parser knows nothing."""
    check_single(source)
    if source.ring.skips:
        why = "what it skips may end within a record of this format"
        raise UsageError('a loader with long_records="skip"', why, "leave out long_records=, and delimiter= with it")


def check_lines(source: Source) -> None:
    """Raise UsageError unless the source cuts its blocks at the end of lines."""
    delimiter = source.ring.delimiter if isinstance(source, Stream) else source.flow.delimiter
    if not delimiter.endswith(b"\n"):
        raise UsageError("a loader without lines", "its blocks may end within a line", r'give it delimiter=b"\n"')
