"""Charts as inline SVG, whose colours come from the page: axes with units, lines, points and bars."""

import math
from collections.abc import Sequence
from html import escape

# As wide as a phone: in two columns on a desk it is larger, and what is written in it as well.
WIDTH, HEIGHT = 360, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 12, 36
_TICKS = 4
# Nearer to a side than this, half of a tick's words would be outside.
_MARGIN = 24
Points = Sequence[tuple[float, float]]


def steps(span: float) -> float:
    """Return a round distance between ticks that divides a span into about four."""
    if span <= 0:
        return 1.0
    rough = span / _TICKS
    size = 10.0 ** math.floor(math.log10(rough))
    return next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= rough * 0.999)


class Chart:
    """One chart: axes from `x` and `y`, each (least, most), then whatever is drawn into them."""

    def __init__(self, title: str, x: tuple[float, float], y: tuple[float, float], names: tuple[str, str]) -> None:
        self._title = title
        self._x, self._y = x, y
        self._names = names
        self._parts: list[str] = []
        self._x_labels: list[tuple[float, str]] = []

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Return where a point lies."""

        def part(value: float, least: float, most: float) -> float:
            return min(1.0, max(0.0, (value - least) / ((most - least) or 1)))

        width, height = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM
        return _LEFT + width * part(x, *self._x), _TOP + height * (1 - part(y, *self._y))

    def shade(self, start: float, end: float, words: str) -> None:
        """Mark a part of the x axis as something that does not count."""
        (left, top), (right, bottom) = self.at(start, self._y[1]), self.at(end, self._y[0])
        self._rectangle("shade", left, top, right - left, bottom - top)
        self._text(left + 3, top + 10, words, "note")

    def line(self, points: Points, kind: str) -> None:
        """Draw a line through points."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (self.at(*point) for point in points))
        self._parts.append(f'<polyline class="line {kind}" points="{path}"/>')

    def dots(self, points: Points, kind: str) -> None:
        """Draw points."""
        for x, y in (self.at(*point) for point in points):
            self._parts.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>')

    def band(self, low: float, high: float, kind: str) -> None:
        """Mark a part of the y axis from side to side."""
        (left, top), (right, bottom) = self.at(self._x[0], high), self.at(self._x[1], low)
        self._rectangle(f"band {kind}", left, top, right - left, max(1.0, bottom - top))

    def label(self, x: float, words: str) -> None:
        """Name a place on the x axis, instead of its numbers."""
        self._x_labels.append((x, words))

    def svg(self) -> str:
        """Return the chart."""
        title = escape(self._title)
        head = f'<svg role="img" aria-label="{title}" viewBox="0 0 {WIDTH} {HEIGHT}"><title>{title}</title>'
        drawn, self._parts = self._parts, []
        self._axes()
        return head + "".join(self._parts) + "".join(drawn) + "</svg>"

    def _axes(self) -> None:
        left, bottom = self.at(self._x[0], self._y[0])
        for value in _ticks(*self._y):
            _, y = self.at(self._x[0], value)
            self._parts.append(f'<line class="grid" x1="{left}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            self._text(left - 5, y + 4, _number(value), "tick end")
        labels = self._x_labels or [(value, _number(value)) for value in _ticks(*self._x)]
        for value, words in labels:
            x, _ = self.at(value, self._y[0])
            self._text(x, bottom + 13, words, f"tick {_side(x)}")
        self._parts.append(
            f'<polyline class="axis" points="{left},{_TOP} {left},{bottom:.1f} {WIDTH - _RIGHT},{bottom:.1f}"/>'
        )
        self._text((left + WIDTH - _RIGHT) / 2, HEIGHT - 6, self._names[0], "name middle")
        turned = f"translate(11 {(_TOP + bottom) / 2:.1f}) rotate(-90)"
        self._parts.append(f'<text class="name middle" transform="{turned}">{escape(self._names[1])}</text>')

    def _rectangle(self, kind: str, x: float, y: float, width: float, height: float) -> None:
        self._parts.append(
            f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{max(0.0, width):.1f}" height="{height:.1f}"/>'
        )

    def _text(self, x: float, y: float, words: str, kind: str) -> None:
        self._parts.append(f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(words)}</text>')


class Rows:
    """A chart of horizontal rows, each with a name, over one x axis from `least` to `most`."""

    def __init__(self, title: str, least: float, most: float, name: str, rows: Sequence[str]) -> None:
        self._title, self._least, self._most, self._name = title, least, most or 1.0, name
        self._rows = rows
        self._parts: list[str] = []
        self._height = 34 * len(rows) + 44

    def at(self, value: float) -> float:
        """Return where a value lies."""
        part = (value - self._least) / ((self._most - self._least) or 1)
        return 12 + (WIDTH - 24) * min(1.0, max(0.0, part))

    def bar(self, row: int, start: float, end: float, kind: str) -> None:
        """Draw a bar."""
        x, width = self.at(start), self.at(end) - self.at(start)
        self._parts.append(
            f'<rect class="{kind}" x="{x:.1f}" y="{34 * row + 20}" width="{max(0.5, width):.1f}" height="11"/>'
        )

    def mark(self, row: int, value: float, kind: str) -> None:
        """Draw a line across a row."""
        x = self.at(value)
        self._parts.append(
            f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{34 * row + 18}" y2="{34 * row + 33}"/>'
        )

    def svg(self) -> str:
        """Return the chart."""
        title = escape(self._title)
        parts = [f'<svg role="img" aria-label="{title}" viewBox="0 0 {WIDTH} {self._height}"><title>{title}</title>']
        bottom = self._height - 32
        for value in _ticks(self._least, self._most):
            x = self.at(value)
            parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{bottom}"/>')
            parts.append(f'<text class="tick {_side(x)}" x="{x:.1f}" y="{bottom + 12}">{_number(value)}</text>')
        parts.append(f'<line class="axis" x1="12" x2="{WIDTH - 12}" y1="{bottom}" y2="{bottom}"/>')
        parts += [
            f'<text class="row" x="12" y="{34 * at + 15}">{escape(name)}</text>' for at, name in enumerate(self._rows)
        ]
        parts += self._parts
        parts.append(
            f'<text class="name middle" x="{WIDTH / 2}" y="{self._height - 6}">{escape(self._name)}</text></svg>'
        )
        return "".join(parts)


def _ticks(least: float, most: float) -> list[float]:
    step = steps(most - least)
    first = math.ceil(least / step - 1e-9)
    return [step * number for number in range(first, math.floor(most / step + 1e-9) + 1)]


def _side(x: float) -> str:
    """Return how the words of a tick stand to it: inside of the chart."""
    return "start" if x < _MARGIN else "end" if x > WIDTH - _MARGIN else "middle"


def _number(value: float) -> str:
    return f"{value:.4g}"
