"""What goes into a NATS stream and comes out of it, each time with a server and files of its own.

After each transfer all of the stream is read again: its bytes are counted, and where many have sent, the lines of each
must follow one another.
"""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from benchmarks import log_clients
from benchmarks.bench import FEW, RELAY_COMMAND, Bench
from benchmarks.eve import write_events
from benchmarks.processes import ALL_CORES, CONTENDER_CORES, OTHER_CORES, Processes, cpu_so_far, peak_memory
from benchmarks.transfers import Contender, Sample, Shape, command_line
from benchmarks.workshop import GB, BenchError, Workshop

_OUTAGE = 30.0
_SERVER = ["-a", "127.0.0.1", "-js"]


@contextmanager
def _serving(workshop: Workshop) -> Iterator[tuple[Processes, int]]:
    """Start a server with a stream; yield the processes that it is one of, and its port."""
    with Processes(workshop) as processes:
        port = processes.free_port()
        command = [workshop.words["nats"], *_SERVER, "-p", str(port), "-sd", f"{processes.config_path}.d"]
        processes.start("server", command, measured=True, cores=OTHER_CORES)
        processes.wait_for_listener("server", port)
        asyncio.run(log_clients.make_stream(port))
        yield processes, port


def _command(processes: Processes, contender: Contender, size: int, port: int, to: int) -> list[str]:
    words = contender.command.replace("{size}", str(size))
    return command_line(processes, replace(contender, command=words), port, to)


def _check(to: int, size: int, connections: int) -> None:
    """Read all that the stream has; raise BenchError where it is not what was sent."""
    found = asyncio.run(log_clients.read_all(to))
    came = sum(len(data) for messages in found.values() for data in messages)
    if came != size:
        raise BenchError(f"{size} bytes were sent, the stream has {came}")
    if connections == 1:
        return
    for messages in found.values():
        for number, line in enumerate(b"".join(messages).splitlines()):
            if len(line) == 399 and int(line[5:15], 16) != number:
                raise BenchError(f"{line[:20]!r} is in the stream, not number {number}")


def publishing(workshop: Workshop, shape: Shape, contender: Contender) -> Sample:
    """Have a contender put a stream into the log; return what that took, the server's part apart."""
    del shape
    size = int(contender.size * GB) >> 20 << 20  # whole lines, as each MiB of the pattern has them
    with _serving(workshop) as (processes, to):
        port = processes.free_port()
        command = _command(processes, contender, size, port, to)
        processes.start("contender", command, measured=True, cores=CONTENDER_CORES)
        if "{port}" in contender.command:
            processes.wait_for_listener("contender", port)
            used = cpu_so_far(processes.pid("contender"))
            _start_source(processes, contender, size, port)
            processes.wait("source")
            if contender.server:
                processes.stop("contender")
        processes.wait("contender")
        _check(to, size, contender.connections)
        processes.stop("server")
        processes.wait("server")
        times = processes.report("source") or processes.report("contender")
        if not times:
            raise BenchError(f"{contender.name}: {processes.complaint('contender')}")
        used = times.get("used") or used
        cost, server = processes.cost("contender"), processes.cost("server")
        whole, gigabytes = cost["user"] + cost["system"], size / GB
        return {
            "GB/s": gigabytes / (times["end"] - times["start"]),
            "CPU s/GB": whole / gigabytes,
            "net CPU s/GB": (whole - used) / gigabytes,
            "peak MiB": cost["peak"] / (1 << 20),
            "server CPU s/GB": (server["user"] + server["system"]) / gigabytes,
        }


def _start_source(processes: Processes, contender: Contender, size: int, port: int) -> None:
    folder = processes.workshop.folder
    command = [str(folder / "send"), str(port), str(size), str(contender.message), "0"]
    if contender.connections > 1:
        command = [str(folder / "crowd"), str(port), str(size), str(contender.connections)]
    processes.start("source", command, cores=OTHER_CORES)


