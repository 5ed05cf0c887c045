"""A state machine over a store: its life, chunks, and reads."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Literal, Self

import msgspec

from shardengine.engine.adaptors.commands import Commands
from shardengine.engine.adaptors.store import Store, as_bytes
from shardengine.engine.adaptors.views import StateView
from shardengine.engine.config import EngineConfig
from shardengine.engine.contract import HardState, Results, ScanResult, StartReport
from shardengine.engine.errors import (
    EngineError,
    EngineStoppedError,
    StoreError,
    StoreFullError,
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
from shardengine.engine.snapshot.keeper import Known
from shardengine.engine.storage.generations import DirectoryConfig, new_lineage
from shardengine.engine.storage.placing import made
from shardengine.shards.digest import records_digest
from shardengine.shards.machine import Machine
from shardengine.shards.placement import SLOTS
from shardengine.shards.store import FORMAT
from shardengine.shards.types import ApplyResult, Entry, Limits, LogId


class Applying:
    """What chunks go into, and what is read: the part of a `StateMachine` that has to do with no file of its own.

    It belongs to the thread that made it, and to no event loop. Everything blocks; awaiting its methods, other than
    `wait_applied`, gives no other task a turn.

    Invariant: `_failure` is what a write failed with that may or may not be in the store; nothing is written after it.
    """

    def __init__(
        self,
        store: Store,
        machine: type[Machine],
        limits: Limits | None,
        bad_entry: Literal["fail", "reject"] | None,
    ) -> None:
        """Opens nothing. Raises ConfigError, MachineImportError."""
        check_machine(machine)
        key_bytes_max, value_bytes_max = (None, None) if limits is None else msgspec.structs.astuple(limits)
        self._config = EngineConfig(key_bytes_max=key_bytes_max, value_bytes_max=value_bytes_max, bad_entry=bad_entry)
        self._owner = Owner()
        self._machine = machine
        self._snapshots = Known(machine, self._config)
        self._store = store
        self._views: weakref.WeakSet[StateView] = weakref.WeakSet()
        self._hard_state: HardState | None = None
        self._commands: Commands | None = None
        self._waiting = ForIndex()
        self._refusal = not_started()
        self._failure: EngineError | None = None

    def __bool__(self) -> bool:
        return True

    # ---- life ----------------------------------------------------------------------------------------------------

    def start(self) -> StartReport:
        """Make the machine, open the store, and get ready to apply; the state is as it was left.

        Raises MachineImportError when the class cannot make a machine; EngineStateError when it runs already; and what
        keeps the store from being opened. Nothing runs then.
        """
        self._owner.check()
        if self._commands is not None:
            raise runs_already()
        machine = made(self._machine)
        outcome = "opened" if self._open() else "created"
        self._commands, self._failure = commands_of(machine, self._store.fixed), None
        return StartReport(outcome, self.last_applied())

    def _open(self) -> bool:
        """Open the store; False: it is new. Raises, and has closed it then."""
        found = self._store.open(create=True)
        if not found:
            self._store.replace((), self._new_fixed(), Tail(0, 0, 0, []))
        return found

    def _new_fixed(self) -> DirectoryConfig:
        """What a state that begins is fixed to, of a log of its own."""
        given = {"key_bytes_max": self._config.key_bytes_max, "value_bytes_max": self._config.value_bytes_max}
        limits = Limits(**{name: value for name, value in given.items() if value is not None})
        name, version, bad_entry = self._machine.name, self._machine.version, self._config.bad_entry
        return DirectoryConfig(FORMAT, new_lineage(), name, version, SLOTS, limits, bad_entry or "fail")

    def _made(self, fixed: DirectoryConfig) -> Commands:
        return commands_of(made(self._machine), fixed)

    def stop(self) -> None:
        """Views end, and reads raise EngineStoppedError from now on; the state is kept for the next `start`, durable
        as after a `flush`. Raises what kept it from that; it is stopped all the same. Stopping twice does nothing."""
        self._owner.check()
        if self._commands is None:
            return
        self._commands = None
        self._refusal = not_any_more()
        self._end_views("its engine was stopped")
        self._waiting.release(EngineStoppedError("the engine stopped"))
        try:
            if self._failure is None:
                self._store.settle()
                self._store.flush()
        finally:
            self._store.close()

    async def aclose(self) -> None:
        """As `stop`."""
        self.stop()

    def close_storage(self) -> None:
        """Nothing to do: nothing is left open. EngineStateError: it runs."""
        self._owner.check()
        if self._commands is not None:
            raise still_runs()

    def is_running(self) -> bool:
        """True from `start` to `stop`, unless a write failed that nobody knows the end of."""
        return self._commands is not None and self._failure is None

    async def __aenter__(self) -> Self:
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
        self._store.settle()
        return self._commands

    def _now(self) -> Store:
        """What is read. Raises WrongThreadError, EngineStoppedError after a stop, EngineStateError before a start."""
        self._running()
        return self._store

    @contextmanager
    def _writing(self) -> Iterator[Store]:
        """The store, to be changed. Raises what an earlier change failed with, if nobody knows what became of it."""
        if self._failure is not None:
            raise self._failure.again()
        try:
            yield self._store
        except StoreFullError:
            raise
        except StoreError as error:
            self._failure = error
            raise

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
            StoreFullError: there was no room.
            StoreError: the store failed, and takes nothing any more; the next start decides what was applied.

        Nothing of the chunk was applied then, unless that is said. A KeyboardInterrupt is let through, and leaves all
        of it, or nothing.
        """
        commands, store = self._running(), self._store
        if not entries:
            return []
        tail = store.tail
        form = normalised(entries, tail.clock)
        known = tail.check(form)
        done = [ApplyResult(index, True, already_applied=True) for index in range(form.first, form.first + known)]
        if known == len(form.datas):
            return done
        if known:
            entries = entries[known:]
            form = normalised(entries, tail.clock)
        told, writes = commands.apply(entries, form, tail.clock, store)
        after = tail.copy()
        after.extend(form)
        after.forget_old_runs(after.index)
        self._commit(writes, after)
        results = Results(form.first, form.last, told)
        return [*done, *results] if known else results

    def _commit(self, writes: Mapping[bytes, bytes | None], tail: Tail) -> None:
        with self._writing() as store:
            fixed, version = store.fixed, self._machine.version
            if fixed.machine_version < version:
                fixed = msgspec.structs.replace(fixed, machine_version=version)
            store.commit(writes, fixed, tail)
        self._waiting.reached(tail.index)

    async def wait_applied(self, index: int, timeout: float | None = None) -> None:
        """Wait until everything up to `index` is applied, by another task. Raises TimeoutError after `timeout` seconds,
        EngineStoppedError when it is stopped before."""
        if self._now().tail.index < index:
            await self._waiting.wait(index, timeout)

    # ---- read ----------------------------------------------------------------------------------------------------

    def get(self, key: bytes) -> bytes | None:
        """The value of `key` at `last_applied()`, or None."""
        return self._now().get(as_bytes(key))

    def get_multi(self, keys: Iterable[bytes]) -> list[bytes | None]:
        """The value of each key, or None, in the order of `keys`."""
        return list(map(self._now().get, map(as_bytes, keys)))

    def scan_prefix(
        self, prefix: bytes, limit: int | None = None, start_after: bytes | None = None, reverse: bool = False
    ) -> ScanResult:
        """Records whose key starts with `prefix`, in key order or against it, at most `limit`, those beyond
        `start_after` only."""
        store = self._now()
        return store.scan_prefix(prefix, limit, start_after, store.tail.index, reverse=reverse)

    def view(self) -> StateView:
        """Keep the state at `last_applied()` for repeatable reads."""
        store = self._now()
        view = StateView(store.view(), store.tail.index)
        self._views.add(view)
        return view

    def __len__(self) -> int:
        """Live records at `last_applied()`."""
        return len(self._now())

    def is_empty(self) -> bool:
        """True without live records."""
        return self._now().is_empty()

    def last_applied(self) -> LogId:
        """The newest entry that was applied; (0, 0): none."""
        tail = self._now().tail
        return LogId(tail.index, tail.term)

    def durable(self) -> LogId:
        """(0, 0): nothing survives this object, and the host may cut nothing off its log."""
        self._running()
        return LogId(0, 0)

    def update_last_applied(self, last: LogId) -> None:
        """Stand at `last` from now on, and take `last.index + 1` next: the entries in between carry no command. At or
        below `last_applied()` nothing happens.

        Raises LogConflictError when entry `last.index` was applied with another term, LogOrderError when the term
        falls, or `last` is no entry's name; StoreError as `apply_chunk`.
        """
        tail = self._now().tail
        check_name(last)
        tail.check_name(last)
        if last.index > tail.index:
            after = tail.copy()
            after.pass_over(last)
            self._commit({}, after)

    def entry_term(self, index: int) -> int | None:
        """The term of an applied entry; None beyond `last_applied()`, and for entries too old to be remembered."""
        return self._now().tail.term_of(index)

    async def digest(self) -> bytes:
        """The 16 bytes that an engine's `digest()` gives for the same live records."""
        return records_digest(self._now().under(b"")).to_bytes(16, "big")


def commands_of(machine: Machine, fixed: DirectoryConfig) -> Commands:
    return Commands(machine, fixed.limits, reject_bad=fixed.bad_entry == "reject")
