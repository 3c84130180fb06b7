"""Results as a table that is read, not parsed."""

from collections.abc import Sequence
from typing import Any

from ringmain.endpoint import host_and_port
from ringmain.errors import printable
from ringmain.progress import size_words
from ringmain.terminal import columns, table

_HEAD = ("", "GB/s", "Gbit/s", "CPU s/GB", "user", "system", "peer's CPU s/GB", "bytes a call", "stalls")


def tests_table(results: dict[str, dict[str, Any]]) -> str:
    """Return a row for each test: what its own end did."""
    rows = [_HEAD]
    for name, result in results.items():
        host, remote, received = result["end"]["host"], result["end"]["remote"], result["end"]["sum_received"]
        rows.append((name, *_rates(received), *_cpu(host), _figure(remote["cpu_seconds_per_gb"]), *_calls(host)))
    return _aligned(rows)


def result_table(result: dict[str, Any]) -> str:
    """Return both ends of one test, a row each, and what it was."""
    start = result["start"]
    test, connected, tls = start["test_start"], start["connected"][0], start["tls"]
    streams = f"{test['num_streams']} stream{'s' if test['num_streams'] > 1 else ''}"
    peer = host_and_port(connected["remote_host"], connected["remote_port"])
    how = f"{tls['version']}, {tls['cipher']}" if tls else "plain"
    return f"{peer}, {how}, {streams}\n{_aligned(cells_of(result))}"


def cells_of(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the head and both ends of one test."""
    end, test = result["end"], result["start"]["test_start"]
    ends = ("sent", end["sum_sent"]), ("received", end["sum_received"])
    works = (end["remote"], end["host"]) if test["reverse"] else (end["host"], end["remote"])
    rows: list[tuple[str, ...]] = [("", "seconds", "bytes", *_HEAD[1:6], *_HEAD[7:])]
    for (name, total), work in zip(ends, works, strict=True):
        rows.append(
            (name, f"{total['seconds']:.2f}", size_words(total["bytes"]), *_rates(total), *_cpu(work), *_calls(work))
        )
    return rows


def replay_table(result: dict[str, Any]) -> str:
    """Return what got through in a load test of someone else's program."""
    peer, tls, end = result["start"]["connected"][0], result["start"]["tls"], result["end"]
    how = f"{tls['version']}, {tls['cipher']}" if tls else "plain"
    rows: list[tuple[str, ...]] = [("", "seconds", "bytes", "records", "records/s", *_HEAD[1:6], *_HEAD[7:])]
    sent = "sum_sent" in end
    for name, key in (("sent", "sum_sent"), ("acknowledged" if sent else "received", "sum_received")):
        if key not in end:
            continue
        it = end[key]
        row = (name, f"{it['seconds']:.2f}", size_words(it["bytes"]), str(it["records"]))
        work = ("", "", "", "", "") if sent and key == "sum_received" else (*_cpu(end["host"]), *_calls(end["host"]))
        rows.append((*row, f"{it['records_per_second']:.0f}", *_rates(it), *work))
    where = host_and_port(peer["remote_host"], peer["remote_port"])
    return f"{where}, {how}: {result['verdict']}\n{_aligned(rows)}"


def comparison_table(comparisons: dict[str, dict[str, Any]]) -> str:
    """Return a row for each test and figure: how it compares with the baseline, and the verdict."""
    rows = [("", "", "ratio to baseline", "interval", "verdict")]
    for name, it in comparisons.items():
        for figure, words in (("gb_per_second", "GB/s"), ("cpu_seconds_per_gb", "CPU s/GB")):
            row = it["figures"][figure]
            rows.append((name, words, f"{row['ratio']:.3f}", f"{row['low']:.3f} to {row['high']:.3f}", row["verdict"]))
    return _aligned(rows)


def _rates(total: dict[str, Any]) -> tuple[str, str]:
    return f"{total['bits_per_second'] / 8e9:.3f}", f"{total['bits_per_second'] / 1e9:.2f}"


def _cpu(work: dict[str, Any]) -> tuple[str, str, str]:
    seconds = max(work["seconds"], 1e-9)
    shares = (f"{100 * work[f'cpu_{kind}_seconds'] / seconds:.0f} %" for kind in ("user", "system"))
    return _figure(work["cpu_seconds_per_gb"]), *shares  # type: ignore[return-value]


def _calls(work: dict[str, Any]) -> tuple[str, str]:
    return size_words(work["average_call"]) if work["average_call"] else "-", str(work["stalls"])


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _aligned(texts: Sequence[Sequence[str]]) -> str:
    rows = [[printable(text) for text in row] for row in texts]  # the other end's words among them
    return table(rows, columns(1), right=True)
