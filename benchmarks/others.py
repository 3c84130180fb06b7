"""What is measured besides whole streams: latency, start-up, memory with a stalled reader, and iperf3 for orientation.

Each function measures one contender once, like `transfers.measure`. What comes back in a latency probe is compared byte
by byte.
"""

import contextlib
import json
import os
import re
import resource
import socket
import statistics
import subprocess
import time
from dataclasses import replace

from benchmarks.processes import CONTENDER_CORES, OTHER_CORES, Processes, descriptors, peak_memory, resident
from benchmarks.transfers import Contender, Sample, Shape, command_line
from benchmarks.workshop import GB, BenchError, Workshop

_CONSUMER_RATE = 0.4 * GB  # bytes a second
_WARM_UP = 64 << 20
_QUIET_LINES, _QUIET_PAUSE = 500, 0.02


def idle_latency(workshop: Workshop, shape: Shape, contender: Contender) -> Sample:
    """Send single bytes with pauses, and time each from the socket to the pipe at the other side of the contender."""
    del shape
    with Processes(workshop) as processes:
        port = processes.free_port()
        command = command_line(processes, contender, port)
        process = processes.start("contender", command, stdout=subprocess.PIPE)
        processes.wait_for_listener("contender", port)
        probe = [str(workshop.folder / "probe"), str(port), "200", "1", "4000"]
        processes.start("probe", probe, stdin=process.stdout)
        processes.wait("probe")
        return _latency(processes)


def ping_pong(workshop: Workshop, shape: Shape, contender: Contender) -> Sample:
    """Send 1 KiB at a time through a contender that saves and one that loads (`command` is LOAD && SAVE) and back."""
    del shape
    load, save = contender.command.split("&&")
    with Processes(workshop) as processes:
        port = processes.free_port()
        loader = processes.start(
            "contender", command_line(processes, replace(contender, command=load), port), stdout=subprocess.PIPE
        )
        processes.wait_for_listener("contender", port)
        saver = processes.start(
            "saver", command_line(processes, replace(contender, command=save), port), stdin=subprocess.PIPE
        )
        probe = [str(workshop.folder / "probe"), "0", "2000", "1024", "0"]
        processes.start("probe", probe, stdin=loader.stdout, stdout=saver.stdin)
        saver.stdin.close()
        processes.wait("probe")
        return _latency(processes)


def relay_latency(workshop: Workshop, shape: Shape, contender: Contender) -> Sample:
    """Send 1 KiB at a time through a relay to a server that sends it back."""
    del shape
    with Processes(workshop) as processes:
        port, to = processes.free_port(), processes.free_port()
        processes.start("echo", [str(workshop.folder / "echo"), str(to)])
        processes.wait_for_listener("echo", to)
        processes.start("contender", command_line(processes, contender, port, to))
        processes.wait_for_listener("contender", port)
        processes.start("probe", [str(workshop.folder / "probe"), str(port), "5000", "1024", "0", "echo"])
        processes.wait("probe")
        return _latency(processes)


def both_ways(workshop: Workshop, shape: Shape, contender: Contender) -> Sample:
    """Send through a relay from both sides at once; what comes is counted, and its numbers are read, at both."""
    del shape
    size = int(contender.size * GB)
    with Processes(workshop) as processes:
        port, to = processes.free_port(), processes.free_port()
        duplex = str(workshop.folder / "duplex")
        processes.start("far", [duplex, "accept", str(to), str(size)], cores=OTHER_CORES)
        processes.wait_for_listener("far", to)
        command = command_line(processes, contender, port, to)
        processes.start("contender", command, measured=True, cores=CONTENDER_CORES)
        processes.wait_for_listener("contender", port)
        processes.start("near", [duplex, "connect", str(port), str(size)], cores=OTHER_CORES)
        for name in ("near", "far", "contender"):
            processes.wait(name)
        ends = [processes.report(name) for name in ("near", "far")]
        if any(end["bytes"] != size or end["bad"] for end in ends):
            raise BenchError(f"{size} bytes were sent each way, {ends} came; {processes.complaint('contender')}")
        cost = processes.cost("contender")
        seconds = max(end["end"] for end in ends) - ends[0]["start"]
        return {
            "GB/s": size / GB / seconds,
            "CPU s/GB": (cost["user"] + cost["system"]) / (2 * size / GB),
            "peak MiB": cost["peak"] / (1 << 20),
        }


def _latency(processes: Processes) -> Sample:
    return _percentiles(processes.report("probe")["latencies"])


def _percentiles(latencies: list[float]) -> Sample:
    percentiles = statistics.quantiles(latencies, n=100)
    return {"median µs": statistics.median(latencies), "p99 µs": percentiles[98], "slowest µs": max(latencies)}


