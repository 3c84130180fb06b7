r"""Pandas data frames, a block each.

from ringmain.feeds import pandas  # pip install 'ringmain[pandas]'

with ringmain.load("tcp://127.0.0.1:8000", delimiter=b"\n") as loader:
    for frame in pandas.frames(loader, "csv"):  # a pandas.DataFrame a block
        print(frame.groupby("event_type").size())

CSV that ends and fits in memory as a whole is in one frame sooner by Pandas's own reader, `pandas.read_csv(file)` with
a file of `ringmain.open`, or with the URL (see `ringmain.feeds.fsspec`). For NDJSON Arrow is several times faster.
"""

from collections.abc import Callable
from typing import Any, Self

from ringmain.feeds import arrow
from ringmain.feeds._extra import missing
from ringmain.feeds._feed import Source

try:
    import pandas
except ImportError as error:
    raise missing(error, "pandas") from None


def frames(
    source: Source,
    format: Any = "ndjson",
    schema: Any = None,
    *,
    types_mapper: "Callable[[Any], Any] | None" = None,
    **options: Any,
) -> "Frames":
    """Iterate over data frames, one a record batch of `arrow.record_batches`, whose arguments and errors these are.

    Plain or with `async for`; ipc plain only. `types_mapper=pandas.ArrowDtype` keeps Arrow's memory and types,
    without a copy. Without it Pandas makes columns of its own: numbers without nulls are taken over, others are copied.
    The index of each frame begins at 0.
    """
    return Frames(arrow.parsed(source, format, schema, **options), types_mapper)


class Frames:
    """What `frames` returns. After a ParseError it goes on with the next connection."""

    def __init__(self, batches: Any, types_mapper: "Callable[[Any], Any] | None") -> None:
        self._batches = batches
        self._types_mapper = types_mapper

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> "pandas.DataFrame":
        return next(self._batches).to_pandas(types_mapper=self._types_mapper)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> "pandas.DataFrame":
        return (await anext(self._batches)).to_pandas(types_mapper=self._types_mapper)
