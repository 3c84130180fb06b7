"""A measurement as one JSON object, with iperf3's names for what means the same there; `schema.json` describes it.

That of rounds and of what they are compared with: `run`, `rounds`; of a load test: `replay_result`; the events of
--json-stream: `cli.bench_output`.
"""

import contextlib
import functools
import os
import platform
import ssl
import time
from pathlib import Path
from typing import Any

from ringmain import __version__
from ringmain.bench.plan import Plan
from ringmain.bench.tcp_info import in_all
from ringmain.endpoint import Endpoint
from ringmain.net.link import Link


class Measurement:
    """What both sides of a measurement tell: `local` and `remote`, as `Meter.side` returns them.

    `plan` is what was measured, and `about` what was known before.
    """

    def __init__(
        self, plan: Plan, endpoint: Endpoint, started: dict[str, Any], local: dict[str, Any], remote: dict[str, Any]
    ) -> None:
        self.plan = plan
        self.about = started
        self.endpoint = endpoint
        self.local = local
        self.remote = remote
        self.sender, self.receiver = (remote, local) if plan.reverse else (local, remote)


@functools.cache
def machine() -> dict[str, Any]:
    """Return what the figures of this machine depend on most, besides its load."""
    cpus = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "cpu": cpus[0] if cpus else platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "openssl": " ".join(ssl.OPENSSL_VERSION.split()[:2]),
    }


def machine_words(it: dict[str, Any]) -> str:
    """Return a machine in one line."""
    return f"{it['system']}, {it['cpus']} x {it['cpu']}, Python {it['python']}, {it['openssl']}"


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8", errors="backslashreplace").splitlines()
    except OSError:
        return []


def about() -> dict[str, Any]:
    """Return what is known before anything is measured, the time included."""
    now = time.time()
    return {
        "version": f"ringmain {__version__}",
        "system_info": machine_words(machine()),
        "machine": machine(),
        "timestamp": {"time": time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(now)), "timesecs": int(now)},
    }


def described(link: Link) -> dict[str, Any]:
    """Return the addresses of a connection, and how it is protected."""
    local, remote = link.sock.getsockname(), ("", 0)
    with contextlib.suppress(OSError):  # the peer has left already
        remote = link.sock.getpeername()
    return {
        "local_host": local[0],
        "local_port": local[1],
        "remote_host": remote[0],
        "remote_port": remote[1],
        "tls": link.tls_version,
        "cipher": link.cipher,
    }


def tls_of(stream: dict[str, Any]) -> dict[str, Any] | None:
    """Return how a described connection is protected, if it is."""
    return {"version": stream["tls"], "cipher": stream["cipher"]} if stream["tls"] else None


def connected_of(streams: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the addresses of described connections. `socket` numbers the streams: some are in other processes."""
    names = ("local_host", "local_port", "remote_host", "remote_port")
    return [{"socket": at + 1, **{name: it[name] for name in names}} for at, it in enumerate(streams)]


def test_start(measurement: Measurement) -> dict[str, Any]:
    """Return what was to be measured, and over which connections."""
    plan, endpoint = measurement.plan, measurement.endpoint
    stream = measurement.local["streams"][0]
    return {
        **measurement.about,
        "connecting_to": {"host": endpoint.host, "port": int(stream["remote_port"])},
        "connected": connected_of(measurement.local["streams"]),
        "tls": tls_of(stream),
        "test_start": {
            "protocol": "TCP",
            "num_streams": plan.parallel,
            "blksize": plan.message_size,
            "omit": plan.omit,
            "duration": plan.seconds or 0,
            "bytes": plan.size or 0,
            "target_bitrate": 8 * (plan.rate or 0),
            "reverse": int(plan.reverse),
            "processes": plan.processes,
            "through": plan.through,
        },
    }


def result_of(measurement: Measurement) -> dict[str, Any]:
    """Return the whole object."""
    sending = not measurement.plan.reverse
    return {
        "start": test_start(measurement),
        "intervals": [interval_of(it, sending) for it in measurement.local["intervals"]],
        "end": _end(measurement),
    }


def interval_of(interval: dict[str, Any], sending: bool) -> dict[str, Any]:
    """Return what an interval brought: each stream, and their sum."""
    start, end, omitted = interval["start"], interval["end"], interval["omitted"]
    sizes = interval["sizes"]
    tcp = interval["tcp"] or [None] * len(sizes)
    return {
        "streams": [
            {"socket": at + 1, **span(start, end, size, sending), "omitted": omitted, **(known or {})}
            for at, (size, known) in enumerate(zip(sizes, tcp, strict=True))
        ],
        "sum": {**span(start, end, sum(sizes), sending), "omitted": omitted, **in_all(tcp)},
    }


def span(start: float, end: float, size: int, sending: bool) -> dict[str, Any]:
    """Return what moved in a time."""
    seconds = max(end - start, 1e-9)
    return {
        "start": round(start, 6),
        "end": round(end, 6),
        "seconds": round(seconds, 6),
        "bytes": size,
        "bits_per_second": 8 * size / seconds,
        "sender": sending,
    }


def _end(measurement: Measurement) -> dict[str, Any]:
    sender, receiver = measurement.sender, measurement.receiver
    sending = not measurement.plan.reverse
    host, remote = work_of(measurement.local), work_of(measurement.remote)
    tcp = sender["tcp"] or [None] * len(sender["sizes"])
    algorithms = {"sender_tcp_congestion": sender["congestion"], "receiver_tcp_congestion": receiver["congestion"]}
    return {
        "streams": [
            {
                "sender": {"socket": at + 1, **span(0, sender["seconds"], sent, sending), **(known or {})},
                "receiver": {"socket": at + 1, **span(0, receiver["seconds"], got, sending)},
            }
            for at, (sent, got, known) in enumerate(zip(sender["sizes"], receiver["sizes"], tcp, strict=True))
        ],
        "sum_sent": {**span(0, sender["seconds"], sum(sender["sizes"]), sending), **in_all(tcp)},
        "sum_received": span(0, receiver["seconds"], sum(receiver["sizes"]), sending),
        "cpu_utilization_percent": {
            f"{name}_{kind}": 100 * it[f"cpu_{kind}_seconds"] / max(it["seconds"], 1e-9)
            for name, it in (("host", host), ("remote", remote))
            for kind in ("total", "user", "system")
        },
        "host": host,
        "remote": remote,
        **{name: algorithm for name, algorithm in algorithms.items() if algorithm is not None},
    }


def work_of(side: dict[str, Any]) -> dict[str, Any]:
    """Return what a side did for its bytes."""
    size, cpu = sum(side["sizes"]), side["user"] + side["system"]
    calls = side["reads"] or side["writes"]
    return {
        "seconds": side["seconds"],
        "bytes": size,
        "total_bytes": sum(side["totals"]),
        "cpu_total_seconds": cpu,
        "cpu_user_seconds": side["user"],
        "cpu_system_seconds": side["system"],
        "cpu_seconds_per_gb": cpu / size * 1e9 if size else None,
        "reads": side["reads"],
        "writes": side["writes"],
        "average_call": size / calls if calls else None,
        "blocks": side["blocks"],
        "average_block": size / side["blocks"] if side["blocks"] else None,
        "stalls": side["stalls"],
        "stalled_seconds": side["stalled_seconds"],
    }
