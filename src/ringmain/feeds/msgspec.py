r"""Lines of JSON into typed objects, a whole block a call.

from ringmain.feeds import msgspec  # pip install 'ringmain[msgspec]'

with ringmain.load("tcp://127.0.0.1:8000", delimiter=b"\n") as loader:
    for events in msgspec.decode_lines(loader, Event):  # a list of the objects of one block
        ...
"""

from typing import Any, Generic, TypeVar, overload

from ringmain._json import split_value
from ringmain._records import line_ends
from ringmain.feeds._extra import missing
from ringmain.feeds._feed import BlockFeed, Piece, Pieces, Source, check_lines
from ringmain.feeds._merged import pieces_of
from ringmain.feeds._refusal import Bad, OnError

try:
    import msgspec
except ImportError as error:
    raise missing(error, "msgspec") from None

Type = TypeVar("Type")


@overload
def decode_lines(
    source: Source, type: type[Type], *, strict: bool = True, on_error: OnError = "raise"
) -> "Lines[Type]": ...
@overload
def decode_lines(
    source: Source, type: Any = Any, *, strict: bool = True, on_error: OnError = "raise"
) -> "Lines[Any]": ...
def decode_lines(source: Source, type: Any = Any, *, strict: bool = True, on_error: OnError = "raise") -> "Lines[Any]":
    r"""Iterate over lists of objects of `type`, one list a block, one object a line; plain or with `async for`.

    The `source` must cut at lines (`delimiter=b"\n"`).

    The parser reads the block in place and makes objects of its own, so that a block is free for the next bytes as soon
    as its list is made. The exception is `msgspec.Raw`: it is a view of the block and keeps all of it (1 MiB by
    default) as long as it lives. Use Raw to look at part of a message and forget it; call `raw.copy()` on what you
    keep, lest the ring runs out of blocks and the peer has to wait (BlocksHeldError).

    The parser holds the interpreter's lock, so that while it works nothing is received: the kernel's buffer goes on
    filling meanwhile.

    A line that is not JSON or not of that type raises ParseError, after the list of what was good before it in its
    block; the next item is of the next connection.

    The arguments, with their defaults:

    type (Any): as in `msgspec.json.Decoder`; a Struct decodes several times faster than dicts, and one with `gc=False`
        spares the collector the work of walking them
    strict (True): as in `msgspec.json.Decoder`; False converts strings to numbers where those are wanted, say
    on_error ("raise"): what becomes of a line that is not JSON or not of that type; "skip" or a function goes on behind
        it (see `ringmain.feeds`)
    """
    check_lines(source)
    return Lines(pieces_of(source), msgspec.json.Decoder(type, strict=strict), on_error)


class Lines(BlockFeed[list[Type]], Generic[Type]):
    """What `decode_lines` returns: an iterator of lists, plain or asynchronous.

    `skipped` lines of `skipped_size` bytes were refused and left out, on all connections.
    """

    def __init__(self, cursor: Pieces, decoder: "msgspec.json.Decoder[Type]", on_error: OnError) -> None:
        super().__init__(cursor, on_error)
        self._decoder = decoder

    def _turn(self, piece: Piece) -> None:
        objects, cause = self._decode(piece.block)
        if cause is not None:
            objects = self._decode_good(piece)
        if objects:
            self._ready.append(objects)

    def _decode_good(self, piece: Piece) -> list[Type]:
        """Decode line by line, and go on behind a bad one where that is wanted."""
        objects: list[Type] = []
        start, block = 0, piece.block
        for end in line_ends(block):
            line = block[start:end]
            good, cause = self._decode(line)
            objects += good
            if cause is not None and not self._refuse(
                piece.stream, Bad(piece.offset + start, line, cause, str(cause) or type(cause).__name__)
            ):
                break
            start = end
        return objects

    def _decode(self, lines: memoryview) -> tuple[list[Type], Exception | None]:
        """Return the objects, or what is wrong: besides the parser's own error whatever the type makes of a value."""
        try:
            if split_value(lines) >= 0:
                raise msgspec.DecodeError("a line holds a part of a value only")
            return self._decoder.decode_lines(lines), None
        except MemoryError:
            raise
        except Exception as error:
            return [], error.with_traceback(None)  # its frames hold blocks, and itself
