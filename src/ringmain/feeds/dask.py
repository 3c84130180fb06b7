"""A NATS JetStream stream as a Dask data frame.

from ringmain.feeds import dask  # pip install 'ringmain[dask]'

frame = dask.read_nats("nats://10.0.0.5/EVENTS", schema=schema, partitions=16)
print(frame.groupby("event_type").size().compute())
"""

import asyncio
import itertools
from collections.abc import Callable
from typing import Any, Unpack

from ringmain.engines.nats_range import load_range, sequences
from ringmain.errors import UsageError
from ringmain.feeds import arrow
from ringmain.feeds._extra import missing
from ringmain.settings import LogOptions

try:
    import dask.dataframe
    import pandas
    import pyarrow
except ImportError as error:
    raise missing(error, "dask") from None


def read_nats(
    url: str,
    *,
    schema: "pyarrow.Schema",
    partitions: int,
    start: int | None = None,
    stop: int | None = None,
    types_mapper: "Callable[[Any], Any] | None" = pandas.ArrowDtype,
    parsing: dict[str, Any] | None = None,
    credentials: str | None = None,
    **options: Unpack[LogOptions],
) -> "dask.dataframe.DataFrame":
    """Return the rows of a stream's messages, which are lines of JSON, in the order of the stream.

    The messages `start` to `stop`, all that it has now by default, are read in so many `partitions`, each of as many
    messages, and each by a task that may run anywhere and again: it asks a consumer of its own, and acknowledges
    nothing. `credentials` is a file on every worker; what else stands in `url` or the options is part of the graph,
    a password too. `schema` tells the columns, `types_mapper` what Pandas makes of them; `parsing` is for
    `arrow.record_batches`: `on_error`, `unexpected_fields`.

    Call it where no event loop runs. Raises a RingmainError as `ringmain.load` does, NotFoundError where the stream has
    not got the first message any more; so do the tasks, and a ParseError tells of the message that cannot be parsed.
    """
    if partitions < 1:
        raise UsageError(f"partitions={partitions}", "nobody would read", "give at least 1")
    first, last = asyncio.run(sequences(url, credentials=credentials, **options))
    begin, end = max(1, first if start is None else start), last if stop is None else min(stop, last)
    edges = [begin + max(0, end + 1 - begin) * number // partitions for number in range(partitions + 1)]
    ranges = [(low, high - 1) for low, high in itertools.pairwise(edges) if low < high]
    return dask.dataframe.from_map(
        _read,
        ranges or [(begin, begin - 1)],
        url=url,
        schema=schema,
        types_mapper=types_mapper,
        parsing=parsing or {},
        options={"credentials": credentials, **options},
        meta=schema.empty_table().to_pandas(types_mapper=types_mapper),
    )


def _read(
    part: tuple[int, int],
    *,
    url: str,
    schema: "pyarrow.Schema",
    types_mapper: Any,
    parsing: dict[str, Any],
    options: dict[str, Any],
) -> "pandas.DataFrame":
    """Return the rows of a range of messages."""
    if part[1] < part[0]:
        return schema.empty_table().to_pandas(types_mapper=types_mapper)
    with load_range(url, *part, **options) as loader:
        table = arrow.record_batches(loader, "ndjson", schema, threads=1, **parsing).read_all()
    return table.to_pandas(types_mapper=types_mapper)
