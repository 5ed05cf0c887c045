"""`python -m perf node`: proposals, one caller or many, beside what a disk, SQLite and the engine alone take for the
same puts."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from math import ceil
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from perf.calls import Amount, Took, percentile
from perf.disks import SQLITE_VERSION, over_a_file, over_sqlite
from perf.facts import machine
from perf.load import KEY_BYTES, Load
from perf.proposing import over_a_node, over_an_engine, puts_of
from perf.report import carry_out, progress, show_machine
from shardengine import run
from shardengine.engine.storage.files import filesystem_of

SIDES = NODE, WRITE, SQLITE, ENGINE = "node", "write + fdatasync", "SQLite", "engine alone"
TOGETHER, SEVERAL = 256, 8  # commands of one `propose_many`, and callers of it
_PERCENTILES = {"p50_us": 50, "p99_us": 99, "p99_9_us": 99.9}


class Plan(msgspec.Struct, frozen=True):
    """What is measured: each stretch ends after so many proposals or seconds, whichever is less."""

    callers: list[int]
    proposals: int
    seconds: float
    value_bytes: int
    shards: int
    rounds: int
    seed: int


class Case:
    """So many callers, who propose `size` commands at a time; and what each side took for as many in a write, a
    transaction or a chunk as the node put into a frame."""

    def __init__(self, callers: int, size: int) -> None:
        self.callers = callers
        self.size = size
        self.took: dict[str, list[Took]] = {side: [] for side in SIDES}
        self.frames: list[int] = []

    @property
    def name(self) -> str:
        return f"{self.callers}" if self.size == 1 else f"{self.callers} x {self.size}"

    @property
    def batch(self) -> int:
        """Commands of a frame, in all rounds so far."""
        return max(1, round(sum(took.timed for took in self.took[NODE]) / sum(self.frames)))

    @property
    def frames_in_flight(self) -> int:
        """So many the callers' commands make, if all of them wait."""
        return ceil(self.callers * self.size / self.batch)

    def rate(self, side: str) -> float:
        return median(took.per_second for took in self.took[side])

    def facts(self) -> Iterator[dict[str, Any]]:
        """A row of each side."""
        for side, found in self.took.items():
            frames = self.frames if side == NODE else [len(took.calls_ns) for took in found]
            calls_ns = [time for took in found for time in took.calls_ns]
            yield {
                "callers": self.name,
                "side": side,
                "proposals_per_second": self.rate(side),
                **{name: percentile(calls_ns, percent) for name, percent in _PERCENTILES.items()},
                "cpu_us": median(took.cpu / took.timed for took in found) * 1e6,
                "frames": sum(frames),
                "entries_per_frame": sum(took.timed for took in found) / sum(frames),
                "rates": [took.per_second for took in found],
            }


