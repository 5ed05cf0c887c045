"""Records as a snapshot of one part, of the very format that an engine's snapshots have, and records out of any such.

A snapshot of either is installed in the other: the same manifest, the same files, the same checks.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from heapq import merge
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

from shardengine.engine.adaptors.store import Reads
from shardengine.engine.commit.pinning import Completed, check_label, part_name
from shardengine.engine.errors import SnapshotError, SnapshotLabelError, StoreError, disk_error
from shardengine.engine.snapshot.build import Snapshot, copy_part
from shardengine.engine.snapshot.check import claims_of
from shardengine.engine.snapshot.keeper import Known
from shardengine.engine.snapshot.manifest import Manifest
from shardengine.engine.storage.generations import DirectoryConfig
from shardengine.ipc.errors import hint_for
from shardengine.shards import wire
from shardengine.shards.machine import Machine
from shardengine.shards.placement import SLOTS
from shardengine.shards.snapshot import finish_file
from shardengine.shards.store import PAGE_BYTES, Identity, Loader, ReadStore
from shardengine.shards.transaction import Record
from shardengine.shards.types import LogId, Position

INSTALLING = "shardengine-install-"
"""What the name of a folder begins with in which a snapshot is checked; who dies leaves it."""

_BATCH_RECORDS = 4096
_MAP_BYTES = 1 << 20  # for what LMDB needs beside the records


def write_snapshot(
    directory: Path, snapshots: Known, fixed: DirectoryConfig, records: Reads, place: Position, runs: list[LogId]
) -> Manifest:
    """Write a snapshot of `records`, which stand at `place`, into `directory`, which is empty. Blocks until it is on
    the disk. Raises SnapshotError; files may be left then."""
    try:
        with TemporaryDirectory(prefix=".partial-", dir=directory) as folder:
            _load(Path(folder), Identity("", 0, 1, SLOTS, fixed.machine), records, place)
            part = directory / part_name(0)
            (Path(folder) / "data.mdb").rename(part)
        descriptor = os.open(part, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size, checksum = finish_file(descriptor, part)
        finally:
            os.close(descriptor)
    except (OSError, StoreError) as error:
        hint = error.hint if isinstance(error, StoreError) else hint_for(error)
        raise SnapshotError(f"cannot write {directory}: {error}", hint=hint, path=str(directory)) from error
    copied = wire.Copied(0, size, len(records), checksum, None)
    return snapshots.complete(directory, fixed, Completed(place, runs, [copied]))


def _load(folder: Path, identity: Identity, records: Reads, place: Position) -> None:
    """Make an environment of the records in `folder`, durable, cut to the pages in use, and closed."""
    loader = Loader(folder, _map_bytes(records))
    try:
        found = records.under(b"")
        while batch := list(islice(found, _BATCH_RECORDS)):
            loader.load(batch)
        loader.finish(identity, place)
    finally:
        loader.close()


def _map_bytes(records: Reads) -> int:
    """More than they take: a value that is too large for a page has pages of its own. It is address space only."""
    return _MAP_BYTES + sum(4 * (len(key) + len(value)) + 2 * PAGE_BYTES for key, value in records.under(b""))


@contextmanager
def snapshot_read(snapshot: Snapshot, machine: Machine, room: Path | None) -> Iterator[Iterator[Record]]:
    """The records, in key order, of a snapshot of any number of parts, which are copied first, into a folder in `room`,
    None: where the system has it, and checked as they are copied. Blocks.

    Raises SnapshotDamagedError when a part is not what the manifest says; SnapshotError, and StoreError for what the
    system said, when this process lacks what it takes to look.
    """
    parts = zip(snapshot.manifest.parts, claims_of(snapshot.manifest), strict=True)
    with ExitStack() as stack:
        try:
            folder = Path(stack.enter_context(TemporaryDirectory(prefix=INSTALLING, dir=room)))
            copied = [copy_part(snapshot.path, *part, folder, machine, records=True) for part in parts]
        except OSError as error:
            raise disk_error(f"{snapshot.path} cannot be read", error, path=str(snapshot.path)) from error
        yield merge(*[stack.enter_context(closing(_records_in(file))) for file in copied])


def _records_in(file: Path) -> Generator[Record, None, None]:
    with closing(ReadStore.of_part(file)) as store, closing(store.begin()) as transaction:
        yield from transaction.scan(b"", None, reverse=False)


def check_there(label: LogId, applied: LogId) -> None:
    """Raise SnapshotLabelError when the state at `label` is not the one that is there."""
    check_label(label, applied, moved_on=False)
    if label.index > applied.index:
        raise SnapshotLabelError(
            f"the state at index {label.index} is to come: {applied.index} is applied, and nothing is in flight",
            hint="apply the log up to there first, or take one with last_included=None",
            asked=label.index,
            applied=applied.index,
        )
