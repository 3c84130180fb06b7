"""Feed parsers and data frames with the blocks of a loader. One module per library, each an extra of its own.

from ringmain.feeds import arrow  # pip install 'ringmain[arrow]'

A feed takes a `Loader`, whose connections it reads one after another, or one `Stream` of `loader.connections()`. Bad
input raises `ringmain.ParseError`, with peer and byte offset, after all that came before it was handed out. Whoever
goes on iterating gets the next connection; what the connection at fault had left is dropped.

Of a loader with `max_connections` above 1 NDJSON is read as it comes, block by block, each of one connection: an error
names that and the offset there. The connection at fault is reset, and the others go on. What is read from the beginning
of a connection to its end (CSV, ipc, numpy's records) is fed each stream of `loader.connections()`.

With `on_error="skip"` a feed leaves out the record at fault and goes on behind it. Its iterator counts what it left
out, as `skipped` and `skipped_size`; the 1st, 10th, 100th ... such record of a connection is warned of, with its offset
and its size. With `on_error=function` it calls `function(error, record)` instead, in order, in the consumer's thread:
`error` is the ParseError, `record` a copy of the bytes. What the function raises comes out of the iteration.
"""

from importlib import import_module
from types import ModuleType

__all__ = ["arrow", "duckdb", "fsspec", "msgspec", "numpy", "pandas", "polars"]


def __getattr__(name: str) -> ModuleType:
    if name not in __all__:
        raise AttributeError(f"module 'ringmain.feeds' has no attribute {name!r}")
    return import_module(f"ringmain.feeds.{name}")
