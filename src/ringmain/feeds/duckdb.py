r"""A connection as a DuckDB relation.

from ringmain.feeds import duckdb  # pip install 'ringmain[duckdb]'

with ringmain.load("tcp://127.0.0.1:8000", delimiter=b"\n", listen_once=True) as loader:
    events = duckdb.relation(loader)
    print(events.aggregate("event_type, count(*)").fetchall())

async with ringmain.load("tcp://127.0.0.1:8000", delimiter=b"\n", listen_once=True) as loader:
    rows = await asyncio.to_thread(lambda: duckdb.relation(loader).aggregate("event_type, count(*)").fetchall())
"""

from typing import Any

from ringmain.feeds._extra import missing
from ringmain.feeds._feed import Source
from ringmain.keywords import documented

try:
    import duckdb

    from ringmain.feeds import arrow
except ImportError as error:
    raise missing(error, "duckdb") from None


@documented(arrow.batches)
def relation(
    source: Source,
    format: Any = "ndjson",
    schema: Any = None,
    *,
    database: "duckdb.DuckDBPyConnection | None" = None,
    **options: Any,
) -> "duckdb.DuckDBPyRelation":
    """Return the rows as a relation, to be queried once, inside the `with`: a query reads the `source` to its end.

    DuckDB scans Arrow's batches in place, as they come, and copies what a query keeps. A source that serves client
    after client never ends: use `listen_once`, `connect` or one connection of `connections()`.

    DuckDB waits for the rows itself, so beside an `async with` the relation and all that queries it belong in a thread:
    `await asyncio.to_thread(...)`. In the event loop's own thread they raise UsageError, or where DuckDB asks for rows
    in threads of its own, after 30 s in which the loop stood still.

    What goes wrong comes out of the query as a duckdb.Error with the text of the ParseError or RingmainError.

    The arguments, with their defaults:

    database (None): the DuckDB connection to use; None is the default one
    """
    reader = arrow.record_batches(source, format, schema, **options)
    return (database or duckdb).from_arrow(reader)
