"""The class people use.

Everything that can be done without waiting is done at once, in the caller's thread; the shell waits for the rest.
`start`, `stop` and `flush` drive the very same steps themselves, blocking, inside or outside a running loop.
"""

from __future__ import annotations

import atexit
import dataclasses
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from shardengine.engine.commit.pinning import Done, Request
from shardengine.engine.config import EngineConfig, load_config
from shardengine.engine.contract import ScanResult, SnapshotInfo, SnapshotMetadata, StartReport
from shardengine.engine.errors import (
    ConfigError,
    DirectoryChangedError,
    EngineStateError,
    EngineStoppedError,
    LogOrderError,
    SnapshotError,
    SnapshotInProgressError,
    TooManyViewsError,
    WorkerFailedError,
    disk_error,
)
from shardengine.engine.read.cut import Reads
from shardengine.engine.read.view import View
from shardengine.engine.run.launch import launch_of
from shardengine.engine.run.opening import Opened, data_path, open_directory
from shardengine.engine.run.reshard import convert
from shardengine.engine.run.runtime import Runtime, machine_name
from shardengine.engine.run.shell import Shell, shells
from shardengine.engine.snapshot.build import Origin, Snapshot
from shardengine.engine.snapshot.keeper import Snapshots, metadata_of
from shardengine.engine.snapshot.manifest import Manifest
from shardengine.engine.snapshot.policy import PolicyState, SnapshotPolicy
from shardengine.engine.storage.files import absolute
from shardengine.engine.storage.generations import Generation
from shardengine.shards.digest import DIGEST_MODULUS
from shardengine.shards.fast import COMPILED
from shardengine.shards.kv import KeyValue
from shardengine.shards.machine import Machine
from shardengine.shards.types import ApplyResult, Entry, LogId
from shardengine.shards.worker import Process

log = logging.getLogger("shardengine")