def quiet_latency(workshop: Workshop, shape: Shape, contender: Contender) -> Sample:
    """Send lines with pauses on one connection beside floods on the others, and time each to a consumer that paces."""
    del shape
    with Processes(workshop) as processes:
        port = processes.free_port()
        command = command_line(processes, contender, port)
        process = processes.start("contender", command, cores=CONTENDER_CORES, stdout=subprocess.PIPE)
        processes.wait_for_listener("contender", port)
        with socket.create_connection(("127.0.0.1", port)) as quiet:
            # More than is ever read: it is ended with the others.
            crowd = [str(workshop.folder / "crowd"), str(port), str(1000 * GB), str(contender.connections - 1)]
            processes.start("source", crowd, cores=OTHER_CORES)
            return _percentiles(_beside_floods(process.stdout.fileno(), quiet))


def _beside_floods(pipe: int, quiet: socket.socket) -> list[float]:
    """Return the µs that each line of a quiet connection took until it was read; floods have not its word."""
    latencies: list[float] = []
    taken, rest, sent = -_WARM_UP, b"", 0
    begun = time.monotonic()
    while len(latencies) < _QUIET_LINES:
        now = time.monotonic()
        if taken < 0:
            begun = now  # as fast as it comes, until all floods are there
        elif sent < _QUIET_LINES and now - begun > sent * _QUIET_PAUSE:
            quiet.sendall(b"quiet %d\n" % time.monotonic_ns())
            sent += 1
        if (ahead := taken / _CONSUMER_RATE - (now - begun)) > 0:
            time.sleep(min(ahead, _QUIET_PAUSE / 10))
            continue
        data = rest + os.read(pipe, 256 << 10)
        taken += len(data) - len(rest)
        rest = data[data.rfind(b"\n") + 1 :]
        read = time.monotonic_ns()
        latencies += [(read - int(found[1])) / 1e3 for found in re.finditer(rb"quiet (\d+)\n", data)]
    return latencies


def idle_memory(workshop: Workshop, shape: Shape, contender: Contender) -> Sample:
    """Connect as many clients as it serves, which say nothing, and tell how much bigger that makes it."""
    del shape
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    with Processes(workshop) as processes, contextlib.ExitStack() as clients:
        port = processes.free_port()
        command = command_line(processes, contender, port)
        process = processes.start("contender", command, measured=True, stdout=subprocess.PIPE)
        processes.wait_for_listener("contender", port)
        pid = processes.pid("contender")

        def connect() -> socket.socket:
            return clients.enter_context(socket.create_connection(("127.0.0.1", port)))

        connect().sendall(b"It has served one.\n")
        os.read(process.stdout.fileno(), 100)
        before, had = resident(pid), descriptors(pid)
        for _ in range(contender.connections - 1):
            connect()
        while descriptors(pid) < had + contender.connections - 1:
            if process.poll() is not None:
                raise BenchError(f"{contender.name}: {processes.complaint('contender')}")
            time.sleep(0.01)
        return {"added MiB": (resident(pid) - before) / (1 << 20)}


def start_up(workshop: Workshop, shape: Shape, contender: Contender) -> Sample:
    """Time a program from its start until it listens, or where it does not, until it ends."""
    del shape
    with Processes(workshop) as processes:
        port = processes.free_port()
        command = command_line(processes, contender, port)
        started = time.monotonic()
        process = processes.start("contender", command)
        if "{port}" not in contender.command:
            processes.wait("contender")
        while "{port}" in contender.command:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                if process.poll() is not None:
                    raise BenchError(f"{contender.name}: {processes.complaint('contender')}") from None
                time.sleep(0.0002)
        return {"ms": (time.monotonic() - started) * 1e3}


def stalled_memory(workshop: Workshop, shape: Shape, contender: Contender) -> Sample:
    """Let a source send as much as the contender takes while nobody reads its output; return its peak memory."""
    del shape
    with Processes(workshop) as processes:
        port = processes.free_port()
        command = command_line(processes, contender, port)
        processes.start("contender", command, measured=True, stdout=subprocess.PIPE)
        processes.wait_for_listener("contender", port)
        processes.start("source", [str(workshop.folder / "send"), str(port), str(GB), str(256 << 10), "0"])
        time.sleep(1)
        return {"peak MiB": peak_memory(processes.pid("contender")) / (1 << 20)}


def iperf(workshop: Workshop, shape: Shape, contender: Contender) -> Sample:
    """Run iperf3 for two seconds, over the loopback and with one stream."""
    del shape
    with Processes(workshop) as processes:
        port = processes.free_port()
        processes.start("contender", command_line(processes, contender, port))
        processes.wait_for_listener("contender", port)
        client = ["iperf3", "-c", "127.0.0.1", "-p", str(port), "-t", "2", "-J"]
        done = subprocess.run(client, capture_output=True, text=True, timeout=30, check=False)
        if done.returncode:
            raise BenchError(f"iperf3: {done.stdout[-300:]}")
        end = json.loads(done.stdout)["end"]
        gigabytes = end["sum_received"]["bytes"] / GB
        seconds = end["sum_received"]["seconds"]
        cpu = end["cpu_utilization_percent"]["remote_total"] / 100 * seconds
        return {"GB/s": gigabytes / seconds, "CPU s/GB": cpu / gigabytes}
