"""A report as one HTML page that needs nothing else: no script, no file, no network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from perf.documents import Document, is_figure
from perf.rows import SAMPLES, Row
from perf.sections import SECTIONS, Section
from perf.svg import told
from perf.telling import heading, spread

_ALONE = "python -m perf report --only"
_STYLE = """
:root { color-scheme: light dark; --ground: #ffffff; --ink: #1b1b1b; --faint: #565656; --rule: #d8d8d8;
  --warn: #9a3412 }
@media screen and (prefers-color-scheme: dark) {
  :root { --ground: #16181b; --ink: #ececec; --faint: #a8a8a8; --rule: #3a3d42; --warn: #fdba74 } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 50rem; padding: 1rem; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: break-word }
h1 { font-size: 1.5rem; line-height: 1.25 } h2 { font-size: 1.2rem; margin: 2.5rem 0 0.25rem }
p { margin: 0.5rem 0 } a { color: inherit }
.note { color: var(--faint); font-size: 0.9rem } .warn { color: var(--warn) } code { white-space: nowrap }
nav ul { display: flex; flex-wrap: wrap; gap: 0.25rem 1rem; padding: 0; list-style: none }
figure { margin: 1rem 0 } svg.plot { display: block; width: 100%; max-width: 33rem; height: auto }
.table { overflow-x: auto; margin: 1rem 0 } table { border-collapse: collapse; font-size: 0.85rem }
th, td { padding: 0.2rem 0.75rem 0.2rem 0; text-align: left; white-space: nowrap; border-bottom: 1px solid var(--rule);
  font-variant-numeric: tabular-nums; vertical-align: top }
th { font-weight: 600 } .number { text-align: right } td small { color: var(--faint) }
.facts th, .facts td { white-space: normal } .facts th { padding-right: 1.5rem }
@media print { body { max-width: none; padding: 0; font-size: 10pt } nav { display: none }
  figure, tr { break-inside: avoid } h2, h2 + p { break-after: avoid } p { break-inside: avoid }
  svg.plot { max-width: 12cm }
  .table { overflow: visible } table { font-size: 7pt } th, td { white-space: normal; padding-right: 0.4rem } }
"""


def render(report: Document) -> str:
    """The page of a report. All text in it is escaped; parts that are not there are named."""
    parts, missing, facts = report["parts"], report.get("missing", {}), report["facts"]
    body = [_head(facts), _contents(parts)]
    for command, section in SECTIONS.items():
        if command in parts:
            body.append(_section(command, section, parts[command]))
        else:
            body.append(_absent(command, section, missing.get(command, "it was not asked for")))
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>shardengine: what was measured</title><style>{_STYLE}</style></head><body>",
            *body,
            "</body></html>",
            "",
        ]
    )


def _head(facts: dict[str, Any]) -> str:
    return "\n".join(
        [
            "<header><h1>What the engine does on this machine</h1>",
            *(_paragraph(text, kind) for text, kind in _told_of(facts)),
            '<div class="table"><table class="facts">',
            *(f"<tr><th>{_text(heading(name))}</th><td>{_text(value)}</td></tr>" for name, value in facts.items()),
            "</table></div></header>",
        ]
    )


def _told_of(facts: dict[str, Any]) -> Iterable[tuple[str, str]]:
    """What a reader has to know before all figures, and how loudly it is said."""
    if facts.get("puts") == "compiled":
        yield "Measured was the compiled implementation.", ""
    elif facts.get("puts") == "python":
        yield "Measured was the Python twin: the compiled part is missing, and with it the engine is faster.", "warn"
    else:
        yield "Which implementation was measured is not known.", "warn"
    load, cores = facts.get("load_average"), facts.get("cores")
    if load is None or cores is None:
        yield "Whether the machine was quiet is not known.", "warn"
    elif load > cores / 2:
        yield (
            f"The machine was busy: when the measurement began, {told(load)} processes wanted its {cores} cores. "
            "Ratios may stand; the figures do not.",
            "warn",
        )
    if facts.get("form") == "quick":
        yield "This is the quick form: few rounds, small states.", "note"
    elif facts.get("form") == "tiny":
        yield "This is the tiny form, which shows that it runs at all: no figure of it says anything.", "warn"
    yield (
        "A figure is a median over rounds; in brackets are the lowest and the highest round, or, of more than ten, "
        "those a tenth from either end.",
        "note",
    )


def warnings(facts: dict[str, Any]) -> list[str]:
    """What a reader has to know before all figures, and may not pass over."""
    return [text for text, kind in _told_of(facts) if kind == "warn"]


def _contents(parts: dict[str, Document]) -> str:
    links = (
        f'<li><a href="#{_text(command)}">{_text(section.title)}</a></li>'
        for command, section in SECTIONS.items()
        if command in parts
    )
    return f"<nav><ul>{''.join(links)}</ul></nav>"


def _section(command: str, section: Section, document: Document) -> str:
    return "\n".join(
        [
            f'<section id="{_text(command)}"><h2>{_text(section.title)}</h2>',
            _paragraph(section.says(document)),
            f"<figure>{section.drawn(document)}</figure>",
            f'<p class="note">{_text(section.what)} Alone: <code>{_text(f"{_ALONE} {command}")}</code></p>',
            table(section.rows(document)),
            "</section>",
        ]
    )


def _absent(command: str, section: Section, why: str) -> str:
    return f"<section><h2>{_text(section.title)}</h2>\n{_paragraph(f'Not measured: {why}.', 'note')}\n</section>"


def table(rows: Sequence[Row]) -> str:
    """All keys of flat rows, but for those of single rounds, whose lowest and highest stand beside their median. What
    is the same in all rows is said once."""
    keys = list(dict.fromkeys(key for row in rows for key in row if not key.endswith(SAMPLES)))
    same = {key: rows[0][key] for key in keys if len(rows) > 1 and _is_same(key, rows)}
    keys = [key for key in keys if key not in same]
    numbers = {key for key in keys if all(isinstance(row.get(key, 0), int | float | None) for row in rows)}
    kinds = {key: ' class="number"' if key in numbers else "" for key in keys}
    lines = ["<tr>", *(f"<th{kinds[key]}>{_text(heading(key))}</th>" for key in keys), "</tr>"]
    for row in rows:
        lines += ["<tr>", *(f"<td{kinds[key]}>{_cell(row, key)}</td>" for key in keys), "</tr>"]
    told_once = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in same.items())
    said = f'<p class="note">In all rows: {_text(told_once)}.</p>' if same else ""
    return f'{said}<div class="table"><table>{"".join(lines)}</table></div>'


def _is_same(key: str, rows: Sequence[Row]) -> bool:
    return all(key in row and not is_figure(key, row) and row[key] == rows[0][key] for row in rows)


def _cell(row: Row, key: str) -> str:
    if f"{key}{SAMPLES}" not in row:
        return _text(row.get(key))
    low, high = spread(row, key)
    if low == high:
        return _text(row[key])
    return f"{_text(row[key])} <small>({_text(low)} to {_text(high)})</small>"


def _text(value: Any) -> str:
    """Whatever it is, as text that cannot be taken for anything else."""
    if value is None:
        return ""
    if isinstance(value, float):
        return told(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return escape(str(value), quote=True)


def _paragraph(text: str, kind: str = "") -> str:
    return f'<p class="{kind}">{_text(text)}</p>' if kind else f"<p>{_text(text)}</p>"
