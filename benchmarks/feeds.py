"""NDJSON into msgspec and Arrow: through ringmain, from memory, and by what Python comes with: wall time of each.

The parser "ipc" is Arrow's own format through ringmain instead, with batches validated (`ringmain`) and `trusted` as
they come: what validation costs.

python -m benchmarks.feeds [--gib 2] [--rounds 5] [--threads 1] [--json FILE]

Suricata-like events are sent at full speed by a process of its own to a contender in a process of its own. The
contenders take turns, so that a noisy machine is noisy for all. `memory` parses the same bytes from memory in blocks of
equal size: what ringmain adds to that is the price of the network. The stock ways parse line by line (msgspec) or join
lines to blocks of that size (Arrow, which has no call for one line). Arrow parses on `--threads` in `memory` and
`ringmain`, and in the thread that reads with the stock ways, as one would write them.
"""

import argparse
import asyncio
import json
import mmap
import os
import platform
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.eve import arrow_schema, msgspec_type, write_events

CHUNK = 256 << 20
CONTENDERS = ("memory", "ringmain", "makefile", "asyncio")
IPC_CONTENDERS = ("trusted", "ringmain")
PARSERS = ("msgspec", "arrow", "ipc")
BLOCK = 1 << 20
BARS = {"memory": 1.1, "makefile": 1.3, "asyncio": 5.0}


class Counts:
    """What a contender saw."""

    def __init__(self) -> None:
        self.rows = self.calls = 0
        self.started = self.used = 0.0

    def start(self) -> None:
        """Begin to measure: a connection is there, or the bytes are in memory."""
        self.started, self.used = time.perf_counter(), time.process_time()

    def add(self, rows: int) -> None:
        """Count what one call of the parser gave."""
        self.rows += rows
        self.calls += 1

    def show(self) -> None:
        """Print the result for the process that started this one."""
        seconds = time.perf_counter() - self.started
        used, peak = time.process_time() - self.used, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        result = {"seconds": seconds, "cpu": used, "rows": self.rows, "calls": self.calls, "peak_mib": peak >> 10}
        print(json.dumps(result), flush=True)


def arrow_parser() -> Callable[[bytes | memoryview], int]:
    """Return what parses a block as the feed does, and returns its rows."""
    import pyarrow as pa
    import pyarrow.json as pj

    options = pj.ParseOptions(explicit_schema=arrow_schema(), unexpected_field_behavior="error")

    def parse(block: bytes | memoryview) -> int:
        read = pj.ReadOptions(use_threads=False, block_size=len(block) + 1)
        return int(pj.read_json(pa.BufferReader(pa.py_buffer(block)), read, options).num_rows)

    return parse


def in_order(parse: Callable[[bytes | memoryview], int], blocks: Iterator[Any], threads: int, counts: Counts) -> None:
    """Parse blocks on threads, at most two ahead a thread, and count the results in order."""
    if threads == 0:
        for block in blocks:
            counts.add(parse(block))
        return
    with ThreadPoolExecutor(threads) as pool:
        pending = [pool.submit(parse, block) for block in islice(blocks, 2 * threads)]
        while pending:
            counts.add(pending.pop(0).result())
            pending += [pool.submit(parse, block) for block in islice(blocks, 1)]


def memory_blocks(data: bytes, size: int, times: int) -> Iterator[memoryview]:
    """Yield blocks of whole lines, as large as fit."""
    view = memoryview(data)
    for _ in range(times):
        start = 0
        while start < len(data):
            end = data.rfind(b"\n", start, start + size) + 1 if start + size < len(data) else len(data)
            yield view[start:end]
            start = end


def memory(parser: str, options: argparse.Namespace) -> Counts:
    """Parse what is in memory."""
    data = options.data.read_bytes()
    counts = Counts()
    if parser == "msgspec":
        import msgspec

        decode = msgspec.json.Decoder(msgspec_type()).decode_lines
        counts.start()
        for block in memory_blocks(data, options.block, options.times):
            counts.add(len(decode(block)))
    else:
        parse = arrow_parser()
        counts.start()
        in_order(parse, memory_blocks(data, options.block, options.times), options.threads, counts)
    return counts