class Engine(Shell):
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
        if not isinstance(config, EngineConfig | None):
            raise ConfigError(
                f"config is of type {type(config).__name__}, not EngineConfig",
                hint="pass EngineConfig(...), or load_config(...)",
            )
        config = config or load_config(shards=shards)
        if shards is not None:
            if config.shards not in (None, shards):
                raise ConfigError(f"shards={shards}, but config says {config.shards}", key="shards", value=shards)
            config = msgspec.structs.replace(config, shards=shards)
        machine_name(machine)
        _refuse_worker()
        super().__init__(config)
        self._path = data_path(path)
        self._machine = machine
        self._reshard = reshard
        self._reads: Reads | None = None
        self._views: weakref.WeakSet[View] = weakref.WeakSet()
        self._draining = False
        self._taking = False
        self._snapshots = Snapshots(self._path, machine, config)
        self._policy = PolicyState(SnapshotPolicy(), _now_ms())
        self._register()

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
        self._check_thread()
        _refuse_worker()
        if self._runtime is not None:
            raise EngineStateError("the engine runs already")
        self.close_storage()
        _make_way(self._path)
        try:
            return self._start()
        except OSError as error:
            raise disk_error(f"{self._path} cannot be opened", error, path=str(self._path)) from error

    def _start(self) -> StartReport:
        launch = launch_of(self._config.interpreter)
        first: Opened | None = None
        if self._reshard and self._config.shards is not None:
            first = convert(self._path, self._config.shards, self._machine, self._config)
        opened = open_directory(self._path, self._machine, self._config)
        runtime = Runtime(opened, self._machine, self._config, launch)
        try:
            self._snapshots.start()
            runtime.start()
        except BaseException:
            opened.lock.close()
            raise
        self._reads = runtime.reads
        self._run(runtime)
        self._snapshots.look(runtime.fixed.lineage, runtime.last_applied)
        self._draining = False
        if not COMPILED:
            log.info("puts are split and sorted in Python: the compiled part was not built, or is switched off")
        told = first if first is not None and runtime.outcome == "opened" else opened
        discarded = None if told.discarded is None else str(told.discarded)
        report = StartReport(told.outcome if told is first else runtime.outcome, runtime.last_applied, discarded)
        log.info("%s: started (%s) at %s over %d shards", self._path, report.outcome, _at(report), runtime.shards)
        return report

    def stop(self) -> None:
        """Finish what is in flight, make it durable, end the workers, free the directory. Blocks.

        Calls that wait for room fail with EngineStoppedError. Reads go on, from the last state, until
        `close_storage`. Raises what kept it from finishing; it is stopped all the same. Stopping twice does nothing.
        """
        self._stop(None)

    def _stop(self, patience_ms: int | None) -> None:
        """`patience_ms`: how long to wait for each thing; None: as the settings say."""
        self._check_thread()
        runtime = self._runtime
        if runtime is None:
            return
        self._draining = True
        self._release_waiting(EngineStoppedError("the engine stopped before the call had its turn"))
        try:
            runtime.stop(patience_ms)
            log.info("%s: stopped at index %d", self._path, runtime.last_applied.index)
        finally:
            self._unbind()
            self._runtime = None
            runtime.coordinator.fail(EngineStoppedError("the engine stopped before the chunk was applied"))
            self._release_waiting(EngineStoppedError("the engine stopped"))
            if (late := self._await_threads()) is not None:
                raise late
            runtime.opened.lock.close()

    def _stop_quietly(self) -> None:
        """For the interpreter's end, where nobody catches anything."""
        try:
            self.stop()
        except Exception as error:
            log.error("%s: stopped unclean as the interpreter ended: %s", self._path, error)

    async def aclose(self) -> None:
        """Let what is in flight finish without blocking the loop, up to `stop_timeout_ms`, then `stop` and
        `close_storage`. Raises as `stop`."""
        self._check_thread()
        runtime = None if self._runtime is None else self._bind()
        patience_ms = None
        try:
            if runtime is not None and runtime.coordinator.failure is None:
                self._draining = True
                self._release_waiting(EngineStoppedError("the engine stopped before the call had its turn"))
                runtime.coordinator.cancel_snapshot("the engine stops")
                await self._idle("stop_timeout_ms")
                await self._flushed(runtime)
        except WorkerFailedError:
            patience_ms = 0
            raise
        finally:
            try:
                self._stop(patience_ms)
            finally:
                self.close_storage()

    def close_storage(self) -> None:
        """Close the readers' side of a stopped engine; its views end. Raises EngineStateError while it runs."""
        self._check_thread()
        if self._runtime is not None:
            raise EngineStateError("the engine runs", hint="stop() it first")
        if self._reads is not None:
            self._reads.close()
            self._reads = None

    def is_running(self) -> bool:
        """True while chunks are applied: started, not stopped, and not failed."""
        runtime = self._runtime
        return runtime is not None and not self._draining and runtime.coordinator.failure is None

    async def __aenter__(self) -> Engine:
        self.start()
        self._bind()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    # ---- apply ---------------------------------------------------------------------------------------------------

    def check(self, data: bytes) -> None:
        """Raise BadEntryError when `data` must not be proposed. Does not block, changes nothing."""
        self._running().splitter.check(data)

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
            self._bind()
            return []
        return (await self._deliver(entries)).results()

    async def wait_applied(self, index: int, timeout: float | None = None) -> None:
        """Wait until everything up to `index` is applied and readable.

        Raises TimeoutError after `timeout` seconds, EngineStoppedError when the engine stops before.
        """
        await self._applied(index, timeout)

    # ---- read ----------------------------------------------------------------------------------------------------

    def get(self, key: bytes) -> bytes | None:
        """The value of `key` at `last_applied()`, or None. Does not block and asks nobody."""
        return self._open_reads().cut.get(key)

    def get_multi(self, keys: Iterable[bytes]) -> list[bytes | None]:
        """The value of each key, or None, in the order of `keys`, all at `last_applied()`."""
        return self._open_reads().cut.get_multi(keys)

    def scan_prefix(
        self, prefix: bytes, limit: int | None = None, start_after: bytes | None = None, reverse: bool = False
    ) -> ScanResult:
        """Records whose key starts with `prefix`, in key order over all shards, at `last_applied()`.

        Args:
            limit: at most so many; None: all, in memory.
            start_after: only keys behind this one (before it, with `reverse`): the last key of the page before.
            reverse: from the last key down.
        """
        return self._open_reads().cut.scan_prefix(prefix, limit, start_after, reverse)

    def view(self) -> View:
        """Keep the state at `last_applied()` for repeatable reads. Raises TooManyViewsError at `views_max`."""
        reads = self._open_reads()
        if (count := self._views_open()) >= self._config.views_max:
            raise TooManyViewsError(f"{count} views are open", hint="close views, or raise views_max", limit=count)
        view = View(reads.pin(), time.monotonic())
        self._views.add(view)
        return view

    def _views_open(self) -> int:
        return sum([not view.closed for view in self._views])

    def __len__(self) -> int:
        """Live records at `last_applied()`."""
        return self._open_reads().cut.count()

    def is_empty(self) -> bool:
        return len(self) == 0

    def last_applied(self) -> LogId:
        """The newest entry that reads see."""
        position = self._open_reads().cut.position
        return LogId(position.index, position.term)

    def durable(self) -> LogId:
        """How far the state survives power loss, hence how far the host may cut its log.

        Mode "power": `last_applied()`. Mode "process": the newest snapshot of this log in the directory, or (0, 0). A
        flush does not raise it: what it made durable the next write makes doubtful again. It never falls, but for
        `reset` and a forced `restore`, which begin another log; and it stays where it is once a sync has failed.
        """
        runtime = self._running()
        return runtime.mark.durable(runtime.last_applied, self._snapshots.newest)

    def update_last_applied(self, last: LogId) -> None:
        """Begin a log whose head is gone: an empty engine stands at `last` from now on, and takes `last.index + 1`
        next. At or below `last_applied()` nothing happens.

        It survives whatever an applied chunk survives. Raises EngineStateError when something was applied before or is
        in flight (feed entries without commands as no-ops), LogOrderError when `last` is no entry's name, StoreError.
        """
        runtime = self._running()
        coordinator = runtime.coordinator
        if coordinator.failure is not None:
            raise coordinator.failure.again()
        _check_name(last)
        if last.index <= self.last_applied().index:
            return
        if self._replacing or not coordinator.idle or coordinator.applied.index:
            raise EngineStateError(
                f"the log cannot begin at {last}: it stands at {self.last_applied()}, or something is in flight",
                hint="feed the entries between, empty ones too; or reset() first",
            )
        coordinator.begin_at(last)

    def persist_last_applied(self, last: LogId) -> None:
        """As `update_last_applied`, and returns when it is on the disk. Raises what `flush` does, too."""
        self.update_last_applied(last)
        self.flush()

    def entry_term(self, index: int) -> int | None:
        """The term of an applied entry; None beyond `last_applied()`, and for entries too old to be remembered."""
        coordinator = self._running().coordinator
        return coordinator.in_flight.tail.term_of(index) if index <= coordinator.applied.index else None

    async def digest(self) -> bytes:
        """16 bytes that are the same for the same live records, whatever the shard count. Reads all of them, in
        slices, at one index, however long that takes; applies go on meanwhile. Raises ViewClosedError when the storage
        is closed, or the state replaced, before its end."""
        self._check_thread()
        cut = self._open_reads().pin()
        try:
            total = 0
            for part in cut.digest_slices():
                total += part
                await self._one_turn()
                self._check_thread()
            return (total % DIGEST_MODULUS).to_bytes(16, "big")
        finally:
            cut.hand_back()

    def stats(self) -> dict[str, Any]:
        """Facts about this moment, as plain values. Looks at the directory's files."""
        runtime = self._running()
        coordinator, workers = runtime.coordinator, runtime.workers
        applied, durable = self.last_applied(), self.durable()
        return {
            "shards": runtime.shards,
            "durability": self._config.durability,
            "machine": self._machine.name,
            "puts": "compiled" if COMPILED else "python",
            "last_applied": {"index": applied.index, "term": applied.term},
            "durable": {"index": durable.index, "term": durable.term},
            "entries": len(self),
            "filesystem": runtime.filesystem,
            "bytes_on_disk": runtime.opened.directory.bytes_on_disk(),
            "groups": coordinator.applied.group,
            "in_flight_chunks": coordinator.in_flight.chunks,
            "in_flight_bytes": coordinator.in_flight.bytes,
            "waiting_calls": len(self._room),
            "views": self._views_open(),
            "pinned_cuts": runtime.reads.pinned,
            "sync_failed": runtime.mark.failure,
            "failure": None if coordinator.failure is None else str(coordinator.failure),
            "workers": [
                {
                    "shard": shard,
                    "pid": workers.pid(shard),
                    "restarts": workers.starts[shard] - 1,
                    "stalled": problem.message if (problem := coordinator.lives.stalled.get(shard)) else None,
                }
                for shard in range(runtime.shards)
            ],
        }

    # ---- durability ----------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Block until everything that was readable at the call survives power loss. Raises what the disk said, or
        WorkerFailedError after `flush_timeout_ms`."""
        self._running().flush()

    async def flush_async(self) -> None:
        """As `flush`, without blocking the loop; applies wait meanwhile."""
        await self._flushed(self._bind())

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
        runtime = self._bind()
        if last_included is not None:
            _check_name(last_included)
        with self._taking_one(), self._snapshots.into(absolute(directory)) as target:
            manifest = await self._take(runtime, target, last_included)
        self._snapshots.metadata = metadata_of(manifest)
        log.info("%s: snapshot taken at index %d: %s", self._path, manifest.last_included.index, directory)
        return self._snapshots.metadata.checksum

    async def create_snapshot(self) -> SnapshotInfo:
        """Write a snapshot of now into the directory's own `snapshots/`, and remove all but the newest
        `snapshots_keep`. Raises as `generate_snapshot_data`."""
        runtime = self._bind()
        with self._taking_one(), self._snapshots.partial() as partial:
            await self._take(runtime, partial.path, None)
            runtime.mark.check_sound()
            info = await self._in_thread(lambda: self._snapshots.keep(partial))
            runtime.anchors.check()  # else it counted, and lay where no start looks
        log.info("%s: snapshot taken at index %d: %s", self._path, info.last_included.index, info.path)
        return info

    @contextmanager
    def _taking_one(self) -> Iterator[None]:
        """One snapshot, install, reset or compaction at a time, up to its last file. StoreError: the disk refuses."""
        if self._taking:
            what = "another state is being installed" if self._replacing else "a snapshot is being taken, or installed,"
            raise SnapshotInProgressError(f"{what} already", hint="await it, then ask again")
        runtime = self._running()
        runtime.mark.check_sound()
        runtime.anchors.check()
        self._taking = True
        try:
            yield
        except OSError as error:
            raise disk_error(f"{self._path} cannot be written", error, path=str(self._path)) from error
        finally:
            self._taking = False

    async def _take(self, runtime: Runtime, directory: Path, label: LogId | None) -> Manifest:
        coordinator = runtime.coordinator
        timeout = self._config.snapshot_timeout_ms / 1000

        def begin(done: Done) -> None:
            coordinator.snapshot(Request(label, directory, timeout, done))

        outcome = await self._called_back(begin, lambda: coordinator.cancel_snapshot("its caller was cancelled"))
        if isinstance(outcome, SnapshotError):
            raise outcome
        return await self._in_thread(lambda: self._snapshots.seal(directory, runtime.fixed, outcome))

    def snapshots(self) -> list[SnapshotInfo]:
        """The valid snapshots in the directory's own `snapshots/`, oldest first."""
        self._check_thread()
        return self._snapshots.all()

    async def apply_snapshot_from_file(self, metadata: SnapshotMetadata, path: str | os.PathLike[str]) -> None:
        """Replace the whole state by the snapshot at `path`, which must be the one that `metadata` names.

        It is copied first, and verified in full as it is copied. Then no chunk is accepted until what is in flight is
        applied and the new state built, beside the old one, which is read until they change places, at once and for
        all readers. The state is of the snapshot's lineage from then on: the same log as the snapshot's.

        Raises SnapshotDamagedError, SnapshotFormatError, SnapshotStaleError (older than the current state),
        SnapshotInProgressError or StoreFullError; state and index are untouched then.
        """
        await self._install(absolute(path), metadata, force=False)

    async def restore(self, path: str | os.PathLike[str], force: bool = False) -> None:
        """As `apply_snapshot_from_file`, for whatever snapshot is at `path`; `force` installs an older one too.

        Going back begins a lineage of its own: the snapshots of what was given up are another log's from then on, do
        not count for `durable()`, and never replace the state after a power loss.
        """
        await self._install(absolute(path), None, force=force)

    async def _install(self, path: Path, metadata: SnapshotMetadata | None, *, force: bool) -> None:
        runtime, snapshots = self._bind(), self._snapshots
        taken: list[tuple[Generation, Origin]] = []

        def take() -> Snapshot:
            snapshot = snapshots.asked_for(path, metadata, runtime.fixed)
            snapshots.check_newer(snapshot.manifest.last_included, runtime.last_applied, force=force)
            taken.append(runtime.take(snapshot))
            return snapshot

        def build() -> Generation:
            generation, origin = taken[0]
            return runtime.build(generation, snapshots.admitted(origin, runtime.last_applied, force=force))

        with self._taking_one():
            try:
                snapshot = await self._in_thread(take)
                await self._replace(runtime, build)
                taken.clear()
            finally:
                for generation, _ in taken:
                    runtime.opened.directory.discard(generation)
            snapshots.installed(snapshot)

    async def reset(self) -> None:
        """Replace the whole state by an empty one at index 0, as an install does. Snapshots and settings stay."""
        runtime = self._bind()
        with self._taking_one():
            await self._replace(runtime, runtime.build_empty)

    async def compact(self) -> None:
        """Give back the disk, and the map, that deleted and rewritten records left: the state is copied without gaps
        into a new generation, and moved over to, as an install does. Views end.

        Takes disk for the copy. Raises StoreFullError when there is none, SnapshotInProgressError; state and index are
        untouched then, as they are by a crash at any point.
        """
        runtime = self._bind()
        with self._taking_one():
            await self._replace(runtime, runtime.build_compacted)

    async def _replace(self, runtime: Runtime, build: Callable[[], Generation]) -> None:
        """Let what is in flight finish, build another generation, and move over to it."""
        runtime.anchors.check()
        self._replacing = True
        built: list[Generation] = []
        try:
            await self._idle("snapshot_timeout_ms")
            self._check_runs(runtime)
            await self._in_thread(lambda: built.append(build()))
            self._check_runs(runtime)
            self._move_to(built[0])
            built.clear()
        finally:
            self._replacing = False
            for generation in built:
                runtime.opened.directory.discard(generation)
            self._wake_next()

    def _check_runs(self, runtime: Runtime) -> None:
        """Whether the directory is still ours to write in."""
        if self._runtime is not runtime:
            raise EngineStoppedError("the engine stopped before the new state was built")

    def _move_to(self, generation: Generation) -> None:
        """Start `generation`, name it in CURRENT, and let go of the one before. Blocks while workers start."""
        old = self._running()
        opened = dataclasses.replace(old.opened, generation=generation)
        new = Runtime(opened, self._machine, self._config, old.launch)
        new.start(old.mark)
        try:
            old.anchors.check()
            unsynced = old.opened.directory.make_current(generation)
        except BaseException:
            new.abandon()
            new.reads.close()
            if old.opened.directory.names(generation):
                old.coordinator.fail(DirectoryChangedError("the next start opens another state", hint="start again"))
            raise
        before, self._reads = old.reads, new.reads
        self._run(new)
        old.coordinator.flushing.end(None)  # the new generation is durable as a whole
        old.abandon()
        before.close("the state it showed was replaced as a whole")
        if unsynced is None:
            old.opened.generation.remove()
        else:  # CURRENT may yet name it again
            old.mark.fail(f"CURRENT names {generation.path.name}, but that may not be on the disk: {unsynced}")
            new.mark.inherit(old.mark)
        self._snapshots.look(new.fixed.lineage, new.last_applied)
        self._published()
        log.info("%s: another state is installed, at index %d", self._path, new.last_applied.index)

    def snapshot_metadata(self) -> SnapshotMetadata | None:
        """Which snapshot was taken, installed, or named by `update_last_snapshot_metadata` last; None: none yet."""
        self._check_thread()
        return self._snapshots.metadata

    def update_last_snapshot_metadata(self, metadata: SnapshotMetadata) -> None:
        """Remember `metadata` until the engine ends. Raises SnapshotError when it names no snapshot."""
        self._check_thread()
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
        self._check_thread()
        self._policy.policy = policy

    async def _scheduled_snapshot(self) -> None:
        self._policy.begun(_now_ms())
        ok = False
        try:
            await self.create_snapshot()
            ok = True
        except Exception as error:
            log.warning("the scheduled snapshot failed: %s", error)
        finally:
            self._policy.ended(_now_ms(), ok)

    def _on_tick(self, now: float) -> None:
        oldest = now - self._config.view_age_max_ms / 1000
        for view in [view for view in self._views if view.opened_at < oldest]:
            view.close(f"it was older than view_age_max_ms={self._config.view_age_max_ms}")
        self._policy.applied(*self._running().coordinator.in_flight.take_counts())
        if self.is_running() and not self._taking and self._policy.due(_now_ms()):
            self._spawn(self._scheduled_snapshot())

    def _open_reads(self) -> Reads:
        if threading.get_ident() != self._thread or self._reads is None:
            self._check_thread()
            raise EngineStateError("the engine's storage is not open", hint="start() it")
        return self._reads


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000


