"""A line plot, with the spread of single rounds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import ceil, floor, log10

import msgspec

from perf import svg

_LEFT, _RIGHT, _HEIGHT, _BELOW = 58, 18, 200, 46
_ROOM = svg.WIDTH - 2 * svg.MARGIN  # for what an axis says
_LABEL = 12  # px between two labels of an axis, at least

Scale = Callable[[float], float]


class Point(msgspec.Struct, frozen=True):
    """A figure, and the lowest and highest of single rounds."""

    x: float
    y: float
    low: float
    high: float


class Line(msgspec.Struct, frozen=True):
    name: str
    points: list[Point]


def lines(title: str, note: str, axes: tuple[str, str], series: Sequence[Line], *, log: bool = False) -> str:
    """A line a series, as SVG; `axes` are what x and y say; `log`: y is logarithmic. All text is escaped. An x axis
    over more than one power of ten is logarithmic too."""
    points = [point for line in series for point in line.points]
    drawn, top = svg.head(title, note, [line.name for line in series], lines=True)
    if not points:
        return svg.whole(title, drawn, top)
    drawn.append(svg.text(svg.MARGIN, top + 4, svg.shortened(axes[1], _ROOM), "note"))
    top += 16
    values = [value for point in points for value in (point.low, point.y, point.high)]
    marks = _powers(values) if log else _steps(max(values))
    vertical = _scale(marks[0], marks[-1], top + _HEIGHT, top, log=log)
    places = sorted({point.x for point in points})
    wide = places[0] > 0 and places[-1] / places[0] > 10
    padding = 0 if len(places) > 1 else 1
    across = _scale(places[0] - padding, places[-1] + padding, _LEFT + 14, svg.WIDTH - _RIGHT - 14, log=wide)
    drawn += _grid(marks, vertical) + _below(places, across, top + _HEIGHT, axes[0])
    for number, line in enumerate(series):
        drawn += _line(line, number, across, vertical)
    return svg.whole(title, drawn, top + _HEIGHT + _BELOW)


def _scale(first: float, last: float, begin: float, end: float, *, log: bool) -> Scale:
    """From the figures between first and last to the pixels between begin and end."""
    inner: Scale = (lambda value: log10(max(value, first))) if log else (lambda value: value)
    low, high = inner(first), inner(last)
    return lambda value: begin + (end - begin) * (inner(value) - low) / ((high - low) or 1)


def _steps(highest: float) -> list[float]:
    """From 0 to above the highest, about five of them, round numbers."""
    if highest <= 0:
        return [0, 1]
    rough = highest / 5
    power = 10.0 ** floor(log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough)
    return [step * number for number in range(ceil(highest / step) + 1)]


def _powers(values: Iterable[float]) -> list[float]:
    """Powers of ten around all values above 0; with twos and fives if those are few."""
    above = [value for value in values if value > 0] or [1]
    first, last = floor(log10(min(above))), ceil(log10(max(above)))
    last = max(last, first + 1)
    factors = (1, 2, 5) if last - first <= 2 else (1,)
    return [factor * 10.0**power for power in range(first, last) for factor in factors] + [10.0**last]


def _grid(marks: Sequence[float], vertical: Scale) -> list[str]:
    drawn, last = [], float("inf")
    for number, mark in enumerate(marks):
        y = vertical(mark)
        kind = "grid" if number else "axis"
        drawn.append(f'<line class="{kind}" x1="{_LEFT}" y1="{y:.1f}" x2="{svg.WIDTH - _RIGHT}" y2="{y:.1f}"/>')
        if last - y >= _LABEL:
            drawn.append(svg.text(_LEFT - 6, y + 4, svg.brief(mark), "note end"))
            last = y
    return drawn


def _below(places: Sequence[float], across: Scale, y: float, name: str) -> list[str]:
    drawn, free = [], 0.0
    for place in places:
        x, label = across(place), svg.brief(place)
        drawn.append(f'<line class="axis" x1="{x:.1f}" y1="{y:.1f}" x2="{x:.1f}" y2="{y + 4:.1f}"/>')
        if x - svg.width_of(label) / 2 >= free:
            drawn.append(svg.text(x, y + 18, label, "note middle"))
            free = x + svg.width_of(label) / 2 + _LABEL
    return [*drawn, svg.text(svg.WIDTH / 2, y + 36, svg.shortened(name, _ROOM), "note middle")]


def _line(line: Line, number: int, across: Scale, vertical: Scale) -> list[str]:
    """The spread as an area, the figures as a line and dots."""
    ordered, colour = sorted(line.points, key=lambda point: point.x), svg.colour(number)
    upper = [f"{across(point.x):.1f},{vertical(point.high):.1f}" for point in ordered]
    lower = [f"{across(point.x):.1f},{vertical(point.low):.1f}" for point in reversed(ordered)]
    middle = [(across(point.x), vertical(point.y)) for point in ordered]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in middle)
    return [
        f'<polygon points="{" ".join(upper + lower)}" fill="{colour}" opacity="0.18"/>',
        f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.5" '
        f'stroke-dasharray="{svg.DASHES[number % len(svg.DASHES)]}"/>',
        *(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in middle),
    ]
