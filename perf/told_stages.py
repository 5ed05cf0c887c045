"""What the parts of a report say and show that are about where an entry's time goes, and what other hosts would do."""

from __future__ import annotations

from collections.abc import Sequence

from perf.bars import Bar, bars
from perf.documents import Document
from perf.lines import Line, lines
from perf.rows import SAMPLES, STEADY, Row, is_steady
from perf.svg import told
from perf.telling import bar, count, load_of, point, where

_ALL, _WAITS = "all", "waits "
_PROCESSES = ("coordinator", "workers")
_LOAD = ("chunk", "window", "value_bytes", "keys", "command", "durability", "pin")
_SEEN = 0.01  # of a process's time: what takes less is in the table only


def _chosen(document: Document) -> int:
    """The shard count that is told of and drawn: two, or the next one."""
    return min({int(row["shards"]) for row in document["rows"]}, key=lambda shards: (abs(shards - 2), shards))


def _of(document: Document, process: str) -> tuple[Row, list[Row]]:
    """A process's whole time, and its stages."""
    shards = _chosen(document)
    rows = [row for row in document["rows"] if (row["process"], row["shards"]) == (process, shards)]
    whole = next(row for row in rows if row["stage"] == _ALL)
    same = [row for row in rows if row["stage"] != _ALL and all(row[key] == whole[key] for key in _LOAD if key in row)]
    return whole, same


def stages_says(document: Document) -> str:
    said = [f"With {_chosen(document)} shards:"]
    for process in _PROCESSES:
        whole, stages = _of(document, process)
        wall = whole["wall_ns_per_entry"]
        works = max((row for row in stages if not _is_wait(row)), key=lambda row: float(row["wall_ns_per_entry"]))
        waits = [row for row in stages if _is_wait(row)]
        waited = sum(row["wall_ns_per_entry"] for row in waits)
        who = "a worker" if process == "workers" else f"the {process}"
        said.append(
            f"{who} spends {works['wall_ns_per_entry'] / wall:.0%} of its time on {works['stage']}, more than on any "
            f"other work, and waits for {waited / wall:.0%} of it"
        )
        if waited > 0:
            longest = max(waits, key=lambda row: float(row["wall_ns_per_entry"]))
            share = longest["wall_ns_per_entry"] / waited
            said[-1] += f" ({share:.0%} of that: {longest['stage'].removeprefix('waits ')})"
        said[-1] += ";" if process == "coordinator" else "."
    return " ".join(said)


def _is_wait(row: Row) -> bool:
    return bool(row["stage"].startswith(_WAITS))


def stages_rows(document: Document) -> list[Row]:
    """Of the shard count that is told of: each stage, and the whole, of the coordinator and of the mean worker."""
    kept = [f"{kind}_ns_per_entry{of}" for kind in ("wall", "cpu") for of in ("", SAMPLES)]
    return [
        {"process": process, "stage": row["stage"]} | {key: row[key] for key in kept if key in row}
        for process in _PROCESSES
        for whole, stages in [_of(document, process)]
        for row in [*stages, whole]
    ]


def stages_drawn(document: Document) -> str:
    rows: list[Bar] = []
    for number, process in enumerate(_PROCESSES):
        whole, stages = _of(document, process)
        for row in stages:
            if row["wall_ns_per_entry"] >= _SEEN * whole["wall_ns_per_entry"]:
                rows.append(bar(row["stage"], row, "wall_ns_per_entry", number))
    note = f"{load_of(document)}, {_chosen(document)} shards, {where(document)}; what takes less than 1 % is left out"
    return bars("Nanoseconds of an entry, stage by stage", note, ["coordinator", "a worker, mean of all"], rows)


# ---- the model -------------------------------------------------------------------------------------------------------


def _predictions(document: Document) -> list[Row]:
    """For each number of cores the shard count that is best: here, of those asked for, and on other hosts."""
    found: dict[int, Row] = {}
    for row in document["rows"]:
        known = found.get(row["cores"])
        if row["kind"] != "check" and (known is None or _rate(row) > _rate(known)):
            found[row["cores"]] = row
    return [found[cores] for cores in sorted(found)]


def _rate(row: Row) -> float:
    return float(row["predicted_entries_per_s"])


def model_says(document: Document) -> str:
    rows = _predictions(document)
    said = [
        f"{'On' if place == 0 else 'on'} {count(row['cores'], 'core')} {told(_rate(row))} entries/s with "
        f"{count(row['shards'], 'shard')}, and the bottleneck is {row['bottleneck']}"
        for place, row in enumerate([rows[0]] if len(rows) == 1 else [rows[0], rows[-1]])
    ]
    checks = [row for row in document["rows"] if row["kind"] == "check"]
    steady = [row for row in checks if is_steady(row, "entries_per_s")]
    checked = "None of it was checked in this report."
    if checks:
        checked = f"Of {len(checks)} that were measured here, too, the largest error is {_worst(checks):.0f} %"
        if steady and len(steady) < len(checks):
            checked += f"; of the {len(steady)} whose rounds are {STEADY - 1:.0%} apart or less, {_worst(steady):.0f} %"
        checked += "."
    return f"{'; '.join(said)}. These are predictions, and nobody has measured hosts that are larger. {checked}"


def _worst(checks: Sequence[Row]) -> float:
    return max(abs(float(row["error_percent"])) for row in checks)


def model_drawn(document: Document) -> str:
    points = [point(row["cores"], row, "predicted_entries_per_s") for row in _predictions(document)]
    series = [Line("predicted, with the best shard count", points)]
    here = [row for row in document["rows"] if row["kind"] == "check" and row["pin"] == "none"]
    if here:
        best = max(here, key=lambda row: float(row["entries_per_s"]))
        series.append(Line("measured", [point(best["cores"], best, "entries_per_s")]))
    note = f"{load_of(document)}, from stages counted on {where(document)}"
    return lines("PREDICTED throughput against cores", note, ("cores", "entries/s"), series)
