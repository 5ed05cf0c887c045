"""The shell around the coordinator: the thread and loop an engine belongs to, and the run it drives there. A user of
`asyncio`.

The loop watches the workers' links. Nothing here knows what is applied or read.
"""

from __future__ import annotations

import asyncio
import atexit
import inspect
import logging
import os
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from shardengine.engine.config import EngineConfig
from shardengine.engine.errors import EngineStoppedError, WorkerFailedError, WrongLoopError, still_runs
from shardengine.engine.intake.chunks import Delivery
from shardengine.engine.run.busy import Busy
from shardengine.engine.run.owner import Owner
from shardengine.engine.run.readside import ReadSide
from shardengine.engine.run.runtime import TICK_MS, Runtime
from shardengine.engine.run.tasks import Tasks
from shardengine.engine.run.waiting import Waiting, resolve
from shardengine.ipc.spin import Spin
from shardengine.shards.types import Entry

log = logging.getLogger("shardengine")
_shells: weakref.WeakValueDictionary[int, Shell] = weakref.WeakValueDictionary()


def shells() -> list[Shell]:
    """Those of this process that are whole. Any thread, while others make some."""
    return [shell for ref in _shells.valuerefs() if (shell := ref()) is not None]


class Shell:
    """What belongs to one thread, one loop, and one run of an engine at a time.

    Invariant: `runtime` is set while the engine runs; `_loop` from its first await on. `on_tick` is set while it runs,
    too: a shell keeps no engine that has stopped.
    """

    def __init__(self, owner: Owner, readside: ReadSide, busy: Busy, config: EngineConfig) -> None:
        self.owner = owner
        self.readside = readside
        self.waiting = Waiting(config, busy)
        self.tasks = Tasks()
        self.runtime: Runtime | None = None
        self._config = config
        self._draining = False
        self._on_tick: Callable[[float], None] = _nothing
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._spin = Spin(config.spin_us if config.durability == "process" else 0)
        self._awake = False

    def register(self) -> None:
        """From now on all threads find it in `shells`: the last step of making one."""
        _shells[id(self)] = self

    # ---- one run -------------------------------------------------------------------------------------------------

    def begin(self, runtime: Runtime, on_tick: Callable[[float], None]) -> None:
        """`runtime` was started. `on_tick` is called once in a while from now on, as long as a loop is bound, with the
        time in seconds."""
        self._draining = False
        self._on_tick = on_tick
        self.take_over(runtime)

    def take_over(self, runtime: Runtime) -> None:
        """From now on `runtime` is the engine's; a bound loop watches it instead of the one before."""
        before, self.runtime = self.runtime, runtime
        self.readside.open(runtime.reads, runtime.opened.lock)
        runtime.reads.closer = self
        self.waiting.coordinator = runtime.coordinator
        runtime.on_move = self.waiting.published
        runtime.on_wake = resolve
        if self._loop is not None:
            if before is not None:
                self._unwatch(before)
            self._watch(runtime, self._loop)

    def running(self) -> Runtime:
        """Raises EngineStateError when nothing runs (EngineStoppedError: not any more), or as `Owner.check`."""
        self.owner.check()
        if self.runtime is None:
            raise self.readside.refusal
        return self.runtime

    @property
    def applies(self) -> bool:
        """True while chunks are applied: started, not stopped, and not failed."""
        runtime = self.runtime  # which another thread may ask for
        return runtime is not None and not self._draining and runtime.failure is None

    @property
    def waiting_calls(self) -> int:
        """How many wait for room."""
        return len(self.waiting.room)

    def _drain(self) -> None:
        self._draining = True
        self.waiting.release(EngineStoppedError("the engine stopped before the call had its turn"))

    def stop(self, patience_ms: int | None = None) -> None:
        """See `Engine.stop`. `patience_ms`: how long to wait for each thing; None: as the settings say."""
        self.owner.check()
        runtime = self.runtime
        if runtime is None:
            return
        self._drain()
        try:
            runtime.stop(patience_ms)
            log.info("%s: stopped at index %d", self.readside.path, runtime.last_applied.index)
        finally:
            self.forget_run()
            runtime.coordinator.fail(EngineStoppedError("the engine stopped before the chunk was applied"))
            self.waiting.release(EngineStoppedError("the engine stopped"))
            if (late := self.tasks.await_threads(self._config.stop_timeout_ms)) is not None:
                raise late
            self.readside.close()

    def forget_run(self) -> None:
        """There is no run any more, no loop that belongs to it, and nothing to read."""
        self.readside.refuse()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop = self.runtime = self.waiting.coordinator = None
        self._on_tick = _nothing
        self._awake = False

    async def aclose(self) -> None:
        """See `Engine.aclose`."""
        self.owner.check()
        runtime = None if self.runtime is None else self.bind()
        patience_ms = None
        try:
            if runtime is not None and runtime.failure is None:
                self._drain()
                runtime.cancel_snapshot("the engine stops")
                await self.idle("stop_timeout_ms")
                await self.flushed(runtime)
        except WorkerFailedError:
            patience_ms = 0
            raise
        finally:
            try:
                self.stop(patience_ms)
            finally:
                self.close_storage()

    def close_storage(self) -> None:
        """See `Engine.close_storage`."""
        self.owner.check()
        if self.runtime is not None:
            raise still_runs()
        if self.tasks.await_threads(0) is None:  # else one may still read there
            self.readside.close()

    # ---- loop ----------------------------------------------------------------------------------------------------

    def bind(self) -> Runtime:
        """Belong to the running loop from now on, and let it watch the links."""
        runtime = self.runtime
        loop = asyncio.get_running_loop()
        if runtime is not None and self._loop is loop and threading.get_ident() == self.owner.thread:
            return runtime
        runtime = self.running()
        if self._loop is not None:
            raise _wrong_loop(self._loop)
        self._loop = loop
        self._watch(runtime, loop)
        self._timer = loop.call_later(TICK_MS / 1000, self._tick)
        return runtime

    @staticmethod
    def _watch(runtime: Runtime, loop: asyncio.AbstractEventLoop) -> None:
        crew = runtime.crew
        crew.on_link = lambda shard, descriptor: loop.add_reader(descriptor, crew.on_readable, shard)
        crew.off_link = lambda shard, descriptor: _forget_link(loop, descriptor)
        for descriptor, shard in crew.watched().items():
            crew.on_link(shard, descriptor)

    @staticmethod
    def _unwatch(runtime: Runtime) -> None:
        crew = runtime.crew
        crew.let_go()
        crew.off_link = lambda shard, descriptor: None

    def _tick(self) -> None:
        """Once in a while, as long as a loop is bound."""
        if self.runtime is None or self._loop is None:
            return
        self._timer = self._loop.call_later(TICK_MS / 1000, self._tick)
        self.runtime.tick()
        try:
            self._on_tick(time.monotonic())
        except Exception as error:
            self.runtime.crew.broken(error)

    # ---- who waits -----------------------------------------------------------------------------------------------

    async def deliver(self, entries: Sequence[Entry]) -> Delivery:
        """Wait for room, have the chunk accepted, wait until it is resolved."""
        runtime, waiting = self.bind(), self.waiting
        if waiting.room or not waiting.has_room():
            await waiting.for_room()
            runtime = self.running()
        try:
            delivery = runtime.coordinator.accept(entries)
        finally:
            if waiting.room:
                waiting.wake_next()
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
        runtime, loop = self.runtime, self._loop
        if runtime is None or loop is None or not runtime.coordinator.brief or not self._spin.again():
            self._awake = False
        else:
            loop.call_soon(self._look_again)

    async def applied(self, index: int, timeout: float | None) -> None:
        """See `Engine.wait_applied`."""
        runtime = self.bind()
        if runtime.failure is not None:
            raise runtime.failure.again()
        if runtime.last_applied.index < index:
            await self.waiting.for_index.wait(index, timeout)

    async def idle(self, setting: str) -> None:
        """Wait until nothing is in flight. Raises the engine's failure, or WorkerFailedError after as long as `setting`
        allows."""
        try:
            async with asyncio.timeout(getattr(self._config, setting) / 1000):
                while not self.running().coordinator.idle:
                    if (failure := self.running().failure) is not None:
                        raise failure.again()
                    await self.waiting.for_quiet()
        except TimeoutError:
            raise self.running().timed_out("chunks were still in flight", setting) from None

    async def flushed(self, runtime: Runtime) -> None:
        """Wait until what is published now is durable, up to `flush_timeout_ms`."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        runtime.request_flush(lambda error: resolve(future, error))
        try:
            async with asyncio.timeout(self._config.flush_timeout_ms / 1000):
                await future
        except TimeoutError:
            raise runtime.timed_out("the flush has not ended", "flush_timeout_ms") from None

    # ---- the end of the interpreter ------------------------------------------------------------------------------

    def leave(self) -> None:
        """The interpreter ends, in this thread, and the engine runs: stop it where it may be stopped. Where that cannot
        be had, its owner being busy with something else, its workers are killed, and the run stays unclean."""
        runtime, loop = self.runtime, self._loop
        if runtime is None or self.owner.forked:
            return
        if self.owner.take_over():
            self._stop_quietly()
            return
        stopped = threading.Event()

        def stop_there() -> None:
            self._stop_quietly()
            stopped.set()

        if loop is not None and loop.is_running():
            loop.call_soon_threadsafe(stop_there)
            stopped.wait(2 * self._config.stop_timeout_ms / 1000)
        if not stopped.is_set():
            log.warning("an engine was left running in thread %s: its workers are killed", self.owner.name)
            runtime.workers.kill_all()

    def _stop_quietly(self) -> None:
        """Where nobody catches anything."""
        try:
            self.stop()
        except Exception as error:
            log.error("%s: stopped unclean as the interpreter ended: %s", self.readside.path, error)


def _at_exit() -> None:
    """Leaving the interpreter flushes, as dropping the machine does in the contract."""
    for shell in shells():
        shell.leave()


atexit.register(_at_exit)


def _after_fork() -> None:
    for shell in shells():
        shell.owner.leave_to_the_parent()


os.register_at_fork(after_in_child=_after_fork)


def _nothing(now: float) -> None:
    """No run, no time."""


def _forget_link(loop: asyncio.AbstractEventLoop, descriptor: int) -> None:
    if not loop.is_closed():
        loop.remove_reader(descriptor)


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
