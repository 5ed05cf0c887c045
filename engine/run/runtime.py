"""One run of an engine, from start to stop: its processes, rings, decision file, coordinator and readers' side.

Driven by whoever waits: `crew.on_readable` when a link has something, `tick` as time passes. `pump` does both, without
an event loop, until something has come true.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from shardengine.engine.commit.coordinator import Coordinator
from shardengine.engine.commit.flushing import Done
from shardengine.engine.commit.inflight import Batch
from shardengine.engine.commit.lives import Patience
from shardengine.engine.commit.packing import Packing
from shardengine.engine.commit.pinning import Request
from shardengine.engine.commit.table import Commit
from shardengine.engine.config import EngineConfig
from shardengine.engine.errors import EngineError, SyncFailedError, WorkerFailedError
from shardengine.engine.intake.split import Splitter
from shardengine.engine.read.cut import Reads
from shardengine.engine.run.crew import Crew
from shardengine.engine.run.durability import Durability
from shardengine.engine.run.launch import Launch, launch_of, machine_name
from shardengine.engine.run.opening import Opened, half_bytes
from shardengine.engine.run.overtime import Overtime
from shardengine.engine.run.processes import Workers
from shardengine.engine.run.recovering import Recovered, open_read_store, reader_slots
from shardengine.engine.run.resources import look_at_filesystem
from shardengine.engine.storage.control import REPLACED, STOPPED, ControlPage
from shardengine.engine.storage.generations import DirectoryConfig, Generation
from shardengine.engine.storage.placing import check_samples, made
from shardengine.engine.storage.runmark import RunMark
from shardengine.shards.machine import Machine
from shardengine.shards.types import LogId, Position
from shardengine.shards.worker import WorkerSpec

TICK_MS = 250
log = logging.getLogger("shardengine")


class Runtime:
    """Everything that exists while an engine runs.

    `begin` adds what is made from the files: `durability`, `workers`, `coordinator`, `crew`, and the control page;
    `complete` adds `reads`. What those show, other processes read from the page: both change together.
    It is the coordinator's host; `on_wake` is called with a waiter that may go on, `on_move` when the coordinator has
    moved.
    """

    def __init__(
        self, opened: Opened, machine: type[Machine], config: EngineConfig, launch: Launch | None = None
    ) -> None:
        """`launch`: how workers are started; None: as this program is now. Raises ConfigError."""
        self.opened = opened
        self.launch = launch or launch_of(config.interpreter)
        self.config = config
        self._machine = machine
        self._reading = False
        self.on_wake: Callable[[Any], None] = lambda waiter: None
        self.on_move: Callable[[], None] = lambda: None
        self._open = ExitStack()
        self._overtime = Overtime(config.worker_timeout_ms / 1000)
        self._open.callback(self._overtime.close)
        self.outcome = opened.outcome
        self.splitter = Splitter(
            made(machine),
            opened.generation.shards,
            opened.generation.info.config.limits,
            reject_bad=opened.generation.info.config.bad_entry == "reject",
            part_bytes_max=half_bytes(config) // 2,
        )

    # ---- what is asked -------------------------------------------------------------------------------------------

    @property
    def _generation(self) -> Generation:
        return self.opened.generation

    @property
    def shards(self) -> int:
        return self._generation.shards

    @property
    def fixed(self) -> DirectoryConfig:
        """What is part of the state machine and no node's own choice."""
        return self._generation.info.config

    @property
    def mark(self) -> RunMark:
        return self.durability.mark

    @property
    def failure(self) -> EngineError | None:
        """Why nothing is applied any more."""
        return self.coordinator.failure

    @property
    def last_applied(self) -> LogId:
        return LogId(self.coordinator.applied.index, self.coordinator.applied.term)

    def entry_term(self, index: int) -> int | None:
        """See `Engine.entry_term`."""
        return self.coordinator.in_flight.tail.term_of(index) if index <= self.coordinator.applied.index else None

    def term_runs(self) -> list[LogId]:
        """The term runs up to what is applied."""
        return self.coordinator.in_flight.tail.kept_runs(self.last_applied.index)

    def take_counts(self) -> tuple[int, int]:
        """Entries and bytes applied since this was asked last."""
        return self.coordinator.in_flight.take_counts()

    def check(self, datas: Sequence[bytes]) -> None:
        """Raises BadEntryError when one of `datas` must not be proposed."""
        self.splitter.check(datas)

    def durable(self, snapshot: LogId) -> LogId:
        """See `Engine.durable`; `snapshot` is the newest one."""
        return self.mark.durable(self.last_applied, snapshot)

    def check_writable(self) -> None:
        """Raises what forbids to write a state by name: a sync that failed, or files that are not ours any more."""
        self.durability.check_writable()

    def timed_out(self, what: str, setting: str) -> WorkerFailedError:
        """`what` after as long as `setting` allows; and who is waited for."""
        stalled = {shard: problem.message for shard, problem in self.coordinator.lives.stalled.items()}
        owing = [shard for shard in range(self.shards) if self.coordinator.owes(shard)]
        why = f"stalled shards: {stalled}" if stalled else f"shards that owe an answer: {owing}"
        hint = f"make room, or raise {setting}" if stalled else f"raise {setting}"
        return WorkerFailedError(
            f"{what} after {getattr(self.config, setting)} ms; {why}", hint=f"{hint}; nothing is lost", shards=owing
        )

    # ---- what is to be done --------------------------------------------------------------------------------------

    def snapshot(self, request: Request) -> None:
        """Begin a snapshot; see `Pinning.request`. Raises the run's failure when there is one."""
        self.coordinator.snapshot(request)

    def cancel_snapshot(self, why: str) -> None:
        """Give up the one that is under way."""
        self.coordinator.cancel_snapshot(why)

    def fail(self, error: EngineError) -> None:
        """Apply nothing any more."""
        self.coordinator.fail(error)

    def replaced(self) -> None:
        """Another run has taken over: this one ends, its views with it. Who waits for a flush is told what `mark` knows
        of the new generation, which is durable as a whole unless a sync of its name has failed."""
        self.coordinator.flushing.end(None)
        self._control.end(REPLACED)
        self.abandon()
        self.reads.close("the state it showed was replaced as a whole")

    # ---- the coordinator's host ----------------------------------------------------------------------------------

    def before_write(self) -> None:
        self.mark.before_write()

    def watched(self) -> AbstractContextManager[Callable[[], BaseException | None]]:
        return self._overtime.watched()

    def published(self, batch: Batch) -> None:
        assert self._reading or not batch.chunks
        if self._reading:
            self.reads.publish(batch.participants, batch.position)
            self._control.publish(batch.position)

    def wake(self, waiter: Any) -> None:
        self.on_wake(waiter)

    def moved(self) -> None:
        self.on_move()

    def failed(self, error: EngineError) -> None:
        if isinstance(error, SyncFailedError):
            self.mark.fail(str(error))

    # ---- start ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Judge what is on the disk, start the workers, redo what is decided, open the readers' side. Blocks. What is
        raised leaves no process, no descriptor, and the files as they were."""
        self.begin()
        try:
            self.pump(self.ready, self.config.start_timeout_ms)
            self.complete()
        except BaseException:
            self.drop()
            raise

    def begin(self, before: RunMark | None = None) -> None:
        """Judge what is on the disk, and have the workers start. `before` is the mark of the same run over the
        generation that this one is to replace. Raises as `start`."""
        try:
            self.filesystem, maps_hold = look_at_filesystem(self.opened.directory.path)
            standing = Recovered(self._generation, self._machine.version, self.config, through_map=maps_hold)
            self._open.callback(standing.close)
            self._control = ControlPage(self._generation.control, through_map=maps_hold)
            self._open.callback(self._control.close)
            self.splitter.part_bytes_max = min(ring.half_bytes for ring in standing.rings) // 2
            self.durability = Durability(self.opened, self.config.durability, lambda: self.last_applied, before)
            self._start_workers(standing)
        except BaseException:
            self.drop()
            raise

    def ready(self) -> bool:
        """Every worker has come, and what was decided is redone. Raises the failure that keeps it from that."""
        if self.coordinator.failure is not None:
            raise self.coordinator.failure.again()
        return len(self.coordinator.up) == self.shards and self.coordinator.idle

    def complete(self) -> None:
        """Open the readers' side, once it is `ready`; raises when it is not. Whatever is raised, `drop` it then."""
        if not self.ready():
            raise self._not_ready()
        self._open_reads(self.coordinator.applied)
        self._adopt_mark()
        self._remember_version()
        self._control.begin(self.coordinator.applied)

    def drop(self) -> None:
        """End what `begin` began."""
        if self._reading:
            self.reads.close()
        self._open.close()

    def _remember_version(self) -> None:
        if self._generation.info.config.machine_version < self._machine.version:
            self._generation.upgrade(self._machine.version)

    def _start_workers(self, standing: Recovered) -> None:
        recovery = standing.recovery
        specs = [self._spec(shard) for shard in range(self.shards)]
        self.workers = Workers(specs, self.launch, self.opened.directory.path.absolute())
        self._open.callback(self.workers.close)
        self.coordinator = Coordinator(
            host=self,
            workers=self.workers,
            splitter=self.splitter,
            packing=Packing(standing.rings, self.splitter, self.config.group_bytes),
            decision=standing.decision,
            recovery=recovery,
            commit=Commit(self.shards, recovery.position.group, recovery.redo, recovery.committed),
        )
        self.crew = Crew(self.workers, self.coordinator, self._in_place)
        if recovery.redo is not None:
            self.outcome = "redone"
        for shard in range(self.shards):
            self.crew.start(shard)

    def _spec(self, shard: int) -> WorkerSpec:
        return WorkerSpec(
            directory=os.fsencode(self._generation.shard(shard)),
            identity=self._generation.identity(shard),
            machine=machine_name(self._machine),
            limits=self.opened.generation.info.config.limits,
            map_bytes=self.config.map_bytes,
            readers_max=reader_slots(self.config),
            sync=self.config.durability == "power",
            spin_us=self.config.spin_us,
            parent=-1,
            coordinator=os.getpid(),
        )

    def _not_ready(self) -> EngineError:
        missing = sorted(set(range(self.shards)) - self.coordinator.up)
        if missing:
            return WorkerFailedError(
                f"workers of shards {missing} were not ready after {self.config.start_timeout_ms} ms",
                hint=f"raise start_timeout_ms, or see {self.opened.directory.path / 'worker.log'}",
                shards=missing,
            )
        return self.timed_out("a decided group could not be committed", "start_timeout_ms")

    def _open_reads(self, position: Position) -> None:
        generation, config = self._generation, self.config
        self.reads = Reads(
            lambda shard: open_read_store(generation, shard, config), self.shards, position, self.splitter.owner
        )
        self._reading, self.crew.reads = True, self.reads
        check_samples(self.reads.stores, made(self._machine))

    def _adopt_mark(self) -> None:
        if self.mark.clean or self.mark.failure is not None:
            return
        if self.config.durability == "power":
            self.flush()  # an earlier run in mode "process" may have left writes to the kernel
        elif self.mark.unsynced_mode:
            self.mark.write_unclean()

    # ---- durability ----------------------------------------------------------------------------------------------

    def request_flush(self, done: Done) -> None:
        """Make all that is published durable, then call `done`. After a sync that failed nothing is, ever."""
        self.durability.flush(self.coordinator, done)

    def flush(self, patience_ms: int | None = None) -> None:
        """Block until all that is published is durable, up to `flush_timeout_ms` (or `patience_ms`). Raises what the
        disk said."""
        answers: list[EngineError | None] = []
        self.request_flush(answers.append)
        if not self.pump(lambda: bool(answers), self.config.flush_timeout_ms if patience_ms is None else patience_ms):
            raise self.timed_out("the flush has not ended", "flush_timeout_ms")
        if answers[0] is not None:
            raise answers[0].again()

    # ---- drive ---------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Time has passed: look for workers that owe an answer for too long, start those that could not be started,
        and send what a full link kept back. What goes wrong here stops the engine by name."""
        try:
            self._control.beat()
            self.crew.tick()
            self.coordinator.tick(time.monotonic(), self._patience)
            if self.durability.look_is_due():
                self._in_place()
        except Exception as error:
            self.crew.broken(error)

    @property
    def _patience(self) -> Patience:
        config = self.config
        return Patience(
            config.start_timeout_ms / 1000,
            config.flush_timeout_ms / 1000,
            config.worker_timeout_ms / 1000,
            config.durability == "power",
        )

    def _in_place(self) -> bool:
        """Whether the files that are opened by name are still ours; else the engine fails."""
        try:
            self.durability.check_place()
        except EngineError as error:
            if self.coordinator.failure is None:
                self.coordinator.fail(error)
            return False
        return True

    def step(self, timeout_ms: int = 0) -> None:
        """Take what the workers said, waiting up to `timeout_ms` for the first of it, and let time pass."""
        self.crew.poll(timeout_ms)
        self.tick()

    def pump(self, until: Callable[[], bool], timeout_ms: int) -> bool:
        """Drive the engine, blocking, until `until()` (True), or a failure, which is raised, or the time is up."""
        deadline = time.monotonic() + timeout_ms / 1000
        while not until():
            if self.coordinator.failure is not None:
                raise self.coordinator.failure.again()
            if time.monotonic() > deadline:
                return False
            self.step(TICK_MS)
        return True

    # ---- stop ----------------------------------------------------------------------------------------------------

    def stop(self, patience_ms: int | None = None) -> None:
        """Finish what is in flight, make it durable, end the workers. Blocks up to `stop_timeout_ms` for what is in
        flight and for workers to end, and `flush_timeout_ms` for the disk; or up to `patience_ms` for what is in
        flight, and for the disk.

        Raises the failure that kept it from finishing; the workers are gone all the same, and the next start judges
        what they left.
        """
        coordinator, within = self.coordinator, self.config.stop_timeout_ms if patience_ms is None else patience_ms
        try:
            self.cancel_snapshot("the engine stops")
            self.pump(lambda: not coordinator.pinning.busy, within)
            if not self.pump(lambda: coordinator.idle, within):
                raise self.timed_out("chunks were still in flight", "stop_timeout_ms")
            if coordinator.failure is not None or not self.durability.holds(coordinator.applied):
                self.flush(patience_ms)
            self.workers.stop(self.config.stop_timeout_ms)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Kill the workers and give back everything but the readers' side and the directory's lock."""
        self._control.end(STOPPED)
        self.mark.record_failure()
        self.crew.let_go()
        self._open.close()