def ringmain(parser: str, options: argparse.Namespace) -> Counts:
    """Parse what a plain `for` over a feed gives."""
    from ringmain import load
    from ringmain.feeds import arrow
    from ringmain.feeds import msgspec as lines

    counts = Counts()
    feed: Any
    with load("tcp://127.0.0.1:0", delimiter=b"\n", listen_once=True, block_size=options.block) as loader:
        print(loader.port, flush=True)
        connection = next(loader.connections())
        if parser == "msgspec":
            feed = lines.decode_lines(connection, msgspec_type())
        else:
            feed = arrow.record_batches(connection, schema=arrow_schema(), threads=options.threads)
        counts.start()
        for part in feed:
            counts.add(len(part))
            del part
    return counts


def ipc(*, validate: bool) -> Counts:
    """Take record batches off a connection, and look at none of their values."""
    from ringmain import load
    from ringmain.feeds import arrow

    counts = Counts()
    with load("tcp://127.0.0.1:0", listen_once=True, block_size=8 * BLOCK) as loader:
        print(loader.port, flush=True)
        batches = arrow.record_batches(next(loader.connections()), "ipc", validate=validate)
        counts.start()
        for batch in batches:
            counts.add(len(batch))
            del batch
    return counts


def write_ipc(events: Path, path: Path) -> None:
    """Write events as an IPC stream, in batches of about a MiB."""
    import pyarrow as pa
    import pyarrow.json as pj

    table = pj.read_json(str(events), parse_options=pj.ParseOptions(explicit_schema=arrow_schema()))
    with path.open("wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=max(1, table.num_rows * BLOCK // table.nbytes))


def makefile(parser: str, options: argparse.Namespace) -> Counts:
    """Parse the lines of a socket's file."""
    counts = Counts()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        sock, _ = listener.accept()
    with sock, sock.makefile("rb") as file:
        if parser == "msgspec":
            import msgspec

            decode = msgspec.json.Decoder(msgspec_type()).decode
            counts.start()
            for line in file:
                decode(line)
                counts.add(1)
        else:
            parse = arrow_parser()
            counts.start()
            blocks = (b"".join(lines) for lines in iter(lambda: file.readlines(options.block), []))
            in_order(parse, blocks, 0, counts)
    return counts


def asyncio_streams(parser: str, options: argparse.Namespace) -> Counts:
    """Parse the lines of asyncio's own reader."""
    counts = Counts()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        counts.start()
        if parser == "msgspec":
            import msgspec

            decode = msgspec.json.Decoder(msgspec_type()).decode
            while line := await reader.readline():
                decode(line)
                counts.add(1)
        else:
            await arrow_of_lines(reader, counts, options.block)
        writer.close()
        done.set()

    async def main() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        print(server.sockets[0].getsockname()[1], flush=True)
        await done.wait()
        server.close()

    done = asyncio.Event()
    asyncio.run(main())
    return counts


async def arrow_of_lines(reader: asyncio.StreamReader, counts: Counts, block: int) -> None:
    """Join lines to blocks and parse them."""
    parse = arrow_parser()
    lines: list[bytes] = []
    size = 0
    while line := await reader.readline():
        lines.append(line)
        size += len(line)
        if size >= block:
            counts.add(parse(b"".join(lines)))
            lines, size = [], 0
    if lines:
        counts.add(parse(b"".join(lines)))


def send(options: argparse.Namespace) -> None:
    """Send the events to a port, over and over."""
    with options.data.open("rb") as file, socket.create_connection(("127.0.0.1", options.port)) as sock:
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        for _ in range(options.times):
            for start in range(0, len(data), 1 << 20):
                sock.sendall(data[start : start + (1 << 20)])


def measure(name: str, parser: str, options: argparse.Namespace) -> dict[str, float]:
    """Run one contender against a sender, each in its process."""
    common = [sys.executable, "-m", "benchmarks.feeds", "--data", str(options.data), "--times", str(options.times)]
    common += ["--block", str(options.block), "--threads", str(options.threads)]
    with subprocess.Popen([*common, "--contender", name, "--parser", parser], stdout=subprocess.PIPE) as contender:
        assert contender.stdout is not None
        if name != "memory":
            port = contender.stdout.readline().decode().strip()
            subprocess.run([*common, "--port", port], check=True)
        result: dict[str, float] = json.loads(contender.stdout.read())
    return result


def compare(parser: str, options: argparse.Namespace) -> dict[str, Any]:
    """Let the contenders take turns; print and return medians and ratios."""
    contenders = IPC_CONTENDERS if parser == "ipc" else options.contenders
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    for number in range(options.rounds):
        for name in contenders:
            rounds[name].append(result := measure(name, parser, options))
            print(f"  round {number + 1} {name:9} {result['seconds']:6.2f} s", file=sys.stderr, flush=True)
    rows = {result["rows"] for results in rounds.values() for result in results}
    if len(rows) != 1:
        sys.exit(f"benchmarks.feeds: the contenders disagree about the rows: {rows}")
    medians = {name: statistics.median(part["seconds"] for part in results) for name, results in rounds.items()}
    size = options.data.stat().st_size * options.times
    print(f"\n{parser}: {size / 1e9:.2f} GB, {rows.pop():.0f} rows, medians of {options.rounds} rounds")
    ours = medians.get("ringmain", 0.0)
    ratios = {}
    for name, seconds in medians.items():
        last = rounds[name][-1]
        cpu = statistics.median(part["cpu"] for part in rounds[name])
        note = f"{cpu:7.2f} s CPU {size / seconds / 1e6:7.0f} MB/s {size / last['calls'] / 1024:8.1f} KiB a call"
        if name == "trusted":
            ratios[name] = ours / seconds
            more = (statistics.median(part["cpu"] for part in rounds["ringmain"]) - cpu) / size * 1e9
            note += f"  ratio {ratios[name]:5.2f}: validation takes {more:.3f} s of CPU a GB"
        if name in BARS and ours:
            ratios[name] = ours / seconds if name == "memory" else seconds / ours
            bound = "at most" if name == "memory" else "at least"
            note += f"  ratio {ratios[name]:5.2f} ({bound} {BARS[name]:g})"
        print(f"  {name:9} {seconds:7.2f} s {note}", flush=True)
    return {"medians": medians, "ratios": ratios, "rounds": rounds, "bytes": size}


def arguments() -> argparse.Namespace:
    """Read the command line; what follows the blank is for the processes that this one starts."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.feeds", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("--gib", type=float, default=2.0, help="how much is sent each time")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--block", type=int, default=BLOCK, help="bytes of a block")
    parser.add_argument("--threads", type=int, default=1, help="that parse, with Arrow")
    parser.add_argument("--parsers", nargs="+", choices=PARSERS, default=PARSERS)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    for internal, kind in (
        ("--data", Path),
        ("--times", int),
        ("--contender", str),
        ("--parser", str),
        ("--port", int),
    ):
        parser.add_argument(internal, type=kind, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Run the benchmark, or be one of its processes."""
    options = arguments()
    if options.port:
        send(options)
        return
    if options.contender:
        run = {"memory": memory, "ringmain": ringmain, "makefile": makefile, "asyncio": asyncio_streams}
        if options.parser == "ipc":
            ipc(validate=options.contender == "ringmain").show()
        else:
            run[options.contender](options.parser, options).show()
        return
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="ringmain-feeds-") as folder:
        size = int(options.gib * 2**30)
        options.times = max(1, round(size / CHUNK))
        options.data = Path(folder, "eve.json")
        write_events(options.data, size // options.times)
        events = options.data
        for parser in options.parsers:
            options.data = events
            if parser == "ipc":
                options.data = Path(folder, "eve.arrows")
                write_ipc(events, options.data)
            results[parser] = compare(parser, options)
    if options.json:
        versions = {name: version(name) for name in ("ringmain", "uvloop", "msgspec", "pyarrow")}
        about = {"python": platform.python_version(), "cores": len(os.sched_getaffinity(0)), "versions": versions}
        options.json.write_text(json.dumps(about | {"results": results}, indent=1))


if __name__ == "__main__":
    main()
