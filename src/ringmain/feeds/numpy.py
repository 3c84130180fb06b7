"""Records of a fixed size as arrays over the blocks, and where lines begin.

from ringmain.feeds import numpy  # pip install 'ringmain[numpy]'

with ringmain.load("tcp://127.0.0.1:8000") as loader:
    for ticks in numpy.records(loader, [("time", "<u8"), ("price", "<f8")]):
        total += ticks["price"].sum()
"""

from typing import Any

from ringmain._frames import Frames
from ringmain.errors import UsageError
from ringmain.feeds._extra import missing
from ringmain.feeds._feed import BlockFeed, Cursor, Piece, Pieces, broke, check_whole
from ringmain.feeds._merged import Merged
from ringmain.feeds._refusal import Bad
from ringmain.loader import Loader
from ringmain.stream import Stream

try:
    import numpy as np
except ImportError as error:
    raise missing(error, "numpy") from None

NEWLINE = ord("\n")


def records(source: Loader | Stream, dtype: Any) -> "Records":
    """Iterate over read-only arrays of `dtype`, the records of the `source` in order; plain or with `async for`.

    An array is a view of its block, of shape (count,) with count >= 1, and keeps the block as long as it or a view of
    it lives: copy what you keep. Nothing is copied but a record that two or more blocks share, which comes as an array
    of its own, of one record. Where a block begins within a record its array may be unaligned (`flags.aligned`), which
    numpy allows for; `block_size` a multiple of the record's size does not prevent that, since blocks are cut where the
    network cut them. Byte order is the dtype's.

    Of a loader of many connections each array has records of one of them. Its `framing` has to be a length, as
    "length:2be", and a record is a whole frame: the dtype begins with the length, as ("length", ">u2"). A connection
    that sends a frame of another size is reset.

    Raises UsageError for a dtype without a size or with objects, for a source with `long_records="skip"`, unless that
    is of many, and for one of many without such a framing; ParseError when a connection ends within a record, or sends
    a frame of another size.
    """
    kind = np.dtype(dtype)
    if kind.itemsize == 0 or kind.hasobject:
        raise UsageError(
            f"dtype {kind}", "its records have no fixed size", "choose one made of numbers and fixed bytes"
        )
    if isinstance(source, Loader) and source.merges:
        return FixedFrames(source, kind)
    check_whole(source)
    return Records(Cursor(source), kind)


class Records(BlockFeed["np.ndarray[Any, Any]"]):
    """What `records` returns: an iterator of arrays, plain or asynchronous."""

    def __init__(self, pieces: Pieces, dtype: "np.dtype[Any]") -> None:
        super().__init__(pieces)
        self._dtype = dtype
        self._carried = bytearray()

    def _turn(self, piece: Piece) -> None:
        carried, size, start = bytearray() if piece.is_first else self._carried, self._dtype.itemsize, 0
        if not piece.block:
            self._end(piece)
            return
        if carried:
            start = min(size - len(carried), len(piece.block))
            carried += piece.block[:start]
            if len(carried) < size:
                return
            self._ready.append(np.frombuffer(bytes(carried), self._dtype))
        count = (len(piece.block) - start) // size
        if count:
            self._ready.append(np.frombuffer(piece.block, self._dtype, count, start))
        self._carried = bytearray(piece.block[start + count * size :])

    def _end(self, piece: Piece) -> None:
        carried, self._carried = self._carried, bytearray()
        if carried and not broke(piece.stream):  # or else the connection has an error of its own
            why = f"the stream ended {len(carried)} bytes into a record of {self._dtype.itemsize}"
            self._refuse(piece.stream, Bad(piece.offset - len(carried), memoryview(carried), None, why))


class FixedFrames(Records):
    """The same for frames of many connections, all of one size: a block of whole ones is an array of them."""

    def __init__(self, source: Loader, dtype: "np.dtype[Any]") -> None:
        super().__init__(Merged(source), dtype)
        cutter = source.flow.cutter
        if not isinstance(cutter, Frames) or cutter.width not in (1, 2, 4, 8):
            why = "its records do not begin with their length"
            raise UsageError("a loader of many connections", why, 'give it framing="length:4be" or the like')
        self._width, self._order = cutter.width, "<" if cutter.little else ">"
        if dtype.itemsize < self._width:
            raise UsageError(f"dtype {dtype}", "it is shorter than the length alone", "begin it with the length")

    def _turn(self, piece: Piece) -> None:
        size, width = self._dtype.itemsize, self._width
        count, rest = divmod(len(piece.block), size)
        head = np.dtype({"names": ["length"], "formats": [f"{self._order}u{width}"], "itemsize": size})
        lengths = np.frombuffer(piece.block, head, count)["length"] if count else np.empty(0, np.uint8)
        wrong = np.flatnonzero(lengths != size - width)
        good = int(wrong[0]) if len(wrong) else count
        if good:
            self._ready.append(np.frombuffer(piece.block, self._dtype, good))
        if good < count or rest:
            bad = piece.block[good * size :]
            length = int.from_bytes(bad[:width], "little" if self._order == "<" else "big")
            why = f"a frame has {width + length} bytes, and a record of the dtype {size}"
            self._refuse(piece.stream, Bad(piece.offset + good * size, bad[: width + length], None, why))


def line_offsets(block: memoryview) -> "np.ndarray[Any, np.dtype[np.int64]]":
    r"""Return where the lines of a block begin, and where the last one ends: int64, shape (lines + 1,).

    Line i is `block[offsets[i]:offsets[i + 1]]`, its "\n" included; the last one may lack it. The block is read in
    place; the array is a new one and keeps nothing.
    """
    ends = np.flatnonzero(np.frombuffer(block, np.uint8) == NEWLINE)
    cut = bool(block) and block[-1] != NEWLINE
    offsets: np.ndarray[Any, np.dtype[np.int64]] = np.empty(len(ends) + 1 + cut, np.int64)
    offsets[0] = 0
    np.add(ends, 1, out=offsets[1 : len(ends) + 1])
    if cut:
        offsets[-1] = len(block)
    return offsets
