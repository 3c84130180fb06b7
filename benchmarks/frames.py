"""Ways into a data frame: through Arrow, or by the library's own reader on the file of `ringmain.open`.

python -m benchmarks.frames [--mib 128] [--rounds 5]

The same events, as NDJSON and CSV, are sent at full speed by a process of its own; all ways take turns and end with all
rows in the library's own memory (DuckDB: with the answer to a query over them).
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ringmain
from benchmarks.eve import write_events

COLUMNS = ("timestamp", "flow_id", "event_type", "src_ip", "src_port", "dest_ip", "dest_port", "proto")
SQL = "event_type, count(*), sum(src_port)"


def flat_events(path: Path, size: int) -> tuple[bytes, bytes]:
    """Return the plain columns of made-up events as NDJSON and as CSV."""
    write_events(path, size)
    rows = [{name: event[name] for name in COLUMNS} for event in map(json.loads, path.read_bytes().splitlines())]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    table = ",".join(COLUMNS) + "\n" + "".join(",".join(str(value) for value in row.values()) + "\n" for row in rows)
    return lines.encode(), table.encode()


def serve(listener: socket.socket, data: bytes) -> None:
    """Send the data to one client."""
    sock, _ = listener.accept()
    with sock:
        sock.sendall(data)


@contextlib.contextmanager
def sender(data: bytes) -> Iterator[str]:
    """Yield the endpoint of a process that sends the data."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = multiprocessing.get_context("fork").Process(target=serve, args=(listener, data))
        process.start()
        yield f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        process.join()


def by_feed(use: Callable[[ringmain.Loader], Any]) -> Callable[[str], Any]:
    """Return a way that goes through a feed."""

    def way(url: str) -> Any:
        with ringmain.load(url, connect=True, delimiter=b"\n", block_size=1 << 20) as loader:
            return use(loader)

    return way


def by_file(use: Callable[[ringmain.Reader], Any]) -> Callable[[str], Any]:
    """Return a way that reads the file."""

    def way(url: str) -> Any:
        with ringmain.open(url) as file:
            return use(file)

    return way


def ways() -> Iterator[tuple[str, Callable[[str], Any]]]:
    """Yield what is compared: library, format and way, and what to do with an endpoint."""
    import duckdb
    import pandas
    import polars

    from ringmain.feeds import duckdb as duckdb_feed
    from ringmain.feeds import pandas as pandas_feed
    from ringmain.feeds import polars as polars_feed

    yield "polars ndjson arrow", by_feed(lambda it: polars.concat(polars_feed.frames(it)))
    yield "polars ndjson file", by_file(lambda it: polars.read_ndjson(it.read()))
    yield "polars csv arrow", by_feed(lambda it: polars.concat(polars_feed.frames(it, "csv")))
    yield "polars csv file", by_file(lambda it: polars.read_csv(it.read()))
    yield "pandas ndjson arrow", by_feed(lambda it: pandas.concat(pandas_feed.frames(it)))
    yield "pandas ndjson file", by_file(lambda it: pandas.read_json(io.BytesIO(it.read()), lines=True))
    yield "pandas csv arrow", by_feed(lambda it: pandas.concat(pandas_feed.frames(it, "csv")))
    yield "pandas csv file", by_file(lambda it: pandas.read_csv(it))
    yield "duckdb ndjson arrow", by_feed(lambda it: duckdb_feed.relation(it).aggregate(SQL).fetchall())
    yield "duckdb ndjson file", by_file(lambda it: duckdb.read_json(io.BytesIO(it.read())).aggregate(SQL).fetchall())
    yield "duckdb csv arrow", by_feed(lambda it: duckdb_feed.relation(it, "csv").aggregate(SQL).fetchall())
    yield "duckdb csv file", by_file(lambda it: duckdb.read_csv(io.BytesIO(it.read())).aggregate(SQL).fetchall())


def main() -> None:
    """Print the median of each way."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.frames")
    parser.add_argument("--mib", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        lines, table = flat_events(Path(folder, "eve.json"), options.mib << 20)
    data = {"ndjson": lines, "csv": table}
    times: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        for name, way in ways():
            with sender(data[name.split()[1]]) as url:
                started = time.perf_counter()
                way(url)
                times.setdefault(name, []).append(time.perf_counter() - started)
    for name, seconds in times.items():
        print(f"{name:20} {statistics.median(seconds):6.2f} s of {len(data[name.split()[1]]) / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
