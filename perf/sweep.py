"""`python -m perf sweep`: the engine set in many ways, under many loads, beside py-lmdb and beside the limit."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from perf.cells import AXES, Cell, Plan, Ran, applied, written
from perf.documents import Document, document
from perf.facts import machine
from perf.report import carry_out, show_facts, write
from perf.rounds import Rounds
from perf.rows import SAMPLES, Row, figure
from perf.streams import Made
from shardengine import run

RUNS_MAX = 300
"""More than so many runs are not begun without being told that it is meant so."""


def measure(directory: Path, cell: Cell, made: Made) -> Ran:
    if cell.side == "engine":
        ran: Ran = run(applied(directory / "data", cell, made))
        return ran
    return written(directory, cell, made)


def cells_of(plan: Plan) -> list[Cell]:
    """Every engine that is asked for, and behind it what it is put beside, once each."""
    found: dict[Cell, None] = {}
    for cell in plan.cells("engine"):
        found |= dict.fromkeys((cell, cell.beside("py-lmdb"), cell.beside("limit")))
    return list(found)


def row_of(cell: Cell, runs: Sequence[Ran]) -> Row:
    """Figures of one cell: medians over rounds, and the values of those."""
    samples = {
        "entries_per_s": [one.entries_per_s for one in runs],
        "coordinator_cpu_ns_per_entry": [one.ns_per_entry(one.coordinator_cpu) for one in runs],
        "worker_cpu_ns_per_entry": [one.ns_per_entry(one.worker_cpu) for one in runs],
        "cores_busy": [one.cores_busy for one in runs],
        "cores_lacking": [one.cores_lacking for one in runs],
    }
    row: Row = {"side": cell.side} | {axis: getattr(cell, axis) for axis in AXES}
    for name, values in samples.items():
        row |= figure(name, values)
    return row


def rows_of(found: dict[Cell, list[Ran]]) -> list[Row]:
    """Of each cell, in the order they were measured in; an engine's with its speed beside the other sides'."""
    rates = {cell: median(one.entries_per_s for one in runs) for cell, runs in found.items()}
    rows = []
    for cell, runs in found.items():
        row = row_of(cell, runs)
        if cell.side == "engine":
            row["over_py_lmdb"] = rates[cell] / rates[cell.beside("py-lmdb")]
            row["over_limit"] = rates[cell] / rates[cell.beside("limit")]
        rows.append(row)
    return rows


def measured(directory: Path, plan: Plan) -> Document:
    """All figures. Raises CheckError when a final state is wrong."""
    rounds = Rounds(directory, cells_of(plan), measure, plan.entries, plan.seed)
    rounds.run(plan.rounds)
    return document("sweep", machine(), plan.settings(), rows_of(rounds.found))


def run_sweep(plan: Plan, *, yes: bool, parent: Path | None, output: Path | None, table: Path | None) -> int:
    """Measure, check, then print, and write `output`, and `table` as CSV. Returns the exit code."""
    runs = len(cells_of(plan)) * plan.rounds
    if runs > RUNS_MAX and not yes:
        print(f"that is {runs:,} runs, more than {RUNS_MAX}: ask for less, or say --yes", file=sys.stderr)
        return 2

    def show_and_write(facts: dict[str, Any]) -> None:
        show(facts)
        if table is not None:
            write_csv(facts["rows"], table)

    return carry_out(partial(measured, plan=plan), show_and_write, parent=parent, output=output)


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """The rows without the values of single rounds, but with the lowest and the highest rate."""
    flat = []
    for row in rows:
        rates = row["entries_per_s_samples"]
        one = {name: value for name, value in row.items() if not name.endswith(SAMPLES)}
        flat.append(one | {"entries_per_s_min": min(rates), "entries_per_s_max": max(rates)})
    names = list(dict.fromkeys(name for row in flat for name in row))
    table = io.StringIO()
    writer = csv.DictWriter(table, names)
    writer.writeheader()
    writer.writerows(flat)
    write(path, table.getvalue())


_FIGURES = "{:>12}{:>25}{:>11}{:>9}{:>17}{:>13}{:>12}"
_MEANS = ("entries/s", "min..max", "/ py-lmdb", "/ limit", "coordinator, ns", "workers, ns", "cores busy")


def varying(settings: dict[str, Any]) -> list[str]:
    """The axes of which more than one value was asked for; the shards always."""
    return [axis for axis in AXES if axis == "shards" or len(settings.get(axis, ())) > 1]


def show_settings(settings: dict[str, Any], last: str) -> None:
    """What all rows of a table have in common, and `last`. A size that is 0 was not asked for."""
    fixed = {axis: settings[axis][0] for axis in AXES if axis in settings and axis not in varying(settings)}
    told = ", ".join(f"{name} {value}" for name, value in fixed.items() if value)
    print(f"{settings['entries']:,} entries, a tenth of them warm-up; {told}; {last}\n")


def show(facts: dict[str, Any]) -> None:
    rows, axes = facts["rows"], varying(facts["settings"])
    rounds = len(rows[0]["entries_per_s_samples"])
    show_facts(facts["facts"])
    show_settings(facts["settings"], f"median of {rounds} rounds, CPU time an entry")
    print(f"{'side':<9}" + "".join(f"{axis:>12}" for axis in axes) + _FIGURES.format(*_MEANS))
    for row in rows:
        print(f"{row['side']:<9}" + "".join(f"{row[axis]:>12}" for axis in axes) + _figures(row))
    print(f"\nchecked: index, record count and digest behind each of {rounds * len(rows)} runs")


def _figures(row: Row) -> str:
    rates = row["entries_per_s_samples"]
    return _FIGURES.format(
        f"{row['entries_per_s']:,.0f}",
        f"{min(rates):,.0f}..{max(rates):,.0f}",
        *(f"{row[name]:.2f}" if name in row else "" for name in ("over_py_lmdb", "over_limit")),
        f"{row['coordinator_cpu_ns_per_entry']:,.0f}",
        f"{row['worker_cpu_ns_per_entry']:,.0f}",
        f"{row['cores_busy']:.2f}",
    )
