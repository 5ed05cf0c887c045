"""A bar chart as one SVG file that needs nothing else, and is legible on light and on dark."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

_ROW, _BAR, _LEFT, _WIDTH, _RIGHT = 26, 16, 190, 460, 110
_TOP, _BOTTOM = 88, 14
_COLOURS = ("#2a78b8", "#c8701c", "#7a7a7a", "#3f8f4f")
_STYLE = """text { font: 13px system-ui, sans-serif; fill: #1b1b1b }
.title { font-weight: 600; font-size: 15px } .note { fill: #5a5a5a; font-size: 12px }
.name { text-anchor: end } .ground { fill: #ffffff }
@media (prefers-color-scheme: dark) { text { fill: #ececec } .note { fill: #a8a8a8 } .ground { fill: #16181b } }"""


def bars(title: str, note: str, groups: Sequence[str], rows: Sequence[tuple[str, float, str, int]]) -> str:
    """One bar a row: its name, its length, the number to print, and which of `groups` it is of, for its colour. All
    text is escaped. Lengths are 0 or more."""
    longest = max((length for _, length, _, _ in rows), default=0) or 1
    width, height = _LEFT + _WIDTH + _RIGHT, _TOP + _ROW * len(rows) + _BOTTOM
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img"><title>{escape(title)}</title>',
        f"<style>{_STYLE}</style>",
        f'<rect class="ground" width="{width}" height="{height}"/>',
        f'<text class="title" x="12" y="24">{escape(title)}</text>',
        f'<text class="note" x="12" y="44">{escape(note)}</text>',
    ]
    for number, group in enumerate(groups):
        left = _LEFT + 150 * number
        lines += [
            f'<rect x="{left}" y="58" width="12" height="12" rx="2" fill="{_COLOURS[number % len(_COLOURS)]}"/>',
            f'<text class="note" x="{left + 18}" y="68">{escape(group)}</text>',
        ]
    for number, (name, length, told, of) in enumerate(rows):
        top, long = _TOP + _ROW * number, max(1.0, _WIDTH * length / longest)
        middle = top + _BAR - 3
        lines += [
            f'<text class="name" x="{_LEFT - 10}" y="{middle}">{escape(name)}</text>',
            f'<rect x="{_LEFT}" y="{top}" width="{long:.1f}" height="{_BAR}" rx="2" '
            f'fill="{_COLOURS[of % len(_COLOURS)]}"/>',
            f'<text x="{_LEFT + long + 8:.1f}" y="{middle}">{escape(told)}</text>',
        ]
    return "\n".join([*lines, "</svg>", ""])
