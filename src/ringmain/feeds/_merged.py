"""The same for a loader of many connections: block after block, each whole records of one of them."""

import weakref
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, cast

from ringmain.feeds._feed import Cursor, Piece, Pieces, Result, Source
from ringmain.feeds._refusal import Origin
from ringmain.loader import Loader
from ringmain.stream import Stream

if TYPE_CHECKING:
    from ringmain.engines.nats_loader import LogLoader


def pieces_of(source: Source) -> Pieces:
    """Return what walks over lines, of one connection at a time or of many."""
    if isinstance(source, Stream) or (isinstance(source, Loader) and not source.merges):
        return Cursor(source, lines=True)
    return Merged(source)


class Merged:
    """Walk over the blocks of all who are connected. The origin of a block is its link, which no other one has.

    The same for a log, whose messages are such blocks.
    """

    def __init__(self, source: "Loader | LogLoader") -> None:
        self.source = source
        self._left: weakref.WeakSet[Origin] = weakref.WeakSet()

    def take(self) -> Piece | None:
        """Return the next block if there is one already."""
        many = self.source.many
        while (part := many.take_of_one()) is not None:
            if (piece := self._piece(*part)) is not None:
                return piece
        return None

    async def next(self) -> Piece | None:
        """Return the next block, None when none is to come. What became of a connection was warned of."""
        many, part = self.source.many, cast("tuple[Origin, int, memoryview] | None", None)
        while (part := await many.next_of(many.take_of_one)) is not None:
            if (piece := self._piece(*part)) is not None:
                return piece
        return None

    def _piece(self, origin: Origin, offset: int, block: memoryview) -> Piece | None:
        if origin in self._left:
            block.release()
            return None
        return Piece(origin, offset, block, is_first=False)

    def leave(self, origin: Origin, /) -> None:
        """Reset a connection, and take no more of it; the others go on."""
        self._left.add(origin)
        self.source.many.leave(origin)

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run the private loop of a plain `with` until the work is done."""
        return self.source.run(work)
