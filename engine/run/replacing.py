"""Moving over to another generation: install, restore, reset, compact. One way for all of them, in steps:

    step     what it does                                              what undoes it
    verify   an install copies the snapshot, and checks the copy       the new generation is removed
    quiesce  no chunk is accepted; what is in flight is applied        chunks are accepted again
    build    the new generation gets its state, durable                it is removed
    start    its workers start, and its readers' side opens            they end, and it is closed
    flip     CURRENT names it; readers and chunks go to it             nothing: from here on there is no way back
    retire   the old run ends, and its generation is removed           nothing

The steps before the flip leave the state that is read untouched. Where the flip fails and CURRENT may name the new
generation all the same, the engine fails: what it applied from then on, the next start might not find.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import msgspec

from shardengine.engine.config import EngineConfig
from shardengine.engine.contract import SnapshotMetadata
from shardengine.engine.errors import DirectoryChangedError, EngineStoppedError, StoreError
from shardengine.engine.run.busy import Busy
from shardengine.engine.run.compacting import compacted
from shardengine.engine.run.opening import half_bytes
from shardengine.engine.run.runtime import TICK_MS, Runtime
from shardengine.engine.run.shell import Shell
from shardengine.engine.snapshot.build import Origin, Snapshot, Target, build, take
from shardengine.engine.snapshot.keeper import Snapshots
from shardengine.engine.storage.generations import Generation, new_lineage
from shardengine.ipc.files import SyncError
from shardengine.shards.machine import Machine

log = logging.getLogger("shardengine")
Built = Callable[[ExitStack], Generation]


class Replacing:
    """Replaces the state of a running engine as a whole. What a step adds to an `ExitStack` undoes it."""

    def __init__(
        self, shell: Shell, busy: Busy, snapshots: Snapshots, machine: type[Machine], config: EngineConfig
    ) -> None:
        self._shell = shell
        self._busy = busy
        self._snapshots = snapshots
        self._machine = machine
        self._config = config

    async def install(self, path: Path, metadata: SnapshotMetadata | None, *, force: bool) -> None:
        """See `Engine.apply_snapshot_from_file`, and `Engine.restore` for `force`."""
        runtime, snapshots = self._shell.bind(), self._snapshots
        with self._busy.one(runtime):
            with ExitStack() as undo:
                snapshot, generation, origin = await self._shell.tasks.in_thread(
                    lambda: self._verified(runtime, path, metadata, undo, force=force)
                )

                def built(_: ExitStack) -> Generation:
                    admitted = snapshots.admitted(origin, runtime.last_applied, force=force)
                    return build(runtime.opened.directory, generation, admitted, self._target(runtime))

                retired = await self._replace(runtime, built, undo)
            snapshots.installed(snapshot)
            await self._retire(retired)

    async def reset(self) -> None:
        """See `Engine.reset`. The new state is of a lineage of its own: no snapshot taken before belongs to it."""
        runtime = self._shell.bind()

        def empty(undo: ExitStack) -> Generation:
            directory = runtime.opened.directory
            fixed = msgspec.structs.replace(runtime.fixed, lineage=new_lineage())
            generation = directory.create(runtime.shards, fixed, half_bytes(self._config))
            undo.callback(directory.discard, generation)
            return generation

        await self._replace_by(runtime, empty)

    async def compact(self) -> None:
        """See `Engine.compact`."""
        runtime = self._shell.bind()

        def copied(undo: ExitStack) -> Generation:
            directory = runtime.opened.directory
            generation = compacted(directory, runtime.reads, runtime.term_runs(), runtime.fixed, self._target(runtime))
            undo.callback(directory.discard, generation)
            return generation

        await self._replace_by(runtime, copied)

    async def _replace_by(self, runtime: Runtime, built: Built) -> None:
        with self._busy.one(runtime):
            with ExitStack() as undo:
                retired = await self._replace(runtime, built, undo)
            await self._retire(retired)

    # ---- the steps -----------------------------------------------------------------------------------------------

    def _verified(
        self, runtime: Runtime, path: Path, metadata: SnapshotMetadata | None, undo: ExitStack, *, force: bool
    ) -> tuple[Snapshot, Generation, Origin]:
        """Verify: which snapshot that is, our own copy of it in a new generation, and what that will hold. Blocks."""
        snapshot = self._snapshots.asked_for(path, metadata, runtime.fixed)
        self._snapshots.check_newer(snapshot.manifest.last_included, runtime.last_applied, force=force)
        generation, origin = take(runtime.opened.directory, snapshot, self._target(runtime))
        undo.callback(runtime.opened.directory.discard, generation)
        return snapshot, generation, origin

    async def _replace(self, old: Runtime, built: Built, undo: ExitStack) -> Generation | None:
        """Quiesce, build, start and flip. Returns the generation to retire; None: CURRENT may yet name it."""
        old.durability.check_place()
        try:
            with self._busy.replacement():
                await self._shell.idle("snapshot_timeout_ms")
                self._check_runs(old)
                generation = await self._shell.tasks.in_thread(lambda: built(undo))
                self._check_runs(old)
                new = await self._started(old, generation, undo)
                unsynced = self._flip(old, generation)
                undo.pop_all()
                self._hand_over(old, new, unsynced)
        finally:
            self._shell.waiting.wake_next()
        log.info("%s: another state is installed, at index %d", self._shell.readside.path, new.last_applied.index)
        return old.opened.generation if unsynced is None else None

    def _check_runs(self, runtime: Runtime) -> None:
        """Whether the directory is still ours to write in."""
        if self._shell.runtime is not runtime:
            raise EngineStoppedError("the engine stopped before the new state was built")

    async def _started(self, old: Runtime, generation: Generation, undo: ExitStack) -> Runtime:
        """Start: a run over `generation`, beside the old one. Its workers are waited for in a thread, which only looks
        whether their links have something."""
        opened = dataclasses.replace(old.opened, generation=generation)
        new = Runtime(opened, self._machine, self._config, old.launch)
        new.begin(old.mark)
        undo.callback(new.drop)
        deadline = time.monotonic() + self._config.start_timeout_ms / 1000
        while not new.ready() and time.monotonic() < deadline:
            await self._beside(lambda: new.crew.wait(TICK_MS))
            self._check_runs(old)
            new.step()
        new.complete()
        return new

    def _flip(self, old: Runtime, generation: Generation) -> SyncError | None:
        """Flip: name `generation` in CURRENT. Returns what keeps the name from the disk, if anything does."""
        try:
            old.durability.check_place()
            return old.opened.directory.make_current(generation)
        except BaseException:
            if old.opened.directory.names(generation):
                old.fail(DirectoryChangedError("the next start opens another state", hint="start again"))
            raise

    def _hand_over(self, old: Runtime, new: Runtime, unsynced: SyncError | None) -> None:
        """The rest of the flip, and the end of the old run: whoever reads, applies or waits does so in `new`."""
        self._shell.take_over(new)
        if unsynced is not None:
            name = new.opened.generation.path.name
            old.mark.fail(f"CURRENT names {name}, but that may not be on the disk: {unsynced}")
        old.replaced()
        if unsynced is not None:
            new.mark.inherit(old.mark)
        self._snapshots.look(new.fixed.lineage, new.last_applied)
        self._shell.waiting.published()

    async def _retire(self, generation: Generation | None) -> None:
        """Retire: remove the generation that nobody reads or writes any more."""
        if generation is not None:
            await self._beside(generation.remove)

    async def _beside(self, work: Callable[[], None]) -> None:
        """Do `work` in a thread; or here, when none can be had."""
        done = False

        def worked() -> None:
            nonlocal done
            done = True
            work()

        try:
            await self._shell.tasks.in_thread(worked)
        except StoreError:
            if done:
                raise
            work()

    def _target(self, runtime: Runtime) -> Target:
        """As many shards as before."""
        config = self._config
        return Target(runtime.shards, self._machine, half_bytes(config), config.map_bytes, config.snapshot_verify)
