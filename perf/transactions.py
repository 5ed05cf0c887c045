"""`python -m perf transactions`: throughput against the share of commands over several shards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import msgspec

from perf.facts import machine
from perf.report import CheckError, carry_out, progress, show_plan
from perf.sides import Spent, feed, timed
from perf.transfers import OPENED_WITH, Accounts
from perf.zipf import Zipf
from shardengine import Engine, run
from shardengine.engine.commit.exchanging import Exchanging
from shardengine.engine.commit.packing import Packed
from shardengine.engine.commit.takeover import Takeover
from shardengine.machines.bank import Bank


class Plan(msgspec.Struct, frozen=True):
    """What is measured: every one of `shares`, in percent, with every one of `skews`, over every one of `shards`."""

    shards: list[int]
    shares: list[float]
    skews: list[float]
    keys: int
    entries: int
    chunk: int
    window: int
    rounds: int
    seed: int


class Groups:
    """What the coordinator had to do meanwhile: groups, those with an exchange, and commands of its own."""

    def __init__(self) -> None:
        self.groups = self.exchanges = self.commands = 0


@contextmanager
def counted() -> Iterator[Groups]:
    """Of all engines of this process."""
    found, begin = Groups(), Exchanging.begin

    def begun(exchanging: Exchanging, packed: Packed) -> Takeover | None:
        found.groups += 1
        found.exchanges += bool(packed.spanning)
        found.commands += len(packed.spanning)
        return begin(exchanging, packed)

    with patch.object(Exchanging, "begin", begun):
        yield found


class Case(msgspec.Struct):
    """One share with one skew over one shard count, round by round."""

    skew: float
    share: float
    shards: int
    spent: list[Spent] = []
    groups: int = 0
    exchanges: int = 0
    commands: int = 0

    def note(self, spent: Spent, groups: Groups) -> None:
        self.spent.append(spent)
        self.groups += groups.groups
        self.exchanges += groups.exchanges
        self.commands += groups.commands

    def facts(self, entries: int) -> dict[str, Any]:
        """Of `entries` a round."""
        return {
            "skew": self.skew,
            "spanning_percent": self.share,
            "shards": self.shards,
            "entries_per_second": entries / median(spent.seconds for spent in self.spent),
            "coordinator_cpu_ns": median(spent.coordinator_cpu for spent in self.spent) / entries * 1e9,
            "worker_cpu_ns": median(spent.worker_cpu for spent in self.spent) / entries * 1e9,
            "exchanges_per_group": self.exchanges / self.groups,
            "coordinator_percent": 100 * self.commands / (entries * len(self.spent)),
            "seconds": [spent.seconds for spent in self.spent],
        }


class Measurement:
    """One engine for each shard count, all of which apply one log: accounts, then a stretch of transfers for each case,
    round by round. Raises CheckError unless all end in the state that the same transfers make of a list."""

    def __init__(self, directory: Path, plan: Plan) -> None:
        self._directory = directory
        self._plan = plan
        self._accounts = Accounts(plan.keys, plan.shards, plan.seed)
        self._ranks = {skew: Zipf(plan.keys, skew, plan.seed) for skew in plan.skews}
        self._engines: dict[int, Engine] = {}
        self.cases = {
            (skew, share, shards): Case(skew, share, shards)
            for skew in plan.skews
            for share in plan.shares
            for shards in plan.shards
        }
        self.digest = b""

    async def measure(self) -> None:
        plan = self._plan
        async with AsyncExitStack() as stack:
            for shards in plan.shards:
                progress(f"{plan.keys:,} accounts on {shards} shards")
                engine = Engine(self._directory / str(shards), shards=shards, machine=Bank)
                db = self._engines[shards] = await stack.enter_async_context(engine)
                await feed(db, self._accounts.opened(plan.chunk), plan.window)
            for number in range(plan.rounds):
                turn = 1 if number % 2 == 0 else -1
                for skew in plan.skews[::turn]:
                    for share in plan.shares[::turn]:
                        progress(f"round {number + 1} of {plan.rounds}: skew {skew:g}, {share:g} % spanning")
                        await self._stretch(skew, share, plan.shards[::turn])
            progress("")
            await self._check()

    async def _stretch(self, skew: float, share: float, order: Sequence[int]) -> None:
        """The same transfers for each shard count."""
        plan = self._plan
        first = self._engines[order[0]].last_applied().index + 1
        entries = self._accounts.transfers(self._ranks[skew], share, plan.entries, first)
        chunks = [entries[at : at + plan.chunk] for at in range(0, len(entries), plan.chunk)]
        for shards in order:
            with counted() as groups:
                spent = await timed(self._engines[shards], chunks, plan.window)
            self.cases[skew, share, shards].note(spent, groups)

    async def _check(self) -> None:
        self.digest, money = self._accounts.digest(), self._plan.keys * OPENED_WITH
        for shards, db in self._engines.items():
            if (digest := await db.digest()) != self.digest:
                raise CheckError(f"{shards} shards: digest {digest.hex()}, expected {self.digest.hex()}")
            held = sum(int(value) for _, value in db.scan_prefix(b"").entries)
            if held != money:
                raise CheckError(f"{shards} shards: the accounts hold {held}, and were opened with {money}")

    def facts(self) -> list[dict[str, Any]]:
        """Of each case; with its speed beside that of the first share, of the same skew and shard count."""
        found = [case.facts(self._plan.entries) for case in self.cases.values()]
        first = {(one["skew"], one["shards"]): one["entries_per_second"] for one in reversed(found)}
        for one in found:
            one["over_first_share"] = one["entries_per_second"] / first[one["skew"], one["shards"]]
        return found


def measured(directory: Path, plan: Plan) -> dict[str, Any]:
    """All figures. Raises CheckError when an answer is wrong."""
    measurement = Measurement(directory, plan)
    run(measurement.measure())
    return {
        "machine": machine(),
        "plan": msgspec.to_builtins(plan),
        "durability": "process",
        "transactions": measurement.facts(),
        "digest": measurement.digest.hex(),
    }


def run_transactions(plan: Plan, *, parent: Path | None, output: Path | None) -> int:
    """Measure, check, then print, and write `output`. Returns the exit code."""
    return carry_out(partial(measured, plan=plan), show, parent=parent, output=output)


_ROW = "{:<14}{:>9}{:>8}{:>12}{:>8}{:>17}{:>13}{:>17}{:>17}"
_MEANS = ("coordinator, ns", "workers, ns", "exchanges/group", "coordinator ran")
"""CPU time is an entry's."""


def show(facts: dict[str, Any]) -> None:
    plan = facts["plan"]
    show_plan(facts, f"{plan['entries']:,} transfers a round between {plan['keys']:,} accounts")
    print(_ROW.format("keys", "spanning", "shards", "entries/s", f"/ {plan['shares'][0]:g} %", *_MEANS))
    for one in facts["transactions"]:
        print(_row(one))
    print(f"\nchecked: digest {facts['digest']} of all shard counts, and all the money")


def _row(one: dict[str, Any]) -> str:
    return _ROW.format(
        f"zipfian {one['skew']:g}" if one["skew"] else "uniform",
        f"{one['spanning_percent']:g} %",
        one["shards"],
        f"{one['entries_per_second']:,.0f}",
        f"{one['over_first_share']:.2f}",
        f"{one['coordinator_cpu_ns']:,.0f}",
        f"{one['worker_cpu_ns']:,.0f}",
        f"{one['exchanges_per_group']:.2f}",
        f"{one['coordinator_percent']:.1f} %",
    )
