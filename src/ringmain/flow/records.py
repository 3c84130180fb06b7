"""The records of what comes, instead of its blocks."""

from collections.abc import Callable
from typing import Protocol, Self

from ringmain._cutter import Cutter
from ringmain._walk import Walk
from ringmain.errors import UsageError
from ringmain.outcome import Verdict


class Blocks(Protocol):
    """What gives blocks, asynchronously and plainly."""

    async def __anext__(self) -> memoryview: ...
    def __next__(self) -> memoryview: ...


class Records(Walk):
    """Iterate over single records, asynchronously or in a plain `with`: views, each of which keeps its block.

    `cutter` tells where they end. Of a record all that came is handed out with `headers`, else what is between its
    header and its delimiter. `verdict` tells how the stream of the last block has ended, None while it goes on, and
    where streams are merged: a last record without its delimiter counts only after a proper end. Ends and raises as the
    iteration over the blocks does.
    """

    def __init__(
        self, blocks: Blocks, cutter: Cutter | None, verdict: Callable[[], str | None], *, headers: bool
    ) -> None:
        if cutter is None:
            why = "without a delimiter or framing there are no records"
            raise UsageError("records()", why, "give delimiter=, or framing= to load")
        super().__init__(cutter, headers)
        self._blocks = blocks
        self._verdict = verdict

    def __repr__(self) -> str:
        return f"<Records of {self._blocks!r}>"

    async def __anext__(self) -> memoryview:
        while (record := self.take()) is None:
            self._enter(await anext(self._blocks))
        return record

    def __aiter__(self) -> Self:
        return self

    def fetch(self) -> None:
        """Go on with the next block, or raise StopIteration."""
        self._enter(next(self._blocks))

    def _enter(self, block: memoryview) -> None:
        self.enter(block, self._verdict() in (None, Verdict.ENDED))
