r"""Polars data frames, a block each.

from ringmain.feeds import polars  # pip install 'ringmain[polars]'

with ringmain.load("tcp://127.0.0.1:8000", delimiter=b"\n") as loader:
    for frame in polars.frames(loader):  # a polars.DataFrame a block
        print(frame.group_by("event_type").len())

The same in `async with`, with `async for`.

A connection that ends and fits in memory as a whole is in one frame somewhat sooner by Polars's own reader, which then
sees all of it at once, but neither in parts nor with the offset of what is wrong:

with ringmain.open("tcp://127.0.0.1:8000") as file:
    frame = polars.read_ndjson(file.read())
"""

from typing import Any

from ringmain.feeds._extra import missing
from ringmain.feeds._feed import Source
from ringmain.feeds._frames import Frames
from ringmain.keywords import documented

try:
    import polars

    from ringmain.feeds import arrow
except ImportError as error:
    raise missing(error, "polars") from None


@documented(arrow.batches)
def frames(source: Source, format: Any = "ndjson", schema: Any = None, **options: Any) -> "Frames[polars.DataFrame]":
    """Iterate over data frames of what the `source` brings, one a record batch of `arrow.batches`; raise as that does.

    Plain or with `async for`. Arrow parses and Polars takes the columns over without a copy, but for types that it
    keeps in another way (strings, for which it makes views, and dictionaries). To have everything in one frame:
    `polars.concat(frames(...))`.

    The arguments, with their defaults:

    """
    return Frames(arrow.batches(source, format, schema, **options), polars.from_arrow)