class Measurement:
    """Rounds of all cases, in which the sides take turns. Raises CheckError at the first wrong answer."""

    def __init__(self, directory: Path, plan: Plan) -> None:
        self._directory = directory
        self._plan = plan
        self._amount = Amount(plan.proposals, plan.seconds)
        self._puts = puts_of(Load(self._amount.prepared, plan.value_bytes, self._amount.prepared, plan.seed))
        self._alone = Case(1, 1)
        others = [Case(callers, 1) for callers in plan.callers if callers != 1]
        self.cases = [self._alone, *others, Case(1, TOGETHER), Case(SEVERAL, TOGETHER)]
        self._syncs_ns: list[int] = []

    async def measure(self) -> None:
        for number in range(self._plan.rounds):
            first = number % len(SIDES)  # the node first of all: its frames tell the others how much goes together
            for case in self.cases:
                for side in SIDES[first:] + SIDES[:first]:
                    progress(f"{case.name}, round {number + 1} of {self._plan.rounds}: {side}")
                    place = self._directory / "place"
                    place.mkdir()
                    case.took[side].append(await self._one(side, case, place))
                    shutil.rmtree(place)
        progress("")

    async def _one(self, side: str, case: Case, place: Path) -> Took:
        puts, shards, amount = self._puts, self._plan.shards, self._amount
        if side == NODE:
            proposed = await over_a_node(place / "data", puts, shards, case.callers, case.size, amount)
            case.frames.append(proposed.frames)
            return proposed.took
        if side == SQLITE:
            return over_sqlite(place, puts.pairs, case.batch, amount)
        if side == ENGINE:
            return await over_an_engine(place / "data", puts, shards, case.frames_in_flight, case.batch, amount)
        bare = over_a_file(place, puts.datas, case.batch, amount)
        if case is self._alone:
            self._syncs_ns += bare.syncs_ns
        return bare.took

    def facts(self) -> dict[str, Any]:
        rows = [row for case in self.cases for row in case.facts()]
        for row in rows:
            row["over_write"] = row["proposals_per_second"] / self._alone.rate(WRITE)
            row["over_sqlite"] = row["proposals_per_second"] / self._alone.rate(SQLITE)
        p50 = {row["side"]: row["p50_us"] for row in rows if row["callers"] == self._alone.name}
        return {
            "node": rows,
            "fdatasync_us": percentile(self._syncs_ns, 50),
            "one_caller_p50_over_write": p50[NODE] / p50[WRITE],
            "one_caller_p50_over_sqlite": p50[NODE] / p50[SQLITE],
        }


def measured(directory: Path, plan: Plan) -> dict[str, Any]:
    """All figures. Raises CheckError when an answer is wrong."""
    measurement = Measurement(directory, plan)
    run(measurement.measure())
    return {
        "machine": machine(),
        "filesystem": filesystem_of(directory.resolve()),
        "sqlite": SQLITE_VERSION,
        "plan": msgspec.to_builtins(plan),
        "durability": "process",
        **measurement.facts(),
    }


def run_node(plan: Plan, *, parent: Path | None, output: Path | None) -> int:
    """Measure, check, then print, and write `output`. Returns the exit code."""
    return carry_out(partial(measured, plan=plan), show, parent=parent, output=output)


_ROW = "{:<9}{:<19}{:>12}{:>10}{:>10}{:>11}{:>9}{:>9}{:>12}{:>9}{:>10}"
_HEADS = ("p50, us", "p99, us", "p99.9, us", "CPU, us", "frames", "puts/frame", "/ write", "/ SQLite")
"""CPU time is the calling thread's, for a put. What a frame is to the others: a write, a transaction, a chunk."""


def show(facts: dict[str, Any]) -> None:
    plan = facts["plan"]
    show_machine(facts)
    print(
        f"puts of {KEY_BYTES} + {plan['value_bytes']} bytes, at most {plan['proposals']:,} or {plan['seconds']:g} s a "
        f"stretch, {plan['shards']} shards, durability {facts['durability']}, {facts['filesystem']}, "
        f"SQLite {facts['sqlite']}, {plan['rounds']} rounds\n"
    )
    print(_ROW.format("callers", "side", "proposals/s", *_HEADS))
    for row in facts["node"]:
        print(_row(row))
    print(f"\nfdatasync alone           {facts['fdatasync_us']:,.1f} us, the median of those that one caller waits for")
    print(f"one caller, node / write  {facts['one_caller_p50_over_write']:.2f}   of the p50; node / SQLite", end=" ")
    print(f"{facts['one_caller_p50_over_sqlite']:.2f}")
    print("\nchecked: every digest, log, file and table holds what was acknowledged, and nothing else")


def _row(row: dict[str, Any]) -> str:
    return _ROW.format(
        row["callers"],
        row["side"],
        f"{row['proposals_per_second']:,.0f}",
        *(f"{row[name]:,.0f}" for name in _PERCENTILES),
        f"{row['cpu_us']:.1f}",
        f"{row['frames']:,}",
        f"{row['entries_per_frame']:.1f}",
        f"{row['over_write']:.2f}",
        f"{row['over_sqlite']:.2f}",
    )
