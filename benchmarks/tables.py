"""Tables of what was measured: ratios first, absolutes second."""

import statistics
from typing import Any

_RATIOS = ("GB/s", "CPU s/GB", "median µs", "ms")
_WITH_SPREAD = ("GB/s", "CPU s/GB", "median µs", "slowest µs", "ms")


def say(text: str) -> None:
    """Print at once, whatever standard output is."""
    print(text, flush=True)


def ratios(samples: dict[str, list[dict[str, float]]], one: str, other: str, metric: str) -> list[float]:
    """Return one contender's figure over another's, round by round; empty where either is missing."""
    pairs = zip(samples.get(one, []), samples.get(other, []), strict=False)
    return [a[metric] / b[metric] for a, b in pairs if metric in a and b.get(metric)]


def table(name: str, bench: dict[str, Any]) -> str:
    """Return the table of one bench."""
    samples = bench["samples"]
    metrics = list(dict.fromkeys(metric for rounds in samples.values() for row in rounds for metric in row))
    compared = [metric for metric in _RATIOS if metric in metrics and len(samples) > 1]
    head = [name, *(f"{metric} ratio" for metric in compared), *(["GB"] if bench["sizes"] else []), *metrics]
    rows = [head]
    for contender, rounds in samples.items():
        if not rounds:
            continue
        row = [contender]
        for metric in compared:
            values = ratios(samples, contender, bench["reference"], metric)
            row.append(f"{statistics.median(values):.2f}x" if values else "-")
        if bench["sizes"]:
            row.append(f"{bench['sizes'].get(contender, 0):g}")
        row += [_figure([sample[metric] for sample in rounds if metric in sample], metric) for metric in metrics]
        rows.append(row)
    lines = [f"{bench['title']}. Ratios against {bench['reference']}; median (least-most)."]
    lines += aligned(rows)
    lines += [f"  {contender} is left out: {why}" for contender, why in bench["skipped"].items()]
    lines += [f"  {contender} FAILED: {why}" for contender, why in bench["failed"].items()]
    return "\n".join(lines)


def aligned(rows: list[list[str]]) -> list[str]:
    """Return rows as lines whose columns stand under each other, the first to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  "
        + "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def _figure(values: list[float], metric: str) -> str:
    if not values:
        return "-"
    text = _short(statistics.median(values))
    if metric in _WITH_SPREAD and len(values) > 1:
        text += f" ({_short(min(values))}-{_short(max(values))})"
    return text


def _short(value: float) -> str:
    return (
        f"{value:.0f}"
        if value >= 100
        else f"{value:.1f}"
        if value >= 10
        else f"{value:.2f}"
        if value >= 1
        else f"{value:.3f}"
    )
