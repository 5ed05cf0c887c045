"""A bar chart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import floor, log10

import msgspec

from perf import svg

_ROW, _BAR = 26, 16


class Bar(msgspec.Struct, frozen=True):
    """Its name, its length, the number to print, which group it is of, and the lowest and highest of single rounds.
    Lengths are 0 or more."""

    name: str
    length: float
    told: str
    group: int = 0
    low: float | None = None
    high: float | None = None


def bars(title: str, note: str, groups: Sequence[str], rows: Sequence[Bar], *, log: bool = False) -> str:
    """One bar a row, as SVG; `log`: its length is logarithmic, from the power of ten below all. All text is escaped."""
    drawn, y = svg.head(title, note, groups, lines=False)
    left = svg.MARGIN + 8 + min(190.0, max((svg.width_of(row.name) for row in rows), default=0))
    right = svg.MARGIN + 8 + max((svg.width_of(row.told) for row in rows), default=0)
    scale = _scale(rows, max(60.0, svg.WIDTH - left - right), log=log)
    for row in rows:
        middle, long = y + _BAR - 4, max(1.0, scale(row.length))
        drawn += [
            svg.text(left - 8, middle, svg.shortened(row.name, left - svg.MARGIN - 7), "end"),
            f'<rect x="{left:.1f}" y="{y:.1f}" width="{long:.1f}" height="{_BAR}" rx="2" '
            f'fill="{svg.colour(row.group)}"/>',
        ]
        if row.low is not None and row.high is not None and row.high > row.low:
            drawn.append(_spread(left + scale(row.low), left + scale(row.high), y + _BAR / 2))
        drawn.append(svg.text(left + max(long, scale(row.high or 0)) + 6, middle, row.told))
        y += _ROW
    return svg.whole(title, drawn, y + 6)


def _scale(rows: Sequence[Bar], room: float, *, log: bool) -> Callable[[float], float]:
    """From a figure to pixels, so that the longest bar, with its spread, has room."""
    longest = max((max(row.length, row.high or 0) for row in rows), default=0) or 1
    if not log:
        return lambda length: room * length / longest
    above = [value for row in rows for value in (row.length, row.low or 0) if value > 0] or [longest]
    first = floor(log10(min(above)))
    return lambda length: max(0.0, room * (log10(length) - first) / ((log10(longest) - first) or 1)) if length else 0.0


def _spread(first: float, last: float, y: float) -> str:
    return f'<path class="spread" d="M{first:.1f} {y - 3:.1f}v6m0 -3H{last:.1f}m0 -3v6" fill="none"/>'
