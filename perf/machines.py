"""`python -m perf machines`: the example machines on this engine, beside the same commands in one process."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from perf.facts import machine
from perf.places import over_a_dict, over_lmdb
from perf.report import CheckError, carry_out, progress, show_plan
from perf.sides import feed, timed
from perf.workloads import Workload, workloads
from shardengine import Engine, run

SIDES = ("engine", "memory", "py-lmdb")


class Plan(msgspec.Struct, frozen=True):
    """What is measured: so many entries of every machine, over about so many keys."""

    shards: int
    keys: int
    entries: int
    chunk: int
    window: int
    rounds: int
    seed: int


class Measurement:
    """Rounds of the three sides, in turn, for one machine after the other. Raises CheckError unless all sides end in
    the same state."""

    def __init__(self, directory: Path, plan: Plan) -> None:
        self._directory = directory
        self._plan = plan
        self.found: list[dict[str, Any]] = []

    async def measure(self) -> None:
        plan = self._plan
        for workload in workloads(plan.keys, plan.entries, plan.chunk, plan.seed):
            seconds: dict[str, list[float]] = {side: [] for side in SIDES}
            digests: set[bytes] = set()
            for number in range(plan.rounds):
                first = number % len(SIDES)
                for side in SIDES[first:] + SIDES[:first]:
                    progress(f"{workload.name}, round {number + 1} of {plan.rounds}: {side}")
                    spent, digest = await self._one(side, workload)
                    seconds[side].append(spent)
                    digests.add(digest)
                    if len(digests) > 1:
                        raise CheckError(f"{workload.name}: {side} ends at digest {digest.hex()}, others do not")
            self.found.append(_facts(workload, seconds, *digests))
        progress("")

    async def _one(self, side: str, workload: Workload) -> tuple[float, bytes]:
        if side == "memory":
            return await over_a_dict(workload.machine, workload.first, workload.chunks)
        place = self._directory / side
        try:
            if side == "py-lmdb":
                return over_lmdb(place, workload.machine, workload.first, workload.chunks)
            async with Engine(place, shards=self._plan.shards, machine=workload.machine) as db:
                await feed(db, workload.first, self._plan.window)
                spent = await timed(db, workload.chunks, self._plan.window)
                return spent.seconds, await db.digest()
        finally:
            shutil.rmtree(place)


def _facts(workload: Workload, seconds: dict[str, list[float]], digest: bytes) -> dict[str, Any]:
    rates = {side: workload.entries / median(times) for side, times in seconds.items()}
    return {
        "machine": workload.name,
        "what": workload.what,
        "entries_per_second": rates,
        "engine_over_memory": rates["engine"] / rates["memory"],
        "engine_over_py_lmdb": rates["engine"] / rates["py-lmdb"],
        "seconds": seconds,
        "digest": digest.hex(),
    }


def measured(directory: Path, plan: Plan) -> dict[str, Any]:
    """All figures. Raises CheckError when an answer is wrong."""
    measurement = Measurement(directory, plan)
    run(measurement.measure())
    return {
        "machine": machine(),
        "plan": msgspec.to_builtins(plan),
        "durability": "process",
        "machines": measurement.found,
    }


def run_machines(plan: Plan, *, parent: Path | None, output: Path | None) -> int:
    """Measure, check, then print, and write `output`. Returns the exit code."""
    return carry_out(partial(measured, plan=plan), show, parent=parent, output=output)


_ROW = "{:<13}{:>14}{:>10}{:>10}{:>10}{:>11}   {}"


def show(facts: dict[str, Any]) -> None:
    plan = facts["plan"]
    show_plan(facts, f"{plan['entries']:,} entries of each, {plan['keys']:,} keys, {plan['shards']} shards")
    print(_ROW.format("entries/s", *SIDES, "/ memory", "/ py-lmdb", "of"))
    for found in facts["machines"]:
        rates = [f"{found['entries_per_second'][side]:,.0f}" for side in SIDES]
        ratios = f"{found['engine_over_memory']:.2f}", f"{found['engine_over_py_lmdb']:.2f}"
        print(_ROW.format(found["machine"], *rates, *ratios, found["what"]))
    print("\nchecked: the digests of all sides are the same, for each machine")
