"""Arrow's own format: record batches over the blocks themselves."""

from collections import deque

import pyarrow as pa
import pyarrow.ipc

from ringmain.errors import RingmainError
from ringmain.feeds._arrow_message import check
from ringmain.feeds._feed import Cursor, Feed, Piece, Pieces, Source, broke
from ringmain.feeds._refusal import Bad, OnError

# One reader of Arrow's takes message after message off the connection and verifies their metadata: it knows where each
# begins, and fails where nothing behind can be found any more. Another one, which is given those messages, makes
# batches of them: it can fail at one and go on with the next.


class IpcBatches(Feed["pa.RecordBatch"]):
    """An iterator of the record batches of IPC streams, one stream or more a connection, plain or asynchronous.

    `schema` is the given one, or None until the first stream began. A batch is a view of the block that holds it, and
    a copy where it spans blocks. A batch has at most `max_record` bytes, with the dictionaries that come before it.
    """

    def __init__(
        self, source: Source, schema: "pa.Schema | None", *, validate: bool = True, on_error: OnError = "raise"
    ) -> None:
        super().__init__(Cursor(source), on_error)
        self.schema = schema
        self._validate = validate
        self._limit = source.ring.max_record
        self._next_file()
        self._reader: pa.RecordBatchReader | None = None

    async def __anext__(self) -> "pa.RecordBatch":
        while self._reader is not None or await self._open():
            if await self._pull():
                batch = self._read()
                if batch is not None:
                    return batch
        raise StopAsyncIteration

    def prime(self) -> None:
        """Wait until there is a schema, if there is to be one."""
        self._cursor.run(self._open())

    def _next_file(self) -> None:
        """Go on with the next connection, when it comes."""
        self._reader = None
        self._file = _BlockFile(self._cursor, self._limit)
        self._next_messages()

    def _next_messages(self) -> None:
        self._messages = _Messages(self._file, self._limit, validate=self._validate)

    async def _open(self) -> bool:
        """Wait for the next IPC stream to begin; False when none is to come."""
        while self._reader is None:
            while not await self._file.more():
                if self._file.over:
                    return False
                self._next_file()
            if await self._pull():
                try:
                    self._reader = self._begin()
                except Exception as error:
                    self._refuse(error, fatal=True)
        return True

    def _begin(self) -> "pa.RecordBatchReader":
        reader = pyarrow.ipc.open_stream(pa.PythonFile(self._messages, mode="r"))
        _check_names(reader.schema)
        self._messages.drop()
        if self.schema is None:
            self.schema = reader.schema
        if reader.schema != self.schema:
            names = ", ".join(f"{field.name}: {field.type}" for field in reader.schema)
            raise pa.ArrowInvalid(f"the stream has another schema ({names})")
        return reader

    async def _pull(self) -> bool:
        """Wait for what a batch, or a schema, is made of; False where the IPC stream ended, or broke."""
        try:
            if await self._messages.pull():
                return True
            self._reader = None  # its connection may bring another stream
            self._next_messages()
        except RingmainError:
            raise
        except Exception as error:
            if self._file.ended and broke(self._file.piece.stream):  # it has an error of its own
                self._next_file()
            else:
                self._refuse(error, fatal=self._messages.fatal)
        return False

    def _read(self) -> "pa.RecordBatch | None":
        """Return the batch that was pulled, or None where it is refused and skipped."""
        assert self._reader is not None
        batch = None
        try:
            batch = self._reader.read_next_batch()
            if self._validate:
                batch.validate(full=True)
        except StopIteration as error:  # Arrow found no batch in a message that is said to be one
            self._refuse(pa.ArrowInvalid("a message is not a batch").with_traceback(error.__traceback__), fatal=True)
        except Exception as error:
            # A batch behind a dictionary that could not be read would be made with the one before.
            self._refuse(error, fatal=batch is None and self._messages.has_dictionaries)
        else:
            self._messages.drop()
            return batch
        return None

    def _refuse(self, cause: Exception, *, fatal: bool) -> None:
        """Return where the batch is skipped, else leave the connection and raise."""
        offset, record = self._messages.offset, self._messages.record()
        bad = Bad(offset, record, cause, str(cause) or type(cause).__name__, fatal=fatal)
        stream = self._file.piece.stream
        error = self._refusals.judge(stream, bad)
        if error is None:
            self._messages.drop()
            return
        self._next_file()
        self._cursor.leave(stream)
        try:
            raise error
        finally:
            del error, cause, bad, record  # or they and this frame hold each other, and blocks


