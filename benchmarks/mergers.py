"""Receive the lines of many streams in Python and drop them: `python -m benchmarks.mergers NAME PORT CONNECTIONS`.

Each way is a function below, as its documentation would have one write it. The bytes are counted, and reported with the
number of reads and blocks to the file that BENCH_REPORT names; with BENCH_COPY set the lines go to standard output.
"""

import asyncio
import json
import os
import resource
import sys
from pathlib import Path

import uvloop

import ringmain
from benchmarks.receivers import HOST, count
from ringmain.outcome import Outcome

Figures = dict[str, int]


def _loader(port: int, connections: int, figures: Figures) -> ringmain.Loader:
    """Make a loader that stops when as many connections have ended."""
    loader = ringmain.load(f"tcp://{HOST}:{port}", delimiter=b"\n", max_connections=connections)
    ended = 0

    def on_end(outcome: Outcome) -> None:
        nonlocal ended
        ended += 1
        figures["reads"] += outcome.counters.reads
        if ended == connections:
            loader.stop()

    loader.on_end = on_end
    return loader


async def merged(port: int, connections: int, figures: Figures) -> None:
    """Use ringmain: `async for block in loader`, the lines of all clients in one ring."""
    async with _loader(port, connections, figures) as loader:
        async for block in loader:
            figures["bytes"] += count(block)
            figures["blocks"] += 1


async def each(port: int, connections: int, figures: Figures) -> None:
    """Use ringmain: `loader.connections()`, a receiver and a ring for each client."""

    async def consume(stream: ringmain.Stream) -> None:
        async for block in stream:
            figures["bytes"] += count(block)
            figures["blocks"] += 1

    async with _loader(port, connections, figures) as loader, asyncio.TaskGroup() as group:
        async for stream in loader.connections():
            group.create_task(consume(stream))


async def readline(port: int, connections: int, figures: Figures) -> None:
    """Read by asyncio's streams, a line at a time."""
    done = asyncio.Event()
    left = connections

    async def receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal left
        while line := await reader.readline():
            figures["bytes"] += count(line)
            figures["blocks"] += 1
        writer.close()
        left -= 1
        if not left:
            done.set()

    async with await asyncio.start_server(receive, HOST, port, backlog=connections):
        await done.wait()


def main(name: str, port: str, connections: str) -> None:
    """Receive so many streams and report."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    figures: Figures = {"bytes": 0, "reads": 0, "blocks": 0}
    receive = {"ringmain": merged, "ringmain-each": each, "uvloop-readline": readline}[name]
    uvloop.run(receive(int(port), int(connections), figures))
    if path := os.environ.get("BENCH_REPORT"):
        Path(path).write_text(json.dumps(figures))


if __name__ == "__main__":
    main(*sys.argv[1:])
