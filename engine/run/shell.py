"""The shell around the coordinator: the thread and loop an engine belongs to, and who waits in it. The owner of
`asyncio`.

What must be waited for is a future of the caller's loop, which the coordinator's progress resolves; the loop watches
the workers' links. Nothing here knows what is applied or read.
"""

from __future__ import annotations

import asyncio
import heapq
import inspect
import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent import futures
from concurrent.futures import Future
from itertools import count
from typing import Any, TypeVar

from shardengine.engine.config import EngineConfig
from shardengine.engine.errors import (
    EngineError,
    EngineStateError,
    ForkedError,
    StoreError,
    WorkerFailedError,
    WrongLoopError,
    WrongThreadError,
)
from shardengine.engine.intake.chunks import Delivery
from shardengine.engine.run.runtime import TICK_MS, Runtime
from shardengine.ipc.spin import Spin
from shardengine.shards.types import Entry

T = TypeVar("T")

_NOBODY = -1
log = logging.getLogger("shardengine")
_shells: weakref.WeakValueDictionary[int, Shell] = weakref.WeakValueDictionary()


def shells() -> list[Shell]:
    """Those of this process that are whole. Any thread, while others make some."""
    return [shell for ref in _shells.valuerefs() if (shell := ref()) is not None]


class Shell:
    """What belongs to one thread, one loop, and one run of an engine at a time.

    Invariant: `_runtime` is set while the engine runs; `_loop` from its first await on. The first future in `_room`
    keeps its place until its owner has taken its turn.
    """

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._thread = threading.get_ident()
        self._owner = threading.current_thread()
        self._forked = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._runtime: Runtime | None = None
        self._replacing = False
        self._spin = Spin(config.spin_us if config.durability == "process" else 0)
        self._awake = False
        self._room: deque[asyncio.Future[None]] = deque()
        self._waiters: list[tuple[int, int, asyncio.Future[None]]] = []
        self._waiter_numbers = count()
        self._idlers: list[asyncio.Future[None]] = []
        self._tasks: set[asyncio.Future[None]] = set()
        self._working: set[Future[Any]] = set()

    def _register(self) -> None:
        """From now on all threads find it in `shells`: the last step of making one."""
        _shells[id(self)] = self

    def _run(self, runtime: Runtime) -> None:
        """From now on `runtime` is the engine's; a bound loop watches it instead of the one before."""
        before, self._runtime = self._runtime, runtime
        runtime.on_move = self._published
        runtime.on_wake = self._resolve
        if self._loop is not None:
            if before is not None:
                self._unwatch(before, self._loop)
            self._watch(runtime, self._loop)

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

    def _bind(self) -> Runtime:
        """Belong to the running loop from now on, and let it watch the links."""
        runtime = self._runtime
        loop = asyncio.get_running_loop()
        if runtime is not None and self._loop is loop and threading.get_ident() == self._thread:
            return runtime
        runtime = self._running()
        if self._loop is not None:
            raise _wrong_loop(self._loop)
        self._loop = loop
        self._watch(runtime, loop)
        self._timer = loop.call_later(TICK_MS / 1000, self._tick)
        return runtime

    def _watch(self, runtime: Runtime, loop: asyncio.AbstractEventLoop) -> None:
        runtime.on_link = lambda shard, descriptor: loop.add_reader(descriptor, runtime.on_readable, shard)
        runtime.off_link = lambda shard, descriptor: self._forget_link(loop, descriptor)
        for shard, link in enumerate(runtime.workers.links):
            if link is not None:
                loop.add_reader(link.fileno(), runtime.on_readable, shard)

    def _unwatch(self, runtime: Runtime, loop: asyncio.AbstractEventLoop) -> None:
        for link in runtime.workers.links:
            if link is not None:
                self._forget_link(loop, link.fileno())
        runtime.off_link = lambda shard, descriptor: None

    @staticmethod
    def _forget_link(loop: asyncio.AbstractEventLoop, descriptor: int) -> None:
        if not loop.is_closed():
            loop.remove_reader(descriptor)

    def _unbind(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop = None
        self._awake = False

    def _tick(self) -> None:
        """Once in a while, as long as a loop is bound."""
        if self._runtime is None or self._loop is None:
            return
        self._timer = self._loop.call_later(TICK_MS / 1000, self._tick)
        self._runtime.tick()
        try:
            self._on_tick(time.monotonic())
        except Exception as error:
            self._runtime.broken(error)

    def _on_tick(self, now: float) -> None:
        """For the engine: time passes (`now` in seconds)."""

    def _leave(self, stop: Callable[[], None]) -> None:
        """The interpreter ends, in this thread, and the engine runs: `stop` it where it may be stopped. Where that
        cannot be had, its owner being busy with something else, its workers are killed, and the run stays unclean."""
        runtime, loop = self._runtime, self._loop
        if runtime is None or self._forked:
            return
        if threading.get_ident() == self._thread or not self._owner.is_alive():
            self._thread = threading.get_ident()
            stop()
            return
        stopped = threading.Event()

        def stop_there() -> None:
            stop()
            stopped.set()

        if loop is not None and loop.is_running():
            loop.call_soon_threadsafe(stop_there)
            stopped.wait(2 * self._config.stop_timeout_ms / 1000)
        if not stopped.is_set():
            log.warning("an engine was left running in thread %s: its workers are killed", self._owner.name)
            runtime.workers.kill_all()

    def _leave_to_the_parent(self) -> None:
        """This is a forked child: nothing here is ours."""
        self._forked = True
        self._thread = _NOBODY

    # ---- who waits -----------------------------------------------------------------------------------------------

    async def _deliver(self, entries: Sequence[Entry]) -> Delivery:
        """Wait for room, have the chunk accepted, wait until it is resolved."""
        runtime = self._bind()
        if self._room or not self._has_room(runtime):
            await self._wait_for_room()
            runtime = self._running()
        try:
            delivery = runtime.coordinator.accept(entries)
        finally:
            if self._room:
                self._wake_next()
        loop = asyncio.get_running_loop()
        self._stay_awake(runtime, loop)
        for chunk in delivery.chunks:
            if chunk.results is None and chunk.error is None:
                future = loop.create_future()
                chunk.waiting.append(future)
                await future
        return delivery

    def _stay_awake(self, runtime: Runtime, loop: asyncio.AbstractEventLoop) -> None:
        """While only small chunks are in flight, keep the loop from sleeping for `spin_us`: their answers come sooner
        than a sleeper wakes. Not where they wait for a disk."""
        if not self._awake and runtime.coordinator.brief and self._spin.begin():
            self._awake = True
            loop.call_soon(self._look_again)

    def _look_again(self) -> None:
        runtime, loop = self._runtime, self._loop
        if runtime is None or loop is None or not runtime.coordinator.brief or not self._spin.again():
            self._awake = False
        else:
            loop.call_soon(self._look_again)

    def _has_room(self, runtime: Runtime) -> bool:
        coordinator, config = runtime.coordinator, self._config
        return coordinator.failure is not None or (
            coordinator.in_flight.chunks < config.in_flight_chunks_max
            and coordinator.in_flight.bytes < config.in_flight_bytes_max
            and not self._replacing
        )

    async def _wait_for_room(self) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._room.append(turn)
        while True:
            try:
                await turn
            except asyncio.CancelledError:
                if turn in self._room:
                    self._room.remove(turn)
                    self._wake_next()
                raise
            if not self._room or self._room[0] is not turn:
                return
            if not self._replacing:
                self._room.popleft()
                return
            turn = self._room[0] = asyncio.get_running_loop().create_future()  # an install began after it was given

    def _wake_next(self) -> None:
        """Give the first waiting call its turn; it stays first in line until it takes it."""
        runtime = self._runtime
        if self._room and not self._room[0].done() and runtime is not None and self._has_room(runtime):
            self._resolve(self._room[0])

    async def _applied(self, index: int, timeout: float | None) -> None:
        runtime = self._bind()
        if runtime.coordinator.failure is not None:
            raise runtime.coordinator.failure.again()
        if runtime.coordinator.applied.index >= index:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiter = (index, next(self._waiter_numbers), future)
        heapq.heappush(self._waiters, waiter)
        try:
            async with asyncio.timeout(timeout):
                await future
        finally:
            if waiter in self._waiters:  # it gave up
                self._waiters.remove(waiter)
                heapq.heapify(self._waiters)

    async def _idle(self, setting: str) -> None:
        """Wait until nothing is in flight. Raises the engine's failure, or WorkerFailedError after as long as `setting`
        allows."""
        try:
            async with asyncio.timeout(getattr(self._config, setting) / 1000):
                while not self._running().coordinator.idle:
                    if (failure := self._running().coordinator.failure) is not None:
                        raise failure.again()
                    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                    self._idlers.append(future)
                    await future
        except TimeoutError:
            raise self._running().timed_out("chunks were still in flight", setting) from None

    def _published(self) -> None:
        """The coordinator has moved: wake who waits for an index, for room, or for quiet."""
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
        if self._idlers and coordinator.idle:
            idlers, self._idlers = self._idlers, []
            for future in idlers:
                self._resolve(future)

    def _release_waiting(self, error: EngineError) -> None:
        waiting = [*self._room, *self._idlers, *(future for _, _, future in self._waiters)]
        self._room.clear()
        self._idlers.clear()
        self._waiters.clear()
        for future in waiting:
            self._resolve(future, error)

    async def _flushed(self, runtime: Runtime) -> None:
        """Wait until what is published now is durable, up to `flush_timeout_ms`."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        runtime.request_flush(lambda error: self._resolve(future, error))
        try:
            async with asyncio.timeout(self._config.flush_timeout_ms / 1000):
                await future
        except TimeoutError:
            raise runtime.timed_out("the flush has not ended", "flush_timeout_ms") from None

    async def _called_back(self, start: Callable[[Callable[[T], None]], None], cancel: Callable[[], None]) -> T:
        """Start something that calls back with its outcome, and wait for that. Cancelled, it is told so by `cancel`
        and waited for all the same: it has cleaned up when this returns."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        def ended(outcome: T) -> None:
            if not future.done() and not future.get_loop().is_closed():
                future.set_result(outcome)

        start(ended)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            cancel()
            await asyncio.wait([future])
            raise

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """Do `work`, which blocks, beside the loop. Cancelled, it is waited for all the same."""
        done: Future[T] = Future()

        def worked() -> None:
            try:
                done.set_result(work())
            except BaseException as error:
                done.set_exception(error)

        try:
            threading.Thread(target=worked).start()
        except RuntimeError as error:
            raise StoreError(
                f"no thread can be had: {error}", hint="raise the limit of processes (ulimit -u)"
            ) from error
        self._working.add(done)
        task = asyncio.wrap_future(done)
        task.add_done_callback(lambda _: self._working.discard(done))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait([task])
            raise

    def _await_threads(self) -> WorkerFailedError | None:
        """Block until no thread works for this engine any more: what it writes lies in a directory we have locked.
        Returns what to raise when one still does after `stop_timeout_ms`."""
        if not futures.wait(self._working, self._config.stop_timeout_ms / 1000).not_done:
            return None
        return WorkerFailedError(
            f"a thread was still reading or building a snapshot after {self._config.stop_timeout_ms} ms",
            hint="the directory stays locked until this process ends; raise stop_timeout_ms",
        )

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Have the loop do `work` beside everything else."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @staticmethod
    async def _one_turn() -> None:
        """Let the loop do something else."""
        await asyncio.sleep(0)

    def _resolve(self, future: asyncio.Future[None], error: EngineError | None = None) -> None:
        """Wake who awaits `future`, unless it was cancelled or its loop is gone."""
        if future.done() or future.get_loop().is_closed():
            return
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error.again())


def _after_fork() -> None:
    for shell in shells():
        shell._leave_to_the_parent()


os.register_at_fork(after_in_child=_after_fork)


def _wrong_loop(loop: asyncio.AbstractEventLoop) -> WrongLoopError:
    if loop.is_closed():
        return WrongLoopError(
            "the engine belongs to an event loop that is closed: it has one loop from its first await to stop()",
            hint="do everything in one run, with `async with Engine(...)` inside it; or stop() the engine after each "
            "run, and start() it again",
        )
    return WrongLoopError("the engine belongs to another event loop until stop()", hint="stop() it there")


def run(main: Callable[[], Awaitable[Any]] | Awaitable[Any]) -> Any:
    """Run `main`, a coroutine or a function that makes one, on a new uvloop event loop, and return its result.

    Raises WrongLoopError where a loop is running already; `main` is not started then, and closed if it is a coroutine.
    """
    import uvloop

    if asyncio._get_running_loop() is not None:
        if inspect.iscoroutine(main):
            main.close()
        raise WrongLoopError(
            "run() starts an event loop, and one is running in this thread already", hint="await the coroutine instead"
        )

    async def call() -> Any:
        return await (main() if callable(main) else main)

    return uvloop.run(call())
