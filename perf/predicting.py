"""`python -m perf model`: what other shard counts and other hosts would do, from stages counted here or there."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from perf.cells import Cell, Plan, Ran, cores
from perf.counters import Counted
from perf.documents import MALFORMED, Document, DocumentError, document, parts_of
from perf.facts import machine
from perf.model import ASSUMPTIONS, Costs, Prediction, StagesError, best, costs_of, predict
from perf.report import carry_out, show_facts
from perf.rounds import Rounds
from perf.rows import STEADY, Row, figure, is_steady
from perf.stages import measure, rows_of
from perf.streams import Stream, largest_share
from perf.sweep import show_settings

COUNTED = (1, 2, 4)
"""Shard counts whose stages the model is made of."""
CHECKED = (1, 2, 3, 4)
"""Shard counts that `--check` measures, on all cores and on one."""
ELSEWHERE = (8, 16, 32, 64)
"""Cores of hosts that are predicted in any case."""
WITHIN_S = 90.0
TARGET_PERCENT = 15.0
BUSY = 0.9
"""A core that all are pinned to, and that they have for less, is not theirs alone."""


class Asked(msgspec.Struct, frozen=True):
    """What is to be predicted; `stages` is a file of another measurement, `check` whether to measure what is."""

    cores: list[int]
    shards: list[int]
    memory_gb_s: float | None
    stages: Path | None
    check: bool


class Model(msgspec.Struct, frozen=True):
    """What stages cost, and of which stream."""

    costs: Costs
    stream: Stream

    def predictor(self, memory_gb_s: float | None) -> Callable[[int, int], Prediction]:
        """Of so many cores and shards."""
        slots, size = self.stream.slots(), round(self.costs.together.entries_per_group)
        share = cache(lambda shards: largest_share(slots, shards, size))
        return lambda cores, shards: predict(self.costs, share, cores, shards, memory_gb_s)


def measured(directory: Path, plan: Plan, asked: Asked) -> Document:
    """All figures. Raises CheckError when a final state is wrong."""
    facts, settings, rows = (machine(), plan.settings(), []) if asked.stages is None else _read(asked.stages)
    found: dict[Cell, list[Counted | Ran]] = {}
    if cells := _cells(plan, counted=asked.stages is None, check=asked.check):
        rounds = Rounds(directory, cells, measure, plan.entries, plan.seed)
        rounds.run(plan.rounds, WITHIN_S)
        found = rounds.found
        rows = rows or _stages(found)
    try:
        model = Model(costs_of(rows), _stream(settings))
    except MALFORMED as error:
        raise StagesError(f"these are no whole stages: {error!r}") from error
    told = model.predictor(asked.memory_gb_s)
    told_too = {"costs": msgspec.to_builtins(model.costs), "assumptions": list(ASSUMPTIONS)}
    rows = [*_asked_rows(told, asked), *_hosts(told), *_checks(told, found)]
    return document("model", facts, settings | told_too, rows)


def _cells(plan: Plan, *, counted: bool, check: bool) -> list[Cell]:
    """Those counted, one for each shard count, and those checked."""
    (first,) = plan.cells("counted")
    cells = [msgspec.structs.replace(first, shards=shards) for shards in COUNTED] if counted else []
    for pin in ("none", "one") if check else ():
        cells += [msgspec.structs.replace(first, side="engine", shards=shards, pin=pin) for shards in CHECKED]
    return cells


def _stages(found: dict[Cell, list[Counted | Ran]]) -> list[Row]:
    rows: list[Row] = []
    for cell, runs in found.items():
        if cell.side == "counted":
            rows += rows_of(cell, [one for one in runs if isinstance(one, Counted)])
    return rows


def _read(path: Path) -> tuple[Row, Row, list[Row]]:
    """Facts, settings and rows of a file that `stages` wrote. Raises StagesError."""
    try:
        found = parts_of(path)[1]["stages"]
    except DocumentError as error:
        raise StagesError(str(error)) from error
    except KeyError:
        raise StagesError(f"{path} holds no stages") from None
    return found["facts"], found["settings"], found["rows"]


def _stream(settings: Row) -> Stream:
    values = {name: settings[name][0] for name in ("value_bytes", "keys", "command")}
    return Stream(settings["entries"], seed=settings["seed"], **values)


# ---- rows ------------------------------------------------------------------------------------------------------------


def _row(kind: str, said: Prediction) -> Row:
    limits = {f"{name}_allows_entries_per_s": limit for name, limit in said.limits.items()}
    told = {"kind": kind, "cores": said.cores, "shards": said.shards, "bottleneck": said.bottleneck}
    return told | {"predicted_entries_per_s": said.entries_per_s} | limits


def _asked_rows(told: Callable[[int, int], Prediction], asked: Asked) -> list[Row]:
    return [_row("asked", told(count, shards)) for count in asked.cores for shards in asked.shards]


def _hosts(told: Callable[[int, int], Prediction]) -> list[Row]:
    """For each size of host the shard count that the model finds best."""
    return [_row("host", best(told(count, shards) for shards in range(1, count + 1))) for count in ELSEWHERE]


def _checks(told: Callable[[int, int], Prediction], found: dict[Cell, list[Counted | Ran]]) -> list[Row]:
    """What was measured beside what the model says of it."""
    rows = []
    for cell, runs in found.items():
        if cell.side == "engine":
            plain = [one for one in runs if isinstance(one, Ran)]
            rates = [one.entries_per_s for one in plain]
            said = told(1 if cell.pin == "one" else len(cores()), cell.shards)
            figures = figure("entries_per_s", rates) | figure("cores_busy", (one.cores_busy for one in plain))
            error = 100 * (said.entries_per_s / median(rates) - 1)
            rows.append(_row("check", said) | {"pin": cell.pin, **figures, "error_percent": error})
    return rows


# ---- what is printed -------------------------------------------------------------------------------------------------


def run_model(plan: Plan, asked: Asked, *, parent: Path | None, output: Path | None) -> int:
    """Measure, check, then print, and write `output`. Returns the exit code."""
    try:
        work = partial(measured, plan=plan, asked=asked)
        return carry_out(work, partial(show, check=asked.check), parent=parent, output=output)
    except StagesError as error:
        print(error, file=sys.stderr)
        return 2


_ROW = "{:>5}{:>8}{:>14}   {}"
_CHECK = "{:>5}{:>8}{:>13}{:>13}{:>23} {:>11}{:>12}   {}"


def show(facts: dict[str, Any], *, check: bool) -> None:
    settings, rows = facts["settings"], facts["rows"]
    show_facts(facts["facts"])
    show_settings(settings | {"shards": list(COUNTED), "pin": ["none"]}, "predicted from the stages of 1, 2 and more")
    print(_ROW.format("cores", "shards", "entries/s", "bottleneck"))
    for row in _of(rows, "asked"):
        print(_line(row))
    print("\nOther hosts, with the fewest shards that come within 3 % of the fastest: PREDICTIONS, not measured")
    for row in _of(rows, "host"):
        print(_line(row))
    if check:
        _show_check(_of(rows, "check"))
    print("\nassumed: " + ";\n         ".join(settings["assumptions"]))


def _of(rows: Sequence[Row], kind: str) -> list[Row]:
    return [row for row in rows if row["kind"] == kind]


def _line(row: Row) -> str:
    return _ROW.format(row["cores"], row["shards"], f"{row['predicted_entries_per_s']:,.0f}", row["bottleneck"])


def _verdict(error: float) -> str:
    return f"{'within' if error <= TARGET_PERCENT else 'NOT WITHIN'} {TARGET_PERCENT:g} %"


def _show_check(rows: Sequence[Row]) -> None:
    print(
        "\n"
        + _CHECK.format("cores", "shards", "predicted", "measured", "min..max", "error", "cores busy", "bottleneck")
    )
    for row in rows:
        rates = row["entries_per_s_samples"]
        print(
            _CHECK.format(
                row["cores"],
                row["shards"],
                f"{row['predicted_entries_per_s']:,.0f}",
                f"{row['entries_per_s']:,.0f}",
                f"{min(rates):,.0f}..{max(rates):,.0f}",
                f"{row['error_percent']:+.1f} %",
                f"{row['cores_busy']:.2f}",
                row["bottleneck"],
            )
        )
    worst = max(abs(row["error_percent"]) for row in rows)
    steady = [row for row in rows if is_steady(row, "entries_per_s")]
    rounds = len(rows[0]["entries_per_s_samples"])
    print(f"median of {rounds} rounds; the largest error is {worst:.1f} %, {_verdict(worst)}")
    if len(steady) < len(rows):
        worst = max((abs(row["error_percent"]) for row in steady), default=0.0)
        apart = f"the rounds of {len(rows) - len(steady)} of {len(rows)} are more than {STEADY - 1:.0%} apart"
        print(f"{apart}; the largest error of the others is {worst:.1f} %, {_verdict(worst)}" if steady else apart)
    if (busy := min((row["cores_busy"] for row in rows if row["pin"] == "one"), default=1.0)) < BUSY:
        print(f"others wanted the core that all were pinned to, which they had for {busy:.0%}: the errors say little")
    print("checked: index, record count and digest behind each run")
