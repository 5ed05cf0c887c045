"""The whole contract in this process, over a dict."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal

import msgspec

from shardengine.engine.adaptors.commands import Commands
from shardengine.engine.adaptors.records import MemoryView
from shardengine.engine.adaptors.snapshots import check_there, read_snapshot, write_snapshot
from shardengine.engine.adaptors.state import State, begun
from shardengine.engine.config import EngineConfig
from shardengine.engine.contract import HardState, Results, ScanResult, SnapshotMetadata, StartReport
from shardengine.engine.errors import (
    EngineStoppedError,
    disk_error,
    not_any_more,
    not_started,
    runs_already,
    still_runs,
)
from shardengine.engine.intake.tail import Tail, normalised
from shardengine.engine.run.launch import check_machine
from shardengine.engine.run.owner import Owner
from shardengine.engine.run.standing import check_name
from shardengine.engine.run.waiting import ForIndex
from shardengine.engine.snapshot.build import config_of
from shardengine.engine.snapshot.folder import writing_into
from shardengine.engine.snapshot.keeper import Known, metadata_of
from shardengine.engine.storage.files import absolute
from shardengine.engine.storage.generations import DirectoryConfig
from shardengine.engine.storage.hardstate import check_follows
from shardengine.engine.storage.placing import made
from shardengine.shards.digest import records_digest
from shardengine.shards.kv import KeyValue
from shardengine.shards.machine import Machine
from shardengine.shards.placement import SLOTS
from shardengine.shards.store import FORMAT
from shardengine.shards.types import ApplyResult, Entry, Limits, LogId, Position


class MemoryStateMachine:
    """A `StateMachine` for unit tests: no processes, no directory, nothing that outlives it.

    It answers as `Engine` does: the same results, the same errors with the same facts, the same `digest()`, and a
    snapshot of either is installed in the other. What differs:

    - It has no directory: no `create_snapshot`, `snapshots` and `set_snapshot_policy`, no `stats`, and nothing is
      durable.
    - No rings, maps and disks could be full, so no ChunkTooLargeError and no StoreFullError. Views are of any number
      and any age: no TooManyViewsError.
    - A chunk is applied when the call returns, so none is ever in flight. Awaiting its methods, other than
      `wait_applied`, gives no other task a turn.
    - The machine may be any class, one in a function or in the program's main file too; `rehearse` tells whether
      workers could run it. One that loops for ever is not stopped.

    It belongs to the thread that made it, and to no event loop.

    Args:
        machine: what the commands mean.
        limits: what keys and values may measure, bytes. None: those of a snapshot that is installed, else
            `Limits()`.
        bad_entry: "fail": data that is no command fails its chunk; "reject": it is consumed with `succeeded=False`.
            None: as a snapshot says, else "fail".

    Raises ConfigError, or MachineImportError when `machine` is no machine.
    """

    def __init__(
        self,
        machine: type[Machine] = KeyValue,
        *,
        limits: Limits | None = None,
        bad_entry: Literal["fail", "reject"] | None = None,
    ) -> None:
        check_machine(machine)
        key_bytes_max, value_bytes_max = (None, None) if limits is None else msgspec.structs.astuple(limits)
        config = EngineConfig(key_bytes_max=key_bytes_max, value_bytes_max=value_bytes_max, bad_entry=bad_entry)
        limits = limits or Limits()
        fixed = DirectoryConfig(FORMAT, "", machine.name, machine.version, SLOTS, limits, bad_entry or "fail")
        self._owner = Owner()
        self._machine = machine
        self._snapshots = Known(machine, config)
        self._state = State.empty(fixed)
        self._views: weakref.WeakSet[MemoryView] = weakref.WeakSet()
        self._hard_state: HardState | None = None
        self._commands: Commands | None = None
        self._waiting = ForIndex()
        self._refusal = not_started()

    def __bool__(self) -> bool:
        return True

    # ---- life ----------------------------------------------------------------------------------------------------

    def start(self) -> StartReport:
        """Make the machine, and get ready to apply; the state is as `stop` left it. Does not block.

        Raises MachineImportError when the class cannot make a machine; EngineStateError when it runs already.
        """
        self._owner.check()
        if self._commands is not None:
            raise runs_already()
        self._commands = self._made(self._state.fixed)
        outcome = "opened" if isinstance(self._refusal, EngineStoppedError) else "created"
        return StartReport(outcome, self._now().last)

    def _made(self, fixed: DirectoryConfig) -> Commands:
        return Commands(made(self._machine), fixed.limits, reject_bad=fixed.bad_entry == "reject")

    def stop(self) -> None:
        """Views end, and reads raise EngineStoppedError from now on; the state is kept for the next `start`. Does not
        block. Stopping twice does nothing."""
        self._owner.check()
        if self._commands is not None:
            self._commands = None
            self._refusal = not_any_more()
            self._end_views("its engine was stopped")
            self._waiting.release(EngineStoppedError("the engine stopped"))

    async def aclose(self) -> None:
        """As `stop`."""
        self.stop()

    def close_storage(self) -> None:
        """Nothing to do: nothing is left open. EngineStateError: it runs."""
        self._owner.check()
        if self._commands is not None:
            raise still_runs()

    def is_running(self) -> bool:
        """True from `start` to `stop`."""
        return self._commands is not None

    async def __aenter__(self) -> MemoryStateMachine:
        self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _running(self) -> Commands:
        self._owner.check()
        if self._commands is None:
            raise self._refusal.again()
        self._state.settle()
        return self._commands

    def _now(self) -> State:
        """What is read. Raises WrongThreadError, EngineStoppedError after a stop, EngineStateError before a start."""
        self._running()
        return self._state

    def _end_views(self, why: str) -> None:
        for view in list(self._views):
            view.close(why)

    # ---- apply ---------------------------------------------------------------------------------------------------

    def check(self, *datas: bytes) -> None:
        """Raise BadEntryError when one of `datas` must not be proposed. Changes nothing."""
        self._running().check(datas)

    async def apply_chunk(self, entries: Sequence[Entry]) -> Sequence[ApplyResult]:
        """Apply consecutive committed entries, all or none. Entries that were applied before are skipped and say so.

        Returns one result for each entry, in order.

        Raises:
            LogGapError, LogOrderError, LogConflictError: the chunk does not continue the log.
            BadEntryError: bad data.
            ChunkFailedError: `apply` of an entry failed, which it names; what `apply` raised is the cause.

        Nothing of the chunk was applied then. A KeyboardInterrupt is let through, and leaves all of it, or nothing.
        """
        commands, state = self._running(), self._state
        if not entries:
            return []
        tail = state.tail
        form = normalised(entries, tail.clock)
        known = tail.check(form)
        done = [ApplyResult(index, True, already_applied=True) for index in range(form.first, form.first + known)]
        if known == len(form.datas):
            return done
        if known:
            entries = entries[known:]
            form = normalised(entries, tail.clock)
        told, writes = commands.apply(entries, form, tail.clock, state.records)
        after = tail.copy()
        after.extend(form)
        after.forget_old_runs(after.index)
        state.move(writes, after)
        self._waiting.reached(form.last)
        results = Results(form.first, form.last, told)
        return [*done, *results] if known else results

    async def wait_applied(self, index: int, timeout: float | None = None) -> None:
        """Wait until everything up to `index` is applied, by another task. Raises TimeoutError after `timeout` seconds,
        EngineStoppedError when it is stopped before."""
        if self._now().tail.index < index:
            await self._waiting.wait(index, timeout)

    # ---- read ----------------------------------------------------------------------------------------------------

    def get(self, key: bytes) -> bytes | None:
        """The value of `key` at `last_applied()`, or None."""
        return self._now().records.get(key)

    def get_multi(self, keys: Iterable[bytes]) -> list[bytes | None]:
        """The value of each key, or None, in the order of `keys`."""
        return list(map(self._now().records.get, keys))

    def scan_prefix(
        self, prefix: bytes, limit: int | None = None, start_after: bytes | None = None, reverse: bool = False
    ) -> ScanResult:
        """Records whose key starts with `prefix`, in key order or against it, at most `limit`, those beyond
        `start_after` only."""
        state = self._now()
        return state.records.scan_prefix(prefix, limit, start_after, state.tail.index, reverse=reverse)

    def view(self) -> MemoryView:
        """Keep the state at `last_applied()` for repeatable reads: a copy of the dict."""
        state = self._now()
        view = MemoryView(state.records.copy(), state.tail.index)
        self._views.add(view)
        return view

    def __len__(self) -> int:
        """Live records at `last_applied()`."""
        return len(self._now().records)

    def is_empty(self) -> bool:
        """True without live records."""
        return len(self) == 0

    def last_applied(self) -> LogId:
        """The newest entry that was applied; (0, 0): none."""
        return self._now().last

    def durable(self) -> LogId:
        """(0, 0): nothing survives this object, and the host may cut nothing off its log."""
        self._running()
        return LogId(0, 0)

    def update_last_applied(self, last: LogId) -> None:
        """Stand at `last` from now on, and take `last.index + 1` next: the entries in between carry no command. At or
        below `last_applied()` nothing happens.

        Raises LogConflictError when entry `last.index` was applied with another term, LogOrderError when the term
        falls, or `last` is no entry's name.
        """
        state = self._now()
        check_name(last)
        state.tail.check_name(last)
        if last.index > state.tail.index:
            after = state.tail.copy()
            after.pass_over(last)
            state.move({}, after)
            self._waiting.reached(last.index)

    def persist_last_applied(self, last: LogId) -> None:
        """As `update_last_applied`: nothing here is durable."""
        self.update_last_applied(last)

    def entry_term(self, index: int) -> int | None:
        """The term of an applied entry; None beyond `last_applied()`, and for entries too old to be remembered."""
        return self._now().tail.term_of(index)

    async def digest(self) -> bytes:
        """The 16 bytes that an engine's `digest()` gives for the same live records."""
        return records_digest(self._now().records.under(b"")).to_bytes(16, "big")

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

    def flush(self) -> None:
        """Nothing to do: nothing here is durable. Raises EngineStateError when it does not run."""
        self._running()

    async def flush_async(self) -> None:
        """As `flush`."""
        self._running()

    # ---- snapshots -----------------------------------------------------------------------------------------------

    async def generate_snapshot_data(
        self, directory: str | os.PathLike[str], last_included: LogId | None = None
    ) -> bytes:
        """Write a snapshot of now, of one part, into `directory`, which must be empty or not there. Blocks, the event
        loop too. Returns the manifest's checksum, 16 bytes. An engine installs it as one of its own.

        Raises SnapshotLabelError when `last_included` is not `last_applied()`: nothing is in flight that it could wait
        for; SnapshotError (the disk). No file is left then.
        """
        state = self._now()
        if last_included is not None:
            check_name(last_included)
            check_there(last_included, state.last)
        place = Position(0, state.tail.index, state.tail.term, state.tail.clock)
        with writing_into(absolute(directory)) as target:
            manifest = write_snapshot(
                target, self._snapshots, state.fixed, state.records, place, state.tail.kept_runs(place.index)
            )
        metadata = self._snapshots.metadata = metadata_of(manifest)
        return metadata.checksum

    async def apply_snapshot_from_file(self, metadata: SnapshotMetadata, path: str | os.PathLike[str]) -> None:
        """Replace the whole state by the snapshot at `path`, an engine's or one of this class, which must be the one
        that `metadata` names. It is verified in full first. Blocks, the event loop too. Views end.

        Raises SnapshotDamagedError, SnapshotFormatError, SnapshotStaleError (older than the current state) or
        SnapshotError; state and index are untouched then.
        """
        self._install(absolute(path), metadata, force=False)

    async def restore(self, path: str | os.PathLike[str], force: bool = False) -> None:
        """As `apply_snapshot_from_file`, for whatever snapshot is at `path`; `force` installs an older one too, which
        begins a lineage."""
        self._install(absolute(path), None, force=force)

    def _install(self, place: Path, metadata: SnapshotMetadata | None, *, force: bool) -> None:
        commands, state = self._running(), self._state
        snapshot = self._snapshots.asked_for(place, metadata, state.fixed)
        manifest = snapshot.manifest
        last, fixed = manifest.last_included, config_of(manifest)
        self._snapshots.check_newer(last, state.last, force=force)
        try:
            records = read_snapshot(snapshot, commands.machine)
        except OSError as error:
            raise disk_error(f"{place} cannot be read", error, path=str(place)) from error
        if last.index < state.last.index:
            fixed = begun(fixed)
        self._replace(State(fixed, records, Tail(last.index, last.term, manifest.clock, manifest.term_runs)))
        self._snapshots.metadata = metadata_of(manifest)

    async def reset(self) -> None:
        """Replace the whole state by an empty one at index 0. Views end; limits and `bad_entry` stay."""
        self._replace(State.empty(self._now().fixed))

    async def compact(self) -> None:
        """The state stays; as with an engine's move, views end, and the machine is made anew."""
        self._replace(self._now())

    def _replace(self, state: State) -> None:
        self._state, self._commands = state, self._made(state.fixed)
        self._end_views("its engine's state was replaced")
        self._waiting.reached(state.last.index)

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
