"""The class people use: the shell around the coordinator. The owner of `asyncio` and of the thread and loop rules.

Everything that can be done without waiting is done at once, in the caller's thread. What must be waited for is a
future of the caller's loop, which the coordinator's progress resolves; the loop watches the workers' links. `start`,
`stop` and `flush` drive the very same steps themselves, blocking, inside or outside a running loop.
"""

from __future__ import annotations

import asyncio
import atexit
import heapq
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from engine.config import EngineConfig
from engine.contract import ScanResult, StartReport
from engine.cut import Reads
from engine.errors import (
    ConfigError,
    EngineError,
    EngineLockedError,
    EngineStateError,
    EngineStoppedError,
    ForkedError,
    TooManyViewsError,
    WrongLoopError,
    WrongThreadError,
)
from engine.opening import open_directory
from engine.runtime import TICK_MS, Runtime, machine_name
from engine.view import View
from shards.digest import DIGEST_MODULUS
from shards.kv import KeyValue
from shards.machine import Machine
from shards.types import ApplyResult, Entry, LogId

_NOBODY = -1
_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


class Engine:
    """A replicated state machine on all cores of this host.

    Feed it committed entries in log order with `apply_chunk`; read it at any time. It belongs to the thread that made
    it and, from its first await to `stop`, to one event loop. A forked child cannot use it.

    Args:
        path: the data directory; made by `start` when it is not there.
        shards: worker processes, each with its own LMDB environment. None: what the directory has, else
            min(8, max(2, usable cores - 1)).
        machine: what the commands mean; a `Machine` subclass that other processes can import.
        config: all other settings.

    Raises ConfigError, or MachineImportError when workers could not import `machine`. Opens nothing.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        shards: int | None = None,
        machine: type[Machine] = KeyValue,
        config: EngineConfig | None = None,
    ) -> None:
        config = config or EngineConfig()
        if shards is not None:
            if config.shards not in (None, shards):
                raise ConfigError(f"shards={shards}, but config says {config.shards}", key="shards", value=shards)
            config = msgspec.structs.replace(config, shards=shards)
        machine_name(machine)
        self._path = Path(path)
        self._machine = machine
        self._config = config
        self._thread = threading.get_ident()
        self._forked = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._runtime: Runtime | None = None
        self._reads: Reads | None = None
        self._views: set[View] = set()
        self._draining = False
        self._room: deque[asyncio.Future[None]] = deque()
        self._waiters: list[tuple[int, int, asyncio.Future[None]]] = []
        self._waiter_numbers = count()
        _engines.add(self)

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
        if self._runtime is not None:
            raise EngineStateError("the engine runs already")
        self.close_storage()
        _make_way(self._path)
        opened = open_directory(self._path, self._machine, self._config)
        runtime = Runtime(opened, self._machine, self._config)
        try:
            runtime.start()
        except BaseException:
            opened.lock.close()
            raise
        self._runtime, self._reads = runtime, runtime.reads
        runtime.coordinator.on_publish = self._published
        runtime.coordinator.wake = self._resolve
        self._draining = False
        discarded = None if opened.discarded is None else str(opened.discarded)
        return StartReport(runtime.outcome, runtime.last_applied, discarded)

    def stop(self) -> None:
        """Finish what is in flight, make it durable, end the workers, free the directory. Blocks.

        Calls that wait for room fail with EngineStoppedError. Reads go on, from the last state, until
        `close_storage`. Raises what kept it from finishing; it is stopped all the same. Stopping twice does nothing.
        """
        self._check_thread()
        runtime = self._runtime
        if runtime is None:
            return
        self._draining = True
        self._release_waiting(EngineStoppedError("the engine stopped before the call had its turn"))
        try:
            runtime.stop()
        finally:
            self._unbind()
            self._runtime = None
            runtime.coordinator.fail(EngineStoppedError("the engine stopped before the chunk was applied"))
            runtime.opened.lock.close()
            self._release_waiting(EngineStoppedError("the engine stopped"))

    async def aclose(self) -> None:
        """Let what is in flight finish without blocking the loop, then `stop` and `close_storage`."""
        self._check_thread()
        runtime = None if self._runtime is None else self._bind()
        try:
            if runtime is not None and runtime.coordinator.failure is None:
                self._draining = True
                self._release_waiting(EngineStoppedError("the engine stopped before the call had its turn"))
                await self._settled(runtime.request_flush)
        finally:
            try:
                self.stop()
            finally:
                self.close_storage()

    def close_storage(self) -> None:
        """Close the readers' side of a stopped engine; its views end. Raises EngineStateError while it runs."""
        self._check_thread()
        if self._runtime is not None:
            raise EngineStateError("the engine runs", hint="stop() it first")
        for view in list(self._views):
            view.close("its engine's storage was closed")
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

    async def apply_chunk(self, entries: Sequence[Entry]) -> list[ApplyResult]:
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
        runtime = self._bind()
        if not entries:
            return []
        if self._room or not self._has_room(runtime):
            await self._wait_for_room()
        try:
            delivery = runtime.coordinator.accept(entries)
        finally:
            if self._room:
                self._wake_next()
        for chunk in delivery.chunks:
            if chunk.results is None and chunk.error is None:
                future = asyncio.get_running_loop().create_future()
                chunk.waiting.append(future)
                await future
        return delivery.results()

    async def _wait_for_room(self) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._room.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn in self._room:
                self._room.remove(turn)
                self._wake_next()
            raise
        if self._room and self._room[0] is turn:
            self._room.popleft()

    def _has_room(self, runtime: Runtime) -> bool:
        coordinator, config = runtime.coordinator, self._config
        return coordinator.failure is not None or (
            coordinator.in_flight_chunks < config.in_flight_chunks_max
            and coordinator.in_flight_bytes < config.in_flight_bytes_max
        )

    def _wake_next(self) -> None:
        """Give the first waiting call its turn; it stays first in line until it takes it."""
        runtime = self._runtime
        if self._room and not self._room[0].done() and runtime is not None and self._has_room(runtime):
            self._resolve(self._room[0])

    async def wait_applied(self, index: int, timeout: float | None = None) -> None:
        """Wait until everything up to `index` is applied and readable.

        Raises TimeoutError after `timeout` seconds, EngineStoppedError when the engine stops before.
        """
        runtime = self._bind()
        if runtime.coordinator.failure is not None:
            raise runtime.coordinator.failure
        if runtime.coordinator.applied.index >= index:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiters, (index, next(self._waiter_numbers), future))
        async with asyncio.timeout(timeout):
            await future

    def _published(self) -> None:
        """The coordinator has moved: wake who waits for an index or for room."""
        runtime = self._runtime
        if runtime is None:
            return
        coordinator = runtime.coordinator
        if coordinator.failure is not None:
            self._release_waiting(coordinator.failure)
            return
        while self._waiters and self._waiters[0][0] <= coordinator.applied.index:
            self._resolve(heapq.heappop(self._waiters)[2])
        if self._room:
            self._wake_next()

    def _release_waiting(self, error: EngineError) -> None:
        waiting = [*self._room, *(future for _, _, future in self._waiters)]
        self._room.clear()
        self._waiters.clear()
        for future in waiting:
            self._resolve(future, error)

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
        if len(self._views) >= self._config.views_max:
            raise TooManyViewsError(
                f"{len(self._views)} views are open", hint="close views, or raise views_max", limit=len(self._views)
            )
        view = View(reads.pin(), time.monotonic(), self._drop_view)
        self._views.add(view)
        return view

    def _drop_view(self, view: View) -> None:
        self._views.discard(view)
        if self._reads is not None:
            self._reads.unpin(view.cut)

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

        Mode "power": `last_applied()`. Mode "process": `last_applied()` right after a flush or a stop, and (0, 0) from
        the next write on, since unsynced LMDB files cannot be trusted after the machine went down.
        """
        runtime = self._running()
        return runtime.last_applied if self._config.durability == "power" else runtime.durable

    def entry_term(self, index: int) -> int | None:
        """The term of an applied entry; None beyond `last_applied()`, and for entries too old to be remembered."""
        coordinator = self._running().coordinator
        return coordinator.tail.term_of(index) if index <= coordinator.applied.index else None

    async def digest(self) -> bytes:
        """16 bytes that are the same for the same live records, whatever the shard count. Reads all of them, in
        slices, at one index; applies go on meanwhile."""
        self._check_thread()
        with self.view() as view:
            total = 0
            for part in view.cut.digest_slices():
                total += part
                await asyncio.sleep(0)
            return (total % DIGEST_MODULUS).to_bytes(16, "big")

    def stats(self) -> dict[str, Any]:
        """Facts about this moment, as plain values. Looks at the directory's files."""
        runtime = self._running()
        coordinator, workers = runtime.coordinator, runtime.workers
        applied, durable = self.last_applied(), self.durable()
        return {
            "shards": runtime.shards,
            "durability": self._config.durability,
            "machine": self._machine.name,
            "last_applied": {"index": applied.index, "term": applied.term},
            "durable": {"index": durable.index, "term": durable.term},
            "entries": len(self),
            "bytes_on_disk": runtime.opened.directory.bytes_on_disk(),
            "groups": coordinator.applied.group,
            "in_flight_chunks": coordinator.in_flight_chunks,
            "in_flight_bytes": coordinator.in_flight_bytes,
            "waiting_calls": len(self._room),
            "views": len(self._views),
            "pinned_cuts": runtime.reads.pinned,
            "failure": None if coordinator.failure is None else str(coordinator.failure),
            "workers": [
                {
                    "shard": shard,
                    "pid": workers.pid(shard),
                    "restarts": workers.starts[shard] - 1,
                    "stalled": problem.message if (problem := coordinator.stalled.get(shard)) else None,
                }
                for shard in range(runtime.shards)
            ],
        }

    # ---- durability ----------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Block until everything that was readable at the call survives power loss. Raises what the disk said."""
        self._running().flush()

    async def flush_async(self) -> None:
        """As `flush`, without blocking the loop; applies wait meanwhile."""
        await self._settled(self._bind().request_flush)

    async def _settled(self, request: Callable[[Callable[[EngineError | None], None]], None]) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        request(lambda error: self._resolve(future, error))
        await future

    # ---- thread, loop, process -----------------------------------------------------------------------------------

    def _check_thread(self) -> None:
        if threading.get_ident() == self._thread:
            return
        if self._forked:
            raise ForkedError("the engine was made before a fork, in the parent process", hint="make one per process")
        raise WrongThreadError(
            "the engine belongs to the thread that made it", hint="hand the call over with loop.call_soon_threadsafe"
        )

    def _running(self) -> Runtime:
        self._check_thread()
        if self._runtime is None:
            raise EngineStateError("the engine does not run", hint="start() it")
        return self._runtime

    def _open_reads(self) -> Reads:
        if threading.get_ident() != self._thread or self._reads is None:
            self._check_thread()
            raise EngineStateError("the engine's storage is not open", hint="start() it")
        return self._reads

    def _bind(self) -> Runtime:
        """Belong to the running loop from now on, and let it watch the links."""
        runtime = self._runtime
        loop = asyncio.get_running_loop()
        if runtime is not None and self._loop is loop and threading.get_ident() == self._thread:
            return runtime
        runtime = self._running()
        if self._loop is not None:
            raise WrongLoopError("the engine belongs to another event loop until stop()", hint="stop() it there")
        self._loop = loop
        runtime.on_link = lambda shard, descriptor: loop.add_reader(descriptor, runtime.on_readable, shard)
        runtime.off_link = lambda shard, descriptor: self._forget_link(loop, descriptor)
        for shard, link in enumerate(runtime.workers.links):
            if link is not None:
                loop.add_reader(link.fileno(), runtime.on_readable, shard)
        self._timer = loop.call_later(TICK_MS / 1000, self._tick)
        return runtime

    @staticmethod
    def _forget_link(loop: asyncio.AbstractEventLoop, descriptor: int) -> None:
        if not loop.is_closed():
            loop.remove_reader(descriptor)

    def _tick(self) -> None:
        runtime, loop = self._runtime, self._loop
        if runtime is None or loop is None:
            return
        self._timer = loop.call_later(TICK_MS / 1000, self._tick)
        runtime.tick()
        oldest = time.monotonic() - self._config.view_age_max_ms / 1000
        for view in [view for view in self._views if view.opened_at < oldest]:
            view.close(f"it was older than view_age_max_ms={self._config.view_age_max_ms}")

    def _unbind(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop = None

    def _resolve(self, future: asyncio.Future[None], error: EngineError | None = None) -> None:
        """Wake who awaits `future`, unless it was cancelled or its loop is gone."""
        if future.done() or future.get_loop().is_closed():
            return
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)

    def _orphan(self) -> None:
        """This is a forked child: nothing here is ours."""
        self._forked = True
        self._thread = _NOBODY


def _make_way(path: Path) -> None:
    """Refuse a directory that another engine of this process runs on: its lock keeps out other processes only. One
    that is stopped may still read there; LMDB lets a process open it only once."""
    for other in list(_engines):
        if other._forked or other._path.resolve() != path.resolve():
            continue
        if other._runtime is not None:
            raise EngineLockedError(
                f"{path} is held by another engine of this process, {os.getpid()}",
                hint="one engine at a time may use a directory; stop the other one",
                pid=os.getpid(),
            )
        if other._reads is not None:
            other._check_thread()
            other.close_storage()


def _after_fork() -> None:
    for engine in list(_engines):
        engine._orphan()


def _at_exit() -> None:
    """Leaving the interpreter flushes, as dropping the machine does in the contract."""
    for engine in list(_engines):
        if engine._runtime is not None and not engine._forked:
            engine.stop()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)


def run(main: Callable[[], Awaitable[Any]] | Awaitable[Any]) -> Any:
    """Run `main`, a coroutine or a function that makes one, on a new uvloop event loop, and return its result."""
    import uvloop

    async def call() -> Any:
        return await (main() if callable(main) else main)

    return uvloop.run(call())
