"""`python -m perf snapshot`: the barrier's pause against data size; copy, apply meanwhile, and restore."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import shutil
import time
from contextlib import AsyncExitStack
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from perf import peers
from perf.load import Load
from perf.report import CheckError, carry_out, setting, show_heading, show_table
from perf.sized import STREAMS, WAIT_S, Sized, pauses
from shardengine import Engine, LogId, run
from shardengine.engine.storage.generations import Directory

SIZES = (1, 4, 16)  # times the entries of the smallest
COPIES = 4  # of each side, each round, in turn: a single fsync varies much
MB = 1_000_000


class Check(msgspec.Struct, frozen=True):
    """A snapshot, taken at `label` while the stream went on, and the engine's digest there."""

    path: Path
    label: LogId
    digest: bytes

    @property
    def size(self) -> int:
        return size_of(self.path)

    async def restored(self, place: Path, shards: int) -> float:
        """Restore it into a new engine. Returns the seconds; raises CheckError unless it is what it was."""
        async with Engine(place, shards=shards) as db:
            began = time.perf_counter()
            await db.restore(self.path)
            seconds = time.perf_counter() - began
            if (applied := db.last_applied()) != self.label:
                raise CheckError(f"restored into {shards} shards: stands at {applied}, expected {self.label}")
            if (digest := await db.digest()) != self.digest:
                raise CheckError(f"restored into {shards} shards: digest {digest.hex()}, not {self.digest.hex()}")
        shutil.rmtree(place)
        return seconds


def size_of(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.glob("*.mdb"))