class _Messages:
    """The messages of one IPC stream, pulled off its connection; and the file that another reader finds them in."""

    closed = False

    def __init__(self, file: "_BlockFile", limit: int, *, validate: bool) -> None:
        self._file = file
        self._limit = limit
        self._validate = validate
        self._message: pa.Message | None = None
        self._parts: deque[memoryview] = deque()
        self._size = 0
        self._whole = False
        self.offset = file.offset
        self.has_dictionaries = False
        self.fatal = True

    async def pull(self) -> bool:
        """Wait for a batch or a schema, and the dictionaries before it; False at the end of the stream.

        When it raises, `fatal` tells whether what comes behind is lost too. What was pulled, and not dropped, when this
        is cancelled, stays.
        """
        while not self._whole:
            self.fatal = True
            self.offset, self._message = self._file.offset, None
            message = await self._next()
            if message is None:
                return False
            self._message = message
            self._whole = message.type != "dictionary"
            self.has_dictionaries |= not self._whole
            self.fatal = self.has_dictionaries
            self._parts += _framed(message)
            self._size += self._file.offset - self.offset
            if self._validate:
                self._size += check(message)
            if self._size > self._limit:
                raise pa.ArrowInvalid(f"a batch has more than {self._limit} bytes; raise max_record")
        return True

    async def _next(self) -> "pa.Message | None":
        """Wait for the next message; None at the end of the stream."""
        while True:
            size = 0
            try:
                message = pyarrow.ipc.MessageReader.open_stream(pa.PythonFile(self._file, mode="r")).read_next_message()
            except StopIteration:
                message = None
            except _Missing as missing:
                size = missing.size
            if size == 0:
                self._file.advance()
                return message
            await self._file.fill(size)

    def record(self) -> memoryview:
        """Return a copy of the message that was pulled last, empty if that failed."""
        return memoryview(b"".join(_framed(self._message)) if self._message is not None else b"")

    def drop(self) -> None:
        """Let the next message be pulled, and forget what was not read of the last one."""
        self._parts.clear()
        self._size, self._whole, self.has_dictionaries = 0, False, False

    def read_buffer(self, size: int = -1) -> memoryview:
        """Return a part of a message: Arrow asks for them as they are."""
        if not self._parts:
            return memoryview(b"")
        part = self._parts.popleft()
        size = len(part) if size < 0 else size
        if len(part) > size:
            self._parts.appendleft(part[size:])
        return part[:size]

    def read(self, size: int = -1) -> bytes:
        """Return the same, copied."""
        return bytes(self.read_buffer(size))

    def readable(self) -> bool:
        """Tell Arrow what it asks."""
        return True

    def close(self) -> None:
        """Leave the messages to whoever pulls them."""


def _framed(message: "pa.Message") -> list[memoryview]:
    """Return the parts of a message as they come over a network, over the memory of the message."""
    metadata, body = message.metadata, message.body
    parts = [memoryview(b"\xff\xff\xff\xff"), memoryview(len(metadata).to_bytes(4, "little")), memoryview(metadata)]
    return [*parts, memoryview(body)] if body is not None and body.size else parts


def _check_names(fields: "pa.Schema | pa.DataType") -> None:
    """Raise UnicodeDecodeError unless all names are UTF-8: Arrow looks at them when they are asked for."""
    count = len(fields) if isinstance(fields, pa.Schema) else fields.num_fields
    for field in map(fields.field, range(count)):
        _ = field.name
        _check_names(field.type)


class _Missing(Exception):  # noqa: N818 - it goes through Arrow, to who waits for more and tries again
    """A message has so many bytes at least, which have not come yet."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


class _BlockFile:
    """What Arrow reads of one connection, a message at a time; at most `limit` bytes at once.

    `offset` is where the present message begins. Arrow begins to read it there, again and again until all has come.
    """

    piece: Piece
    closed = False

    def __init__(self, cursor: Pieces, limit: int) -> None:
        self._cursor = cursor
        self._limit = limit
        # Of the present message, and what lies behind: bytes that were joined, what one block has more, and what of
        # both was read.
        self._head = self._rest = memoryview(b"")
        self._at = 0
        self.offset = 0
        self.ended = False
        self.over = False

    async def more(self) -> bool:
        """Wait for a byte; False when the connection has none, and `over` when there is no connection either."""
        if not self._head and not self._rest and not self.ended:
            piece = await self._next_piece()
            if piece is not None:
                self.offset, self._rest = piece.offset, piece.block
        return bool(self._head or self._rest)

    async def fill(self, size: int) -> None:
        """Wait until the present message, of which nothing is read any more, has so many bytes, or all there are."""
        self._at = 0
        joined, rest = bytearray(self._head) + self._rest, memoryview(b"")
        self._head = self._rest = rest  # their blocks are received into meanwhile
        try:
            while len(joined) < size and not self.ended and (piece := await self._next_piece()) is not None:
                missing = size - len(joined)
                joined += piece.block[:missing]
                rest = piece.block[missing:]
                del piece
        finally:
            self._head, self._rest = memoryview(joined).toreadonly(), rest

    def advance(self) -> None:
        """Go on behind what was read."""
        self.offset += self._at
        of_head = min(self._at, len(self._head))
        self._head, self._rest = self._head[of_head:], self._rest[self._at - of_head :]
        self._at = 0

    async def _next_piece(self) -> Piece | None:
        piece = self._cursor.take() or await self._cursor.next()
        self.over = piece is None
        self.ended = piece is None or not piece.block
        if piece is not None:
            self.piece = piece._replace(block=memoryview(b""))
        return piece

    def read_buffer(self, size: int = -1) -> memoryview:
        """Return the next bytes: a view where one block holds them all, else a copy; fewer only at the end."""
        if not 0 <= size <= self._limit:
            raise pa.ArrowInvalid(f"a message says that it has {size} bytes; raise max_record, of {self._limit} bytes")
        begin, end, head = self._at, self._at + size, len(self._head)
        if end > head + len(self._rest) and not self.ended:
            raise _Missing(end)
        self._at = min(end, head + len(self._rest))
        if begin >= head:
            return self._rest[begin - head : end - head]
        if end <= head:
            return self._head[begin:end]
        return memoryview(bytes(self._head[begin:]) + self._rest[: end - head]).toreadonly()

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes, copied."""
        return bytes(self.read_buffer(size))

    def readable(self) -> bool:
        """Tell Arrow what it asks."""
        return True

    def close(self) -> None:
        """Leave the connection to whoever gave it."""
