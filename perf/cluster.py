"""`python -m perf cluster`: proposals through a replicated log, beside a bare publish of the same frames to the same
servers, and beside a log on this machine alone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from perf.calls import Amount, Took, percentile
from perf.facts import machine
from perf.load import KEY_BYTES, Load
from perf.node import Plan
from perf.proposing import over_a_node, puts_of
from perf.publishing import over_a_replicated_node, published
from perf.report import carry_out, progress, show_machine
from shardengine import run
from shardengine.engine.cluster.servers import Servers, nats_server_version
from shardengine.engine.storage.files import filesystem_of

SIDES = NODE, BARE, LOCAL = "JetStreamLog", "bare publish", "LocalLog"
_PERCENTILES = {"p50_us": 50, "p99_us": 99}
_REPLICAS = 3


class Case:
    """So many callers, and what each side took; of the bare publish, also how many commands its frames held."""

    def __init__(self, callers: int) -> None:
        self.callers = callers
        self.took: dict[str, list[Took]] = {side: [] for side in SIDES}
        self.rates: dict[str, list[float]] = {side: [] for side in SIDES}
        self.frames: list[int] = []

    def facts(self) -> Iterator[dict[str, Any]]:
        """A row of each side."""
        bare = self.rates[BARE]
        for side, found in self.took.items():
            calls_ns = [time for took in found for time in took.calls_ns]
            yield {
                "callers": self.callers,
                "side": side,
                "proposals_per_second": median(self.rates[side]),
                **{name: percentile(calls_ns, percent) for name, percent in _PERCENTILES.items()},
                "over_bare": median(rate / alone for rate, alone in zip(self.rates[side], bare, strict=True)),
                "entries_per_frame": sum(took.timed for took in self.took[NODE]) / sum(self.frames),
                "rates": self.rates[side],
            }


class Measurement:
    """Rounds of all cases. In each the node comes first, since its frames are what the bare publish sends. Raises
    CheckError at the first wrong answer."""

    def __init__(self, directory: Path, servers: Servers, plan: Plan) -> None:
        self._directory = directory
        self._urls = servers.urls
        self._plan = plan
        self._amount = Amount(plan.proposals, plan.seconds)
        self._puts = puts_of(Load(self._amount.prepared, plan.value_bytes, self._amount.prepared, plan.seed))
        self.cases = [Case(callers) for callers in plan.callers]

    async def measure(self) -> None:
        for number in range(self._plan.rounds):
            for case in self.cases:
                progress(f"{case.callers} callers, round {number + 1} of {self._plan.rounds}")
                await self._one(case, f"perf-{number}-{case.callers}")
        progress("")

    async def _one(self, case: Case, stream: str) -> None:
        puts, shards, amount = self._puts, self._plan.shards, self._amount
        place = self._directory / "place"
        place.mkdir()
        proposed = await over_a_replicated_node(
            place / "replicated", puts, shards, case.callers, amount, self._urls, stream
        )
        self._note(case, NODE, proposed.took, proposed.took.timed)
        case.frames.append(proposed.frames)
        bare = await published(self._urls, f"{stream}-bare", proposed.appended, proposed.warm)
        self._note(case, BARE, bare, proposed.took.timed)
        local = await over_a_node(place / "local", puts, shards, case.callers, 1, amount)
        self._note(case, LOCAL, local.took, local.took.timed)
        shutil.rmtree(place)

    def _note(self, case: Case, side: str, took: Took, commands: int) -> None:
        case.took[side].append(took)
        case.rates[side].append(commands / took.seconds)


def measured(directory: Path, plan: Plan) -> dict[str, Any]:
    """All figures. Raises CheckError when an answer is wrong."""
    with Servers(directory / "servers", _REPLICAS) as servers:
        measurement = Measurement(directory, servers, plan)
        run(measurement.measure())
    return {
        "machine": machine(),
        "filesystem": filesystem_of(directory.resolve()),
        "server": nats_server_version(),
        "plan": msgspec.to_builtins(plan),
        "durability": "process",
        "cluster": [row for case in measurement.cases for row in case.facts()],
    }


def run_cluster(plan: Plan, *, parent: Path | None, output: Path | None) -> int:
    """Measure, check, then print, and write `output`. Returns the exit code."""
    return carry_out(partial(measured, plan=plan), show, parent=parent, output=output)


_ROW = "{:<9}{:<15}{:>12}{:>10}{:>10}{:>12}{:>12}"


def show(facts: dict[str, Any]) -> None:
    plan = facts["plan"]
    show_machine(facts)
    print(
        f"puts of {KEY_BYTES} + {plan['value_bytes']} bytes, at most {plan['proposals']:,} or {plan['seconds']:g} s a "
        f"stretch, {plan['shards']} shards, durability {facts['durability']}, {facts['filesystem']}, "
        f"{facts['server']}, {_REPLICAS} replicas on this machine, each write synced, {plan['rounds']} rounds\n"
    )
    print(_ROW.format("callers", "side", "proposals/s", "p50, us", "p99, us", "/ bare", "puts/frame"))
    for row in facts["cluster"]:
        print(
            _ROW.format(
                row["callers"],
                row["side"],
                f"{row['proposals_per_second']:,.0f}",
                *(f"{row[name]:,.0f}" for name in _PERCENTILES),
                f"{row['over_bare']:.2f}",
                f"{row['entries_per_frame']:.1f}" if row["side"] == NODE else "",
            )
        )
    print("\nchecked: every digest, log and stream holds what was acknowledged, and nothing else")