class Measurement:
    """All figures, round by round, over one engine of each size. Raises CheckError at the first wrong answer."""

    def __init__(self, directory: Path, smallest: Load, shards: int, into: int, window: int) -> None:
        self._directory = directory
        self._smallest = smallest
        self._shards = shards
        self._into = into
        self._window = window
        self._rng = random.Random(smallest.seed)
        self.engines: list[Sized] = []
        self.copy: dict[str, list[float]] = {"engine": [], "bare": []}
        self.apply: dict[str, list[float]] = {"alone": [], "meanwhile": []}
        self.restore: dict[int, list[float]] = {shards: [], into: []}
        self.snapshots = 0
        self.copied = 0

    async def measure(self, rounds: int) -> None:
        async with AsyncExitStack() as stack:
            for times in SIZES:
                load = msgspec.structs.replace(self._smallest, entries=times * self._smallest.entries)
                path = self._directory / f"{load.entries}"
                db = await stack.enter_async_context(Engine(path, shards=self._shards))
                self.engines.append(Sized(db, path, load, self._smallest.entries, self._window))
                await self.engines[-1].fill()
            *smaller, self.check = [await self._check(sized) for sized in self.engines]
            for check in smaller:  # that of the largest state is restored in every round
                await check.restored(self._directory / "restored", self._into)
            for number in range(rounds):
                await self._round(number)

    def _new(self, name: str) -> Path:
        path = self._directory / "now" / name
        path.mkdir(parents=True)
        return path

    async def _check(self, sized: Sized) -> Check:
        """A snapshot at a label that the stream, which changes what is there, leaves at once."""
        label, digest = sized.db.last_applied(), await sized.db.digest()
        path = self._directory / f"check-{sized.load.entries}"
        taking = asyncio.create_task(sized.db.generate_snapshot_data(path, label))
        await asyncio.sleep(0)
        async with sized.streaming("spread"):
            await taking
            await sized.db.wait_applied(label.index + sized.load.chunk, WAIT_S)
        return Check(path, label, digest)

    async def _round(self, number: int) -> None:
        turn = 1 if number % 2 == 0 else -1
        for sized in self.engines[::turn]:
            for name in STREAMS[::turn]:
                await sized.pause(name, self._new("pause"), self._rng)
                self._forget()
        for side in list(self.copy)[::turn] * COPIES:
            self.copy[side].append(await (self._copy() if side == "engine" else self._bare_copy()))
            self._forget()
        for side in list(self.apply)[::turn]:
            self.apply[side].append(await self._apply(snapshots=side == "meanwhile"))
            self._forget()
        for shards in list(self.restore)[::turn]:
            self.restore[shards].append(await self.check.restored(self._directory / "restored", shards))

    def _forget(self) -> None:
        shutil.rmtree(self._directory / "now", ignore_errors=True)

    async def _copy(self) -> float:
        """The engine writes a snapshot of its largest state, at rest. Seconds, without the pause."""
        path = self._new("copy")
        with pauses() as found:
            began = time.perf_counter()
            await self.engines[-1].db.generate_snapshot_data(path)
            seconds = time.perf_counter() - began - sum(found)
        self.copied = size_of(path)
        return seconds

    async def _bare_copy(self) -> float:
        largest, path = self.engines[-1], self._new("bare")
        generation = Directory(largest.path).current()
        assert generation is not None
        sources = [generation.shard(shard) for shard in range(self._shards)]
        targets = [path / f"{shard}.mdb" for shard in range(self._shards)]
        seconds, records = await asyncio.to_thread(peers.copy, sources, targets)
        if records != largest.load.entries:
            raise CheckError(f"bare copy: {records} records, expected {largest.load.entries}")
        return seconds

    async def _apply(self, *, snapshots: bool) -> float:
        """A stretch of the stream, made beforehand, into the largest state. Seconds."""
        largest, path = self.engines[-1], self._new("meanwhile")
        chunks = list(islice(largest.stream("spread"), 4 * -(-self._smallest.entries // self._smallest.chunk)))
        feeding = True

        async def take() -> None:
            while feeding:
                await largest.db.generate_snapshot_data(path / str(self.snapshots))
                self.snapshots += 1

        gc.collect()
        gc.freeze()
        taking = asyncio.create_task(take()) if snapshots else None
        began = time.perf_counter()
        try:
            await largest.feed(chunks)
            seconds = time.perf_counter() - began
        finally:
            feeding = False
            gc.unfreeze()
        if taking is not None:
            await taking
        await largest.db.flush_async()
        return seconds

    def facts(self) -> dict[str, Any]:
        pause = {
            name: {sized.load.entries: median(sized.pauses[name]) * 1e3 for sized in self.engines} for name in STREAMS
        }
        small, large = self.engines[0].load.entries, self.engines[-1].load.entries
        copy = {side: self.copied / median(times) / MB for side, times in self.copy.items()}
        applied = 4 * self._smallest.entries
        apply = {side: applied / median(times) for side, times in self.apply.items()}
        restore = {
            f"{self._shards} to {shards}": self.check.size / median(times) / MB
            for shards, times in self.restore.items()
        }
        return {
            "pause_ms": pause,
            "pause_snapshots_of_each": len(self.engines[0].pauses["near"]),
            "pause_largest_over_smallest": {name: pause[name][large] / pause[name][small] for name in STREAMS},
            "copy_mb": self.copied / MB,
            "copy_mb_per_second": copy,
            "copy_engine_over_bare": copy["engine"] / copy["bare"],
            "apply_entries_per_second": apply,
            "apply_snapshots": self.snapshots,
            "apply_meanwhile_over_alone": apply["meanwhile"] / apply["alone"],
            "restore_mb": self.check.size / MB,
            "restore_mb_per_second": restore,
            "seconds": {
                "pause": {sized.load.entries: sized.pauses for sized in self.engines},
                "copy": self.copy,
                "apply": self.apply,
                "restore": {str(shards): times for shards, times in self.restore.items()},
            },
            "digest": self.check.digest.hex(),
            "label": self.check.label.index,
        }


def measured(directory: Path, load: Load, *, shards: int, into: int, rounds: int, window: int) -> dict[str, Any]:
    """All figures. `load` is the smallest. Raises CheckError when an answer is wrong."""
    logging.getLogger("shardengine").setLevel(logging.ERROR)  # every restore here brings another lineage along
    measurement = Measurement(directory, load, shards, into, window)
    run(measurement.measure(rounds))
    return {**setting(load, shards, window), "rounds": rounds, "snapshot": measurement.facts()}


def run_snapshot(
    load: Load, *, shards: int, into: int, rounds: int, window: int, parent: Path | None, output: Path | None
) -> int:
    """Measure, check, then print, and write `output`. Returns the exit code."""
    work = partial(measured, load=load, shards=shards, into=into, rounds=rounds, window=window)
    return carry_out(work, show, parent=parent, output=output)


def show(facts: dict[str, Any]) -> None:
    found = facts["snapshot"]
    copy, apply = found["copy_mb_per_second"], found["apply_entries_per_second"]
    show_heading(facts, f"and {SIZES[1]} and {SIZES[2]} times as many, median of {facts['rounds']} rounds")
    rows = []
    for name, sizes in found["pause_ms"].items():
        rows += [
            (f"pause, {name}, {entries:,} entries", f"{pause:.2f} ms   {found['pause_snapshots_of_each']} snapshots")
            for entries, pause in sizes.items()
        ]
        wanted = "   at most 1.5 wanted" if name == "near" else "   its groups cost more, the larger the state"
        rows.append((f"pause, {name}, largest / smallest", f"{found['pause_largest_over_smallest'][name]:.2f}{wanted}"))
    rows += [
        ("copy, engine", f"{copy['engine']:,.0f} MB/s   {found['copy_mb']:,.0f} MB"),
        ("copy, bare copyfd + fsync", f"{copy['bare']:,.0f} MB/s"),
        ("copy, engine / bare", f"{found['copy_engine_over_bare']:.2f}   at least 0.75 wanted"),
        ("apply, alone", f"{apply['alone']:,.0f} entries/s"),
        ("apply, snapshots meanwhile", f"{apply['meanwhile']:,.0f} entries/s   {found['apply_snapshots']} snapshots"),
        ("apply, meanwhile / alone", f"{found['apply_meanwhile_over_alone']:.2f}   at least 0.5 wanted"),
    ]
    for name, rate in found["restore_mb_per_second"].items():
        rows.append((f"restore, {name} shards", f"{rate:,.0f} MB/s   {found['restore_mb']:,.0f} MB"))
    show_table(rows, 36)
    print(f"\nchecked: restored digest {found['digest']} at {found['label']:,}, and those of the other sizes")
