"""Data frames and relations: Polars, Pandas and DuckDB by way of Arrow; and what to install if a library is missing."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from feeding import library, numbered, send

import ringmain
from ringmain import errors

pa = library("pyarrow")
polars = library("polars")
polars.read_csv(b"a\n1\n")  # its runtime keeps descriptors from the first call on
LINES: Any = {"delimiter": b"\n", "block_size": 4096, "ring_size": 65536}
GOOD = numbered(3000)
CSV = b"n,text\n" + b"".join(b"%d,text %d\n" % (n, n) for n in range(3000))


def test_polars_frames_are_those_of_the_same_bytes_in_a_file() -> None:
    feed = library("ringmain.feeds.polars")
    for kind, data, read in (("ndjson", GOOD, polars.read_ndjson), ("csv", CSV, polars.read_csv)):
        with ringmain.load("127.0.0.1:0", listen_once=True, **LINES) as loader:
            thread = send(loader.port, data)
            frames = list(feed.frames(loader, kind))
        thread.join()
        assert len(frames) > 5
        assert polars.concat(frames).equals(read(data))


def test_pandas_frames_are_those_of_the_same_bytes_in_a_file() -> None:
    pandas, feed = library("pandas"), library("ringmain.feeds.pandas")
    import io

    for mapper in (None, pandas.ArrowDtype):
        with ringmain.load("127.0.0.1:0", listen_once=True, **LINES) as loader:
            thread = send(loader.port, CSV)
            frame = pandas.concat(feed.frames(loader, "csv", types_mapper=mapper), ignore_index=True)
        thread.join()
        expected = (
            pandas.read_csv(io.BytesIO(CSV), dtype_backend="pyarrow") if mapper else pandas.read_csv(io.BytesIO(CSV))
        )
        pandas.testing.assert_frame_equal(frame, expected)


@pytest.mark.parametrize("name", ["polars", "pandas"])
def test_frames_end_at_a_bad_record_and_go_on_with_the_next_connection(name: str) -> None:
    library(name)
    feed = library(f"ringmain.feeds.{name}")
    with ringmain.load("127.0.0.1:0", **LINES) as loader:
        thread = send(loader.port, GOOD + b"{\n" + GOOD, GOOD)
        frames, rows = feed.frames(loader), 0
        with pytest.raises(errors.ParseError) as caught:
            for frame in frames:
                rows += len(frame)
        assert (rows, caught.value.offset) == (3000, len(GOOD))
        while rows < 6000:
            rows += len(next(frames))
        assert rows == 6000
        del caught
    thread.join()


def test_a_duckdb_relation_gives_the_rows_of_the_same_bytes_in_a_file(tmp_path: Any) -> None:
    duckdb, feed = library("duckdb"), library("ringmain.feeds.duckdb")
    path = tmp_path / "rows.csv"
    path.write_bytes(CSV)
    query = "count(*), sum(n), min(text), max(text)"
    with duckdb.connect() as database:
        with ringmain.load("127.0.0.1:0", listen_once=True, **LINES) as loader:
            thread = send(loader.port, CSV)
            found = feed.relation(loader, "csv", database=database).aggregate(query).fetchall()
        thread.join()
        assert found == database.read_csv(str(path)).aggregate(query).fetchall()


def test_a_duckdb_query_tells_of_a_bad_record_and_the_next_connection_is_read() -> None:
    duckdb, feed = library("duckdb"), library("ringmain.feeds.duckdb")
    with duckdb.connect() as database, ringmain.load("127.0.0.1:0", **LINES) as loader:
        thread = send(loader.port, GOOD + b"{\n" + GOOD, GOOD)
        connections = loader.connections()
        with pytest.raises(duckdb.Error, match=f"offset {len(GOOD)} from 127.0.0.1"):
            feed.relation(next(connections), database=database).aggregate("count(*)").fetchall()
        assert feed.relation(next(connections), database=database).aggregate("count(*)").fetchall() == [(3000,)]
    thread.join()


@pytest.mark.parametrize(
    ("extra", "lacking"),
    [
        *((name, name) for name in ("duckdb", "fsspec", "msgspec", "numpy", "pandas", "polars")),
        *((name, "pyarrow") for name in ("arrow", "duckdb", "pandas", "polars")),
    ],
)
def test_a_missing_library_is_named_with_the_extra_of_the_feed_that_was_asked_for(extra: str, lacking: str) -> None:
    code = f"""
import sys
sys.modules[{lacking!r}] = None
import ringmain.feeds
for _ in range(2):
    try:
        ringmain.feeds.{extra}
    except ImportError as error:
        print(error)
"""
    library("pyarrow")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == f"ringmain.feeds.{extra} needs {lacking}: pip install 'ringmain[{extra}]'\n" * 2


@pytest.mark.parametrize("broken", ["import no_such_module", "raise ImportError('its library is broken')"])
def test_a_library_that_is_there_but_broken_tells_so_itself(tmp_path: Path, broken: str) -> None:
    (tmp_path / "msgspec.py").write_text(broken)
    code = "import ringmain.feeds.msgspec"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    last = result.stderr.splitlines()[-1]
    said = "ringmain.feeds.msgspec needs no_such_module: pip install 'ringmain[msgspec]'"
    assert last == (f"ImportError: {said}" if "no_such" in broken else "ImportError: its library is broken")


def test_ringmain_itself_imports_none_of_the_libraries() -> None:
    code = "import ringmain, ringmain.feeds, sys; ringmain.load; ringmain.open; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"pyarrow", "numpy", "msgspec", "polars", "duckdb", "pandas", "fsspec"} & set(loaded)
