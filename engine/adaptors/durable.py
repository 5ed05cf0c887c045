"""The contract over a store in a directory: what is the same for all whose state outlives the process."""

from __future__ import annotations

import atexit
import logging
import os
import weakref
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Literal

import msgspec

from shardengine.engine.adaptors.base import InProcess
from shardengine.engine.adaptors.home import Home
from shardengine.engine.adaptors.store import Store
from shardengine.engine.contract import HardState, SnapshotMetadata
from shardengine.engine.errors import EngineError, StoreError, disk_error
from shardengine.engine.intake.tail import Tail
from shardengine.engine.storage.files import data_path
from shardengine.engine.storage.generations import DirectoryConfig
from shardengine.engine.storage.matching import check_fixed, check_machine
from shardengine.shards.machine import Machine
from shardengine.shards.transaction import Record
from shardengine.shards.types import Limits, LogId

Durability = Literal["process", "power"]
AnyPath = str | bytes | os.PathLike[str] | os.PathLike[bytes]
log = logging.getLogger("shardengine")
_all: weakref.WeakSet[InDirectory] = weakref.WeakSet()


class InDirectory(InProcess):
    """A `StateMachine` over a store in a directory, which is locked from `start` to `stop`. It has what
    `MemoryStateMachine` has, and lacks what that lacks: workers, rings, and snapshots that it takes by itself.

    A write that fails otherwise than for want of room ends the writing: reads go on, and the next start, in this
    process or another one, finds out what the disk has. The end of the interpreter stops it.

    Invariant: the disk has the state up to `_durable`, of this log, and `_durable` does not fall but with the log.
    """

    def __init__(
        self,
        home: Home,
        store: Store,
        machine: type[Machine],
        limits: Limits | None,
        bad_entry: Literal["fail", "reject"] | None,
        durability: Durability,
    ) -> None:
        """Opens nothing. `store` lies in `home`. Raises ConfigError, MachineImportError."""
        super().__init__(store, machine, limits, bad_entry)
        self._config = msgspec.structs.replace(self._config, durability=durability)
        self._home = home
        self._room = home.path
        self._durable = LogId(0, 0)
        _all.add(self)

    def _open(self) -> bool:
        store, home = self._store, self._home
        try:
            known = home.open()
            try:
                return self._open_store(known)
            except BaseException:
                with suppress(StoreError):
                    store.close()
                home.close()
                raise
        except OSError as error:
            raise disk_error(f"{home.path} cannot be opened", error, path=str(home.path)) from error

    def _open_store(self, known: DirectoryConfig | None) -> bool:
        """With what was fixed at first; None: there may be no state yet."""
        store, home = self._store, self._home
        if known is not None:
            check_machine(known, self._machine, home.path)
        found = store.open(create=known is None)
        if known is not None and not found:
            raise home.lost()
        if known is None and found:
            home.refuse_state(store.tail.index)
        if not found:
            store.replace((), self._new_fixed(), Tail(0, 0, 0, []))
        check_machine(store.fixed, self._machine, home.path)
        check_fixed(store.fixed, self._config)
        if known is None:
            home.settle(store.fixed)
        self._durable = LogId(store.tail.index, store.tail.term)
        self._snapshots.metadata = home.metadata()
        return known is not None

    def stop(self) -> None:
        """Views end, and reads raise EngineStoppedError from now on. Everything is flushed and closed, the directory is
        free. Raises what kept it from being flushed; it is stopped all the same. Stopping twice does nothing."""
        try:
            super().stop()
        finally:
            self._home.close()

    # ---- durability ----------------------------------------------------------------------------------------------

    @property
    def _power(self) -> bool:
        return self._config.durability == "power"

    def durable(self) -> LogId:
        """How far the state survives power loss, hence how far the host may cut its log. Mode "power":
        `last_applied()`. Mode "process": where the last `flush`, `start`, install or reset left it. It never falls, but
        with `reset` and a forced `restore`, and stays where it is once a write has failed."""
        return min(self._durable, self.last_applied())  # an interrupt may have kept a reset from saying so

    def _commit(self, writes: Mapping[bytes, bytes | None], tail: Tail) -> None:
        super()._commit(writes, tail)
        if self._power:
            self._durable = LogId(tail.index, tail.term)

    def _replace(self, records: Iterable[Record], fixed: DirectoryConfig, tail: Tail) -> None:
        self._home.check_place()
        super()._replace(records, fixed, tail)
        self._durable = LogId(tail.index, tail.term)

    def flush(self) -> None:
        """Return when all that was applied survives power loss. Blocks. Raises what the disk said; EngineStateError
        when it does not run."""
        last = self.last_applied()
        self._home.check_place()
        super().flush()
        self._durable = last

    def save_hard_state(self, state: HardState | None = None) -> None:
        """Remember a node's term and vote; None: once more what is remembered, or nothing. Blocks until the disk has
        it, in every durability mode. No reset, restore or install changes it.

        Raises HardStateError when it is none, its term falls, or its vote is not the one cast in that term;
        SyncFailedError, StoreError, DirectoryChangedError: `hard_state()` stays as it was, a start may find either.
        """
        self._running()
        self._home.check_place()
        self._home.hard.save(state)

    def hard_state(self) -> HardState | None:
        """What was saved last, in this run or before it; None: nothing ever."""
        self._running()
        return self._home.hard.state

    # ---- snapshots -----------------------------------------------------------------------------------------------

    def persist_last_snapshot_metadata(self, metadata: SnapshotMetadata) -> None:
        """As `update_last_snapshot_metadata`, and returns when it is on the disk. Blocks. Raises StoreError, too."""
        self._running()
        self._snapshots.remember(metadata)
        self._home.persist(metadata)

    def _installed(self, metadata: SnapshotMetadata) -> None:
        super()._installed(metadata)
        try:
            self._home.persist(metadata)
        except StoreError as error:
            log.warning("the metadata of the snapshot that was installed is kept until the stop: %s", error)


def home_of(path: AnyPath, kind: str, own: Iterable[str]) -> Home:
    """The directory at `path`, for a store of that kind, which uses these names. Raises ConfigError."""
    return Home(data_path(path), kind, frozenset(own))


def _after_fork() -> None:
    for machine in list(_all):
        machine._owner.leave_to_the_parent()


def _at_exit() -> None:
    for machine in list(_all):
        if machine._commands is not None and not machine._owner.forked and machine._owner.take_over():
            try:
                machine.stop()
            except EngineError as error:
                log.error("not stopped in order: %s", error)


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
