r"""Lines of JSON into typed objects, a whole block a call.

from ringmain.feeds import msgspec  # pip install 'ringmain[msgspec]'

with ringmain.load("tcp://127.0.0.1:8000", delimiter=b"\n") as loader:
    for events in msgspec.decode_lines(loader, Event):  # a list of the objects of one block
        ...
"""

import contextlib
from typing import Any, Generic, TypeVar, overload

from ringmain.feeds._extra import missing
from ringmain.feeds._feed import Failed, Feed, Piece, check_lines, line_ends
from ringmain.loader import Loader
from ringmain.stream import Stream

try:
    import msgspec
except ImportError as error:
    raise missing(error, "msgspec") from None

Type = TypeVar("Type")


@overload
def decode_lines(source: Loader | Stream, type: type[Type], *, strict: bool = True) -> "Lines[Type]": ...
@overload
def decode_lines(source: Loader | Stream, type: Any = Any, *, strict: bool = True) -> "Lines[Any]": ...
def decode_lines(source: Loader | Stream, type: Any = Any, *, strict: bool = True) -> "Lines[Any]":
    r"""Iterate over lists of objects of `type`, one list a block, one object a line; plain or with `async for`.

    The source must cut at lines (`delimiter=b"\n"`). `type` and `strict` are those of `msgspec.json.Decoder`; a Struct
    decodes several times faster than dicts, and one with `gc=False` spares the collector the work of walking them.

    The parser reads the block in place and makes objects of its own, so that a block is free for the next bytes as soon
    as its list is made. The exception is `msgspec.Raw`: it is a view of the block and keeps all of it (1 MiB by
    default) as long as it lives. Use Raw to look at part of a message and forget it; call `raw.copy()` on what you
    keep, lest the ring runs out of blocks and the peer has to wait (BlocksHeldError).

    The parser holds the interpreter's lock, so that while it works nothing is received: the kernel's buffer goes on
    filling meanwhile. Raises ParseError at a line that is not JSON or not of that type, after the list of what was
    good before it in its block; the next item is of the next connection.
    """
    check_lines(source)
    return Lines(source, msgspec.json.Decoder(type, strict=strict))


class Lines(Feed[list[Type]], Generic[Type]):
    """What `decode_lines` returns: an iterator of lists, plain or asynchronous."""

    def __init__(self, source: Loader | Stream, decoder: "msgspec.json.Decoder[Type]") -> None:
        super().__init__(source)
        self._decode = decoder.decode_lines

    def _turn(self, piece: Piece) -> None:
        objects: list[Type] | None = None
        with contextlib.suppress(msgspec.DecodeError):
            objects = self._decode(piece.block)
        if objects is None:
            objects = self._decode_good(piece)
        if objects:
            self._ready.append(objects)

    def _decode_good(self, piece: Piece) -> list[Type]:
        """Decode line by line up to the bad one."""
        objects: list[Type] = []
        start, block = 0, piece.block
        for end in line_ends(block):
            try:
                objects += self._decode(block[start:end])
            except msgspec.DecodeError as error:
                whole = block[end - 1] == ord("\n")
                self._fail(piece.stream, Failed(piece.offset + start, whole, error, str(error)))
                break
            start = end
        return objects
