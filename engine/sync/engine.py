"""`SyncEngine`: an engine for code that has no event loop, and for any number of threads."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar

from shardengine.engine.config import EngineConfig
from shardengine.engine.contract import HardState, SnapshotInfo, SnapshotMetadata, StartReport
from shardengine.engine.engine import Engine
from shardengine.engine.snapshot.policy import SnapshotPolicy
from shardengine.engine.sync.crossing import Crossing
from shardengine.engine.sync.reads import SyncReads, as_in
from shardengine.shards.kv import KeyValue
from shardengine.shards.machine import Machine
from shardengine.shards.types import ApplyResult, Entry, LogId

P = ParamSpec("P")
T = TypeVar("T")


class SyncEngine(SyncReads):
    """An `Engine` whose methods block, and may be called by any thread, by many at once.

    From `start` to `stop` or `close` it has a thread with an event loop, in which all is done but reads: those are made
    in the thread that asks, and cost about as much as an engine's own. It is stopped as the interpreter ends, too,
    behind all threads but daemons; a daemon thread that calls it from then on ends, without a word.

    An exception that a signal's handler raises in a waiting call, a Ctrl-C, ends the waiting, and not what was asked
    for; an interrupted `start` is undone. A forked child cannot use it (ForkedError), nor does it stop the parent's:
    make one per process. The thread with the loop itself, in which a machine or a handler of the log may run, can read
    and nothing else (WrongThreadError).

    `flush` is the engine's `flush_async`, `close` its `aclose`; arguments, results and errors are those of `Engine`.
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
        engine = Engine(path, shards=shards, machine=machine, config=config, reshard=reshard)
        super().__init__(engine)
        self._engine = engine
        self._crossing = Crossing(engine, engine._config, engine.aclose)

    # ---- life ----------------------------------------------------------------------------------------------------

    @as_in(Engine.start)
    def start(self) -> StartReport:
        report: StartReport = self._crossing.begin(self._begin)
        return report

    def _begin(self) -> StartReport:
        report = self._engine.start()
        self._engine._shell.bind()
        return report

    @as_in(Engine.stop)
    def stop(self) -> None:
        self._crossing.end(self._engine.stop)

    def close(self) -> None:
        """Let what is in flight finish, other calls going on, up to `stop_timeout_ms`; then `stop` and `close_storage`.
        Raises as `stop`."""
        self._crossing.end(self._engine.aclose, self._engine.close_storage)

    @as_in(Engine.is_running)
    def is_running(self) -> bool:
        self._check_process()
        return self._engine.is_running()

    def __enter__(self) -> SyncEngine:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._crossing.forked:
            self.close()

    # ---- apply ---------------------------------------------------------------------------------------------------

    @as_in(Engine.check)
    def check(self, *datas: bytes) -> None:
        self._call(Engine.check, *datas)

    @as_in(Engine.apply_chunk)
    def apply_chunk(self, entries: Sequence[Entry]) -> Sequence[ApplyResult]:
        return self._wait(Engine.apply_chunk, entries)

    @as_in(Engine.wait_applied)
    def wait_applied(self, index: int, timeout: float | None = None) -> None:
        self._wait(Engine.wait_applied, index, timeout)

    # ---- where it stands ------------------------------------------------------------------------------------------

    @as_in(Engine.durable)
    def durable(self) -> LogId:
        return self._call(Engine.durable)

    @as_in(Engine.update_last_applied)
    def update_last_applied(self, last: LogId) -> None:
        self._call(Engine.update_last_applied, last)

    @as_in(Engine.persist_last_applied)
    def persist_last_applied(self, last: LogId) -> None:
        self._call(Engine.persist_last_applied, last)

    @as_in(Engine.entry_term)
    def entry_term(self, index: int) -> int | None:
        return self._call(Engine.entry_term, index)

    @as_in(Engine.digest)
    def digest(self) -> bytes:
        return self._wait(Engine.digest)

    @as_in(Engine.stats)
    def stats(self) -> dict[str, Any]:
        return self._call(Engine.stats)

    # ---- durability ----------------------------------------------------------------------------------------------

    @as_in(Engine.flush)
    def flush(self) -> None:
        self._wait(Engine.flush_async)

    @as_in(Engine.save_hard_state)
    def save_hard_state(self, state: HardState | None = None) -> None:
        self._call(Engine.save_hard_state, state)

    @as_in(Engine.hard_state)
    def hard_state(self) -> HardState | None:
        return self._call(Engine.hard_state)

    @as_in(Engine.lease_background_cleanup)
    def lease_background_cleanup(self) -> list[bytes]:
        return self._wait(Engine.lease_background_cleanup)

    @as_in(Engine.close_storage)
    def close_storage(self) -> None:
        self._call(Engine.close_storage)

    # ---- snapshots -----------------------------------------------------------------------------------------------

    @as_in(Engine.generate_snapshot_data)
    def generate_snapshot_data(self, directory: str | os.PathLike[str], last_included: LogId | None = None) -> bytes:
        return self._wait(Engine.generate_snapshot_data, directory, last_included)

    @as_in(Engine.create_snapshot)
    def create_snapshot(self) -> SnapshotInfo:
        return self._wait(Engine.create_snapshot)

    @as_in(Engine.snapshots)
    def snapshots(self) -> list[SnapshotInfo]:
        return self._call(Engine.snapshots)

    @as_in(Engine.apply_snapshot_from_file)
    def apply_snapshot_from_file(self, metadata: SnapshotMetadata, path: str | os.PathLike[str]) -> None:
        self._wait(Engine.apply_snapshot_from_file, metadata, path)

    @as_in(Engine.restore)
    def restore(self, path: str | os.PathLike[str], force: bool = False) -> None:
        self._wait(Engine.restore, path, force)

    @as_in(Engine.reset)
    def reset(self) -> None:
        self._wait(Engine.reset)

    @as_in(Engine.compact)
    def compact(self) -> None:
        self._wait(Engine.compact)

    @as_in(Engine.snapshot_metadata)
    def snapshot_metadata(self) -> SnapshotMetadata | None:
        return self._call(Engine.snapshot_metadata)

    @as_in(Engine.update_last_snapshot_metadata)
    def update_last_snapshot_metadata(self, metadata: SnapshotMetadata) -> None:
        self._call(Engine.update_last_snapshot_metadata, metadata)

    @as_in(Engine.persist_last_snapshot_metadata)
    def persist_last_snapshot_metadata(self, metadata: SnapshotMetadata) -> None:
        self._call(Engine.persist_last_snapshot_metadata, metadata)

    @as_in(Engine.set_snapshot_policy)
    def set_snapshot_policy(self, policy: SnapshotPolicy) -> None:
        self._call(Engine.set_snapshot_policy, policy)

    # ---- crossing ------------------------------------------------------------------------------------------------

    def _call(self, method: Callable[Concatenate[Engine, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        outcome: T = self._crossing.ask(partial(method, self._engine, *args, **kwargs))
        return outcome

    def _wait(self, method: Callable[Concatenate[Engine, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """None of the coroutines does anything while nothing runs, and reads are refused then."""
        outcome: T = self._crossing.ask(partial(method, self._engine, *args, **kwargs), self._reads)
        return outcome
