"""What was measured, in one form for all commands: a document, of rows.

    {"format": 1, "command": "sweep", "facts": {…}, "settings": {…}, "rows": [{…}, …]}
    {"format": 1, "command": "report", "facts": {…}, "parts": {command: document, …}, "missing": {command: why, …}}

A row is flat. Some of its keys say what was measured, the others are figures, with their unit in their name
(`entries_per_s`, `p99_us`); the values of single rounds, if there are any, are under `<figure>_samples`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from perf.rows import ROWS_OF, SAMPLES, Row

FORMAT = 1
_UNITS = ("_per_s", "_us", "_ns", "_ms", "_s", "_mb", "_percent")
_GIVEN = ("value_bytes", "spin_us", "offered_percent", "skew", "spanning_percent")
"""Keys that look like figures, and are what was asked for."""
_SINCE = ("group_bytes", "ring_bytes")
"""Keys that older files lack; 0 says what their absence does."""

Document = dict[str, Any]


MALFORMED = (ArithmeticError, AttributeError, LookupError, RecursionError, StopIteration, TypeError, ValueError)
"""What comes of a document that is well formed and says something else than its command would."""


class _Part(msgspec.Struct):
    """What every document has."""

    command: str
    facts: dict[str, Any]
    settings: dict[str, Any]
    rows: list[dict[str, Any]]


class _Report(msgspec.Struct):
    facts: dict[str, Any]
    parts: dict[str, _Part]
    missing: dict[str, str] = {}


class DocumentError(Exception):
    """A file holds no figures in a known form."""


def document(command: str, facts: Mapping[str, Any], settings: Mapping[str, Any], rows: Sequence[Row]) -> Document:
    return {"format": FORMAT, "command": command, "facts": facts, "settings": settings, "rows": rows}


def is_figure(key: str, row: Row) -> bool:
    """Whether a key of a row says what was found, not what was measured."""
    if key.endswith(SAMPLES) or f"{key}{SAMPLES}" in row:
        return True
    return key not in _GIVEN and (isinstance(row[key], float) or key.endswith(_UNITS))


def subject(row: Row) -> tuple[tuple[str, Any], ...]:
    """What was measured: the same in two documents, if they say something about the same."""
    said = ((key, value) for key, value in row.items() if not is_figure(key, row))
    return tuple(sorted((key, value) for key, value in said if key not in _SINCE or value))


def sampled(row: Row) -> dict[str, list[float]]:
    """The values of single rounds, figure by figure."""
    return {key.removesuffix(SAMPLES): values for key, values in row.items() if key.endswith(SAMPLES)}


def from_older(facts: Mapping[str, Any]) -> Document:
    """The document of what a command's `--json` wrote. Raises DocumentError when it is none."""
    for command, (key, rows_of) in ROWS_OF.items():
        if key in facts:
            settings = facts.get("plan") or {
                name: facts[name] for name in ("load", "shards", "window") if name in facts
            }
            try:
                return document(command, facts["machine"], settings, rows_of(facts))
            except MALFORMED as error:
                raise DocumentError(f"these are no whole figures of `python -m perf {command}`: {error!r}") from error
    raise DocumentError("these are no figures of `python -m perf`")


def _check(whole: Document) -> None:
    """Raise ValidationError unless it has the form that is told above."""
    kind: Any = _Report if "parts" in whole else _Part
    checked = msgspec.convert(whole, kind)
    for part in checked.parts.values() if isinstance(checked, _Report) else [checked]:
        for row in part.rows:
            for values in sampled(row).values():
                if not msgspec.convert(values, list[float], strict=True):
                    raise msgspec.ValidationError("a figure has no values of rounds")


def parts_of(path: Path) -> tuple[Document, dict[str, Document]]:
    """What a file holds: the whole, and the documents in it, by command. Raises DocumentError when it holds none."""
    try:
        whole = json.loads(path.read_text())
    except (OSError, RecursionError, ValueError) as error:
        raise DocumentError(f"{path} cannot be read: {error}") from error
    if not isinstance(whole, dict):
        raise DocumentError(f"{path}: these are no figures of `python -m perf`")
    if "format" not in whole:
        try:
            whole = from_older(whole)
        except DocumentError as error:
            raise DocumentError(f"{path}: {error}") from error
    if whole["format"] != FORMAT:
        raise DocumentError(f"{path} is of format {whole['format']}, and this is format {FORMAT}")
    try:
        _check(whole)
    except msgspec.ValidationError as error:
        raise DocumentError(f"{path}: {error}") from error
    return whole, whole["parts"] if "parts" in whole else {whole["command"]: whole}
