"""The whole contract in this process, over a store."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

from shardengine.engine.adaptors.applying import Applying
from shardengine.engine.adaptors.snapshots import check_there, snapshot_read, write_snapshot
from shardengine.engine.contract import HardState, SnapshotMetadata
from shardengine.engine.intake.tail import Tail
from shardengine.engine.run.standing import check_name
from shardengine.engine.snapshot.build import config_of
from shardengine.engine.snapshot.folder import writing_into
from shardengine.engine.snapshot.keeper import metadata_of
from shardengine.engine.storage.files import absolute
from shardengine.engine.storage.generations import DirectoryConfig, new_lineage
from shardengine.engine.storage.hardstate import check_follows
from shardengine.shards.transaction import Record
from shardengine.shards.types import LogId, Position

_REPLACED = "its engine's state was replaced"


class InProcess(Applying):
    """A `StateMachine` over a store: everything that all of them have in common. Each says itself what it promises."""

    _room: Path | None = None

    # ---- durability ----------------------------------------------------------------------------------------------

    def save_hard_state(self, state: HardState | None = None) -> None:
        """Remember a node's term and vote, as long as this object lives; None: nothing to do. Raises HardStateError
        when it is none, its term falls, or its vote is not the one cast in that term."""
        self._running()
        if state is not None:
            check_follows(state, self._hard_state)
            self._hard_state = state

    def hard_state(self) -> HardState | None:
        """What was saved last; None: nothing ever."""
        self._running()
        return self._hard_state

    async def lease_background_cleanup(self) -> list[bytes]:
        """As an engine's: no record expires in this version."""
        self._running()
        return []

    def persist_last_applied(self, last: LogId) -> None:
        """As `update_last_applied`, then `flush`."""
        self.update_last_applied(last)
        self.flush()

    def flush(self) -> None:
        """Return when all that was applied is as durable as it gets here. Raises what the disk said; EngineStateError
        when it does not run."""
        self._running()
        with self._writing() as store:
            store.flush()

    async def flush_async(self) -> None:
        """As `flush`; blocks the event loop too."""
        self.flush()

    # ---- snapshots -----------------------------------------------------------------------------------------------

    async def generate_snapshot_data(
        self, directory: str | os.PathLike[str], last_included: LogId | None = None
    ) -> bytes:
        """Write a snapshot of now, of one part, into `directory`, which must be empty or not there. Blocks, the event
        loop too. Returns the manifest's checksum, 16 bytes. An engine installs it as one of its own.

        Raises SnapshotLabelError when `last_included` is not `last_applied()`: nothing is in flight that it could wait
        for; SnapshotError (the disk). No file is left then.
        """
        store = self._now()
        tail = store.tail
        if last_included is not None:
            check_name(last_included)
            check_there(last_included, LogId(tail.index, tail.term))
        place = Position(0, tail.index, tail.term, tail.clock)
        with writing_into(absolute(directory)) as target:
            manifest = write_snapshot(target, self._snapshots, store.fixed, store, place, tail.kept_runs(place.index))
        metadata = self._snapshots.metadata = metadata_of(manifest)
        return metadata.checksum

    async def apply_snapshot_from_file(self, metadata: SnapshotMetadata, path: str | os.PathLike[str]) -> None:
        """Replace the whole state by the snapshot at `path`, an engine's or another adaptor's too, which must be the
        one that `metadata` names. It is verified in full first. Blocks, the event loop too. Views end.

        Raises SnapshotDamagedError, SnapshotFormatError, SnapshotStaleError (older than the current state) or
        SnapshotError; state and index are untouched then.
        """
        self._install(absolute(path), metadata, force=False)

    async def restore(self, path: str | os.PathLike[str], force: bool = False) -> None:
        """As `apply_snapshot_from_file`, for whatever snapshot is at `path`; `force` installs an older one too, which
        begins a lineage."""
        self._install(absolute(path), None, force=force)

    def _install(self, place: Path, metadata: SnapshotMetadata | None, *, force: bool) -> None:
        commands, store = self._running(), self._store
        snapshot = self._snapshots.asked_for(place, metadata, store.fixed)
        manifest, applied = snapshot.manifest, self.last_applied()
        last, fixed = manifest.last_included, config_of(manifest)
        self._snapshots.check_newer(last, applied, force=force)
        if last.index < applied.index:
            fixed = begun(fixed)
        with snapshot_read(snapshot, commands.machine, self._room) as records:
            self._replace(records, fixed, Tail(last.index, last.term, manifest.clock, manifest.term_runs))
        self._installed(metadata_of(manifest))

    def _installed(self, metadata: SnapshotMetadata) -> None:
        self._snapshots.metadata = metadata

    async def reset(self) -> None:
        """Replace the whole state by an empty one at index 0. Views end; limits and `bad_entry` stay."""
        self._replace((), begun(self._now().fixed), Tail(0, 0, 0, []))

    async def compact(self) -> None:
        """Give back room that deleted and rewritten records left. The state stays; as with an engine's move, views end,
        and the machine is made anew. Raises StoreError as `apply_chunk`."""
        commands = self._made(self._now().fixed)
        self._end_views(_REPLACED)
        with self._writing() as store:
            store.compact()
        self._commands = commands

    def _replace(self, records: Iterable[Record], fixed: DirectoryConfig, tail: Tail) -> None:
        commands = self._made(fixed)
        with self._writing() as store:
            store.replace(records, fixed, tail)
        self._commands = commands
        self._end_views(_REPLACED)
        self._waiting.reached(tail.index)

    def snapshot_metadata(self) -> SnapshotMetadata | None:
        """Which snapshot was taken, installed, or named last; None: none yet."""
        self._owner.check()
        return self._snapshots.metadata

    def update_last_snapshot_metadata(self, metadata: SnapshotMetadata) -> None:
        """Remember `metadata`. Raises SnapshotError when it names no snapshot."""
        self._owner.check()
        self._snapshots.remember(metadata)

    def persist_last_snapshot_metadata(self, metadata: SnapshotMetadata) -> None:
        """As `update_last_snapshot_metadata`: nothing here is durable. Raises EngineStateError, too, when it does not
        run."""
        self._running()
        self._snapshots.remember(metadata)


def begun(fixed: DirectoryConfig) -> DirectoryConfig:
    """The same, of a log that begins."""
    return msgspec.structs.replace(fixed, lineage=new_lineage())
