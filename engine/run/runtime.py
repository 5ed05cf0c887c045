"""One run of an engine, from start to stop: its processes, rings, decision file, coordinator and readers' side.

Driven by whoever waits: `on_readable` when a link has something, `tick` as time passes. `pump` does both, without an
event loop, until something has come true.
"""

from __future__ import annotations

import logging
import os
import select
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import msgspec

from shardengine.engine.commit.coordinator import Coordinator
from shardengine.engine.commit.decision import DecisionFile, Recovery, recover
from shardengine.engine.commit.flushing import Done
from shardengine.engine.commit.inflight import Batch
from shardengine.engine.commit.lives import Patience
from shardengine.engine.commit.packing import Packing
from shardengine.engine.commit.table import Commit
from shardengine.engine.config import EngineConfig
from shardengine.engine.errors import (
    DamagedError,
    EngineError,
    MachineImportError,
    MachineMismatchError,
    SyncFailedError,
    WorkerFailedError,
    named,
)
from shardengine.engine.intake.split import Splitter
from shardengine.engine.read.cut import Reads
from shardengine.engine.run.compacting import compacted
from shardengine.engine.run.launch import Launch, launch_of
from shardengine.engine.run.opening import Opened, half_bytes
from shardengine.engine.run.processes import Workers
from shardengine.engine.snapshot.build import Origin, Snapshot, Target, build, take
from shardengine.engine.storage.anchors import Anchors
from shardengine.engine.storage.files import filesystem_of, reserved_disk_holds, sync_directory
from shardengine.engine.storage.generations import DirectoryConfig, Generation, new_lineage
from shardengine.engine.storage.placing import check_samples
from shardengine.engine.storage.runmark import RunMark
from shardengine.ipc.errors import LinkClosedError
from shardengine.ipc.link import Link
from shardengine.ipc.ring import RingWriter, create_ring
from shardengine.shards import wire
from shardengine.shards.digest import checksum
from shardengine.shards.machine import Machine
from shardengine.shards.store import ReadStore
from shardengine.shards.types import LogId, Position
from shardengine.shards.worker import WorkerSpec

TICK_MS = 250
_TICKS_A_LOOK = 8  # at the files that keep others out
_SPARE_READERS = 16
log = logging.getLogger("shardengine")


