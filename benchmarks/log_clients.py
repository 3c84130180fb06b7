"""Those who publish to a NATS stream by nats-py alone, and those who parse what is in one.

python -m benchmarks.log_clients NAME ARGUMENTS...

Each is a function below: `publish` messages of 256 KiB that are in memory, `lines` each line of a connection as a
message of its own, as Vector and Benthos do by default, `load` and `memory` parse NDJSON into Arrow. They report to
the file that BENCH_REPORT names.
"""

import asyncio
import contextlib
import json
import os
import sys
import time
from pathlib import Path

import uvloop

from benchmarks.feeds import Counts, arrow_parser, in_order, memory_blocks

with contextlib.suppress(ImportError):  # without it, no contender of these benches is asked for
    import nats

MESSAGE = 256 << 10
SUBJECT, STREAM = "log", "LOG"
_IN_FLIGHT = 16 << 20  # as ringmain has it
_LINES_IN_FLIGHT = 1024  # as Benthos has it


def _report(**figures: float) -> None:
    if path := os.environ.get("BENCH_REPORT"):
        Path(path).write_text(json.dumps(figures))


async def publish(to: str, size: str) -> None:
    """Publish so many bytes from memory, by `publish_async` with a bounded window."""
    left, payload = int(size), os.urandom(MESSAGE)
    client = await nats.connect(f"nats://127.0.0.1:{to}")
    jetstream = client.jetstream(publish_async_max_pending=_IN_FLIGHT // MESSAGE)
    start, used = time.monotonic(), time.process_time()
    while left:
        message = payload[: min(left, MESSAGE)]
        await jetstream.publish_async(SUBJECT, message)
        left -= len(message)
    await jetstream.publish_async_completed()
    _report(bytes=int(size), start=start, end=time.monotonic(), used=used)
    await client.close()


async def lines(port: str, to: str) -> None:
    """Listen for one connection, and publish each of its lines."""
    client = await nats.connect(f"nats://127.0.0.1:{to}")
    jetstream = client.jetstream(publish_async_max_pending=_LINES_IN_FLIGHT)
    ended = asyncio.Event()
    count = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        while line := await reader.readline():
            await jetstream.publish_async(SUBJECT, line)
            count += len(line)
        await jetstream.publish_async_completed()
        writer.close()
        ended.set()

    async with await asyncio.start_server(serve, "127.0.0.1", int(port), limit=MESSAGE):
        await ended.wait()
    _report(bytes=count)
    await client.close()


async def fill(to: str, path: str) -> None:
    """Put the lines of a file into the stream, in messages of at most MESSAGE bytes."""
    data = Path(path).read_bytes()  # noqa: ASYNC240 - nothing else runs
    client = await nats.connect(f"nats://127.0.0.1:{to}")
    jetstream = client.jetstream(publish_async_max_pending=_IN_FLIGHT // MESSAGE)
    for block in memory_blocks(data, MESSAGE, 1):
        await jetstream.publish_async(SUBJECT, bytes(block))
    await jetstream.publish_async_completed()
    await client.close()


async def make_stream(to: int) -> None:
    """Make the stream, in files."""
    client = await nats.connect(f"nats://127.0.0.1:{to}")
    await client.jetstream().add_stream(name=STREAM, subjects=[SUBJECT])
    await client.close()


async def stored(to: int) -> int:
    """Return how many messages the stream has."""
    client = await nats.connect(f"nats://127.0.0.1:{to}")
    info = await client.jetstream().stream_info(STREAM)
    await client.close()
    return int(info.state.messages)


async def read_all(to: int) -> dict[str, list[bytes]]:
    """Return the messages of the stream, by the connections that ringmain names."""
    client = await nats.connect(f"nats://127.0.0.1:{to}")
    jetstream = client.jetstream()
    left = (await jetstream.stream_info(STREAM)).state.messages
    found: dict[str, list[bytes]] = {}
    subscription = await jetstream.subscribe(SUBJECT, ordered_consumer=True, pending_bytes_limit=-1)
    for _ in range(left):
        message = await subscription.next_msg(30)
        found.setdefault((message.headers or {}).get("Ringmain-Connection", ""), []).append(message.data)
    await client.close()
    return found


def load_log(path: str, to: str, messages: str) -> None:
    """Parse what `load` brings of the stream, on one thread."""
    del path
    import ringmain.engines.nats_loader  # noqa: F401 - what is loaded once is none of what is measured
    from benchmarks.eve import arrow_schema
    from ringmain import load
    from ringmain.feeds import arrow

    counts, schema = Counts(), arrow_schema()
    counts.start()
    with load(f"nats://127.0.0.1:{to}/{STREAM}", consumer="bench", until_sequence=int(messages)) as loader:
        for batch in arrow.record_batches(loader, schema=schema, threads=1):
            counts.add(len(batch))
            del batch
    _tell(counts)


def memory(path: str, to: str, messages: str) -> None:
    """Parse the same blocks from memory, on one thread."""
    del to, messages
    data, counts, parse = Path(path).read_bytes(), Counts(), arrow_parser()
    counts.start()
    in_order(parse, memory_blocks(data, MESSAGE, 1), 1, counts)
    _tell(counts)


def _tell(counts: Counts) -> None:
    _report(
        rows=counts.rows,
        seconds=time.perf_counter() - counts.started,
        cpu=time.process_time() - counts.used,
    )


if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    if name in ("publish", "lines", "fill"):
        uvloop.run({"publish": publish, "lines": lines, "fill": fill}[name](*arguments))
    else:
        {"load": load_log, "memory": memory}[name](*arguments)
