"""Results as people read them: tables with few digits, folded where they are wider than the terminal."""

import math
import re
from collections.abc import Sequence
from typing import Any

from ringmain.bench.rounds import overall
from ringmain.endpoint import host_and_port
from ringmain.errors import printable

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_RATES, _WORK = ("GB/s", "Gbit/s"), ("CPU\ns/GB", "user", "sys", "bytes\na call", "stalls")
_GAP = "  "


def tests_table(results: dict[str, dict[str, Any]], width: int) -> str:
    """Return a row for each test: what its own end did."""
    rows: list[tuple[str, ...]] = [("", "GB/s", *_WORK[:3], "peer's\nCPU s/GB", *_WORK[3:])]
    for name, result in results.items():
        host, remote, received = result["end"]["host"], result["end"]["remote"], result["end"]["sum_received"]
        rows.append((name, _rates(received)[0], *_cpu(host), figure(remote["cpu_seconds_per_gb"]), *_calls(host)))
    return aligned(rows, width)


def result_table(result: dict[str, Any], width: int) -> str:
    """Return what one test was, both of its ends, a row each, and what the sender's kernel tells."""
    streams = result["start"]["test_start"]["num_streams"]
    head = f"{_peer_words(result)}, {streams} stream{'s' if streams > 1 else ''}"
    return "\n".join([head, aligned(cells_of(result), width), *kernel_words(result["end"])])