def loading(workshop: Workshop, shape: Shape, contender: Contender) -> Sample:
    """Have a contender parse what is in the log, or what is in a file of the same blocks."""
    del shape
    size = int(contender.size * GB)
    path = workshop.folder / f"events-{size}.json"
    if not path.exists():
        write_events(path, size)
    with _serving(workshop) as (processes, to):
        fill = [workshop.words["python"], "-m", "benchmarks.log_clients", "fill", str(to), str(path)]
        processes.start("filler", fill)
        processes.wait("filler")
        messages = asyncio.run(log_clients.stored(to))
        words = contender.command.format_map(workshop.words | {"path": path, "to": to, "messages": messages})
        processes.start("contender", words.split(), cores=ALL_CORES)
        processes.wait("contender")
        report = processes.report("contender")
        if report.get("rows") != path.read_bytes().count(b"\n"):
            raise BenchError(f"{contender.name}: not all rows came, {report}: {processes.complaint('contender')}")
        gigabytes = path.stat().st_size / GB
        return {
            "GB/s": gigabytes / report["seconds"],
            "CPU s/GB": report["cpu"] / gigabytes,
            "ms": report["seconds"] * 1e3,
        }


def outage(workshop: Workshop, shape: Shape, contender: Contender) -> Sample:
    """Stop the server for a while in the middle of what clients send at full speed; tell how big the contender got."""
    del shape
    size = int(contender.size * GB)
    with _serving(workshop) as (processes, to):
        port = processes.free_port()
        processes.start("contender", _command(processes, contender, size, port, to), measured=True)
        processes.wait_for_listener("contender", port)
        _start_source(processes, contender, size, port)
        while asyncio.run(log_clients.stored(to)) < contender.connections:
            time.sleep(0.01)
        server = processes.pid("server")
        os.kill(server, signal.SIGSTOP)
        time.sleep(_OUTAGE)
        waits = processes.runs("source")
        os.kill(server, signal.SIGCONT)
        if not waits:
            raise BenchError("the clients did not wait for the server")
        processes.wait("source")
        peak = peak_memory(processes.pid("contender"))
        processes.stop("contender")
        processes.wait("contender")
        _check(to, size, contender.connections)
        return {"peak MiB": peak / (1 << 20)}


_RELAY = RELAY_COMMAND + "--stats-file {report} "
_THERE = "tcp://127.0.0.1:{port} nats://127.0.0.1:{to}/log"
_CLIENTS = "{python} -m benchmarks.log_clients "

LOG = Bench(
    "log",
    "Publish to a NATS stream of one replica: `ringmain relay tcp://... nats://...` and others",
    "nats-py",
    Shape(),
    [
        Contender("nats-py", _CLIENTS + "publish {to} {size}", FEW / 2),
        Contender("ringmain", _RELAY + "--listen-once " + _THERE, FEW / 2),
        Contender(
            "ringmain, 16 clients", _RELAY + "--max-connections 16 " + _THERE, FEW / 2, server=True, connections=16
        ),
        Contender("a publish a line", _CLIENTS + "lines {port} {to}", FEW / 100),
    ],
    measure=publishing,
)

LOG_LOAD = Bench(
    "log-load",
    "Parse NDJSON into Arrow on one thread: `ringmain.load` of a NATS stream, and the same blocks from memory",
    "memory",
    Shape(),
    [
        Contender("memory", _CLIENTS + "memory {path} {to} {messages}", FEW / 2),
        Contender("ringmain", _CLIENTS + "load {path} {to} {messages}", FEW / 2),
    ],
    measure=loading,
)

LOG_OUTAGE = Bench(
    "log-outage",
    "Peak memory of a relay of 64 clients into a NATS stream whose server stands still for 30 s",
    "ringmain",
    Shape(),
    [Contender("ringmain", RELAY_COMMAND + "--max-connections 64 " + _THERE, FEW / 2, server=True, connections=64)],
    rounds=1,
    measure=outage,
)

LOGS = [LOG, LOG_LOAD, LOG_OUTAGE]
