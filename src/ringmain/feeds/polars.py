r"""Polars data frames, a block each.

from ringmain.feeds import polars  # pip install 'ringmain[polars]'

with ringmain.load("tcp://127.0.0.1:8000", delimiter=b"\n") as loader:
    for frame in polars.frames(loader):  # a polars.DataFrame a block
        print(frame.group_by("event_type").len())

A connection that ends and fits in memory as a whole is in one frame somewhat sooner by Polars's own reader, which then
sees all of it at once, but neither in parts nor with the offset of what is wrong:

with ringmain.open("tcp://127.0.0.1:8000") as file:
    frame = polars.read_ndjson(file.read())
"""

from typing import Any, Self

from ringmain.feeds import arrow
from ringmain.feeds._extra import missing
from ringmain.feeds._feed import Source

try:
    import polars
except ImportError as error:
    raise missing(error, "polars") from None


def frames(source: Source, format: Any = "ndjson", schema: Any = None, **options: Any) -> "Frames":
    """Iterate over data frames, one a record batch of `arrow.record_batches`, whose arguments and errors these are.

    Plain or with `async for`; ipc plain only. Arrow parses and Polars takes the columns over without a copy, but for
    types that it keeps in another way (strings, for which it makes views, and dictionaries). To have everything in one
    frame: `polars.concat(frames(...))`.
    """
    return Frames(arrow.parsed(source, format, schema, **options))


class Frames:
    """What `frames` returns. After a ParseError it goes on with the next connection."""

    def __init__(self, batches: Any) -> None:
        self._batches = batches

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> "polars.DataFrame":
        return polars.from_arrow(next(self._batches))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> "polars.DataFrame":
        return polars.from_arrow(await anext(self._batches))
