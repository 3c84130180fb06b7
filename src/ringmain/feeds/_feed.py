"""What all feeds share: block after block of one connection or many, and where in its stream each begins."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Coroutine, Iterator
from io import BytesIO
from itertools import accumulate
from typing import Any, Generic, NamedTuple, Self, TypeVar

from ringmain.errors import ParseError, UsageError
from ringmain.loader import Loader
from ringmain.stream import Stream

Item = TypeVar("Item")
Result = TypeVar("Result")


class Piece(NamedTuple):
    """A block, and where it was: `offset` bytes of the stream lie before it. An empty one ends its connection."""

    stream: Stream
    offset: int
    block: memoryview


class Cursor:
    """Walk over the blocks of a loader's connections, one after another, or of a single stream."""

    def __init__(self, source: Loader | Stream) -> None:
        self.source = source
        self._stream = source if isinstance(source, Stream) else None
        self._ended: Stream | None = None

    def take(self) -> Piece | None:
        """Return the next block of the present connection if there is one already."""
        stream = self._stream
        if stream is None:
            return None
        offset = stream.offset
        block = stream.take()
        return Piece(stream, offset, block) if block is not None else None

    async def next(self) -> Piece | None:
        """Return the next block, an empty one at the end of each connection, None when none is to come.

        A connection that did not end properly raises its error after the empty block, or where others follow is warned
        of, as in a `for` over the loader itself.
        """
        if self._ended is not None:
            ended, self._ended = self._ended, None
            ended.end() if isinstance(self.source, Stream) else self.source.end(ended)
        if self._stream is None:
            self._stream = await self._next_stream()
        stream = self._stream
        if stream is None:
            return None
        offset = stream.offset
        block = await stream.next_block()
        if block is None:
            self._ended, self._stream = stream, None
            block = memoryview(b"")
        return Piece(stream, offset, block)

    async def _next_stream(self) -> Stream | None:
        return None if isinstance(self.source, Stream) else await self.source.next_connection()

    def leave(self) -> None:
        """Take no more from the present connection."""
        self._stream = self._ended = None

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run the private loop of a plain `with` until the work is done."""
        return self.source.run(work)


class Feed(ABC, Generic[Item]):
    """An iterator over what blocks are turned into: asynchronous, and plain in a plain `with`. One consumer."""

    def __init__(self, source: Loader | Stream) -> None:
        self._cursor = Cursor(source)
        self._ready: deque[Item] = deque()
        self._failed: ParseError | None = None

    @abstractmethod
    def _turn(self, piece: Piece) -> None:
        """Append what a block gives to `_ready`; call `_fail` where it is not what it should be."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Item:
        while not self._ready:
            self._raise_failed()
            piece = self._cursor.take() or await self._cursor.next()
            if piece is None:
                raise StopAsyncIteration
            self._turn(piece)
        return self._ready.popleft()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Item:
        while not self._ready:
            self._raise_failed()
            piece = self._cursor.take() or self._cursor.run(self._cursor.next())
            if piece is None:
                raise StopIteration
            self._turn(piece)
        return self._ready.popleft()

    def _fail(self, stream: Stream, failed: "Failed") -> None:
        """Let the connection go, and raise once what came before is handed out.

        A record without its delimiter, on a connection that broke, is at fault only because the rest of it is missing:
        then the connection's own error is what the user gets.
        """
        if not failed.whole and stream.failure() is not None:
            return
        self._cursor.leave()
        error = ParseError(stream.peer, failed.offset, failed.why, failed.remedy)
        error.__cause__ = (
            failed.cause.with_traceback(None) if failed.cause is not None else None
        )  # its frames hold blocks
        self._failed = error

    def _raise_failed(self) -> None:
        error, self._failed = self._failed, None
        try:
            if error is not None:
                raise error
        finally:
            del error  # or it and this frame hold each other, and the connection, until the collector comes


class Failed(NamedTuple):
    """What is wrong with the record at an offset of a stream; `whole` unless the stream ended within it."""

    offset: int
    whole: bool
    cause: Exception | None
    why: str
    remedy: str = ""


def line_ends(block: memoryview) -> Iterator[int]:
    """Yield the offset behind each line of a block, the unterminated one's too. For errors: it copies the block."""
    return accumulate(len(line) for line in BytesIO(block))


def check_lines(source: Loader | Stream) -> None:
    """Raise UsageError unless the source cuts its blocks at the end of lines."""
    if not source.ring.delimiter.endswith(b"\n"):
        raise UsageError("a loader without lines", "its blocks end anywhere", r'give it delimiter=b"\n"')
