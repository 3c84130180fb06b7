"""The bars that ringmain is held to, and whether a run reached them."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.tables import aligned, ratios
from ringmain.settings import LINGER

Results = dict[str, Any]


@dataclass(frozen=True)
class Bar:
    """A figure of a run, and what it must be: `limit` at least for "at least", at most or below for the others."""

    what: str
    relation: str
    limit: float
    unit: str
    measure: Callable[[Results], float | None]

    def verdict(self, results: Results) -> dict[str, Any]:
        """Return the bar with its value and whether it is reached; neither where the run has not measured it."""
        value = self.measure(results)
        passed = None
        if value is not None:
            passed = {
                "at least": value >= self.limit,
                "at most": value <= self.limit,
                "below": value < self.limit,
            }[self.relation]
        text = f"{self.relation} {self.limit:g}{self.unit}"
        return {"what": self.what, "bar": text, "value": value, "unit": self.unit, "passed": passed}


def _median_ratio(bench: str, one: str, other: str, metric: str) -> Callable[[Results], float | None]:
    """Compare two contenders: the median of the ratios of each round."""

    def measure(results: Results) -> float | None:
        if bench not in results["benches"]:
            return None
        values = ratios(results["benches"][bench]["samples"], one, other, metric)
        return statistics.median(values) if values else None

    return measure


def _figure(
    bench: str, contender: str, metric: str, pick: Callable[[list[float]], float]
) -> Callable[[Results], float | None]:
    """Pick from the figures of one contender."""

    def measure(results: Results) -> float | None:
        rows = results["benches"].get(bench, {}).get("samples", {}).get(contender, [])
        return pick([row[metric] for row in rows]) if rows else None

    return measure


def _slowest(bench: str) -> Callable[[Results], float | None]:
    """Compare the slowest of a round, the median of all rounds, to what it may take: linger, and socat's median."""

    def measure(results: Results) -> float | None:
        slowest = _figure(bench, "ringmain", "slowest µs", statistics.median)(results)
        median = _figure(bench, "socat", "median µs", statistics.median)(results)
        return None if slowest is None or median is None else slowest / (1e6 * LINGER + 1.3 * median)

    return measure


def _growing_memory(results: Results) -> float | None:
    """Return how much bigger 32 GB made the process than 1 GB, in MiB."""
    small = _figure("growth", "ringmain 1 GB", "peak MiB", statistics.median)(results)
    large = _figure("growth", "ringmain 32 GB", "peak MiB", max)(results)
    return None if small is None or large is None else large - small


def _peak_stalled(results: Results) -> float | None:
    contenders = results["benches"].get("stalled", {}).get("samples", {})
    peaks = [row["peak MiB"] for rows in contenders.values() for row in rows]
    return max(peaks) if peaks else None


def _pair(what: str, bench: str, other: str, speed: float, cpu: float) -> list[Bar]:
    return [
        Bar(f"{what}, GB/s", "at least", speed, "x", _median_ratio(bench, "ringmain", other, "GB/s")),
        Bar(f"{what}, CPU s/GB", "at most", cpu, "x", _median_ratio(bench, "ringmain", other, "CPU s/GB")),
    ]


def _cpu(what: str, relation: str, limit: float, bench: str, other: str) -> Bar:
    return Bar(f"{what}, CPU s/GB", relation, limit, "x", _median_ratio(bench, "ringmain", other, "CPU s/GB"))


def _net(what: str, limit: float, bench: str, other: str) -> Bar:
    """Judge by the CPU seconds that are left without those of starting up."""
    return Bar(f"{what}, net CPU s/GB", "at most", limit, "x", _median_ratio(bench, "ringmain", other, "net CPU s/GB"))


def _ahead(what: str, bench: str, other: str) -> list[Bar]:
    """Judge whether it is faster and cheaper; CPU as a whole, since the others' start-up is not told apart."""
    return [
        Bar(f"{what}, GB/s", "at least", 1.0, "x", _median_ratio(bench, "ringmain", other, "GB/s")),
        _cpu(what, "below", 1.0, bench, other),
    ]


