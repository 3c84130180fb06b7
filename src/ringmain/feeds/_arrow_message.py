"""What an IPC message says of itself, before Arrow is given it: what Arrow would believe and no validation could undo.

Arrow's own reader has verified the metadata (a flatbuffer, of the layout in Arrow's Message.fbs) and received the body.
"""

import struct
from typing import TYPE_CHECKING

import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Iterator

# Numbers of fields in Message.fbs.
_HEADER_KIND, _HEADER = 1, 2
_LENGTH, _BUFFERS, _COMPRESSION = 0, 2, 3
_DATA, _IS_DELTA = 1, 2
_DICTIONARY_BATCH, _RECORD_BATCH = 2, 3


# A row takes no less than a bit of memory in whatever is made of it, though some types have rows without any.
_ROWS_A_BYTE = 8


def check(message: "pa.Message") -> int:
    """Return how many bytes Arrow would need besides those of the message, to decompress it and to hold its rows.

    Raises ArrowInvalid for a part of a dictionary: Arrow appends that to what it has before anybody can validate it.
    """
    try:
        header = Table(memoryview(message.metadata))
        kind, batch = header.octet(_HEADER_KIND), header.table(_HEADER)
        if kind == _DICTIONARY_BATCH and batch is not None:
            if batch.octet(_IS_DELTA):
                raise pa.ArrowInvalid("a dictionary comes in parts; validate=False takes it, from who can be trusted")
            batch = batch.table(_DATA)
        if kind not in (_DICTIONARY_BATCH, _RECORD_BATCH) or batch is None:
            return 0
        return max(batch.number(_LENGTH) // _ROWS_A_BYTE, _decompressed(batch, memoryview(message.body)))
    except struct.error as error:
        raise pa.ArrowInvalid("the metadata of a message is broken") from error


def _decompressed(batch: "Table", body: memoryview) -> int:
    """Return the bytes that compressed buffers say they have: each begins with that, or with -1 if it is plain."""
    if batch.table(_COMPRESSION) is None:
        return 0
    starts = [start for start, length in batch.pairs(_BUFFERS) if length]
    return sum(max(0, *struct.unpack_from("<q", body, start)) for start in starts)


class Table:
    """A table of a flatbuffer: as many fields as its writer knew of, each by its number."""

    def __init__(self, data: memoryview, at: int | None = None) -> None:
        self._data = data
        self._at = self._read("<I", 0) if at is None else at
        self._fields = self._at - self._read("<i", self._at)
        self._size = self._read("<H", self._fields)

    def octet(self, field: int) -> int:
        """Return an unsigned byte or a truth value."""
        at = self._position(field)
        return self._read("<B", at) if at else 0

    def number(self, field: int) -> int:
        """Return a number of eight bytes."""
        at = self._position(field)
        return self._read("<q", at) if at else 0

    def table(self, field: int) -> "Table | None":
        """Return a table inside of this one."""
        at = self._position(field)
        return Table(self._data, at + self._read("<I", at)) if at else None

    def pairs(self, field: int) -> "Iterator[tuple[int, int]]":
        """Yield the structs of two numbers that a vector holds."""
        at = self._position(field)
        if at:
            at += self._read("<I", at)
            for index in range(self._read("<I", at)):
                yield struct.unpack_from("<qq", self._data, at + 4 + 16 * index)

    def _position(self, field: int) -> int:
        entry = 4 + 2 * field
        offset = self._read("<H", self._fields + entry) if entry < self._size else 0
        return self._at + offset if offset else 0

    def _read(self, kind: str, at: int) -> int:
        number: int = struct.unpack_from(kind, self._data, at)[0]
        return number
