r"""A connection as a DuckDB relation.

from ringmain.feeds import duckdb  # pip install 'ringmain[duckdb]'

with ringmain.load("tcp://127.0.0.1:8000", delimiter=b"\n", listen_once=True) as loader:
    events = duckdb.relation(loader)
    print(events.aggregate("event_type, count(*)").fetchall())
"""

from typing import Any

from ringmain.feeds import arrow
from ringmain.feeds._extra import missing
from ringmain.feeds._feed import Source

try:
    import duckdb
except ImportError as error:
    raise missing(error, "duckdb") from None


def relation(
    source: Source,
    format: Any = "ndjson",
    schema: Any = None,
    *,
    database: "duckdb.DuckDBPyConnection | None" = None,
    **options: Any,
) -> "duckdb.DuckDBPyRelation":
    """Return the rows as a relation, to be queried once, inside the `with`: a query reads the connection to its end.

    `database` is the DuckDB connection to use, the default one without; the other arguments are those of
    `arrow.record_batches`. DuckDB scans Arrow's batches in place, as they come, and copies what a query keeps. A source
    that serves client after client never ends: use `listen_once`, `connect` or one connection of `connections()`.

    What goes wrong comes out of the query as a duckdb.Error with the text of the ParseError or RingmainError.
    """
    reader = arrow.record_batches(source, format, schema, **options)
    return (database or duckdb).from_arrow(reader)
