"""Arrow's own format: record batches over the blocks themselves."""

from collections import deque
from typing import Self

import pyarrow as pa
import pyarrow.ipc

from ringmain.errors import RingmainError
from ringmain.feeds._arrow_message import check
from ringmain.feeds._feed import Cursor, Piece, Source, broke
from ringmain.feeds._refusal import Bad, OnError, Refusals

# One reader of Arrow's takes message after message off the connection and verifies their metadata: it knows where each
# begins, and fails where nothing behind can be found any more. Another one, which is given those messages, makes
# batches of them: it can fail at one and go on with the next.


class IpcBatches:
    """A plain iterator of the record batches of IPC streams, one stream or more a connection.

    `schema` is the given one, or None until the first stream began. A batch is a view of the block that holds it, and
    a copy where it spans blocks. A batch has at most `max_record` bytes, with the dictionaries that come before it.
    """

    def __init__(
        self, source: Source, schema: "pa.Schema | None", *, validate: bool = True, on_error: OnError = "raise"
    ) -> None:
        self.schema = schema
        self._validate = validate
        self._limit = source.ring.max_record
        self._refusals = Refusals(on_error)
        self._cursor = Cursor(source)
        self._file = _BlockFile(self._cursor, self._limit)
        self._messages = _Messages(self._file, self._limit, validate=validate)
        self._reader: pa.RecordBatchReader | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> "pa.RecordBatch":
        while self._reader is not None or self._open():
            if self._pull():
                batch = self._read()
                if batch is not None:
                    return batch
        raise StopIteration

    def prime(self) -> None:
        """Wait until there is a schema, if there is to be one."""
        self._open()

    def _open(self) -> bool:
        """Wait for the next IPC stream to begin; False when none is to come."""
        while self._reader is None:
            while not self._file.more():
                if self._file.over:
                    return False
                self._file = _BlockFile(self._cursor, self._limit)
            self._messages = _Messages(self._file, self._limit, validate=self._validate)
            if self._pull():
                try:
                    self._reader = self._begin()
                except Exception as error:
                    self._refuse(error, fatal=True)
        return True

    def _begin(self) -> "pa.RecordBatchReader":
        reader = pyarrow.ipc.open_stream(pa.PythonFile(self._messages, mode="r"))
        _check_names(reader.schema)
        if self.schema is None:
            self.schema = reader.schema
        if reader.schema != self.schema:
            names = ", ".join(f"{field.name}: {field.type}" for field in reader.schema)
            raise pa.ArrowInvalid(f"the stream has another schema ({names})")
        return reader

    def _pull(self) -> bool:
        """Wait for what a batch, or a schema, is made of; False where the IPC stream ended, or broke."""
        try:
            if self._messages.pull():
                return True
            self._reader = None  # its connection may bring another stream
        except RingmainError:
            raise
        except Exception as error:
            if self._file.ended and broke(self._file.piece.stream):  # it has an error of its own
                self._reader, self._file = None, _BlockFile(self._cursor, self._limit)
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
        self._reader, self._file = None, _BlockFile(self._cursor, self._limit)
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
        self._reader = pyarrow.ipc.MessageReader.open_stream(pa.PythonFile(file, mode="r"))
        self._message: pa.Message | None = None
        self._parts: deque[memoryview] = deque()
        self.offset = file.offset
        self.has_dictionaries = False
        self.fatal = True

    def pull(self) -> bool:
        """Wait for a batch or a schema, and the dictionaries before it; False at the end of the stream.

        When it raises, `fatal` tells whether what comes behind is lost too.
        """
        self.drop()
        self.has_dictionaries = False
        size, kind = 0, "dictionary"
        while kind == "dictionary":
            self.fatal = True
            self.offset, self._message = self._file.offset, None
            try:
                message = self._reader.read_next_message()
            except StopIteration:
                return False
            kind = message.type
            self._message = message
            self.has_dictionaries |= kind == "dictionary"
            self.fatal = self.has_dictionaries
            self._parts += _framed(message)
            size += self._file.offset - self.offset
            if self._validate:
                size += check(message)
            if size > self._limit:
                raise pa.ArrowInvalid(f"a batch has more than {self._limit} bytes; raise max_record")
        return True

    def record(self) -> memoryview:
        """Return a copy of the message that was pulled last, empty if that failed."""
        return memoryview(b"".join(_framed(self._message)) if self._message is not None else b"")

    def drop(self) -> None:
        """Forget what was not read."""
        self._parts.clear()

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


class _BlockFile:
    """What Arrow reads of one connection: the blocks, and what it took of them; at most `limit` bytes at a time."""

    piece: Piece
    closed = False

    def __init__(self, cursor: Cursor, limit: int) -> None:
        self._cursor = cursor
        self._limit = limit
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
        if not 0 <= size <= self._limit:
            raise pa.ArrowInvalid(f"a message says that it has {size} bytes; raise max_record, of {self._limit} bytes")
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
