"""The class people use.

It has a shell, which waits in its loop, and delegates: everything that can be done without waiting is done at once, in
the caller's thread. `start`, `stop` and `flush` drive the very same steps themselves, blocking, inside or outside a
running loop.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any

from shardengine.engine.config import EngineConfig
from shardengine.engine.contract import HardState, ScanResult, SnapshotInfo, SnapshotMetadata, StartReport
from shardengine.engine.errors import disk_error, runs_already
from shardengine.engine.read.view import View
from shardengine.engine.run.busy import Busy
from shardengine.engine.run.facts import facts
from shardengine.engine.run.launch import machine_name
from shardengine.engine.run.owner import Owner
from shardengine.engine.run.readside import ReadSide
from shardengine.engine.run.replacing import Replacing
from shardengine.engine.run.runtime import Runtime
from shardengine.engine.run.shell import Shell
from shardengine.engine.run.standing import check_name, stand_at
from shardengine.engine.run.starting import refuse_worker, settled, start_run
from shardengine.engine.run.taking import Taking
from shardengine.engine.run.tasks import one_turn
from shardengine.engine.snapshot.keeper import Snapshots
from shardengine.engine.snapshot.policy import SnapshotPolicy
from shardengine.engine.storage.files import absolute, data_path
from shardengine.engine.storage.hardstate import HardStateFile
from shardengine.shards.digest import DIGEST_MODULUS
from shardengine.shards.kv import KeyValue
from shardengine.shards.machine import Machine
from shardengine.shards.types import ApplyResult, Entry, LogId


class Engine:
    """A replicated state machine on all cores of this host.

    Feed it committed entries in log order with `apply_chunk`; read it at any time. It belongs to the thread that made
    it and, from its first await to `stop`, to one event loop. A forked child cannot use it.

    Args:
        path: the data directory; made by `start` when it is not there.
        shards: worker processes, each with its own LMDB environment. None: what the directory has, else
            min(8, max(2, usable cores - 1)).
        machine: what the commands mean; a `Machine` subclass that other processes can import.
        config: all other settings. None: those of `SHARDENGINE_*` variables, as `load_config()` reads them.
        reshard: when the directory has another number of shards, `start` converts it first.

    Raises ConfigError, MachineImportError when workers could not import `machine`, or EngineStateError in a worker
    process. Opens nothing.
    """

    def __init__(
        self,
        path: str | bytes | os.PathLike[str] | os.PathLike[bytes],
        *,
        shards: int | None = None,
        machine: type[Machine] = KeyValue,
        config: EngineConfig | None = None,
        reshard: bool = False,
    ) -> None:
        config = settled(config, shards)
        machine_name(machine)
        refuse_worker()
        busy = Busy()
        self._owner = Owner()
        self._path = data_path(path)
        self._machine = machine
        self._config = config
        self._reshard = reshard
        self._busy = busy
        self._readside = ReadSide(self._path, self._owner, config)
        self._shell = Shell(self._owner, self._readside, busy, config)
        self._snapshots = Snapshots(self._path, machine, config)
        self._hard = HardStateFile(self._path)
        self._taking = Taking(self._shell, busy, self._snapshots, config)
        self._replacing = Replacing(self._shell, busy, self._snapshots, machine, config)
        self._shell.register()

    def __bool__(self) -> bool:
        return True

    # ---- life ----------------------------------------------------------------------------------------------------

    def start(self) -> StartReport:
        """Open the directory, start the workers, redo what was decided and not yet committed everywhere.

        Blocks until every read and write may begin. Raises EngineLockedError, FormatError, ShardCountMismatchError,
        MachineMismatchError, MachineImportError, StateUntrustedError, DamagedError or WorkerFailedError; nothing
        runs then, and the directory is as it was (an untrusted generation is set aside). Starting twice is an
        EngineStateError.
        """
        shell = self._shell
        self._owner.check()
        refuse_worker()
        if shell.runtime is not None:
            raise runs_already()
        runtime, report = start_run(
            self._path, self._machine, self._config, self._snapshots, self._hard, reshard=self._reshard
        )
        shell.begin(runtime, self._on_tick)
        return report

    def stop(self) -> None:
        """Finish what is in flight, make it durable, end the workers, free the directory. Blocks.

        Calls that wait for room fail with EngineStoppedError, as every read does from then on, and views end; `start`
        again resumes. Raises what kept it from finishing; it is stopped all the same. Stopping twice does nothing.
        """
        self._shell.stop()

    async def aclose(self) -> None:
        """Let what is in flight finish without blocking the loop, up to `stop_timeout_ms`, then `stop` and
        `close_storage`. Raises as `stop`."""
        await self._shell.aclose()

    def close_storage(self) -> None:
        """Close what `stop` had to leave open, and locked: one of its threads was still at work there after
        `stop_timeout_ms`. While it is, nothing happens, nor after any other stop. EngineStateError: the engine runs."""
        self._shell.close_storage()

    def is_running(self) -> bool:
        """True while chunks are applied: started, not stopped, and not failed."""
        return self._shell.applies

    async def __aenter__(self) -> Engine:
        self.start()
        self._shell.bind()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    # ---- apply ---------------------------------------------------------------------------------------------------

    def check(self, *datas: bytes) -> None:
        """Raise BadEntryError when one of `datas` must not be proposed. Does not block, changes nothing."""
        self._running().check(datas)

    async def apply_chunk(self, entries: Sequence[Entry]) -> Sequence[ApplyResult]:
        """Apply consecutive committed entries: all of them, on all shards at once, or none.

        Waits, first in first out, while too much is in flight, then until the chunk is readable. Entries that were
        applied before are skipped and say so; entries still in flight share the outcome of their first delivery.

        Returns one result for each entry, in order.

        Raises:
            LogGapError, LogOrderError, LogConflictError: the chunk does not continue the log. Nothing was accepted.
            BadEntryError, ChunkTooLargeError: bad data, before any shard saw a byte. Nothing was accepted.
            ChunkFailedError: `apply` of an entry failed, which it names; or StoreFullError: there was no room.
                Nothing of the chunk was applied; the engine stands at the entry before it.
            ChunkAbortedError: a chunk ahead of this one failed. Nothing was applied; send it again.
            WorkerFailedError, EngineStoppedError: the engine cannot go on; the next start decides what was applied.

        A call that is cancelled while it waits for room is withdrawn; after that, only its result is lost.
        """
        if not entries:
            self._shell.bind()
            return []
        return (await self._shell.deliver(entries)).results()

    async def wait_applied(self, index: int, timeout: float | None = None) -> None:
        """Wait until everything up to `index` is applied and readable.

        Raises TimeoutError after `timeout` seconds, EngineStoppedError when the engine stops before.
        """
        await self._shell.applied(index, timeout)

    # ---- read ----------------------------------------------------------------------------------------------------

    def get(self, key: bytes) -> bytes | None:
        """The value of `key` at `last_applied()`, or None. Does not block and asks nobody.

        As every read it is answered from `start` to `stop`, also by an engine that has failed, and raises
        EngineStateError before and EngineStoppedError after.
        """
        return self._readside.now().cut.get(key)

    def get_multi(self, keys: Iterable[bytes]) -> list[bytes | None]:
        """The value of each key, or None, in the order of `keys`, all at `last_applied()`."""
        return self._readside.now().cut.get_multi(keys)

    def scan_prefix(
        self, prefix: bytes, limit: int | None = None, start_after: bytes | None = None, reverse: bool = False
    ) -> ScanResult:
        """Records whose key starts with `prefix`, in key order over all shards, at `last_applied()`.

        Args:
            limit: at most so many, 0 or more, else a ValueError; None: all, in memory.
            start_after: only keys behind this one (before it, with `reverse`): the last key of the page before.
            reverse: from the last key down.
        """
        return self._readside.now().cut.scan_prefix(prefix, limit, start_after, reverse)

    def view(self) -> View:
        """Keep the state at `last_applied()` for repeatable reads. Raises TooManyViewsError at `views_max`."""
        return self._readside.view()

    def __len__(self) -> int:
        """Live records at `last_applied()`."""
        return self._readside.now().cut.count()

    def is_empty(self) -> bool:
        return len(self) == 0

    def last_applied(self) -> LogId:
        """The newest entry that reads see."""
        position = self._readside.now().cut.position
        return LogId(position.index, position.term)

    def durable(self) -> LogId:
        """How far the state survives power loss, hence how far the host may cut its log.

        Mode "power": `last_applied()`. Mode "process": the newest snapshot of this log in the directory, or (0, 0). A
        flush does not raise it: what it made durable the next write makes doubtful again. It never falls, but for
        `reset` and a forced `restore`, which begin another log; and it stays where it is once a sync has failed.
        """
        return self._running().durable(self._snapshots.newest)

    def update_last_applied(self, last: LogId) -> None:
        """Stand at `last` from now on, and take `last.index + 1` next: the entries in between carry no command, or lie
        before the engine's time. It survives whatever an applied chunk survives. At or below `last_applied()` nothing
        happens. Terms of entries passed over that may differ are not remembered, nor are those of all before them.

        Raises EngineStateError while chunks, a snapshot or a replacement are under way; LogConflictError when entry
        `last.index` was applied with another term; LogOrderError when the term falls, or `last` is no entry's name;
        StoreError when the disk refuses. Nothing has changed then; where the engine has failed, the next start decides.
        """
        stand_at(self._shell, self._busy, last)

    def persist_last_applied(self, last: LogId) -> None:
        """As `update_last_applied`, and returns when it is on the disk. Raises what `flush` does, too."""
        self.update_last_applied(last)
        self.flush()

    def entry_term(self, index: int) -> int | None:
        """The term of an applied entry; None beyond `last_applied()`, and for entries too old to be remembered."""
        return self._running().entry_term(index)

    async def digest(self) -> bytes:
        """16 bytes that are the same for the same live records, whatever the shard count. Reads all of them, in
        slices, at one index, however long that takes; applies go on meanwhile. Raises ViewClosedError when the engine
        is stopped, or the state replaced, before its end."""
        self._owner.check()
        cut = self._readside.now().pin()
        try:
            total = 0
            for part in cut.digest_slices():
                total += part
                await one_turn()
                self._readside.check()
            return (total % DIGEST_MODULUS).to_bytes(16, "big")
        finally:
            cut.hand_back()

    def stats(self) -> dict[str, Any]:
        """Facts about this moment, as plain values. Looks at the directory's files."""
        runtime, shell = self._running(), self._shell
        return facts(runtime, self.durable(), waiting=shell.waiting_calls, views=self._readside.views_open)

    # ---- durability ----------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Block until everything that was readable at the call survives power loss. Raises what the disk said, or
        WorkerFailedError after `flush_timeout_ms`."""
        self._running().flush()

    async def flush_async(self) -> None:
        """As `flush`, without blocking the loop; applies wait meanwhile."""
        await self._shell.flushed(self._shell.bind())

    def save_hard_state(self, state: HardState | None = None) -> None:
        """Remember the term and the vote of the node that this engine is part of; None: once more what is remembered,
        or nothing. Blocks until the disk has it, in every durability mode. No reset, restore, compaction, conversion or
        power loss changes it. An engine that has failed still takes it.

        Raises:
            HardStateError: it is none, its term is below the saved one's, or its vote is not the one cast in that term.
            SyncFailedError, StoreError, DirectoryChangedError: it could not be written. `hard_state()` stays as it was,
                a start may find either: act on neither before a save succeeds.
            EngineStateError: the engine does not run.
        """
        self._running().durability.check_place()
        self._hard.save(state)

    def hard_state(self) -> HardState | None:
        """What `save_hard_state` made durable last, in this run or before it; None: nothing ever. Does not block.
        Raises EngineStateError when the engine does not run."""
        self._running()
        return self._hard.state

    async def lease_background_cleanup(self) -> list[bytes]:
        """Remove a bounded number of expired records and return their keys. No record expires in this version: the list
        is empty, nothing is awaited. Raises EngineStateError when the engine does not run, or what it failed with."""
        self._shell.bind().coordinator.check_running()
        return []

    # ---- snapshots -----------------------------------------------------------------------------------------------

    async def generate_snapshot_data(
        self, directory: str | os.PathLike[str], last_included: LogId | None = None
    ) -> bytes:
        """Write a snapshot into `directory`, which must be empty or not there, while applies go on.

        With `last_included` it holds the state at exactly that entry, which it waits for up to `snapshot_timeout_ms`;
        None: the state of now. Returns the manifest's checksum, 16 bytes.

        Raises SnapshotInProgressError, SnapshotLabelError (that state is past, or inside a chunk),
        SnapshotAbortedError (a worker died or hung, the time is up), SnapshotError (the disk). No file is left then,
        nor when the call is cancelled.
        """
        self._shell.bind()
        if last_included is not None:
            check_name(last_included)
        return (await self._taking.into(absolute(directory), last_included)).checksum

    async def create_snapshot(self) -> SnapshotInfo:
        """Write a snapshot of now into the directory's own `snapshots/`, and remove all but the newest
        `snapshots_keep`. Raises as `generate_snapshot_data`."""
        return await self._taking.create()

    def snapshots(self) -> list[SnapshotInfo]:
        """The valid snapshots in the directory's own `snapshots/`, oldest first."""
        self._owner.check()
        return self._snapshots.all()

    async def apply_snapshot_from_file(self, metadata: SnapshotMetadata, path: str | os.PathLike[str]) -> None:
        """Replace the whole state by the snapshot at `path`, which must be the one that `metadata` names.

        It is copied first, and verified in full as it is copied. Then no chunk is accepted until what is in flight is
        applied and the new state built, beside the old one, which is read until they change places, at once and for
        all readers. The state is of the snapshot's lineage from then on: the same log as the snapshot's.

        Raises SnapshotDamagedError, SnapshotFormatError, SnapshotStaleError (older than the current state),
        SnapshotInProgressError or StoreFullError; state and index are untouched then. A call that is cancelled ends
        when nothing works for it any more: with the old state, or, had they changed places already, with the new one.
        """
        await self._replacing.install(absolute(path), metadata, force=False)

    async def restore(self, path: str | os.PathLike[str], force: bool = False) -> None:
        """As `apply_snapshot_from_file`, for whatever snapshot is at `path`; `force` installs an older one too.

        Going back begins a lineage of its own: the snapshots of what was given up are another log's from then on, do
        not count for `durable()`, and never replace the state after a power loss.
        """
        await self._replacing.install(absolute(path), None, force=force)

    async def reset(self) -> None:
        """Replace the whole state by an empty one at index 0, as an install does. Snapshots and settings stay."""
        await self._replacing.reset()

    async def compact(self) -> None:
        """Give back the disk, and the map, that deleted and rewritten records left: the state is copied without gaps
        into a new generation, and moved over to, as an install does. Views end.

        Takes disk for the copy. Raises StoreFullError when there is none, SnapshotInProgressError; state and index are
        untouched then, as they are by a crash at any point.
        """
        await self._replacing.compact()

    def snapshot_metadata(self) -> SnapshotMetadata | None:
        """Which snapshot was taken, installed, or named by `update_last_snapshot_metadata` last; None: none yet."""
        self._owner.check()
        return self._snapshots.metadata

    def update_last_snapshot_metadata(self, metadata: SnapshotMetadata) -> None:
        """Remember `metadata` until the engine ends. Raises SnapshotError when it names no snapshot."""
        self._owner.check()
        self._snapshots.remember(metadata)

    def persist_last_snapshot_metadata(self, metadata: SnapshotMetadata) -> None:
        """Remember `metadata` for good. Returns when it is on the disk. Raises SnapshotError when it names no snapshot,
        StoreError when the disk refuses."""
        self._running()
        try:
            self._snapshots.persist(metadata)
        except OSError as error:
            raise disk_error("the snapshot's metadata cannot be written", error, path=str(self._path)) from error

    def set_snapshot_policy(self, policy: SnapshotPolicy) -> None:
        """From now on take snapshots by themselves when `policy` says so; `SnapshotPolicy()` takes none."""
        self._owner.check()
        self._taking.follow(policy)

    def _running(self) -> Runtime:
        return self._shell.running()

    def _on_tick(self, now: float) -> None:
        self._readside.expire_views(now)
        self._taking.tick(self._running())
