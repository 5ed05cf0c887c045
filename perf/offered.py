"""Latency under a load that waits for nobody: every entry has its intended time on a fixed schedule, and its latency
counts from there, whatever held it up (so there is no coordinated omission)."""

from __future__ import annotations

import asyncio
import gc
import time
from collections import deque
from collections.abc import Iterator
from itertools import cycle, islice
from math import inf
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from perf.calls import percentile
from perf.load import Load, Pair, digest_of, entries_of
from perf.report import CheckError, progress
from perf.sides import feed
from shardengine import Engine, Entry, Put, encode, run

PERCENTILES = {"p50_us": 50, "p99_us": 99, "p999_us": 99.9}
_POLL_S = 0.002  # what comes sooner is polled for: the loop's timers are of whole milliseconds


class Plan(msgspec.Struct, frozen=True):
    """What is measured: each of `percents` of the measured maximum, for `seconds`, over `keys` that are overwritten."""

    percents: list[int]
    seconds: float
    keys: int
    value_bytes: int
    chunk: int
    shards: int
    window: int
    rounds: int
    seed: int


class Offered(msgspec.Struct, frozen=True):
    """What became of one stretch: entries a second, as they were offered and as they were done; microseconds."""

    offered_per_s: float
    achieved_per_s: float
    entries_per_chunk: float
    p50_us: float
    p99_us: float
    p999_us: float


class Feeder:
    """Offers entries to one engine, and knows what they must lead to."""

    def __init__(self, db: Engine, plan: Plan) -> None:
        self._db = db
        self._plan = plan
        load = Load(plan.keys, plan.value_bytes, plan.chunk, plan.seed)
        first = [pair for pairs in load.chunks() for pair in pairs]
        self._records = dict(first)
        self._overwrites = cycle([(key, value[::-1]) for key, value in first] + first)

    async def fill(self) -> None:
        """Put all records, so that what follows overwrites."""
        load = Load(self._plan.keys, self._plan.value_bytes, self._plan.chunk, self._plan.seed)
        await feed(self._db, entries_of(load.chunks()), self._plan.window)

    def _made(self, count: int) -> list[Entry]:
        """The next entries of the log."""
        pairs: list[Pair] = list(islice(self._overwrites, count))
        self._records.update(pairs)
        first = self._db.last_applied().index + 1
        return [Entry(index, 1, encode(Put(key, value))) for index, (key, value) in enumerate(pairs, first)]

    async def offer(self, per_s: float, count: int) -> Offered:
        """So many entries, each due at its time; those that are due go together, up to a chunk, as far as the window
        has room. Infinitely many a second are all due at once."""
        entries = self._made(count)
        gc.collect()
        gc.freeze()  # the load is the caller's: the collector need not walk it within the time
        try:
            done = await self._sent(entries, per_s)
        finally:
            gc.unfreeze()
        late = sorted(_latencies_ns(done, per_s))
        percentiles = {name: percentile(late, percent) for name, percent in PERCENTILES.items()}
        return Offered(per_s, count / done[-1][2], count / len(done), **percentiles)

    async def _sent(self, entries: list[Entry], per_s: float) -> list[tuple[int, int, float]]:
        """Of each chunk its first entry, the one behind its last, and the second in which it was done."""
        done: list[tuple[int, int, float]] = []
        flying: deque[asyncio.Task[None]] = deque()
        plan, first, began = self._plan, 0, time.perf_counter()

        async def send(first: int, end: int) -> None:
            await self._db.apply_chunk(entries[first:end])
            done.append((first, end, time.perf_counter() - began))

        while first < len(entries):
            now = time.perf_counter() - began
            due = len(entries) if per_s == inf else min(len(entries), int(now * per_s) + 1)
            if due <= first:
                await asyncio.sleep(max(0.0, first / per_s - now - _POLL_S))
            elif len(flying) == plan.window:
                await flying.popleft()
            else:
                end = min(due, first + plan.chunk)
                flying.append(asyncio.create_task(send(first, end)))
                first = end
                await asyncio.sleep(0)
                while flying and flying[0].done():
                    await flying.popleft()
        await asyncio.gather(*flying)
        return done

    async def check(self) -> None:
        digest, expected = await self._db.digest(), digest_of(self._records)
        if digest != expected:
            raise CheckError(f"offered load: digest {digest.hex()}, expected {expected.hex()}")


def _latencies_ns(done: list[tuple[int, int, float]], per_s: float) -> Iterator[int]:
    """From the intended time of each entry to the end of its chunk."""
    for first, end, at in done:
        for number in range(first, end):
            yield int((at - number / per_s) * 1e9)


async def _measure(directory: Path, plan: Plan) -> tuple[list[float], dict[int, list[Offered]]]:
    """The maxima, round by round, and what became of each share of their median."""
    found: dict[int, list[Offered]] = {percent: [] for percent in plan.percents}
    async with Engine(directory, shards=plan.shards) as db:
        feeder = Feeder(db, plan)
        await feeder.fill()
        await feeder.offer(inf, plan.keys)  # warm
        maxima = [(await feeder.offer(inf, plan.keys)).achieved_per_s for _ in range(plan.rounds)]
        for number in range(plan.rounds):
            for percent in plan.percents[:: 1 if number % 2 == 0 else -1]:
                progress(f"offered load: {percent} %, round {number + 1} of {plan.rounds}")
                per_s = median(maxima) * percent / 100
                found[percent].append(await feeder.offer(per_s, max(1, int(per_s * plan.seconds))))
        await feeder.check()
    progress("")
    return maxima, found


def measured(directory: Path, plan: Plan) -> list[dict[str, Any]]:
    """A row for each share of the maximum, and one for that. Raises CheckError when the state at the end is wrong."""
    maxima, found = run(_measure(directory, plan))
    rows = []
    for percent, rounds in found.items():
        samples = {name: [getattr(one, name) for one in rounds] for name in Offered.__struct_fields__}
        row: dict[str, Any] = {"shards": plan.shards, "schedule": "open", "offered_percent": percent}
        row |= {name: median(values) for name, values in samples.items()}
        rows.append(row | {f"{name}_samples": samples[name] for name in ("achieved_per_s", *PERCENTILES)})
    most = {"achieved_per_s": median(maxima), "achieved_per_s_samples": maxima}
    return [*rows, {"shards": plan.shards, "schedule": "all due at once", **most}]
