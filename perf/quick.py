"""`python -m perf sweep --quick`: how many shards, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from perf.cells import Cell, Plan, Ran, cores
from perf.documents import Document, document
from perf.facts import machine
from perf.report import carry_out, show_facts
from perf.rounds import Rounds
from perf.rows import SAMPLES
from perf.sweep import measure, row_of, show_settings
from perf.telling import is_noise

WITHIN_S = 90.0
"""No round is begun that would end later. What is around the rounds takes a few seconds more."""
GAIN = 1.05
"""A larger count has to be so much faster than the best of the smaller ones."""
BUSY = 0.85
"""A core of which less stands still counts as busy."""

LACKING = 0.25
"""Whoever lacks so much of a core, where not all are busy, is not alone on the machine."""


def candidates(usable: int) -> list[int]:
    """Shard counts worth trying on so many cores: up to one more than there are, and not every one of many."""
    counts = {1, 2, 3, 4, 6, *(1 << power for power in range(3, 9)), usable - 1, usable, usable + 1}
    return sorted(count for count in counts if 1 <= count <= min(usable + 1, 256))


class Answer(msgspec.Struct, frozen=True):
    """How many shards, and the sentence that says so. `gains` are the speeds of the counts tried beside the best of the
    smaller ones, medians over rounds."""

    shards: int
    gains: dict[int, float]
    sentence: str


def answer(runs: Mapping[int, Sequence[Ran]], usable: int) -> Answer:
    """From the runs with each shard count, which took turns, round by round; `usable` cores."""
    counts = sorted(runs)
    best, gains, over_first = counts[0], dict[int, float](), 1.0
    for count in counts[1:]:
        gains[count] = _beside(runs[count], runs[best])
        if gains[count] >= GAIN:
            best, over_first = count, _beside(runs[count], runs[counts[0]])
    most, first = (
        {f"entries_per_s{SAMPLES}": [one.entries_per_s for one in runs[count]]} for count in (best, counts[0])
    )
    over = f"{over_first:.2f} times the throughput of {{}}{is_noise(most, first, 'entries_per_s')}"
    return Answer(best, gains, _sentence(best, counts, over, gains, _why(runs[best], usable)))


def _beside(some: Sequence[Ran], others: Sequence[Ran]) -> float:
    return median(one.entries_per_s / other.entries_per_s for one, other in zip(some, others, strict=True))


def _sentence(best: int, counts: Sequence[int], over: str, gains: dict[int, float], why: str) -> str:
    first = f"{counts[0]} shard{'s' * (counts[0] > 1)}"
    chosen = f"{best} shard{'s' * (best > 1)}"
    if best != counts[0]:
        chosen += f": {over.format(first)}"
    more = [count for count in counts if count > best]
    if not more:
        return f"{chosen}; more were not tried"
    tried = f"{more[0]} to {more[-1]}" if len(more) > 2 else " or ".join(map(str, more))
    each = ", ".join(f"{gains[count]:.2f}" for count in more)
    return f"{chosen}; {tried} gain nothing ({each}), since {why}"


def _why(runs: Sequence[Ran], usable: int) -> str:
    """What keeps the runs from being faster."""
    busy = median(one.cores_busy for one in runs)
    coordinator = median(one.coordinator_cpu / one.seconds for one in runs)
    lacking = median(one.cores_lacking for one in runs)
    if busy >= BUSY * usable:
        return f"{busy:.1f} of {usable} core{'s' * (usable > 1)} are busy with what there is"
    if coordinator >= BUSY:
        return f"the coordinator has its core busy ({coordinator:.2f})"
    if lacking >= LACKING:
        return f"others have the cores: {busy:.1f} of {usable} are to be had, and {lacking:.1f} more are wanted"
    return f"shards wait for each other, or for the disk ({busy:.1f} of {usable} cores are busy)"


def measured(directory: Path, plan: Plan) -> Document:
    """All figures. Raises CheckError when a final state is wrong."""
    rounds = Rounds(directory, plan.cells("engine"), measure, plan.entries, plan.seed)
    rounds.run(plan.rounds, WITHIN_S)
    rows = [row_of(cell, runs) for cell, runs in rounds.found.items()]
    answers = []
    for cells in _by_all_but_shards(list(rounds.found)):
        found = answer({cell.shards: rounds.found[cell] for cell in cells}, len(cores()))
        told = {name: row for name, row in row_of(cells[0], [rounds.found[cells[0]][0]]).items() if name in _SAME}
        answers.append(told | {"answer_shards": found.shards, "sentence": found.sentence})
    return document("sweep", machine(), plan.settings() | {"answers": answers}, rows)


_SAME = ("chunk", "window", "value_bytes", "keys", "command", "durability", "pin")


def _by_all_but_shards(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Those that differ in nothing but their shards, together."""
    found: dict[Cell, list[Cell]] = {}
    for cell in cells:
        found.setdefault(msgspec.structs.replace(cell, shards=0), []).append(cell)
    return list(found.values())


def run_quick(plan: Plan, *, parent: Path | None, output: Path | None) -> int:
    """Measure, check, then print an answer for each load, and write `output`. Returns the exit code."""
    return carry_out(partial(measured, plan=plan), show, parent=parent, output=output)


def show(facts: dict[str, Any]) -> None:
    settings, rows = facts["settings"], facts["rows"]
    show_facts(facts["facts"])
    show_settings(settings, f"{len(rows[0]['entries_per_s_samples'])} rounds")
    several = [name for name in _SAME if len(settings[name]) > 1]
    for one in settings["answers"]:
        of = ", ".join(f"{name} {one[name]}" for name in several)
        print(f"{of}: {one['sentence']}" if of else one["sentence"])
    print("\nchecked: index, record count and digest behind each run")
