"""Feeds in `async with`: by `async for`, and by what waits itself, in a thread beside the loop."""

import asyncio
import io
import threading
import time
from collections.abc import Callable
from typing import Any

import peers
import pytest
from feeding import library, numbered, send
from steps import cancelled_at

import ringmain
from ringmain import blocking

pa = library("pyarrow")
arrow = library("ringmain.feeds.arrow")
library("polars").read_csv(b"a\n1\n")  # its runtime keeps descriptors from the first call on
Run = Callable[[Any], Any]
LINES: Any = {"delimiter": b"\n", "block_size": 4096, "ring_size": 65536}
GOOD = numbered(3000)
CSV = b"n,text\n" + b"".join(b"%d,text %d\n" % (n, n) for n in range(3000))
TABLE = pa.table(
    {"n": list(range(20_000)), "text": pa.array([f"text {n % 7}" for n in range(20_000)]).dictionary_encode()}
)


def ipc_of(table: Any, rows: int = 1000) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)
    return sink.getvalue()


IPC = ipc_of(TABLE)
# Made here: Arrow's own readers keep descriptors from the first call on.
TABLES = {
    "ndjson": library("pyarrow.json").read_json(io.BytesIO(GOOD)),
    "csv": library("pyarrow.csv").read_csv(io.BytesIO(CSV)),
    "ipc": TABLE,
}
DATA = {"ndjson": GOOD, "csv": CSV, "ipc": IPC}
FORMATS = pytest.mark.parametrize("kind", DATA)


@FORMATS
def test_batches_and_frames_come_by_async_for(run: Run, kind: str) -> None:
    polars, pandas = library("ringmain.feeds.polars"), library("ringmain.feeds.pandas")
    expected = TABLES[kind]

    async def main(feed: Callable[..., Any]) -> list[Any]:
        async with ringmain.load("127.0.0.1:0", listen_once=True, **LINES) as loader:
            thread = send(loader.port, DATA[kind])
            items = [item async for item in feed(loader, kind)]
        thread.join()
        return items

    assert pa.Table.from_batches(run(main(arrow.batches))).equals(expected)
    frames = run(main(polars.frames))
    assert len(frames) > 5
    assert library("polars").concat(frames).to_dicts() == expected.to_pylist()
    joined = library("pandas").concat(run(main(pandas.frames)), ignore_index=True)
    assert joined.iloc[:, :2].to_dict("records") == expected.select([0, 1]).to_pylist()


