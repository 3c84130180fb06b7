r"""Pandas data frames, a block each.

from ringmain.feeds import pandas  # pip install 'ringmain[pandas]'

with ringmain.load("tcp://127.0.0.1:8000", delimiter=b"\n") as loader:
    for frame in pandas.frames(loader, "csv"):  # a pandas.DataFrame a block
        print(frame.groupby("event_type").size())

The same in `async with`, with `async for`.

CSV that ends and fits in memory as a whole is in one frame sooner by Pandas's own reader, `pandas.read_csv(file)` with
a file of `ringmain.open`, or with the URL (see `ringmain.feeds.fsspec`). For NDJSON Arrow is several times faster.
"""

from collections.abc import Callable
from typing import Any

from ringmain.feeds._extra import missing
from ringmain.feeds._feed import Source
from ringmain.feeds._frames import Frames
from ringmain.keywords import documented

try:
    import pandas

    from ringmain.feeds import arrow
except ImportError as error:
    raise missing(error, "pandas") from None


@documented(arrow.batches)
def frames(
    source: Source,
    format: Any = "ndjson",
    schema: Any = None,
    *,
    types_mapper: "Callable[[Any], Any] | None" = None,
    **options: Any,
) -> "Frames[pandas.DataFrame]":
    """Iterate over data frames of what the `source` brings, one a record batch of `arrow.batches`; raise as that does.

    Plain or with `async for`. The index of each frame begins at 0. Pandas makes columns of its own: numbers without
    nulls are taken over, others are copied.

    The arguments, with their defaults:

    types_mapper (None): as in Arrow's `to_pandas`; `pandas.ArrowDtype` keeps Arrow's memory and types, without a copy
    """

    def frame_of(batch: Any) -> "pandas.DataFrame":
        return batch.to_pandas(types_mapper=types_mapper)

    return Frames(arrow.batches(source, format, schema, **options), frame_of)
