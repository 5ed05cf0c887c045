"""How the sentences, plots and tables of a report are made from rows."""

from __future__ import annotations

from perf.bars import Bar
from perf.documents import Document
from perf.lines import Point
from perf.noise import differ, tells
from perf.rows import SAMPLES, Row
from perf.svg import told

_HEADINGS = {"puts": "implementation"}
_UNITS = {"us": "us", "ms": "ms", "ns": "ns", "percent": "%", "mb": "MB", "bytes": "bytes", "s": "s"}


def heading(key: str) -> str:
    """A key as people read it: `entries_per_s` are entries/s, `p999_us` is p99.9 in microseconds."""
    key = _HEADINGS.get(key, key.replace("p999", "p99.9"))
    if key.endswith("_per_s"):
        return f"{key.removesuffix('_per_s').replace('_', ' ')}/s"
    for unit, name in _UNITS.items():
        if key.endswith(f"_{unit}"):
            return f"{key.removesuffix(f'_{unit}').replace('_', ' ')}, {name}"
    return key.replace("_", " ")


def spread(row: Row, name: str) -> tuple[float, float]:
    """The lowest and the highest of single rounds; of more than ten, those a tenth from either end."""
    values = sorted(row.get(f"{name}{SAMPLES}") or [row[name]])
    beyond = len(values) // 10 if len(values) > 10 else 0
    return values[beyond], values[-1 - beyond]


def point(x: float, row: Row, name: str, unit: float = 1) -> Point:
    """In multiples of `unit`."""
    return Point(x, *(figure / unit for figure in (row[name], *spread(row, name))))


def bar(name: str, row: Row, figure: str, group: int = 0) -> Bar:
    return Bar(name, row[figure], told(row[figure]), group, *spread(row, figure))


def where(document: Document) -> str:
    facts = document["facts"]
    return f"{facts.get('cores', '?')} cores, {facts.get('cpu', 'a processor that has no name')}"


def count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def times(ratio: float) -> str:
    return f"{ratio:.2f} times"


def is_noise(first: Row, second: Row, name: str) -> str:
    """What has to be added to a difference that may be none."""
    one, other = (row.get(f"{name}{SAMPLES}") or [] for row in (first, second))
    if not tells(one, other):
        return " (too few rounds to tell that from noise)"
    return "" if differ(one, other) else " (a difference within the noise)"


def load_of(document: Document) -> str:
    """What the figures of a part have in common."""
    settings = document["settings"]
    said = []
    for name, what in (("entries", "entries"), ("value_bytes", "bytes a value"), ("chunk", "a chunk")):
        if name in settings:
            values = settings[name] if isinstance(settings[name], list) else [settings[name]]
            said.append(f"{' or '.join(map(told, values))} {what}")
    return ", ".join(said)
