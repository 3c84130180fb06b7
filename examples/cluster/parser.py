"""One of many parsers: takes messages of a NATS stream, and writes the rows of each into a Parquet file.

python parser.py nats://127.0.0.1:4222,127.0.0.1:4223/EVENTS FOLDER
"""

import json
import os
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.json
import pyarrow.parquet

import ringmain

# The columns of your events; a field that is not among them is an error.
SCHEMA = pa.schema([("sender", pa.int64()), ("row", pa.int64()), ("text", pa.string())])
PARSING = pyarrow.json.ParseOptions(explicit_schema=SCHEMA, unexpected_field_behavior="error")


def write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, whenever this process or the machine ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    with unfinished.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def rows(block: memoryview) -> bytes:
    """Return the rows of a message as a Parquet file."""
    table = pyarrow.json.read_json(pa.BufferReader(block), parse_options=PARSING)
    sink = pa.BufferOutputStream()
    pyarrow.parquet.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def main(url: str, folder: Path) -> None:
    """Parse until somebody ends this process."""
    with ringmain.load(url, consumer="parsers", retry=-1) as loader:
        for tag, block in loader.tagged():
            # A file is named by what it holds: a message that comes again, since whoever had it has died before it was
            # acknowledged, is written over itself. It is acknowledged when the loop asks for the next one.
            if tag.verdict:
                told = {"peer": tag.peer, "verdict": tag.verdict, "bytes": tag.size}
                write(folder / "ends" / f"{tag.connection}.json", json.dumps(told).encode())
            else:
                write(folder / "rows" / f"connection={tag.connection}" / f"{tag.sequence:020}.parquet", rows(block))


if __name__ == "__main__":
    try:
        main(sys.argv[1], Path(sys.argv[2]))
    except ringmain.RingmainError as error:
        sys.exit(str(error))
