"""`python -m perf memory`: a stream that is never in memory as a whole, and what the coordinator keeps of it."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from perf.facts import anonymous_bytes
from perf.load import Load, entries_of
from perf.report import save, setting, show_heading, show_table
from perf.sides import feed
from shardengine import Engine, EngineConfig, Entry, run

SAMPLES = 200
SETTLED = 0.05  # of the stream: caches and buffers have their size by then
MIB = 1 << 20


class Memory(msgspec.Struct, frozen=True):
    """Anonymous resident bytes of the coordinator: before the stream, once settled, at most from then on, behind it."""

    start: int
    settled: int
    highest: int
    end: int
    seconds: float
    records: int


def allowance(load: Load) -> int:
    """How much may come on top once settled: what the window may hold, as data and as objects, and the allocator's
    slack. It does not grow with the stream."""
    entry = load.value_bytes + 512
    return 4 * load.chunk * entry + EngineConfig().in_flight_bytes_max // 2


async def stream(directory: Path, load: Load, shards: int, window: int) -> Memory:
    """Make, feed and forget, with a look at the memory now and then."""
    chunks = -(-load.entries // load.chunk)
    every, settled_at = max(1, chunks // SAMPLES), max(1, int(chunks * SETTLED))
    samples: list[int] = []

    def watched() -> Iterator[list[Entry]]:
        for number, chunk in enumerate(entries_of(load.chunks())):
            if number >= settled_at and (number - settled_at) % every == 0:
                samples.append(anonymous_bytes())
            yield chunk

    async with Engine(directory, shards=shards) as db:
        start, began = anonymous_bytes(), time.monotonic()
        await feed(db, watched(), window)
        end = anonymous_bytes()
        samples = samples or [end]
        return Memory(start, samples[0], max(*samples, end), end, time.monotonic() - began, len(db))


def run_memory(load: Load, *, shards: int, window: int, parent: Path | None, output: Path | None) -> int:
    """Measure, check, print, and write `output`. Returns the exit code."""
    with tempfile.TemporaryDirectory(prefix="shardengine-perf-", dir=parent) as name:
        found: Memory = run(stream(Path(name) / "data", load, shards, window))
    if found.records != load.entries:  # random keys of 16 bytes do not collide
        print(f"check failed: {found.records} records, expected {load.entries}", file=sys.stderr)
        return 1
    allowed = allowance(load)
    grown = found.highest - found.settled
    facts: dict[str, Any] = {
        **setting(load, shards, window),
        "memory": msgspec.to_builtins(found),
        "grown": grown,
        "allowed": allowed,
        "bounded": grown <= allowed,
    }
    show(facts)
    save(facts, output)
    return 0 if grown <= allowed else 1


def show(facts: dict[str, Any]) -> None:
    memory = facts["memory"]
    show_heading(facts, f"{memory['seconds']:.1f} s")
    rows = [(name, f"{memory[name] / MIB:,.1f} MiB anonymous") for name in ("start", "settled", "highest", "end")]
    verdict = "bounded" if facts["bounded"] else "NOT BOUNDED"
    growth = f"{facts['grown'] / MIB:,.1f} MiB, {facts['allowed'] / MIB:,.1f} allowed: {verdict}"
    show_table([*rows, ("growth once settled", growth)])
