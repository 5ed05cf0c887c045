"""`python -m perf apply`: throughput beside py-lmdb and beside the limit; latency beside a pipe."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from engine import run
from perf import latency, peers
from perf.load import Load, digest_of, entries_of
from perf.report import CheckError, save, setting, show_heading, show_table
from perf.sides import Applied, apply_all

SIDES = ("engine", "py-lmdb", "limit")


class Throughput:
    """Rounds of the three sides, in turn, each in a new directory. Raises CheckError at the first wrong answer."""

    def __init__(self, directory: Path, load: Load, shards: int, window: int) -> None:
        self._directory = directory
        self._load = load
        self._shards = shards
        self._window = window
        chunks = list(load.chunks())
        records = {key: value for pairs in chunks for key, value in pairs}
        self._count, self._digest = len(records), digest_of(records)
        self._entries = list(entries_of(chunks))
        self.applied: list[Applied] = []
        self.seconds: dict[str, list[float]] = {side: [] for side in SIDES}

    def round(self, number: int) -> None:
        first = number % len(SIDES)
        for side in SIDES[first:] + SIDES[:first]:
            place = self._directory / f"{side}-{number}"
            place.mkdir()
            self.seconds[side].append(self._one(side, place))
            shutil.rmtree(place)

    def _one(self, side: str, place: Path) -> float:
        if side == "engine":
            applied: Applied = run(apply_all(place / "data", self._entries, self._shards, self._window))
            if applied.digest != self._digest:
                raise CheckError(f"engine: digest {applied.digest.hex()}, expected {self._digest.hex()}")
            self.applied.append(applied)
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
            "coordinator_cpu_ns_per_entry": median(one.coordinator_cpu for one in self.applied) / entries * 1e9,
            "worker_cpu_ns_per_entry": median(one.worker_cpu for one in self.applied) / entries * 1e9,
            "seconds": self.seconds,
            "digest": self._digest.hex(),
        }


def run_apply(
    load: Load, *, shards: int, rounds: int, window: int, latency_rounds: int, parent: Path | None, output: Path | None
) -> int:
    """Measure, check, then print, and write `output`. Returns the exit code."""
    with tempfile.TemporaryDirectory(prefix="shardengine-perf-", dir=parent) as name:
        directory = Path(name)
        throughput = Throughput(directory, load, shards, window)
        try:
            for number in range(rounds):
                throughput.round(number)
        except CheckError as error:
            print(f"check failed: {error}", file=sys.stderr)
            return 1
        found = None
        if shards >= 2 and latency_rounds:
            found = run(latency.measure(directory / "latency", shards, load.value_bytes, latency_rounds))
    facts: dict[str, Any] = {
        **setting(load, shards, window),
        "rounds": rounds,
        "apply": throughput.facts(),
        "latency": None if found is None else latency_facts(found),
    }
    show(facts)
    save(facts, output)
    return 0


def latency_facts(found: latency.Latency) -> dict[str, float]:
    return {
        "pipe_us": found.pipe_us,
        "one_shard_us": found.one_shard_us,
        "two_shards_us": found.two_shards_us,
        "one_shard_over_pipe": found.one_shard_us / found.pipe_us,
        "two_shards_over_pipe": found.two_shards_us / found.pipe_us,
    }


def show(facts: dict[str, Any]) -> None:
    apply = facts["apply"]
    show_heading(facts, f"median of {facts['rounds']} rounds")
    rows = [(side, f"{rate:,.0f} entries/s") for side, rate in apply["entries_per_second"].items()]
    rows += [
        ("engine / py-lmdb", f"{apply['engine_over_py_lmdb']:.2f}"),
        ("engine / limit", f"{apply['engine_over_limit']:.2f}"),
        ("coordinator CPU", f"{apply['coordinator_cpu_ns_per_entry']:,.0f} ns/entry"),
        ("workers' CPU", f"{apply['worker_cpu_ns_per_entry']:,.0f} ns/entry"),
    ]
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
