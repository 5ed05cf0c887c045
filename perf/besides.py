"""`python -m perf peers`: the engine beside the other state machines, and beside the stores that those stand on."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from perf.bare import BARE, Done, quiet
from perf.bars import Bar, bars
from perf.disks import SQLITE_VERSION
from perf.facts import machine
from perf.load import KEY_BYTES, Load, digest_of, entries_of
from perf.report import CheckError, carry_out, progress, show_plan
from perf.sides import Applied, apply_all
from shardengine import Entry, run
from shardengine.adaptors import FileStateMachine, MemoryStateMachine, RocksDBStateMachine, SQLiteStateMachine
from shardengine.engine.adaptors.base import InProcess

ADAPTORS: dict[str, Callable[[Path], InProcess]] = {
    "MemoryStateMachine": lambda path: MemoryStateMachine(),
    "FileStateMachine": FileStateMachine,
    "RocksDBStateMachine": RocksDBStateMachine,
    "SQLiteStateMachine": SQLiteStateMachine,
}
_GROUPS = ("engine", "state machine", "store alone")


class Plan(msgspec.Struct, frozen=True):
    """What is measured: so many puts, for every side."""

    shards: list[int]
    entries: int
    value_bytes: int
    chunk: int
    window: int
    rounds: int
    seed: int


class Measurement:
    """Rounds of all sides, in turn, each in a new directory. Raises CheckError at the first wrong digest."""

    def __init__(self, directory: Path, plan: Plan) -> None:
        load = Load(plan.entries, plan.value_bytes, plan.chunk, plan.seed)
        self._directory = directory
        self._plan = plan
        self._pairs = list(load.chunks())
        self._entries = list(entries_of(self._pairs))
        self.digest = digest_of({key: value for pairs in self._pairs for key, value in pairs})
        self._groups = dict(self._sides())
        self.seconds: dict[str, list[float]] = {side: [] for side in self._groups}

    def _sides(self) -> Iterator[tuple[str, str]]:
        """Each side, and its group."""
        yield from (
            (f"engine, {shards} shards" if shards > 1 else "engine, 1 shard", "engine") for shards in self._plan.shards
        )
        yield from ((name, "state machine") for name in ADAPTORS)
        yield from ((name, "store alone") for name in BARE)

    def measure(self) -> None:
        sides = list(self.seconds)
        for number in range(self._plan.rounds):
            first = number % len(sides)
            for side in sides[first:] + sides[:first]:
                progress(f"round {number + 1} of {self._plan.rounds}: {side}")
                place = self._directory / "place"
                try:
                    seconds, digest = self._one(side, place)
                finally:
                    shutil.rmtree(place, ignore_errors=True)
                if digest != self.digest:
                    raise CheckError(f"{side}: digest {digest.hex()}, expected {self.digest.hex()}")
                self.seconds[side].append(seconds)
        progress("")

    def _one(self, side: str, place: Path) -> Done:
        if side in BARE:
            return BARE[side](place, self._pairs)
        if side in ADAPTORS:
            done: Done = run(_applied(ADAPTORS[side](place), self._entries))
            return done
        shards = self._plan.shards[list(self._groups).index(side)]
        applied: Applied = run(apply_all(place, self._entries, shards, self._plan.window))
        return applied.seconds, applied.digest

    def facts(self) -> list[dict[str, Any]]:
        rates = {side: self._plan.entries / median(times) for side, times in self.seconds.items()}
        engine = max(rates[side] for side, group in self._groups.items() if group == "engine")
        return [
            {
                "side": side,
                "group": self._groups[side],
                "entries_per_second": rate,
                "over_engine": rate / engine,
                "seconds": self.seconds[side],
            }
            for side, rate in rates.items()
        ]


async def _applied(place: InProcess, chunks: list[list[Entry]]) -> Done:
    async with place:
        with quiet() as seconds:
            for chunk in chunks:
                await place.apply_chunk(chunk)
            took = seconds()
        return took, await place.digest()


def measured(directory: Path, plan: Plan) -> dict[str, Any]:
    """All figures. Raises CheckError when an answer is wrong."""
    measurement = Measurement(directory, plan)
    measurement.measure()
    return {
        "machine": {**machine(), "rocksdict": version("rocksdict"), "sqlite": SQLITE_VERSION},
        "plan": msgspec.to_builtins(plan),
        "durability": "process",
        "peers": measurement.facts(),
        "digest": measurement.digest.hex(),
    }


def run_peers(plan: Plan, *, parent: Path | None, output: Path | None, svg: Path | None) -> int:
    """Measure, check, then print, and write `output` and `svg`. Returns the exit code."""

    def show_and_draw(facts: dict[str, Any]) -> None:
        show(facts)
        if svg is not None:
            svg.write_text(drawn(facts))

    return carry_out(partial(measured, plan=plan), show_and_draw, parent=parent, output=output)


_ROW = "{:<22}{:<16}{:>12}{:>12}"


def show(facts: dict[str, Any]) -> None:
    show_plan(facts, _what(facts))
    print(_ROW.format("", "", "entries/s", "/ engine"))
    for row in facts["peers"]:
        rate, ratio = f"{row['entries_per_second']:,.0f}", f"{row['over_engine']:.2f}"
        print(_ROW.format(row["side"], row["group"], rate, ratio))
    print(f"\nchecked: digest {facts['digest']} of what each side holds at its end")


def _what(facts: dict[str, Any]) -> str:
    plan = facts["plan"]
    return f"{plan['entries']:,} puts of {KEY_BYTES} + {plan['value_bytes']} bytes"


def drawn(facts: dict[str, Any]) -> str:
    """The same as a bar chart."""
    plan, where = facts["plan"], facts["machine"]
    rows = [
        Bar(row["side"], row["entries_per_second"], f"{row['entries_per_second']:,.0f}", _GROUPS.index(row["group"]))
        for row in facts["peers"]
    ]
    note = f"chunks of {plan['chunk']:,}, median of {plan['rounds']} rounds, {where['cores']} cores, {where['cpu']}"
    return bars(f"Entries per second, {_what(facts)}, durability process", note, _GROUPS, rows)