@pytest.mark.parametrize("rows", [3, 1000, 20_000])
def test_an_ipc_stream_cut_anywhere_gives_the_same_batches(run: Run, rows: int) -> None:
    data = ipc_of(TABLE, rows)

    async def main() -> Any:
        options: Any = {"block_size": 1000, "ring_size": 8 << 20}
        async with ringmain.load("127.0.0.1:0", **options) as loader:
            thread = send(loader.port, data, data)
            count, batches = 0, arrow.batches(loader, "ipc")
            tables: list[Any] = [[], []]
            while count < 2 * TABLE.num_rows:
                batch = await anext(batches)
                tables[count // TABLE.num_rows].append(batch)
                count += batch.num_rows
        thread.join()
        return [pa.Table.from_batches(each) for each in tables]

    assert all(each.equals(TABLE) for each in run(main()))


@FORMATS
def test_a_wait_for_a_batch_that_is_cancelled_anywhere_loses_nothing(run: Run, kind: str) -> None:
    data, rows = DATA[kind][: 200_000 if kind == "ipc" else None], 3000
    data = ipc_of(TABLE.slice(0, rows), 300) if kind == "ipc" else data

    def trickle(port: int) -> None:
        with peers.connect(port) as sock:
            for at in range(0, len(data), 1500):
                sock.sendall(data[at : at + 1500])
                time.sleep(0.0005)

    async def main() -> list[Any]:
        batches: list[Any] = []
        cancelled = 0
        async with ringmain.load("127.0.0.1:0", listen_once=True, linger=0, **LINES) as loader:
            sending = asyncio.ensure_future(asyncio.to_thread(trickle, loader.port))
            feed = arrow.batches(loader, kind)

            async def take() -> None:
                batches.append(await feed.__anext__())

            try:
                while True:
                    cancelled += await cancelled_at(1 + cancelled % 3, take())
            except StopAsyncIteration:
                await sending
        assert cancelled > 0
        return batches

    got = pa.Table.from_batches(run(main()))
    assert got.column(0).to_pylist() == list(range(rows))


@FORMATS
def test_what_waits_itself_reads_in_a_thread_beside_the_loop(run: Run, kind: str) -> None:
    duckdb = library("duckdb")
    feed = library("ringmain.feeds.duckdb")

    async def main() -> None:
        async with ringmain.load("127.0.0.1:0", listen_once=True, **LINES) as loader:
            thread = send(loader.port, DATA[kind])
            reader = await asyncio.to_thread(arrow.record_batches, loader, kind)
            table = await asyncio.to_thread(reader.read_all)
        thread.join()
        with duckdb.connect() as database:

            def query() -> list[Any]:
                return feed.relation(loader, kind, database=database).aggregate("count(*), max(#1)").fetchall()

            async with ringmain.load("127.0.0.1:0", listen_once=True, **LINES) as loader:
                thread = send(loader.port, DATA[kind])
                turns = 0
                task = asyncio.ensure_future(asyncio.to_thread(query))
                while not task.done():
                    turns += 1
                    await asyncio.sleep(0)
                assert task.result() == [(table.num_rows, table.num_rows - 1)]
                assert turns > 1
            thread.join()

    run(main())


def test_of_many_connections_a_relation_in_a_thread_has_all_rows(run: Run) -> None:
    library("duckdb")
    feed = library("ringmain.feeds.duckdb")

    async def main() -> None:
        options = {**LINES, "max_connections": 3}
        ended: list[Any] = []
        async with ringmain.load("127.0.0.1:0", **options) as loader:
            loader.on_end = ended.append
            reader = asyncio.ensure_future(
                asyncio.to_thread(lambda: feed.relation(loader).aggregate("count(*)").fetchall())
            )
            threads = [send(loader.port, GOOD) for _ in range(3)]
            while len(ended) < 3:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            loader.stop()
            assert await reader == [(9000,)]
        for thread in threads:
            thread.join()

    run(main())


def test_in_the_loop_s_own_thread_what_waits_itself_is_refused_with_the_remedy(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    duckdb = library("duckdb")
    feed = library("ringmain.feeds.duckdb")
    monkeypatch.setattr(blocking, "_STANDSTILL", 1)

    async def main() -> None:
        async with ringmain.load("127.0.0.1:0", listen_once=True, **LINES) as loader:
            thread = send(loader.port, b'{"a":1}\n')
            for call in (lambda: arrow.record_batches(loader), lambda: feed.relation(loader), lambda: next(loader)):
                with pytest.raises(ringmain.UsageError, match=r"use `async for`, or .*asyncio\.to_thread"):
                    call()
            with duckdb.connect() as database:
                relation = await asyncio.to_thread(feed.relation, loader, database=database)
                with pytest.raises(duckdb.Error, match=r"asyncio\.to_thread"):  # wherever DuckDB asks for rows
                    relation.fetchall()
        thread.join()

    run(main())


def test_a_thread_whose_block_is_left_never_takes_what_came_for_the_whole() -> None:
    async def main() -> None:
        async with ringmain.load("127.0.0.1:0", listen_once=True, **LINES) as loader:
            with peers.connect(loader.port) as sock:
                sock.sendall(GOOD)
                reader = await asyncio.to_thread(arrow.record_batches, loader)
                first = await asyncio.to_thread(reader.read_next_batch)
                assert first.num_rows > 0
                reading = asyncio.ensure_future(asyncio.to_thread(reader.read_all))
                await asyncio.sleep(0.05)
        with pytest.raises(ringmain.RingmainError, match=r"left while another thread was using it|not open"):
            await reading

    asyncio.run(main())


@pytest.mark.parametrize("count", [1, 3], ids=["one", "many"])
@pytest.mark.parametrize("way", ["blocks", "records", "connections", "objects"])
def test_a_plain_for_in_a_thread_beside_the_loop_gets_every_byte(run: Run, way: str, count: int) -> None:
    lines = library("ringmain.feeds.msgspec")

    def consume(loader: ringmain.Loader, got: list[Any]) -> None:
        if way == "objects":
            for objects in lines.decode_lines(loader):
                got += [it["a"] for it in objects]
        elif way == "connections":
            for stream in loader.connections():
                for block in stream:
                    got.append(bytes(block))
        else:
            for item in loader if way == "blocks" else loader.records(headers=True):
                got.append(bytes(item))

    async def main() -> None:
        got: list[Any] = []
        ended: list[Any] = []
        async with ringmain.load("127.0.0.1:0", max_connections=count, **LINES) as loader:
            loader.on_end = ended.append
            consumer = threading.Thread(target=consume, args=(loader, got))
            consumer.start()
            thread = send(loader.port, GOOD)
            while not ended:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            loader.stop()
            while consumer.is_alive():  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        thread.join()
        assert got == list(range(3000)) if way == "objects" else b"".join(got) == GOOD

    run(main())
