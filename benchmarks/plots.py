"""Draw what was measured as SVG: bars with their spread, and lines over sizes."""

import math
import re
import statistics
from html import escape
from pathlib import Path
from typing import Any

Results = dict[str, Any]
Series = dict[str, list[tuple[float, list[float]]]]  # name: (x, the figures of all rounds)

_OURS = "#d1495b"
_COLOURS = ("#00798c", "#edae49", "#66a182", "#2e4057")
_USUAL = ("ringmain", "socat", "nc", "ncat")
_STYLE = "font: 13px sans-serif; fill: #222"
# Without the start-up, which would be most of a short stream's.
_METRICS = (("GB/s", "speed"), ("net CPU s/GB", "cpu"))


def draw(results: Results, folder: Path) -> list[Path]:
    """Draw every bench that has speed or CPU figures into the folder; return the files."""
    folder.mkdir(exist_ok=True)
    paths = []
    for name, bench in results["benches"].items():
        samples = {contender: rows for contender, rows in bench["samples"].items() if rows}
        for metric, word in _METRICS:
            figures = {contender: [row[metric] for row in rows if metric in row] for contender, rows in samples.items()}
            if not figures or not all(figures.values()) or name == "iperf3":
                continue
            title = f"{bench['title']}: {metric}"
            series = _series(figures) if name in ("messages", "bytes") else None
            path = folder / f"{name}-{word}.svg"
            path.write_text(_line_chart(title, metric, series) if series else _bar_chart(title, figures))
            paths.append(path)
    return paths


def _series(figures: dict[str, list[float]]) -> Series:
    """Take "NAME SIZE UNIT" apart: a line for each name, over the sizes in bytes."""
    units = {"B": 1.0, "KiB": 2.0**10, "MiB": 2.0**20, "GB": 1e9}
    series: Series = {}
    for label, values in figures.items():
        match = re.fullmatch(r"(.+) (\d+) (B|KiB|MiB|GB)", label)
        if match is not None:
            series.setdefault(match[1], []).append((int(match[2]) * units[match[3]], values))
    return series


def picture(results: Results) -> str:
    """Return the picture of the README: throughput and CPU of `load` and the usual programs, by the bench `pipe`."""
    samples = results["benches"]["pipe"]["samples"]
    parts, top = [], 54
    for title, metric in (
        ("Throughput, GB/s: more is better", "GB/s"),
        ("CPU, seconds a GB: less is better", "net CPU s/GB"),
    ):
        figures = {name: [row[metric] for row in samples[name]] for name in _USUAL if samples.get(name)}
        bars, height = _bars(figures, top + 10)
        parts += [_text(10, top, title), *bars]
        top += height + 40
    return _svg("A TCP stream into a pipe", 690, top - 20, parts)


def _bar_chart(title: str, figures: dict[str, list[float]]) -> str:
    parts, height = _bars(figures, 44)
    return _svg(title, 690, 54 + height, parts)


def _bars(figures: dict[str, list[float]], top: int) -> tuple[list[str], int]:
    """Draw a horizontal bar for each median, with a line from the least to the most; return them, and their height."""
    left, width, step = 170, 460, 28
    scale = width / max(max(values) for values in figures.values())
    parts = []
    for place, (name, values) in enumerate(figures.items()):
        y = top + place * step
        median = statistics.median(values)
        colour = _OURS if name.startswith("ringmain") else _COLOURS[0]
        parts += [
            _text(left - 8, y + 14, name, "end"),
            f'<rect x="{left}" y="{y}" width="{median * scale:.1f}" height="18" fill="{colour}"/>',
            _line([(left + min(values) * scale, y + 9), (left + max(values) * scale, y + 9)], "#222"),
            _text(left + max(values) * scale + 6, y + 14, f"{median:.3g}"),
        ]
    return parts, len(figures) * step


def _line_chart(title: str, unit: str, series: Series) -> str:
    """Draw a line through the medians of each series, both axes logarithmic in x and from zero in y."""
    left, top, width, height = 60, 50, 520, 300
    sizes = sorted({x for points in series.values() for x, _ in points})
    lowest, highest = math.log2(sizes[0]), math.log2(sizes[-1])
    most = max(max(values) for points in series.values() for _, values in points)

    def at(x: float, y: float) -> tuple[float, float]:
        part = (math.log2(x) - lowest) / ((highest - lowest) or 1)
        return left + part * width, top + height * (1 - y / most)

    parts = [_line([(left, top), (left, top + height), (left + width, top + height)], "#888")]
    for x in sizes:
        parts.append(_text(at(x, 0)[0], top + height + 18, _size(x), "middle"))
    for part in (0.25, 0.5, 0.75, 1.0):
        parts.append(_text(left - 6, at(sizes[0], most * part)[1] + 4, f"{most * part:.2g}", "end"))
    for place, (name, points) in enumerate(series.items()):
        colour = _OURS if name.startswith("ringmain") else _COLOURS[place % len(_COLOURS)]
        parts.append(_line([at(x, statistics.median(values)) for x, values in points], colour, 2))
        parts += [_line([at(x, min(values)), at(x, max(values))], colour) for x, values in points]
        parts.append(f'<rect x="{left + width + 16}" y="{top + place * 22}" width="12" height="12" fill="{colour}"/>')
        parts.append(_text(left + width + 34, top + 11 + place * 22, name))
    parts.append(_text(left - 40, top - 8, unit))
    return _svg(title, left + width + 170, top + height + 40, parts)


def _size(size: float) -> str:
    if size >= 1e9:
        return f"{size / 1e9:g} GB"
    return f"{size / 2**20:g} MiB" if size >= 1 << 20 else f"{size / 1024:g} KiB" if size >= 1024 else f"{size:g} B"


def _line(points: list[tuple[float, float]], colour: str, width: int = 1) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"/>'


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" style="{_STYLE}">{escape(text)}</text>'


def _svg(title: str, width: int, height: int, parts: list[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
    background = f'<rect width="{width}" height="{height}" fill="white"/>'
    return "\n".join([head, background, _text(10, 24, title), *parts, "</svg>"]) + "\n"
