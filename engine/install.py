"""From a snapshot, or from another generation, to a new generation of any shard count. Touches nothing that lives.

With as many shards as before the parts are copied; else their records are merged in key order and appended to the
shards that own them, in bounded transactions. The new generation is durable when it is returned; CURRENT does not
name it yet. Whatever goes wrong removes it again.
"""

from __future__ import annotations

import heapq
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice
from operator import itemgetter
from pathlib import Path

import msgspec

from engine.decision import Record
from engine.errors import SnapshotDamagedError, SnapshotFormatError
from engine.files import disk_error
from engine.generations import Directory, DirectoryConfig, Generation
from engine.manifest import Manifest, PartInfo, read_manifest
from shards.digest import hasher128
from shards.machine import Machine
from shards.placement import SLOTS, shard_table, slot_of
from shards.store import FORMAT, Loader, ReadStore, damage_in
from shards.types import LogId, Position

_READ_BYTES = 1 << 20
_BATCH_RECORDS = 4096
_THREADS = 4

Progress = Callable[[int, int], None]


class Target(msgspec.Struct, frozen=True):
    """What a generation is built for: its shard count, the sizes of its rings' halves and maps, and who is told of
    the records done and to do."""

    shards: int
    machine: type[Machine]
    half_bytes: int
    map_bytes: int
    progress: Progress | None = None


class Origin(msgspec.Struct, frozen=True):
    """What it is built from: one environment's file a shard, where the log stands, and what is fixed."""

    files: list[Path]
    entries: int
    position: Position
    term_runs: list[LogId]
    config: DirectoryConfig


def verify_snapshot(path: Path, *, deep: bool = False) -> Manifest:
    """Check everything a snapshot says of itself: its manifest, every part's length and checksum, in parallel; with
    `deep`, every page of them. Blocks for as long as it takes to read them.

    Raises SnapshotDamagedError or SnapshotFormatError, which name the part.
    """
    manifest = read_manifest(path)
    if len(manifest.parts) != manifest.shards or manifest.slots != SLOTS:
        raise SnapshotFormatError(
            f"{path}: {len(manifest.parts)} parts for {manifest.shards} shards and {manifest.slots} slots",
            hint=f"this version reads {SLOTS} slots",
        )
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(lambda part: _verify_part(path / part.file, part, deep), manifest.parts))
    return manifest


def _verify_part(file: Path, part: PartInfo, deep: bool) -> None:
    if "/" in part.file or part.file.startswith("."):
        raise _damaged(file, "its name leads out of the snapshot")
    try:
        size = file.stat().st_size
        if size != part.bytes:
            raise _damaged(file, f"{size} bytes, not {part.bytes}")
        hasher = hasher128()
        with file.open("rb") as content:
            while piece := content.read(_READ_BYTES):
                hasher.update(piece)
    except OSError as error:
        raise _damaged(file, str(error)) from error
    if hasher.hexdigest() != part.checksum:
        raise _damaged(file, "its checksum does not match the manifest's")
    if deep and (findings := damage_in(file)):
        raise _damaged(file, "; ".join(findings[:3]))


def _damaged(file: Path, what: str) -> SnapshotDamagedError:
    return SnapshotDamagedError(
        f"{file} is damaged: {what}", hint="take another snapshot, or fetch this one again", path=str(file)
    )


def origin_of(path: Path, manifest: Manifest) -> Origin:
    """A verified snapshot as what to build from."""
    last = manifest.last_included
    config = DirectoryConfig(
        FORMAT,
        manifest.lineage,
        manifest.machine,
        manifest.machine_version,
        manifest.slots,
        manifest.limits,
        manifest.bad_entry,
    )
    return Origin(
        [path / part.file for part in manifest.parts],
        sum(part.entries for part in manifest.parts),
        Position(0, last.index, last.term, manifest.clock),
        manifest.term_runs,
        config,
    )


def build(directory: Directory, origin: Origin, target: Target) -> Generation:
    """Build a generation with the state of `origin`. Blocks; any thread.

    Raises StoreFullError when the disk, or a map, has no room; nothing is left of it then.
    """
    generation = directory.begin(target.shards, origin.config)
    try:
        if len(origin.files) == target.shards:
            _copy(generation, origin, target)
        else:
            _merge(generation, origin, target)
        record = Record(origin.position, origin.term_runs, {}, origin.config.machine_version)
        directory.complete(generation, record, target.half_bytes)
    except OSError as error:
        generation.remove()
        raise disk_error(f"{generation.path} cannot be built", error, path=str(generation.path)) from error
    except BaseException:
        generation.remove()
        raise
    return generation


def _copy(generation: Generation, origin: Origin, target: Target) -> None:
    def copy(shard: int) -> None:
        shutil.copyfile(origin.files[shard], generation.shard(shard) / "data.mdb")
        loader = Loader(generation.shard(shard), target.map_bytes)
        try:
            loader.finish(generation.identity(shard), origin.position)
        except BaseException:
            loader.close()
            raise

    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(copy, range(target.shards)))
    if target.progress is not None:
        target.progress(origin.entries, origin.entries)


def _merge(generation: Generation, origin: Origin, target: Target) -> None:
    """All records, in key order, each appended to the shard that owns it."""
    with ExitStack() as stack:
        scans = []
        for file in origin.files:
            store = ReadStore.of_part(file)
            stack.callback(store.close)
            transaction = store.begin()
            stack.callback(transaction.close)
            scans.append(transaction.scan(b"", None, reverse=False))
        loaders = [Loader(generation.shard(shard), target.map_bytes) for shard in range(target.shards)]
        for loader in loaders:
            stack.callback(loader.close)
        _distribute(heapq.merge(*scans, key=itemgetter(0)), loaders, origin.entries, target)
        for shard, loader in enumerate(loaders):
            loader.finish(generation.identity(shard), origin.position)


def _distribute(records: Iterable[tuple[bytes, bytes]], loaders: Sequence[Loader], total: int, target: Target) -> None:
    partition_key = target.machine().partition_key
    table = shard_table(target.shards)
    records = iter(records)
    done = 0
    while batch := list(islice(records, _BATCH_RECORDS)):
        owned: list[list[tuple[bytes, bytes]]] = [[] for _ in loaders]
        for record in batch:
            owned[table[slot_of(partition_key(record[0]))]].append(record)
        for loader, mine in zip(loaders, owned, strict=True):
            if mine:
                loader.load(mine)
        done += len(batch)
        if target.progress is not None:
            target.progress(done, total)