def cells_of(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the head and both ends of one test."""
    end, test = result["end"], result["start"]["test_start"]
    ends = ("sent", end["sum_sent"]), ("received", end["sum_received"])
    works = (end["remote"], end["host"]) if test["reverse"] else (end["host"], end["remote"])
    rows: list[tuple[str, ...]] = [("", "time", "bytes", *_RATES, *_WORK)]
    for (name, total), work in zip(ends, works, strict=True):
        rows.append((name, *_moved(total), *_rates(total), *_cpu(work), *_calls(work)))
    return rows


def replay_table(result: dict[str, Any], width: int) -> str:
    """Return what got through in a load test of someone else's program."""
    end = result["end"]
    rows: list[tuple[str, ...]] = [("", "time", "bytes", "records", "records/s", *_RATES)]
    for name, key in (("sent", "sum_sent"), ("acknowledged" if "sum_sent" in end else "received", "sum_received")):
        if key in end:
            it = end[key]
            rows.append((name, *_moved(it), str(it["records"]), figure(it["records_per_second"]), *_rates(it)))
    cost, user, system = _cpu(end["host"])
    size, stalls = _calls(end["host"])
    work = f"CPU {cost} s/GB, {user} user, {system} sys; {size} a call, {stalls} stalls"
    return "\n".join([f"{_peer_words(result)}: {result['verdict']}", aligned(rows, width), work, *kernel_words(end)])


def verdict_table(comparisons: dict[str, dict[str, Any]], width: int) -> str:
    """Return a row for each test and figure: how it compares with the baseline; and the worst of the verdicts."""
    rows: list[tuple[str, ...]] = [("", "", "ratio to\nbaseline", "interval", "verdict")]
    words = {"gb_per_second": "GB/s", "cpu_seconds_per_gb": "CPU s/GB"}
    for name, it in comparisons.items():
        for key, row in it["figures"].items():
            low, high = figure(row["low"]), figure(row["high"])
            rows.append((name, words[key], figure(row["ratio"]), f"{low} to {high}", row["verdict"]))
    return f"{aligned(rows, width)}\n\nverdict: {overall(it['verdict'] for it in comparisons.values())}"


def kernel_words(end: dict[str, Any]) -> list[str]:
    """Return, as a line or none, what the sender's kernel tells of all streams: `end` is that of a result."""
    sent = end.get("sum_sent", {})
    known = [it for it in [*(stream["sender"] for stream in end.get("streams", ())), sent] if "mean_rtt" in it]
    words = []
    if "retransmits" in sent:
        words.append(f"{sent['retransmits']} retransmits")
    if known:
        mean = sum(it["mean_rtt"] for it in known) / len(known)
        least, most = min(it["min_rtt"] for it in known), max(it["max_rtt"] for it in known)
        words.append(f"RTT {figure(mean / 1e3)} ms ({figure(least / 1e3)} to {figure(most / 1e3)})")
        words.append(f"window up to {size_of(max(it['max_snd_cwnd'] for it in known))}")
    if words and "sender_tcp_congestion" in end:
        words.append(printable(end["sender_tcp_congestion"]))
    return [", ".join(words)] if words else []


def figure(value: float | None) -> str:
    """Return a number of three digits, with four behind the point at most; "-" for None."""
    if value is None:
        return "-"
    digits = 2 - math.floor(math.log10(value)) if value > 0 else 0
    return f"{value:.{min(4, max(0, digits))}f}"


def size_of(size: float) -> str:
    """Return a number of bytes with three digits, or four: 22.6 GiB, 1016 KiB."""
    unit = 0
    while size >= 1024 and unit < len(_UNITS) - 1:
        size /= 1024
        unit += 1
    return f"{size:.0f} B" if unit == 0 else f"{figure(size)} {_UNITS[unit]}"


def rates_of(bits_per_second: float) -> tuple[str, str]:
    """Return a rate in GB/s and in Gbit/s."""
    return figure(bits_per_second / 8e9), figure(bits_per_second / 1e9)


def _peer_words(result: dict[str, Any]) -> str:
    """Return who the other end is, and how the connections to it are protected."""
    peer, tls = result["start"]["connected"][0], result["start"]["tls"]
    how = f"{tls['version']}, {tls['cipher']}" if tls else "plain"
    return printable(f"{host_and_port(peer['remote_host'], peer['remote_port'])}, {how}")


def _rates(total: dict[str, Any]) -> tuple[str, str]:
    return rates_of(total["bits_per_second"])


def _moved(total: dict[str, Any]) -> tuple[str, str]:
    return f"{figure(total['seconds'])} s", size_of(total["bytes"])


def _cpu(work: dict[str, Any]) -> tuple[str, str, str]:
    seconds = max(work["seconds"], 1e-9)
    user, system = (f"{100 * work[f'cpu_{kind}_seconds'] / seconds:.0f} %" for kind in ("user", "system"))
    return figure(work["cpu_seconds_per_gb"]), user, system


def _calls(work: dict[str, Any]) -> tuple[str, str]:
    return size_of(work["average_call"]) if work["average_call"] else "-", str(work["stalls"])


def aligned(rows: Sequence[Sequence[str]], width: int) -> str:
    """Return rows as lines: the first row is the head, which may have line ends; numbers have their points in a column.

    What is wider than `width` is folded: the columns that do not fit follow below, behind the first one again.
    """
    heads = [cell.split("\n") for cell in rows[0]]
    height = max(map(len, heads))
    columns: list[list[str]] = []
    for head, *cells in zip(heads, *rows[1:], strict=True):
        column = [*[""] * (height - len(head)), *head, *_on_points([printable(cell) for cell in cells])]
        widest = max(map(len, column))
        columns.append([cell.rjust(widest) if columns else cell.ljust(widest) for cell in column])
    parts = [[columns[0]]]
    for column in columns[1:]:
        if len(parts[-1]) > 1 and sum(len(it[0]) + len(_GAP) for it in parts[-1]) + len(column[0]) > width:
            parts.append([columns[0]])
        parts[-1].append(column)
    texts = ["\n".join(_GAP.join(line).rstrip() for line in zip(*part, strict=True)) for part in parts]
    return "\n\n".join(text.lstrip("\n") for text in texts)


def _on_points(cells: list[str]) -> list[str]:
    """Return the cells, of which those that are numbers have blanks where others have more digits behind the point."""
    digits = [len(cell.partition(".")[2]) for cell in cells]
    numbers = [re.fullmatch(r"\d+(\.\d+)?", cell) is not None for cell in cells]
    most = max((it for it, number in zip(digits, numbers, strict=True) if number), default=0)
    return [
        cell + " " * (most - it + (it == 0 < most)) if number else cell
        for cell, it, number in zip(cells, digits, numbers, strict=True)
    ]
