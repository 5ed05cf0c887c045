"""One engine, or one of the sides beside it, set in one way, under one stream: what it takes, if its state is right."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from math import ceil
from pathlib import Path
from typing import Any, Literal

import msgspec

from perf import peers
from perf.load import KEY_BYTES
from perf.report import CheckError, RefusedError
from perf.sides import Spent, Stretch, feed, nothing, timed
from perf.streams import Made, Pieces, Stream
from shardengine import ChunkTooLargeError, ConfigError, Engine, EngineConfig, load_config

Side = Literal["engine", "counted", "py-lmdb", "limit"]
"""`counted` is an engine whose stages are counted: see counters.py."""
_WARM = 0.1  # of all chunks come before the clock starts


class Cell(msgspec.Struct, frozen=True):
    """What is measured. pin: "none"; "cores", the coordinator on the first core and each worker on the next one, in
    turn; "one", all on the first. group_bytes, ring_bytes: the most of a group, and a ring; 0: as by default."""

    side: Side
    shards: int
    chunk: int
    window: int
    value_bytes: int
    keys: str
    command: str
    durability: Literal["process", "power"]
    pin: str
    group_bytes: int = 0
    ring_bytes: int = 0

    def beside(self, side: Side) -> Cell:
        """What `side` has to be set to so that it stands beside this one: it keeps one chunk in flight."""
        shards = 1 if side == "py-lmdb" else self.shards
        return msgspec.structs.replace(self, side=side, shards=shards, window=1, group_bytes=0, ring_bytes=0)

    def uncounted(self) -> Cell:
        """The same engine, with nothing wrapped."""
        return msgspec.structs.replace(self, side="engine")

    def stream(self, entries: int, seed: int) -> Stream:
        return Stream(entries, self.value_bytes, self.keys, self.command, seed)

    def config(self) -> EngineConfig:
        """Raises ConfigError when it cannot be."""
        group, ring = self.group_bytes or None, self.ring_bytes or None
        return load_config(durability=self.durability, group_bytes_max=group, ring_bytes=ring)

    @property
    def load(self) -> tuple[object, ...]:
        """Cells of one load are given the same entries."""
        return self.command, self.keys, self.value_bytes

    def told(self) -> str:
        of = "" if self.side == "py-lmdb" else f", {self.shards} shard{'s' * (self.shards > 1)}"
        pin = "" if self.pin == "none" else f", pinned: {self.pin}"
        load = f"{self.command}, {self.keys} keys, {KEY_BYTES} + {self.value_bytes} bytes"
        sizes = "".join(f", {name} {size:,}" for name in SIZES if (size := getattr(self, name)))
        return (
            f"{self.side}{of}: {load}, chunks of {self.chunk:,}, {self.window} in flight, {self.durability}{pin}{sizes}"
        )


SIZES = ("group_bytes", "ring_bytes")
AXES = ("shards", "chunk", "window", "value_bytes", "keys", "command", "durability", "pin", *SIZES)
"""The fields of a cell that can be asked for, in the order of a row."""


class Plan(msgspec.Struct, frozen=True):
    """What is measured: every combination of the lists, over so many entries, a tenth of which warms up."""

    shards: list[int]
    chunk: list[int]
    window: list[int]
    value_bytes: list[int]
    keys: list[str]
    command: list[str]
    durability: list[Literal["process", "power"]]
    pin: list[str]
    entries: int
    rounds: int
    seed: int
    group_bytes: list[int] = msgspec.field(default_factory=lambda: [0])
    ring_bytes: list[int] = msgspec.field(default_factory=lambda: [0])

    def cells(self, side: Side) -> list[Cell]:
        """One for each combination, those of one load together."""
        found = [Cell(side, *values) for values in product(*(getattr(self, axis) for axis in AXES))]
        return sorted(found, key=lambda cell: found.index(next(one for one in found if one.load == cell.load)))

    def settings(self) -> dict[str, Any]:
        built: dict[str, Any] = msgspec.to_builtins(self)
        return built


class Ran(msgspec.Struct, frozen=True):
    """What one run took, of so many entries behind the warm-up. CPU seconds are those of the coordinator, and of all
    workers or writers together; for `lacking` seconds, all of them together, one wanted a core and had none. `groups`
    are those that the engine made of the entries."""

    entries: int
    seconds: float
    coordinator_cpu: float
    worker_cpu: float
    lacking: float = 0.0
    groups: int = 0

    @property
    def entries_per_s(self) -> float:
        return self.entries / self.seconds

    def ns_per_entry(self, seconds: float) -> float:
        return seconds / self.entries * 1e9

    @property
    def cores_busy(self) -> float:
        return (self.coordinator_cpu + self.worker_cpu) / self.seconds

    @property
    def cores_lacking(self) -> float:
        return self.lacking / self.seconds


def warm_of(chunks: int) -> int:
    """How many of so many chunks come before the clock starts: at least one, where there are two."""
    return ceil(chunks * _WARM) if chunks > 1 else 0


# ---- the engine ------------------------------------------------------------------------------------------------------


async def applied(directory: Path, cell: Cell, made: Made, stretch: Stretch = nothing) -> Ran:
    """By an engine of its own. Raises CheckError unless it ends where the stream leads, RefusedError when the engine
    cannot be set so, or takes no such chunk then."""
    chunks = made.chunks(cell.chunk)
    warm = warm_of(len(chunks))
    with naming(cell):
        async with Engine(directory, shards=cell.shards, machine=made.stream.machine, config=cell.config()) as db:
            with pinned(cell.pin, [worker["pid"] for worker in db.stats()["workers"]]):
                await feed(db, chunks[:warm], cell.window)
                groups = db.stats()["groups"]
                spent = await timed(db, chunks[warm:], cell.window, stretch)
                groups = db.stats()["groups"] - groups
            await check(cell.told(), db, made)
    return ran(spent, sum(map(len, chunks[warm:])), groups)


@contextmanager
def naming(cell: Cell) -> Iterator[None]:
    """What an engine that is set like `cell` refuses is a RefusedError that names it."""
    try:
        yield
    except (ConfigError, ChunkTooLargeError) as error:
        raise RefusedError(f"{cell.told()}: {error}") from error


def ran(spent: Spent, entries: int, groups: int) -> Ran:
    return Ran(entries, spent.seconds, spent.coordinator_cpu, spent.worker_cpu, spent.lacking, groups)


async def check(side: str, db: Engine, made: Made) -> None:
    """Raise CheckError unless `db` has applied the stream, all of it and nothing else."""
    if (index := db.last_applied().index) != len(made.entries):
        raise CheckError(f"{side}: it stands at entry {index}, and was given {len(made.entries)}")
    check_state(side, made, len(db), await db.digest())


def check_state(side: str, made: Made, records: int, digest: bytes) -> None:
    if (records, digest) != (made.records, made.digest):
        told = f"{records} records of digest {digest.hex()}"
        raise CheckError(f"{side}: {told}, expected {made.records} of {made.digest.hex()}")


def cores() -> list[int]:
    """Those that this process may use."""
    return sorted(os.sched_getaffinity(0))


@contextmanager
def pinned(pin: str, pids: Iterable[int]) -> Iterator[None]:
    """This thread and those processes are bound to cores, as `pin` says."""
    usable = cores()
    if pin == "none":
        yield
        return
    try:
        for place, pid in enumerate([0, *pids]):
            os.sched_setaffinity(pid, {_core(pin, usable, place)})
        yield
    finally:
        os.sched_setaffinity(0, usable)


def _core(pin: str, usable: Sequence[int], place: int) -> int:
    return usable[place % len(usable)] if pin == "cores" else usable[0]


# ---- beside it -------------------------------------------------------------------------------------------------------


def written(directory: Path, cell: Cell, made: Made) -> Ran:
    """By py-lmdb alone, or by the limit: what the commands write, without the commands. Raises CheckError unless the
    stream's state is what they hold."""
    chunks = ceil(len(made.entries) / cell.chunk)
    warm, usable = warm_of(chunks), cores()
    bound = [] if cell.pin == "none" else [_core(cell.pin, usable, place) for place in range(1, cell.shards + 1)]
    how = peers.How(warm, cell.durability == "power", bound)
    pieces = Pieces(made.stream, cell.chunk)
    alone = cell.side == "py-lmdb"
    raced = peers.single(directory, pieces, how) if alone else peers.limit(directory, pieces, cell.shards, how)
    check_state(cell.told(), made, raced.records, raced.digest)
    return Ran(len(made.entries) - warm * cell.chunk, raced.seconds, 0.0, raced.cpu)
