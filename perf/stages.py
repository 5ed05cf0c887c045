"""`python -m perf stages`: what an entry's time goes to, stage by stage, in the coordinator and in its workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from perf.cells import AXES, Cell, Plan, Ran, applied
from perf.clocks import ELSEWHERE
from perf.counters import Counted, Process, counted
from perf.documents import Document, document
from perf.facts import machine
from perf.report import carry_out, show_facts
from perf.rounds import Rounds
from perf.rows import Row, figure
from perf.streams import Made
from perf.sweep import show_settings, varying
from shardengine import run

ALL = "all"
"""The row of a process's whole time, of which its stages are parts; and the engine's, in which there are no parts."""
ENGINE, COORDINATOR, WORKERS = "engine", "coordinator", "workers"
"""`workers` is the mean of all workers."""


def measure(directory: Path, cell: Cell, made: Made) -> Counted | Ran:
    found: Counted | Ran
    if cell.side == "counted":
        found = run(counted(directory, cell, made))
    else:
        found = run(applied(directory / "data", cell, made))
    return found


def rows_of(cell: Cell, runs: Sequence[Counted], uncounted: Sequence[Ran] = ()) -> Iterator[Row]:
    """The engine's row, with the rate of runs whose stages were not counted, if there are any; and for each process a
    row a stage, and one of all its time. Times are an entry's, of those that went through the engine."""
    axes = {axis: getattr(cell, axis) for axis in AXES}
    told = axes | {"process": ENGINE, "stage": ALL}
    if uncounted:
        told |= _figures(uncounted_entries_per_s=[one.entries_per_s for one in uncounted])
    yield told | _figures(
        entries_per_s=[one.ran.entries_per_s for one in runs],
        entries_per_group=[one.ran.entries / one.ran.groups for one in runs],
        wake_ns=[one.wake_ns for one in runs],
    )
    names = [process.name for process in runs[0].processes]
    for name in names:
        yield from _rows_of_process(axes | {"process": name}, name, runs)
    yield from _rows_of_process(axes | {"process": WORKERS}, WORKERS, runs)


def _rows_of_process(told: Row, name: str, runs: Sequence[Counted]) -> Iterator[Row]:
    chosen = [[one for one in counted.processes if _is(one, name)] for counted in runs]
    entries = [counted.ran.entries for counted in runs]

    def mean(figure: Any) -> list[float]:
        return [fmean(map(figure, some)) / count for some, count in zip(chosen, entries, strict=True)]

    yield (
        told
        | {"stage": ALL}
        | _figures(
            wall_ns_per_entry=mean(lambda one: one.wall_ns),
            cpu_ns_per_entry=mean(lambda one: one.cpu_ns),
            kept_waiting_ns_per_entry=mean(lambda one: one.kept_waiting_ns),
            sum_of_stages_wall_ns_per_entry=mean(lambda one: sum(wall for wall, _ in one.stages.values())),
            sum_of_stages_cpu_ns_per_entry=mean(lambda one: sum(cpu for _, cpu in one.stages.values())),
        )
    )
    for stage in chosen[0][0].stages:
        yield (
            told
            | {"stage": stage}
            | _figures(
                wall_ns_per_entry=mean(lambda one, stage=stage: one.stages[stage][0]),
                cpu_ns_per_entry=mean(lambda one, stage=stage: one.stages[stage][1]),
            )
        )


def _is(process: Process, name: str) -> bool:
    return process.name == name or (name == WORKERS and process.name != COORDINATOR)


def _figures(**samples: list[float]) -> Row:
    row: Row = {}
    for name, values in samples.items():
        row |= figure(name, values)
    return row


def cells_of(plan: Plan) -> list[Cell]:
    """Each with its stages counted, and without."""
    pairs = zip(plan.cells("counted"), plan.cells("engine"), strict=True)
    return [cell for pair in pairs for cell in pair]


def rows_of_all(found: dict[Cell, list[Counted | Ran]]) -> list[Row]:
    rows: list[Row] = []
    for cell, runs in found.items():
        if cell.side == "counted":
            plain = found[cell.uncounted()]
            rows += rows_of(
                cell,
                [one for one in runs if isinstance(one, Counted)],
                [one for one in plain if isinstance(one, Ran)],
            )
    return rows


def measured(directory: Path, plan: Plan) -> Document:
    """All figures. Raises CheckError when a final state is wrong."""
    rounds = Rounds(directory, cells_of(plan), measure, plan.entries, plan.seed)
    rounds.run(plan.rounds)
    return document("stages", machine(), plan.settings(), rows_of_all(rounds.found))


def run_stages(plan: Plan, *, parent: Path | None, output: Path | None) -> int:
    """Measure, check, then print, and write `output`. Returns the exit code."""
    return carry_out(partial(measured, plan=plan), show, parent=parent, output=output)


_ROW = "  {:<32}{:>10}{:>10}{:>11}"


def show(facts: dict[str, Any]) -> None:
    rows, settings = facts["rows"], facts["settings"]
    rounds = len(rows[0]["entries_per_s_samples"])
    show_facts(facts["facts"])
    show_settings(settings, f"median of {rounds} rounds, ns an entry")
    axes = varying(settings)
    for row in rows:
        if row["process"] == ENGINE:
            print(", ".join(f"{axis} {row[axis]}" for axis in axes) + f": {_of_engine(row)}")
        elif row["process"] in (COORDINATOR, WORKERS) and row["stage"] == ALL:
            of = [one for one in rows if _same(one, row) and one["stage"] != ALL]
            _show_process(row, of)
    print("checked: index, record count and digest behind each run")


def _same(one: Row, other: Row) -> bool:
    return all(one[name] == other[name] for name in (*AXES, "process"))


def _of_engine(row: Row) -> str:
    lost = 100 * (1 - row["entries_per_s"] / row["uncounted_entries_per_s"])
    return (
        f"{row['uncounted_entries_per_s']:,.0f} entries/s, {row['entries_per_group']:,.0f} entries a group; "
        f"{row['entries_per_s']:,.0f} with the stages counted, which is {abs(lost):.1f} % "
        f"{'slower' if lost >= 0 else 'faster'}"
    )


def _show_process(whole: Row, stages: Sequence[Row]) -> None:
    wall = whole["wall_ns_per_entry"]
    name = "a worker, mean of all" if whole["process"] == WORKERS else whole["process"]
    print(_ROW.format(name, "wall", "CPU", "% of wall"))
    for row in stages:
        if row["stage"] != ELSEWHERE and row["wall_ns_per_entry"] >= 0.5:
            print(_line(row["stage"], row, wall))
    (rest,) = (row for row in stages if row["stage"] == ELSEWHERE)
    print(_line("elsewhere (unexplained)", rest, wall))
    print(_line("all", whole, wall))
    summed, cpu = whole["sum_of_stages_wall_ns_per_entry"], whole["sum_of_stages_cpu_ns_per_entry"]
    print(
        f"  the stages add up to {100 * summed / wall:.1f} % of the wall's time "
        f"and {100 * cpu / whole['cpu_ns_per_entry']:.1f} % of the CPU's; "
        f"for {whole['kept_waiting_ns_per_entry']:,.0f} ns it wanted a core and had none\n"
    )


def _line(name: str, row: Row, wall: float) -> str:
    share = 100 * row["wall_ns_per_entry"] / wall
    return _ROW.format(name, f"{row['wall_ns_per_entry']:,.0f}", f"{row['cpu_ns_per_entry']:,.0f}", f"{share:.1f}")