def _quiet_p99(results: Results) -> float | None:
    p99 = _figure("quiet", "ringmain", "p99 µs", statistics.median)(results)
    return None if p99 is None else p99 / 1e3


def _latency(what: str, bench: str) -> Bar:
    ratio = _median_ratio(bench, "ringmain", "socat", "median µs")
    return Bar(f"{what} / socat, median", "at most", 1.3, "x", ratio)


BARS = [
    *_pair("receive, `async for` / C read loop", "receive", "C read", 1.15, 0.75),
    *_pair("receive, `async for` / C poll + drain", "receive", "C poll + drain", 0.9, 1.25),
    Bar("load to a pipe / socat, GB/s", "at least", 3, "x", _median_ratio("pipe", "ringmain", "socat", "GB/s")),
    *_pair("load to a pipe / C splice + mark", "pipe", "C splice + mark", 0.95, 1.15),
    _net("TLS receive, `async for` / C OpenSSL", 0.95, "tls", "C OpenSSL"),
    _net("TLS receive, `async for` / aiofastnet", 0.9, "tls", "aiofastnet"),
    _net("save over TLS / C OpenSSL", 0.95, "save-tls", "C OpenSSL"),
    _net("save over TLS / aiofastnet", 0.9, "save-tls", "aiofastnet"),
    _cpu("load --tls to a pipe / socat", "below", 1.0, "tls-pipe", "socat"),
    _cpu("load --tls to a pipe / ncat", "below", 1.0, "tls-pipe", "ncat"),
    *_pair("save from a file / C sendfile", "save-file", "C sendfile", 0.95, 1.15),
    *_pair("save from a pipe / C splice", "save-pipe", "C splice", 0.95, 1.15),
    Bar(
        "blocks cut at newlines / uncut, GB/s",
        "at least",
        0.95,
        "x",
        _median_ratio("receive", "ringmain-lines", "ringmain", "GB/s"),
    ),
    _cpu("slow stream to a pipe / socat", "at most", 0.5, "slow", "socat"),
    _latency("one byte when idle", "idle"),
    Bar("one byte when idle, slowest / linger + 1.3 socat", "at most", 1, "x", _slowest("idle")),
    _latency("1 KiB ping-pong", "ping-pong"),
    Bar("1 KiB ping-pong, slowest / linger + 1.3 socat", "at most", 1, "x", _slowest("ping-pong")),
    Bar("relay / socat, GB/s", "at least", 3, "x", _median_ratio("relay", "ringmain", "socat", "GB/s")),
    *_pair("relay / C splice", "relay", "C splice", 0.9, 1.2),
    *(_net(f"{n} connections merged / C epoll", 1.3, f"many-{n}", "C epoll merge") for n in (16, 256, 1000)),
    *(_net(f"{n} connections merged / a ring each", 0.5, f"many-{n}", "ringmain-each") for n in (16, 256, 1000)),
    Bar(
        "a block of 256 connections' lines",
        "at least",
        488,  # 0.5 MB
        " KiB",
        _figure("many-256", "ringmain", "block KiB", statistics.median),
    ),
    Bar("peak memory with 1,000 connections", "below", 64, " MiB", _figure("many-1000", "ringmain", "peak MiB", max)),
    Bar("what 1,000 idle connections add", "at most", 2, " MiB", _figure("idle-many", "ringmain", "added MiB", max)),
    Bar("a quiet line beside 255 floods, p99", "at most", 150, " ms", _quiet_p99),
    *_ahead("256 connections merged / uvloop's readline", "many-256", "uvloop-readline"),
    *_ahead("load of 256 connections to a pipe / socat fork", "many-pipe", "socat"),
    *_ahead("load of 256 connections to a pipe / rsyslog imptcp", "many-pipe", "rsyslog"),
    _cpu("relay of 200 / haproxy", "below", 1.0, "relay-200", "haproxy"),
    _cpu("relay of 200 / haproxy splicing", "below", 1.0, "relay-200", "haproxy splice"),
    _cpu("relay of 200 / socat fork", "below", 1.0, "relay-200", "socat"),
    _cpu("relay of 1,000 / haproxy", "below", 1.0, "relay-1000", "haproxy"),
    *_pair("relay both ways at once / C splice", "relay-both", "C splice", 0.9, 1.2),
    _cpu("relay that ends TLS / stunnel", "below", 1.0, "relay-tls", "stunnel"),
    _cpu("relay that ends TLS / haproxy", "below", 1.0, "relay-tls", "haproxy"),
    _cpu("relay that ends TLS / socat", "below", 1.0, "relay-tls", "socat"),
    _latency("1 KiB through a relay and back", "relay-latency"),
    *(
        bar
        for name in ("ringmain", "ringmain, 16 clients")
        for bar in (
            Bar(
                f"{name} into a log / nats-py, GB/s",
                "at least",
                0.9,
                "x",
                _median_ratio("log", name, "nats-py", "GB/s"),
            ),
            Bar(
                f"{name} into a log / nats-py, net CPU s/GB",
                *("at most", 1.2, "x"),
                _median_ratio("log", name, "nats-py", "net CPU s/GB"),
            ),
            Bar(
                f"{name} into a log / a publish a line, GB/s",
                *("at least", 10, "x"),
                _median_ratio("log", name, "a publish a line", "GB/s"),
            ),
        )
    ),
    Bar("a log into Arrow / from memory", "at most", 1.2, "x", _median_ratio("log-load", "ringmain", "memory", "ms")),
    Bar("peak memory in an outage of a log", "below", 128, " MiB", _figure("log-outage", "ringmain", "peak MiB", max)),
    Bar(
        "start to listening / import asyncio",
        "at most",
        1.0,
        "x",
        _median_ratio("start", "ringmain", "import asyncio", "ms"),
    ),
    Bar(
        "ringmain --version / import click",
        "below",
        1.2,
        "x",
        _median_ratio("start", "ringmain --version", "import click", "ms"),
    ),
    # Python's own start included.
    Bar("import ringmain", "below", 15, " ms", _figure("start", "import ringmain", "ms", statistics.median)),
    Bar("peak memory while 32 GB pass", "below", 64, " MiB", _figure("growth", "ringmain 32 GB", "peak MiB", max)),
    # How many of the ring's 8 MiB are ever touched is chance; more than that would be a leak.
    Bar("peak memory, 32 GB more than 1 GB", "at most", 8, " MiB", _growing_memory),
    Bar("peak memory with a stalled reader", "below", 64, " MiB", _peak_stalled),
    Bar(
        "GB/s at 32 GB / at 1 GB",
        "at least",
        0.9,
        "x",
        _median_ratio("growth", "ringmain 32 GB", "ringmain 1 GB", "GB/s"),
    ),
]


def verdicts(results: Results) -> list[dict[str, Any]]:
    """Return every bar with its verdict."""
    return [bar.verdict(results) for bar in BARS]


def bars_table(rows: list[dict[str, Any]]) -> str:
    """Return the table of the bars."""
    words = {True: "pass", False: "MISS", None: "not measured"}
    lines = [["bar", "must be", "is", "verdict"]]
    for row in rows:
        value = "-" if row["value"] is None else f"{row['value']:.2f}{row['unit']}"
        lines.append([row["what"], row["bar"], value, words[row["passed"]]])
    passed, measured = (sum(row["passed"] in kinds for row in rows) for kinds in ((True,), (True, False)))
    return "\n".join(["The bars:", *aligned(lines), f"{passed} of {measured} measured bars reached."])
