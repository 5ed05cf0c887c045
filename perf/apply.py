"""`python -m perf apply`: throughput beside py-lmdb and beside the limit; latency beside a pipe."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from perf import latency, peers
from perf.load import Load, digest_of, entries_of
from perf.report import CheckError, save, setting, show_heading, show_table
from perf.sides import Applied, apply_all
from shardengine import Entry, run

SIDES = ("engine", "py-lmdb", "limit")
TIMED = "engine, a time each"


class Throughput:
    """Rounds of the three sides, in turn, each in a new directory. Raises CheckError at the first wrong answer."""

    def __init__(self, directory: Path, load: Load, shards: int, window: int, time_ms: bool) -> None:
        self._directory = directory
        self._load = load
        self._shards = shards
        self._window = window
        chunks = list(load.chunks())
        records = {key: value for pairs in chunks for key, value in pairs}
        self._count, self._digest = len(records), digest_of(records)
        self._entries = list(entries_of(chunks))
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
        if side in self.applied:
            entries = self._entries if side == "engine" else list(timed(self._entries))
            applied: Applied = run(apply_all(place / "data", entries, self._shards, self._window))
            if applied.digest != self._digest:
                raise CheckError(f"engine: digest {applied.digest.hex()}, expected {self._digest.hex()}")
            self.applied[side].append(applied)
            seconds, count = applied.seconds, applied.records
        elif side == "py-lmdb":
            seconds, count = peers.single(place, self._load)
        else:
            seconds, count = peers.limit(place, self._load, self._shards)
        if count != self._count:
            raise CheckError(f"{side}: {count} records, expected {self._count}")
        return seconds

    def facts(self) -> dict[str, Any]:
        entries = self._load.entries
        rates = {side: entries / median(times) for side, times in self.seconds.items()}
        return {
            "entries_per_second": rates,
            "engine_over_py_lmdb": rates["engine"] / rates["py-lmdb"],
            "engine_over_limit": rates["engine"] / rates["limit"],
            "timed_over_engine": rates[TIMED] / rates["engine"] if TIMED in rates else None,
            "cpu_ns_per_entry": {side: cpu_of(runs, entries) for side, runs in self.applied.items() if runs},
            "seconds": self.seconds,
            "digest": self._digest.hex(),
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
    with tempfile.TemporaryDirectory(prefix="shardengine-perf-", dir=parent) as name:
        directory = Path(name)
        throughput = Throughput(directory, load, shards, window, time_ms)
        try:
            for number in range(rounds):
                throughput.round(number)
        except CheckError as error:
            print(f"check failed: {error}", file=sys.stderr)
            return 1
        found = None
        if shards >= 2 and latency_rounds:
            (found,) = run(latency.measure(directory / "latency", shards, load.value_bytes, latency_rounds))
    facts: dict[str, Any] = {
        **setting(load, shards, window),
        "rounds": rounds,
        "apply": throughput.facts(),
        "latency": None if found is None else found.facts(),
    }
    show(facts)
    save(facts, output)
    return 0


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
    print(f"\nchecked: digest {apply['digest']}, record counts of all sides")
