"""From a snapshot, or from another generation, to a new generation of any shard count. Touches nothing that lives.

What a snapshot holds is copied first, and checked as it is copied: what is opened afterwards is our own copy, which
nobody else writes or opens. With as many shards as before that is all; else the records are merged in key order and
appended to the shards that own them, in bounded transactions. The new generation is durable when it is returned;
CURRENT does not name it yet. Whatever goes wrong removes it again.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from operator import itemgetter
from pathlib import Path

import msgspec

from shardengine.engine.beside import each
from shardengine.engine.commit.decision import Record
from shardengine.engine.errors import disk_error
from shardengine.engine.snapshot.check import Claim, claims_of, judge
from shardengine.engine.snapshot.manifest import Manifest, PartInfo
from shardengine.engine.snapshot.parts import damaged, read_part
from shardengine.engine.storage.generations import Directory, DirectoryConfig, Generation
from shardengine.engine.storage.placing import owner_of
from shardengine.ipc.files import create_file
from shardengine.shards.machine import Machine
from shardengine.shards.store import FORMAT, Loader, ReadStore
from shardengine.shards.types import LogId, Position

_BATCH_RECORDS = 4096

Progress = Callable[[int, int], None]


class Target(msgspec.Struct, frozen=True):
    """What a generation is built for: its shard count, the sizes of its rings' halves and maps, whether all records of
    a snapshot are looked at, and who is told of the records done and to do."""

    shards: int
    machine: type[Machine]
    half_bytes: int
    map_bytes: int
    verify: bool = True
    progress: Progress | None = None


class Origin(msgspec.Struct, frozen=True):
    """What it is built from: one environment's file a shard, where the log stands, and what is fixed."""

    files: list[Path]
    entries: int
    position: Position
    term_runs: list[LogId]
    config: DirectoryConfig


class Snapshot(msgspec.Struct, frozen=True):
    """A snapshot to install: where it is, and what its manifest said when it was read, once."""

    path: Path
    manifest: Manifest


def take(directory: Directory, snapshot: Snapshot, target: Target) -> tuple[Generation, Origin]:
    """Copy the parts of `snapshot` into a new generation, and check them: what to `build` it from. Blocks; any thread.

    Raises SnapshotDamagedError when a part is not what the manifest says, StoreFullError when the disk has no room;
    nothing is left of it then.
    """
    manifest = snapshot.manifest
    config = config_of(manifest)
    generation = directory.begin(target.shards, config)
    machine = target.machine()

    def copy(what: tuple[PartInfo, Claim]) -> Path:
        return copy_part(snapshot.path, *what, generation.path, machine, records=target.verify)

    with building(generation):
        files = each(copy, zip(manifest.parts, claims_of(manifest), strict=True))
    last = manifest.last_included
    position = Position(0, last.index, last.term, manifest.clock)
    return generation, Origin(files, sum(part.entries for part in manifest.parts), position, manifest.term_runs, config)


def copy_part(path: Path, part: PartInfo, claim: Claim, into: Path, machine: Machine, *, records: bool) -> Path:
    """Copy a part of the snapshot at `path` into a folder that nobody else knows, and return the copy, checked; without
    `records`, not what it holds. Raises SnapshotDamagedError, OSError."""
    claim = msgspec.structs.replace(claim, file=f"taken-{claim.identity.shard:03}.mdb")
    copied = into / claim.file
    with open(create_file(copied), "wb") as file:
        read_part(path / part.file, part, file)
    if problems := judge(claim, into, machine, records=records).problems:
        raise damaged(path / part.file, "; ".join(problems[:3]))
    return copied


def config_of(manifest: Manifest) -> DirectoryConfig:
    """What is fixed for a state that comes from the snapshot of that manifest."""
    return DirectoryConfig(
        FORMAT,
        manifest.lineage,
        manifest.machine,
        manifest.machine_version,
        manifest.slots,
        manifest.limits,
        manifest.bad_entry,
    )


@contextmanager
def building(generation: Generation) -> Iterator[None]:
    """Remove the generation when what is done for it fails. StoreFullError: the system refused it."""
    try:
        yield
    except OSError as error:
        generation.remove()
        raise disk_error(f"{generation.path} cannot be built", error, path=str(generation.path)) from error
    except BaseException:
        generation.remove()
        raise


def build(directory: Directory, generation: Generation, origin: Origin, target: Target) -> Generation:
    """Give `generation`, which was just begun, the state of `origin`. Blocks; any thread.

    Files of `origin` that lie in the generation are used up. Raises StoreFullError when the disk, or a map, has no
    room; nothing is left of the generation then.
    """
    own = [file for file in origin.files if file.parent == generation.path]
    with building(generation):
        if len(own) == target.shards:
            _adopt(generation, origin, target)
        else:
            _merge(generation, origin, target)
            for file in own:
                file.unlink()
        record = Record(origin.position, origin.term_runs, {}, origin.config.machine_version)
        generation.info = msgspec.structs.replace(generation.info, config=origin.config)
        directory.complete(generation, record, target.half_bytes)
    return generation


def install(directory: Directory, snapshot: Snapshot, target: Target) -> Generation:
    """`take`, then `build`."""
    return build(directory, *take(directory, snapshot, target), target)


def _adopt(generation: Generation, origin: Origin, target: Target) -> None:
    def adopt(shard: int) -> None:
        origin.files[shard].rename(generation.shard(shard) / "data.mdb")
        loader = Loader(generation.shard(shard), target.map_bytes)
        try:
            loader.finish(generation.identity(shard), origin.position)
        except BaseException:
            loader.close()
            raise

    each(adopt, range(target.shards))
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
    owner = owner_of(target.machine(), target.shards)
    records = iter(records)
    done = 0
    while batch := list(islice(records, _BATCH_RECORDS)):
        owned: list[list[tuple[bytes, bytes]]] = [[] for _ in loaders]
        for record in batch:
            owned[owner(record[0])].append(record)
        for loader, mine in zip(loaders, owned, strict=True):
            if mine:
                loader.load(mine)
        done += len(batch)
        if target.progress is not None:
            target.progress(done, total)