class Runtime:
    """Everything that exists while an engine runs.

    It is the coordinator's host. `on_link` and `off_link` are called with a shard and a descriptor when a link to watch
    appears, and before it goes; `on_wake` with a waiter that may go on; `on_move` when the coordinator has moved.
    """

    def __init__(
        self, opened: Opened, machine: type[Machine], config: EngineConfig, launch: Launch | None = None
    ) -> None:
        """`launch`: how workers are started; None: as this program is now. Raises ConfigError."""
        self.opened = opened
        self.launch = launch or launch_of(config.interpreter)
        self.config = config
        self._generation = opened.generation
        self._machine = machine
        self.on_link: Callable[[int, int], None] = lambda shard, descriptor: None
        self.off_link: Callable[[int, int], None] = lambda shard, descriptor: None
        self.on_wake: Callable[[Any], None] = lambda waiter: None
        self.on_move: Callable[[], None] = lambda: None
        self._reading = False
        self._ticks = count(1)
        self._unstarted: set[int] = set()
        self._patience = Patience(
            config.start_timeout_ms / 1000,
            config.flush_timeout_ms / 1000,
            config.worker_timeout_ms / 1000,
            config.durability == "power",
        )
        self._open = ExitStack()
        self.outcome = opened.outcome
        self.splitter = Splitter(
            machine(),
            self._generation.shards,
            opened.generation.info.config.limits,
            reject_bad=opened.generation.info.config.bad_entry == "reject",
            part_bytes_max=half_bytes(config) // 2,
        )

    @property
    def shards(self) -> int:
        return self._generation.shards

    @property
    def fixed(self) -> DirectoryConfig:
        """What is part of the state machine and no node's own choice."""
        return self._generation.info.config

    @property
    def _target(self) -> Target:
        config = self.config
        return Target(self.shards, self._machine, half_bytes(config), config.map_bytes, config.snapshot_verify)

    def take(self, snapshot: Snapshot) -> tuple[Generation, Origin]:
        """A new generation of as many shards, and what it will hold. Blocks; any thread. See `install.take`."""
        return take(self.opened.directory, snapshot, self._target)

    def build(self, generation: Generation, origin: Origin) -> Generation:
        """Give a generation that was taken its state. Blocks; any thread. See `install.build`."""
        return build(self.opened.directory, generation, origin, self._target)

    def build_empty(self) -> Generation:
        """A new, empty generation of as many shards, and of a lineage of its own: no snapshot taken before belongs to
        it. Blocks; any thread."""
        fixed = msgspec.structs.replace(self.fixed, lineage=new_lineage())
        return self.opened.directory.create(self.shards, fixed, half_bytes(self.config))

    def build_compacted(self) -> Generation:
        """A new generation with the state of now. Blocks; any thread. See `compacting.compacted`."""
        runs = self.coordinator.in_flight.tail.kept_runs(self.last_applied.index)
        return compacted(self.opened.directory, self.reads, runs, self.fixed, self._target)

    # ---- start ---------------------------------------------------------------------------------------------------

    def start(self, before: RunMark | None = None) -> None:
        """Judge what is on the disk, start the workers, redo what is decided, open the readers' side. Blocks.

        `before` is the mark of the same run over the generation that this one is to replace. Whatever is raised leaves
        no process and no descriptor, and the files as they were.
        """
        try:
            self._look_at_filesystem()
            recovery = self._judge()
            path = self.opened.directory.path
            self.anchors = Anchors([path / "LOCK", *self._generation.guards])
            self.mark = RunMark(
                path, self._generation, self.config.durability, self.anchors.check, lambda: self.last_applied, before
            )
            self._start_workers(recovery)
            self._open_reads(recovery.position)
            self._adopt_mark()
            self._remember_version()
        except BaseException:
            if self._reading:
                self.reads.close()
            self._open.close()
            raise

    def _look_at_filesystem(self) -> None:
        self.filesystem = filesystem_of(self.opened.directory.path.resolve())
        self._maps_hold = reserved_disk_holds(self.filesystem)
        if not self._maps_hold:
            log.warning(
                "%s lies on %s, which promises nothing for reserved disk: on a full disk a worker may die of SIGBUS, "
                "and be started again; nothing that was acknowledged is lost. Keep disk free, or use ext4 or xfs",
                self.opened.directory.path,
                self.filesystem,
            )

    def _judge(self) -> Recovery:
        """Read record and positions. No predecessor writes any more: `open_directory` has waited for their end."""
        positions = [self._position(shard) for shard in range(self.shards)]
        self._decision = DecisionFile(self._generation.decision, synced=self.config.durability == "power")
        self._open.callback(self._decision.close)
        recovery = recover(self._decision.record, positions)
        self._check_redo(recovery)
        self._rings = [self._open_ring(shard, recovery) for shard in range(self.shards)]
        self.splitter.part_bytes_max = min(ring.half_bytes for ring in self._rings) // 2
        return recovery

    def _remember_version(self) -> None:
        if self._generation.info.config.machine_version < self._machine.version:
            self._generation.upgrade(self._machine.version)

    def _position(self, shard: int) -> Position:
        store = self._read_store(shard)
        try:
            store.clear_dead_readers()
            transaction = store.begin()
            position = transaction.position()
            transaction.close()
            return position
        finally:
            store.close()

    def _read_store(self, shard: int) -> ReadStore:
        return ReadStore(
            self._generation.shard(shard),
            self._generation.identity(shard),
            map_bytes=self.config.map_bytes,
            readers_max=self.config.views_max + _SPARE_READERS,
        )

    def _check_redo(self, recovery: Recovery) -> None:
        """What is to be redone must be there, whole, and mean what it meant."""
        record = self._decision.record
        version = self._machine.version
        if recovery.redo is not None and record.machine_version != version:
            raise MachineMismatchError(
                f"group {record.position.group} was decided under machine version {record.machine_version} and is not "
                f"committed everywhere; it cannot be redone under version {version}",
                hint=f"start once with version {record.machine_version}, and stop, before moving on",
            )

    def _open_ring(self, shard: int, recovery: Recovery) -> RingWriter:
        path = self._generation.shard(shard) / "ring"
        ring = RingWriter(path, through_map=self._maps_hold)
        if recovery.redo is not None:
            extent = self._decision.record.participants.get(shard)
            if extent is not None and checksum(ring.view(extent.offset, extent.length)) != extent.checksum:
                ring.close()
                raise DamagedError(
                    f"{path}: the decided part at {extent.offset} does not match its checksum",
                    shard=shard,
                    offset=extent.offset,
                )
        elif ring.half_bytes != half_bytes(self.config):
            ring.close()
            ring = self._replaced_ring(path)
        self._open.callback(ring.close)
        return ring

    def _replaced_ring(self, path: Path) -> RingWriter:
        """A ring of the size that is asked for, in place of one that nobody will redo from."""
        beside = path.with_name("ring.new")
        beside.unlink(missing_ok=True)
        create_ring(beside, half_bytes(self.config))
        beside.rename(path)
        sync_directory(path.parent)
        return RingWriter(path, through_map=self._maps_hold)

    def _start_workers(self, recovery: Recovery) -> None:
        specs = [self._spec(shard) for shard in range(self.shards)]
        self.workers = Workers(specs, self.launch, self.opened.directory.path.absolute())
        self._open.callback(self.workers.close)
        self.coordinator = Coordinator(
            host=self,
            workers=self.workers,
            splitter=self.splitter,
            packing=Packing(self._rings, self.config.group_bytes),
            decision=self._decision,
            position=recovery.position,
            commit=Commit(self.shards, recovery.position.group, recovery.redo, recovery.committed),
            machine_version=self._machine.version,
        )
        if recovery.redo is not None:
            self.outcome = "redone"
        for shard in range(self.shards):
            self._start_worker(shard)
        ready = self.pump(
            lambda: len(self.coordinator.up) == self.shards and self.coordinator.idle, self.config.start_timeout_ms
        )
        if not ready:
            raise self._not_ready()

    @property
    def _log_path(self) -> Path:
        return self.opened.directory.path / "worker.log"

    def _spec(self, shard: int) -> WorkerSpec:
        return WorkerSpec(
            directory=os.fsencode(self._generation.shard(shard)),
            identity=self._generation.identity(shard),
            machine=machine_name(self._machine),
            limits=self.opened.generation.info.config.limits,
            map_bytes=self.config.map_bytes,
            readers_max=self.config.views_max + _SPARE_READERS,
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
                hint=f"raise start_timeout_ms, or see {self._log_path}",
                shards=missing,
            )
        return self.timed_out("a decided group could not be committed", "start_timeout_ms")

    def _open_reads(self, position: Position) -> None:
        self.reads = Reads(self._read_store, self.shards, position, self.splitter.owner)
        self._reading = True
        check_samples(self.reads.stores, self._machine())

    def _adopt_mark(self) -> None:
        if self.mark.clean or self.mark.failure is not None:
            return
        if self.config.durability == "power":
            self.flush()  # an earlier run in mode "process" may have left writes to the kernel
        elif self.mark.unsynced_mode:
            self.mark.write_unclean()

    # ---- durability ----------------------------------------------------------------------------------------------

    @property
    def last_applied(self) -> LogId:
        return LogId(self.coordinator.applied.index, self.coordinator.applied.term)

    def request_flush(self, done: Done) -> None:
        """Make all that is published durable, then call `done`. After a sync that failed nothing is, ever."""
        if self.mark.failure is not None:
            done(self.mark.refusal())
        else:
            self.coordinator.flush(lambda error: done(self.mark.flushed(error)))

    def flush(self, patience_ms: int | None = None) -> None:
        """Block until all that is published is durable, up to `flush_timeout_ms` (or `patience_ms`). Raises what the
        disk said."""
        answers: list[EngineError | None] = []
        self.request_flush(answers.append)
        if not self.pump(lambda: bool(answers), self.config.flush_timeout_ms if patience_ms is None else patience_ms):
            raise self.timed_out("the flush has not ended", "flush_timeout_ms")
        if answers[0] is not None:
            raise answers[0].again()

    def timed_out(self, what: str, setting: str) -> WorkerFailedError:
        """`what` after as long as `setting` allows; and who is waited for."""
        stalled = {shard: problem.message for shard, problem in self.coordinator.lives.stalled.items()}
        owing = [shard for shard in range(self.shards) if self.coordinator.owes(shard)]
        why = f"stalled shards: {stalled}" if stalled else f"shards that owe an answer: {owing}"
        hint = f"make room, or raise {setting}" if stalled else f"raise {setting}"
        return WorkerFailedError(
            f"{what} after {getattr(self.config, setting)} ms; {why}", hint=f"{hint}; nothing is lost", shards=owing
        )

    # ---- drive ---------------------------------------------------------------------------------------------------

    def _start_worker(self, shard: int) -> None:
        """Start a worker. One that cannot be started is tried again with the tick, until the coordinator gives up."""
        try:
            link = self.workers.start(shard)
            self.on_link(shard, link.fileno())
        except OSError as error:
            self.workers.reap(shard)
            self._unstarted.add(shard)
            self.coordinator.on_start_refused(shard, error)
            log.warning("no worker can be started for shard %d: %s", shard, error)
        else:
            self._unstarted.discard(shard)
            self.coordinator.lives.started(shard)

    def on_readable(self, shard: int) -> None:
        """Take the next word of the worker of `shard`, or replace the worker when it is gone. What goes wrong here
        stops the engine by name."""
        link = self.workers.links[shard]
        if link is None:
            return
        try:
            try:
                message = link.receive()
            except LinkClosedError:
                self._replace_worker(shard, link)
            else:
                if message is not None:
                    self._on_message(shard, message)
        except Exception as error:
            self.broken(error)

    def _on_message(self, shard: int, message: bytes) -> None:
        answer = wire.decode_answer(message)
        if self._reading and isinstance(answer, wire.Hello):
            self.reads.worker_came(shard)
        self.coordinator.on_answer(shard, answer)

    def broken(self, error: Exception) -> None:
        """What nobody could handle stops the engine by name."""
        log.error("the engine stops applying", exc_info=error)
        self.coordinator.fail(named(error))

    def _replace_worker(self, shard: int, link: Link) -> None:
        self.off_link(shard, link.fileno())
        pid = self.workers.pid(shard)
        self.workers.reap(shard)
        if self._reading:
            self.reads.worker_ended(shard)
        if self.coordinator.on_link_end(shard):
            why = self.coordinator.lives.why_ended(shard)
            log.warning("the worker of shard %d (process %s) died (%s); starting another", shard, pid, why)
            if self._in_place():
                self._start_worker(shard)

    def tick(self) -> None:
        """Time has passed: look for workers that owe an answer for too long, start those that could not be started,
        and send what a full link kept back. What goes wrong here stops the engine by name."""
        try:
            self.workers.flush()
            self.workers.trim_log()
            if self._reading:
                self.reads.keep_locks()
                self.reads.take_back()
            if self._unstarted and self.coordinator.failure is None and self._in_place():
                for shard in sorted(self._unstarted):
                    self._start_worker(shard)
            self.coordinator.tick(time.monotonic(), self._patience)
            self.mark.record_failure()
            if next(self._ticks) % _TICKS_A_LOOK == 0:
                self._in_place()
        except Exception as error:
            self.broken(error)

    def _in_place(self) -> bool:
        """Whether the files that are opened by name are still ours; else the engine fails."""
        try:
            self.anchors.check()
        except EngineError as error:
            if self.coordinator.failure is None:
                self.coordinator.fail(error)
            return False
        return True

    def before_write(self) -> None:
        self.mark.before_write()

    def published(self, batch: Batch) -> None:
        assert self._reading or not batch.chunks
        if self._reading:
            self.reads.publish(batch.participants, batch.position)

    def wake(self, waiter: Any) -> None:
        self.on_wake(waiter)

    def moved(self) -> None:
        self.on_move()

    def failed(self, error: EngineError) -> None:
        if isinstance(error, SyncFailedError):
            self.mark.fail(str(error))

    def pump(self, until: Callable[[], bool], timeout_ms: int) -> bool:
        """Drive the engine, blocking, until `until()` (True), or a failure, which is raised, or the time is up."""
        deadline = time.monotonic() + timeout_ms / 1000
        while not until():
            if self.coordinator.failure is not None:
                raise self.coordinator.failure.again()
            if time.monotonic() > deadline:
                return False
            self.poll(TICK_MS)
            self.tick()
        return True

    def poll(self, timeout_ms: int) -> None:
        poller = select.poll()
        shards: dict[int, int] = {}
        for shard, link in enumerate(self.workers.links):
            if link is not None:
                shards[link.fileno()] = shard
                poller.register(link.fileno(), select.POLLIN | (select.POLLOUT if link.wants_write else 0))
        for descriptor, _ in poller.poll(timeout_ms):
            self.on_readable(shards[descriptor])

    # ---- stop ----------------------------------------------------------------------------------------------------

    def stop(self, patience_ms: int | None = None) -> None:
        """Finish what is in flight, make it durable, end the workers. Blocks up to `stop_timeout_ms` for what is in
        flight and for workers to end, and `flush_timeout_ms` for the disk; or up to `patience_ms` for each.

        Raises the failure that kept it from finishing; the workers are gone all the same, and the next start judges
        what they left.
        """
        coordinator, within = self.coordinator, self.config.stop_timeout_ms if patience_ms is None else patience_ms
        try:
            coordinator.cancel_snapshot("the engine stops")
            self.pump(lambda: not coordinator.pinning.busy, within)
            if not self.pump(lambda: coordinator.idle, within):
                raise self.timed_out("chunks were still in flight", "stop_timeout_ms")
            self.flush(patience_ms)
            self.workers.stop(self.config.stop_timeout_ms)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Kill the workers and give back everything but the readers' side and the directory's lock."""
        self.mark.record_failure()
        for shard, link in enumerate(self.workers.links):
            if link is not None:
                self.off_link(shard, link.fileno())
        self._open.close()


def machine_name(machine: type[Machine]) -> str:
    """`module:qualname`. MachineImportError when that is no machine, or no other process can import it."""
    if not (isinstance(machine, type) and issubclass(machine, Machine)) or machine.__abstractmethods__:
        raise MachineImportError(f"{machine!r} is no class that implements Machine", hint="pass the class itself")
    known = {name: getattr(machine, name, None) for name in ("name", "version", "command")}
    if not isinstance(known["name"], str) or not isinstance(known["version"], int) or known["command"] is None:
        raise MachineImportError(
            f"{machine.__qualname__} has name={known['name']!r}, version={known['version']!r}, "
            f"command={known['command']!r}",
            hint="a machine's class names a str, an int, and its commands' type",
        )
    if machine.__module__ == "__main__" or "<locals>" in machine.__qualname__:
        raise MachineImportError(
            f"workers cannot import the machine class {machine.__module__}.{machine.__qualname__}",
            hint="define it at the top level of an importable module, not in the program's main file or a function",
            machine=machine.__qualname__,
        )
    return f"{machine.__module__}:{machine.__qualname__}"
