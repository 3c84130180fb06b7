r"""Blocks as Arrow buffers, arrays and record batches.

from ringmain.feeds import arrow  # pip install 'ringmain[arrow]'

with ringmain.load("tcp://127.0.0.1:8000", delimiter=b"\n") as loader:
    for batch in arrow.record_batches(loader):  # a pyarrow.RecordBatchReader over NDJSON
        print(batch.num_rows)

async with ringmain.load("tcp://127.0.0.1:8000", delimiter=b"\n") as loader:
    async for batch in arrow.batches(loader):
        print(batch.num_rows)
"""

from typing import TYPE_CHECKING, Any, Literal

from ringmain.errors import UsageError
from ringmain.feeds._extra import missing
from ringmain.feeds._feed import Source, check_lines, check_whole
from ringmain.feeds._refusal import OnError
from ringmain.keywords import documented
from ringmain.stream import Stream

try:
    import pyarrow as pa
except ImportError as error:
    raise missing(error, "arrow") from None

if TYPE_CHECKING:
    from pyarrow.csv import ConvertOptions, ParseOptions

    from ringmain.feeds._arrow_batches import Batches
    from ringmain.feeds._arrow_ipc import IpcBatches

NEWLINE = ord("\n")


def buffer(block: memoryview) -> "pa.Buffer":
    """Return a buffer over the block itself: same address, nothing copied. It keeps the block as long as it lives."""
    return pa.py_buffer(block)


def lines(block: memoryview) -> "pa.LargeBinaryArray":
    r"""Return the lines of a block as an array over the block itself, each with its "\n"; the last one may lack it.

    Only the offsets are new memory, 8 bytes a line. The array, and every slice or scalar of it, keeps the whole block.
    """
    import pyarrow.compute as pc

    data = pa.py_buffer(block)
    octets = pa.Array.from_buffers(pa.uint8(), len(block), [None, data])
    ends = pc.add(pc.indices_nonzero(pc.equal(octets, pa.scalar(NEWLINE, pa.uint8()))).cast(pa.int64()), 1)
    parts = [pa.array([0], pa.int64()), ends]
    if block and block[-1] != NEWLINE:
        parts.append(pa.array([len(block)], pa.int64()))
    offsets = pa.concat_arrays(parts)
    return pa.Array.from_buffers(pa.large_binary(), len(offsets) - 1, [None, offsets.buffers()[1], data])


def batches(
    source: Source,
    format: Literal["ndjson", "csv", "ipc"] = "ndjson",
    schema: "pa.Schema | None" = None,
    *,
    threads: int | None = None,
    unexpected_fields: Literal["error", "ignore"] = "error",
    header: bool = True,
    parse_options: "ParseOptions | None" = None,
    convert_options: "ConvertOptions | None" = None,
    validate: bool = True,
    on_error: OnError = "raise",
) -> "Batches | IpcBatches":
    r"""Parse all that comes into record batches, in order: an iterator, plain or with `async for`.

    Of the `source` ndjson and csv need that it cuts at lines (`delimiter=b"\n"`); each block is parsed as one while the
    loop goes on receiving, and is free once it is parsed: the batches have memory of their own. ipc needs no delimiter,
    and takes no `long_records="skip"`; its batches are views of the blocks, which live as long as they do (copied where
    one spans blocks: choose a `block_size` of several batches). A batch of it, decompressed and with its dictionaries,
    has at most `max_record` bytes.

    Raises ParseError at a record that cannot be parsed, after the batches of all that came before it; the next item is
    of the next connection. What cannot be skipped by `on_error` is raised in any case, since nothing behind it can be
    read: a CSV header, a broken IPC frame or dictionary, and what the loader skipped (`long_records="skip"`) of a CSV
    header or within quotes. Cancelling a wait loses nothing.

    The arguments, with their defaults:

    format ("ndjson"): or "csv", or "ipc", Arrow's own
    schema (None): a pyarrow.Schema; None takes the first block's, which is too narrow if a column is empty or whole
        there and is text or broken further on
    threads (None): of ndjson and csv, how many threads parse blocks; None is all cores
    unexpected_fields ("error"): of ndjson, what becomes of fields that the schema does not have; "ignore" drops them
    header (True): of csv, whether connections begin with the names of their columns; False needs a schema, and takes a
        loader of many connections too, of which a line is a row: a quoted field that does not end in it is refused
    parse_options (None): of csv, a pyarrow.csv.ParseOptions; newlines in quotes are understood in any case, in records
        of up to `max_record` bytes
    convert_options (None): of csv, a pyarrow.csv.ConvertOptions
    validate (True): of ipc, validate each batch, since what it says about itself would have any memory read; False
        spares that for peers that you trust, and takes dictionaries that come in parts (deltas)
    on_error ("raise"): what becomes of a record that cannot be parsed, for ipc of a batch; "skip" or a function goes on
        behind it (see `ringmain.feeds`)
    """
    given = {
        "threads": threads is not None,
        "unexpected_fields": unexpected_fields != "error",
        "header": not header,
        "parse_options": parse_options is not None,
        "convert_options": convert_options is not None,
        "validate": not validate,
    }
    known = _OPTIONS.get(format)
    if known is None:
        raise UsageError(f"format {format!r}", "not known here", f"choose one of {', '.join(_OPTIONS)}")
    if others := [name for name, is_given in given.items() if is_given and name not in known]:
        raise UsageError(f"format {format} with {', '.join(others)}", "not an option of it", "leave it out")
    if format == "ipc":
        from ringmain.feeds._arrow_ipc import IpcBatches

        check_whole(source)
        return IpcBatches(source, schema, validate=validate, on_error=on_error)
    from ringmain.feeds._arrow_batches import Batches
    from ringmain.feeds._arrow_parsers import Csv, Ndjson, Parser

    check_lines(source)
    parser: Parser
    if format == "ndjson":
        parser = Ndjson(schema, unexpected_fields)
    else:
        merged = not isinstance(source, Stream) and source.merges
        if merged and header:
            why = "each connection begins with the names of its columns"
            remedy = "give header=False and a schema, or feed each stream of loader.connections() by itself"
            raise UsageError("csv of many connections", why, remedy)
        if schema is None and not header:
            raise UsageError("csv without header", "its columns have no names", "give a schema")
        limit = source.ring.max_record
        parser = Csv(schema, header, parse_options, convert_options, limit, merged=merged)
    return Batches(source, parser, threads or pa.cpu_count(), on_error)


_OPTIONS: dict[str, set[str]] = {
    "ndjson": {"threads", "unexpected_fields"},
    "csv": {"threads", "header", "parse_options", "convert_options"},
    "ipc": {"validate"},
}


@documented(batches)
def record_batches(
    source: Source,
    format: Literal["ndjson", "csv", "ipc"] = "ndjson",
    schema: "pa.Schema | None" = None,
    **options: Any,
) -> "pa.RecordBatchReader":
    """Do as `batches` does, and return a reader that DuckDB, Polars and Arrow itself take as it is.

    For libraries that wait for the `source` themselves: in a plain `with`, or beside an `async with` in a thread, by
    `await asyncio.to_thread(...)`; in the event loop's own thread it raises UsageError. Without a `schema` it waits for
    the first block. ParseError comes out of the reader's iteration.

    The arguments, with their defaults:

    """
    made = batches(source, format, schema, **options)
    if schema is None:
        made.prime()
    return pa.RecordBatchReader.from_batches(made.schema or pa.schema([]), made)
