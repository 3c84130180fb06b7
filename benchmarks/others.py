"""What is measured besides whole streams: latency, start-up, memory with a stalled reader, and iperf3 for orientation.

Each function measures one contender once, like `transfers.measure`. What comes back in a latency probe is compared byte
by byte.
"""

import json
import socket
import statistics
import subprocess
import time
from dataclasses import replace

from benchmarks.processes import CONTENDER_CORES, OTHER_CORES, Processes, free_port, peak_memory
from benchmarks.transfers import Contender, Sample, Shape, command_line
from benchmarks.workshop import GB, BenchError, Workshop


def idle_latency(workshop: Workshop, shape: Shape, contender: Contender) -> Sample:
    """Send single bytes with pauses, and time each from the socket to the pipe at the other side of the contender."""
    del shape
    with Processes(workshop) as processes:
        port = free_port()
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
        port = free_port()
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
        port, to = free_port(), free_port()
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
        port, to = free_port(), free_port()
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
    latencies = processes.report("probe")["latencies"]
    percentiles = statistics.quantiles(latencies, n=100)
    return {"median µs": statistics.median(latencies), "p99 µs": percentiles[98], "slowest µs": max(latencies)}


def start_up(workshop: Workshop, shape: Shape, contender: Contender) -> Sample:
    """Time a program from its start until it listens, or where it does not, until it ends."""
    del shape
    with Processes(workshop) as processes:
        port = free_port()
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
        port = free_port()
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
        port = free_port()
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