def _at(report: StartReport) -> str:
    index = f"index {report.last_applied.index}"
    return index if report.discarded is None else f"{index}, what was there is set aside in {report.discarded}"


def _check_name(entry: LogId) -> None:
    """Raise LogOrderError when it is no entry's name."""
    if not isinstance(entry, LogId) or type(entry.index) is not int or type(entry.term) is not int:
        raise LogOrderError(f"{entry!r} is no LogId of two plain ints", hint="pass LogId(index, term)", got=entry)


def _refuse_worker() -> None:
    """A module with a machine and an engine is imported by workers, whose engines would start workers of their own."""
    if Process.is_worker:
        raise EngineStateError(
            "this is a worker process, in which no engine may be made or started",
            hint='make it in a function, or below `if __name__ == "__main__":`: workers import the machine\'s module',
        )


def _make_way(path: Path) -> None:
    """A stopped engine of this process may still read there; LMDB lets a process open it only once."""
    for other in shells():
        if not isinstance(other, Engine) or other._forked or other._runtime is not None or other._reads is None:
            continue
        if other._path.resolve() == path.resolve():
            other._check_thread()
            other.close_storage()


def _at_exit() -> None:
    """Leaving the interpreter flushes, as dropping the machine does in the contract."""
    for engine in [shell for shell in shells() if isinstance(shell, Engine)]:
        engine._leave(engine._stop_quietly)


atexit.register(_at_exit)
