r"""Blocks as Arrow buffers, arrays and record batches.

from ringmain.feeds import arrow  # pip install 'ringmain[arrow]'

with ringmain.load("tcp://127.0.0.1:8000", delimiter=b"\n") as loader:
    for batch in arrow.record_batches(loader):  # a pyarrow.RecordBatchReader over NDJSON
        print(batch.num_rows)
"""

from typing import TYPE_CHECKING, Any, Literal

from ringmain.errors import UsageError
from ringmain.feeds._extra import missing
from ringmain.feeds._feed import Source, check_lines, check_whole
from ringmain.feeds._refusal import OnError
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


def record_batches(
    source: Source,
    format: Literal["ndjson", "csv", "ipc"] = "ndjson",
    schema: "pa.Schema | None" = None,
    **options: Any,
) -> "pa.RecordBatchReader":
    r"""Parse all that comes into record batches, in order: a reader that DuckDB, Polars and Arrow itself take as it is.

    ndjson and csv need a source that cuts at lines (`delimiter=b"\n"`); each block is parsed as one, by `threads`
    threads (all cores by default) while the loop goes on receiving, and is free once it is parsed: the batches have
    memory of their own. ipc needs no delimiter, and takes no `long_records="skip"`; its batches are views of the
    blocks, which live as long as they do (copied where one spans blocks: choose a `block_size` of several batches).

    Without a `schema` the first block's is taken, which waits for it, and which is too narrow if a column is empty or
    whole there and is text or broken further on: give one where you know it. Further keywords, by format:

    ndjson: `unexpected_fields` "error" (the default) or "ignore", for fields that the schema does not have.
    csv: `header=False` if connections do not begin with the names of their columns, which needs a schema;
    `parse_options` and `convert_options` as in pyarrow.csv. Newlines in quotes are understood, in records of up to
    `max_record` bytes. Of a loader of many connections with `header=False` only, and a line is a row: a quoted field
    that does not end in its line is refused.
    ipc: each batch is validated, since what it says about itself would have any memory read; `validate=False` spares
    that for peers that you trust. A batch, decompressed and with its dictionaries, has at most `max_record` bytes; a
    dictionary that comes in parts (a delta) is taken with `validate=False` only.

    Call it in a plain `with`; in a coroutine use `batches`. Raises ParseError, from the reader's iteration, at a record
    that cannot be parsed, after the batches of all that came before it; the next read is of the next connection. With
    `on_error` "skip" or a function (see `ringmain.feeds`) it goes on behind the record, which for ipc is a batch. A CSV
    header, a broken IPC frame or dictionary is raised in any case: nothing behind it can be read. So is what the loader
    skipped (`long_records="skip"`) of a CSV header or within quotes.
    """
    made = parsed(source, format, schema, **options)
    if schema is None:
        made.prime()
    return pa.RecordBatchReader.from_batches(made.schema or pa.schema([]), made)


def parsed(source: Source, format: str, schema: "pa.Schema | None", **options: Any) -> "Batches | IpcBatches":
    """Return the record batches of any format, without waiting for a schema."""
    if format != "ipc":
        return batches(source, format, schema, **options)  # type: ignore[arg-type]
    from ringmain.feeds._arrow_ipc import IpcBatches

    check_whole(source)
    others = options.keys() - {"validate", "on_error"}
    if others:
        raise UsageError(f"format ipc with {', '.join(sorted(others))}", "not an option of it", "leave it out")
    return IpcBatches(source, schema, **options)


def batches(
    source: Source,
    format: Literal["ndjson", "csv"] = "ndjson",
    schema: "pa.Schema | None" = None,
    *,
    threads: int | None = None,
    unexpected_fields: Literal["error", "ignore"] = "error",
    header: bool = True,
    parse_options: "ParseOptions | None" = None,
    convert_options: "ConvertOptions | None" = None,
    on_error: OnError = "raise",
) -> "Batches":
    """Do as `record_batches` does, for `async for` too, and without waiting for a schema. ipc is for that one only."""
    from ringmain.feeds._arrow_batches import Batches
    from ringmain.feeds._arrow_parsers import Csv, Ndjson, Parser

    check_lines(source)
    parser: Parser
    if format == "ndjson":
        parser = Ndjson(schema, unexpected_fields)
    elif format == "csv":
        merged = not isinstance(source, Stream) and source.merges
        if merged and header:
            why = "each connection begins with the names of its columns"
            remedy = "give header=False and a schema, or feed each stream of loader.connections() by itself"
            raise UsageError("csv of many connections", why, remedy)
        if schema is None and not header:
            raise UsageError("csv without header", "its columns have no names", "give a schema")
        limit = source.ring.max_record
        parser = Csv(schema, header, parse_options, convert_options, limit, merged=merged)
    else:
        raise UsageError(f"format {format!r}", "not known here", "choose ndjson or csv; ipc is for record_batches")
    return Batches(source, parser, threads or pa.cpu_count(), on_error)
