"""`python -m perf apply`: throughput beside py-lmdb and beside the limit; latency beside a pipe."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from perf import latency, peers
from perf.load import Load, digest_of, entries_of
from perf.report import CheckError, carry_out, setting, show_heading, show_table
from perf.sides import Applied, apply_all
from shardengine import Entry, run

SIDES = ("engine", "py-lmdb", "limit")
TIMED = "engine, a time each"


class Given(msgspec.Struct, frozen=True):
    """A load, its entries, and what they must lead to."""

    load: Load
    entries: list[list[Entry]]
    count: int
    digest: bytes

    @classmethod
    def of(cls, load: Load) -> Given:
        chunks = list(load.chunks())
        records = {key: value for pairs in chunks for key, value in pairs}
        return cls(load, list(entries_of(chunks)), len(records), digest_of(records))


class Throughput:
    """Rounds of the three sides, in turn, each in a new directory. Raises CheckError at the first wrong answer."""

    def __init__(self, directory: Path, given: Given, shards: int, window: int, time_ms: bool) -> None:
        self._directory = directory
        self._given = given
        self._shards = shards
        self._window = window
        self._sides = (*SIDES, TIMED) if time_ms else SIDES
        self.applied: dict[str, list[Applied]] = {"engine": [], TIMED: []}
        self.seconds: dict[str, list[float]] = {side: [] for side in self._sides}

    def round(self, number: int) -> None:
        first = number % len(self._sides)
        for side in self._sides[first:] + self._sides[:first]:
            place = self._directory / f"{side}-{number}"
            place.mkdir()
            self.seconds[side].append(self._one(side, place))
            shutil.rmtree(place)

    def _one(self, side: str, place: Path) -> float:
        given = self._given
        found: Applied | peers.Raced
        if side in self.applied:
            entries = given.entries if side == "engine" else list(timed(given.entries))
            applied: Applied = run(apply_all(place / "data", entries, self._shards, self._window))
            self.applied[side].append(applied)
            found = applied
        elif side == "py-lmdb":
            found = peers.single(place, given.load)
        else:
            found = peers.limit(place, given.load, self._shards)
        if (found.digest, found.records) != (given.digest, given.count):
            told = f"{found.records} records of digest {found.digest.hex()}"
            raise CheckError(f"{side}: {told}, expected {given.count} of {given.digest.hex()}")
        return found.seconds

    def facts(self) -> dict[str, Any]:
        entries = self._given.load.entries
        rates = {side: entries / median(times) for side, times in self.seconds.items()}
        return {
            "entries_per_second": rates,
            "engine_over_py_lmdb": rates["engine"] / rates["py-lmdb"],
            "engine_over_limit": rates["engine"] / rates["limit"],
            "timed_over_engine": rates[TIMED] / rates["engine"] if TIMED in rates else None,
            "cpu_ns_per_entry": {side: cpu_of(runs, entries) for side, runs in self.applied.items() if runs},
            "seconds": self.seconds,
            "digest": self._given.digest.hex(),
        }


def timed(chunks: list[list[Entry]]) -> Iterator[list[Entry]]:
    """The same entries, each with a time of its own."""
    for chunk in chunks:
        yield [Entry(entry.index, entry.term, entry.data, entry.index) for entry in chunk]


def cpu_of(runs: list[Applied], entries: int) -> dict[str, float]:
    """Medians of CPU time, in ns an entry."""
    return {
        "coordinator": median(one.coordinator_cpu for one in runs) / entries * 1e9,
        "workers": median(one.worker_cpu for one in runs) / entries * 1e9,
    }


def measured(
    directory: Path, load: Load, *, shards: int, rounds: int, window: int, latency_rounds: int, time_ms: bool
) -> dict[str, Any]:
    """All figures. Raises CheckError when an answer is wrong."""
    throughput = Throughput(directory, Given.of(load), shards, window, time_ms)
    for number in range(rounds):
        throughput.round(number)
    found = None
    if shards >= 2 and latency_rounds:
        (found,) = run(latency.measure(directory / "latency", shards, load.value_bytes, latency_rounds))
    return {
        **setting(load, shards, window),
        "rounds": rounds,
        "apply": throughput.facts(),
        "latency": None if found is None else found.facts(),
    }


def run_apply(
    load: Load,
    *,
    shards: int,
    rounds: int,
    window: int,
    latency_rounds: int,
    time_ms: bool,
    parent: Path | None,
    output: Path | None,
) -> int:
    """Measure, check, then print, and write `output`. Returns the exit code."""
    work = partial(
        measured,
        load=load,
        shards=shards,
        rounds=rounds,
        window=window,
        latency_rounds=latency_rounds,
        time_ms=time_ms,
    )
    return carry_out(work, show, parent=parent, output=output)


def show(facts: dict[str, Any]) -> None:
    apply = facts["apply"]
    show_heading(facts, f"median of {facts['rounds']} rounds")
    rows = [(side, f"{rate:,.0f} entries/s") for side, rate in apply["entries_per_second"].items()]
    rows += [
        ("engine / py-lmdb", f"{apply['engine_over_py_lmdb']:.2f}"),
        ("engine / limit", f"{apply['engine_over_limit']:.2f}"),
    ]
    if apply["timed_over_engine"] is not None:
        rows.append(("a time each / engine", f"{apply['timed_over_engine']:.2f}"))
    for side, cpu in apply["cpu_ns_per_entry"].items():
        rows.append((f"{side}: CPU", f"coordinator {cpu['coordinator']:,.0f}, workers {cpu['workers']:,.0f} ns/entry"))
    if (found := facts["latency"]) is not None:
        rows += [
            ("pipe round trip", f"{found['pipe_us']:.1f} us"),
            ("one entry, one shard", f"{found['one_shard_us']:.1f} us   {found['one_shard_over_pipe']:.2f} x pipe"),
            (
                "two entries, two shards",
                f"{found['two_shards_us']:.1f} us   {found['two_shards_over_pipe']:.2f} x pipe",
            ),
        ]
    show_table(rows)
    print(f"\nchecked: digest {apply['digest']} and record count of all sides")
