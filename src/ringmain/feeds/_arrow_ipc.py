"""Arrow's own format: record batches over the blocks themselves."""

import sys
from collections.abc import Callable
from typing import Self, TypeVar

import pyarrow as pa
import pyarrow.ipc

from ringmain.errors import ParseError, RingmainError
from ringmain.feeds._feed import Cursor, Piece
from ringmain.loader import Loader
from ringmain.stream import Stream

Result = TypeVar("Result")


class IpcBatches:
    """A plain iterator of the record batches of IPC streams, one stream or more a connection.

    `schema` is the given one, or None until the first stream began. A batch is a view of the block that holds it, and
    a copy where it spans blocks.
    """

    def __init__(self, source: Loader | Stream, schema: "pa.Schema | None") -> None:
        self.schema = schema
        self._cursor = Cursor(source)
        self._file = _BlockFile(self._cursor)
        self._reader: pa.RecordBatchReader | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> "pa.RecordBatch":
        while self._reader is not None or self.open():
            reader = self._reader
            try:
                batch = self._guarded(reader.read_next_batch) if reader is not None else None
            except StopIteration:  # of this IPC stream; its connection may bring another
                self._reader = batch = None
            if batch is not None:
                return batch
        raise StopIteration

    def open(self) -> bool:
        """Wait for the next IPC stream to begin; False when none is to come."""
        while not self._file.more():
            if self._file.over:
                return False
            self._file = _BlockFile(self._cursor)
        self._reader = self._guarded(self._begin)
        return True

    def _begin(self) -> "pa.RecordBatchReader":
        reader = pyarrow.ipc.open_stream(pa.PythonFile(self._file, mode="r"))
        if self.schema is None:
            self.schema = reader.schema
        if reader.schema != self.schema:
            names = ", ".join(f"{field.name}: {field.type}" for field in reader.schema)
            raise pa.ArrowInvalid(f"the stream has another schema ({names})")
        return reader

    def _guarded(self, work: Callable[[], Result]) -> Result | None:
        """Call Arrow. Bad input is a ParseError, and None where the connection broke: it has an error of its own."""
        file, offset = self._file, self._file.offset
        try:
            return work()
        except RingmainError:
            raise
        except (pa.ArrowException, OSError) as error:
            cause = error.with_traceback(None)
        self._reader, self._file = None, _BlockFile(self._cursor)
        stream = file.piece.stream
        if file.ended and stream.failure() is not None:
            return None
        self._cursor.leave()
        raise ParseError(stream.peer, offset, str(cause)) from cause


class _BlockFile:
    """What Arrow reads of one connection: the blocks, and what it took of them."""

    piece: Piece
    closed = False

    def __init__(self, cursor: Cursor) -> None:
        self._cursor = cursor
        self._rest = memoryview(b"")
        self.offset = 0
        self.ended = False
        self.over = False

    def more(self) -> bool:
        """Wait for a byte; False when the connection has none, and `over` when there is no connection either."""
        if not self._rest and not self.ended:
            piece = self._cursor.take() or self._cursor.run(self._cursor.next())
            self.over = piece is None
            self.ended = piece is None or not piece.block
            if piece is not None:
                self.piece, self._rest, self.offset = piece, piece.block, piece.offset
        return bool(self._rest)

    def read_buffer(self, size: int = -1) -> memoryview:
        """Return the next bytes: a view where one block holds them all, else a copy; fewer only at the end."""
        size = sys.maxsize if size < 0 else size
        first = self._take(size)
        if len(first) in (0, size):
            return first
        joined = bytearray(first)
        while len(joined) < size and (part := self._take(size - len(joined))):
            joined += part
        return memoryview(joined).toreadonly()

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes, copied."""
        return bytes(self.read_buffer(size))

    def readable(self) -> bool:
        """Tell Arrow what it asks."""
        return True

    def close(self) -> None:
        """Leave the connection to whoever gave it."""

    def _take(self, size: int) -> memoryview:
        if not self.more():
            return memoryview(b"")
        taken, self._rest = self._rest[:size], self._rest[size:]
        self.offset += len(taken)
        return taken
