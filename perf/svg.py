"""What all plots have in common: an SVG that needs nothing else, legible on light and on dark, and when it is small."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from xml.sax.saxutils import escape

WIDTH = 420
MARGIN = 12
COLOURS = ("#2a7fc0", "#cc6f14", "#7b7f86", "#3a9150", "#a35bb5", "#c2484a", "#8a7a1f", "#1f8f8f")
"""They stand out from both grounds."""
DASHES = ("", "7 4", "2 3", "10 3 2 3", "5 2", "1 2", "12 4", "4 4 1 4")
_LETTER = 6.4  # a letter of 12 px is about so wide
_STYLE = """svg.plot text { font: 12px system-ui, sans-serif; fill: #1b1b1b }
svg.plot .title { font-weight: 600; font-size: 14px } svg.plot .note { fill: #565656 }
svg.plot .end { text-anchor: end } svg.plot .middle { text-anchor: middle } svg.plot .ground { fill: #ffffff }
svg.plot .grid { stroke: #d8d8d8 } svg.plot .axis { stroke: #8a8a8a } svg.plot .spread { stroke: #1b1b1b }
@media screen and (prefers-color-scheme: dark) { svg.plot text { fill: #ececec } svg.plot .note { fill: #a8a8a8 }
svg.plot .ground { fill: #16181b } svg.plot .grid { stroke: #33363b } svg.plot .axis { stroke: #767a80 }
svg.plot .spread { stroke: #ececec } }"""


def width_of(text: str) -> float:
    """About, of the usual size."""
    return _LETTER * len(text)


def shortened(text: str, room: float) -> str:
    letters = max(2, int(room / _LETTER))
    return text if len(text) <= letters else f"{text[: letters - 1]}…"


def text(x: float, y: float, told: str, kind: str = "") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(told)}</text>'


def head(title: str, note: str, names: Sequence[str], *, lines: bool) -> tuple[list[str], float]:
    """Title, note and legend, each in as many rows as it takes, and where the next thing goes. Names are marked as
    lines, or as areas."""
    drawn, y = [], 8.0
    for told, kind, letters, row in ((title, "title", 52, 18), (note, "note", 61, 16)):
        for line in textwrap.wrap(told, letters):
            y += row
            drawn.append(text(MARGIN, y, line, kind))
    x, y = float(MARGIN), y + 22
    for number, name in enumerate(names):
        name = shortened(name, WIDTH - 2 * MARGIN - 28)
        if x > MARGIN and x + 28 + width_of(name) > WIDTH - MARGIN:
            x, y = float(MARGIN), y + 18
        drawn += [_mark(x, y - 9, number, lines=lines), text(x + 24, y, name, "note")]
        x += 40 + width_of(name)
    return drawn, y + 14 if names else y - 8


def _mark(x: float, y: float, number: int, *, lines: bool) -> str:
    if not lines:
        return f'<rect x="{x:.1f}" y="{y:.1f}" width="18" height="10" rx="2" fill="{colour(number)}"/>'
    return (
        f'<line x1="{x:.1f}" y1="{y + 5:.1f}" x2="{x + 18:.1f}" y2="{y + 5:.1f}" stroke="{colour(number)}" '
        f'stroke-width="2.5" stroke-dasharray="{DASHES[number % len(DASHES)]}"/>'
    )


def colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def whole(title: str, drawn: Sequence[str], height: float) -> str:
    """The document around what is drawn."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" class="plot" viewBox="0 0 {WIDTH} {height:.0f}" '
            f'width="{WIDTH}" height="{height:.0f}" role="img"><title>{escape(title)}</title>',
            f"<style>{_STYLE}</style>",
            f'<rect class="ground" width="{WIDTH}" height="{height:.0f}"/>',
            *drawn,
            "</svg>",
            "",
        ]
    )


def told(number: float) -> str:
    """A figure as people read it: three digits that count, more where there are more before the point."""
    if number == 0:
        return "0"
    size = abs(number)
    if size >= 100:
        return f"{number:,.0f}"
    return f"{number:.1f}" if size >= 10 else f"{number:.2f}" if size >= 1 else f"{number:.2g}"


def brief(number: float) -> str:
    """The same where there is little room."""
    for unit, name in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(number) >= unit:
            return f"{number / unit:.3g}{name}"
    return f"{number:.3g}"
