"""Taking a snapshot of a running engine: when it is asked for, and when the policy says so."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from shardengine.engine.commit.pinning import Done, Request
from shardengine.engine.config import EngineConfig
from shardengine.engine.contract import SnapshotInfo, SnapshotMetadata
from shardengine.engine.errors import SnapshotError
from shardengine.engine.run.busy import Busy
from shardengine.engine.run.runtime import Runtime
from shardengine.engine.run.shell import Shell
from shardengine.engine.run.tasks import called_back
from shardengine.engine.snapshot.folder import writing_into
from shardengine.engine.snapshot.keeper import Snapshots, metadata_of
from shardengine.engine.snapshot.manifest import Manifest
from shardengine.engine.snapshot.policy import PolicyState, SnapshotPolicy
from shardengine.shards.types import LogId

log = logging.getLogger("shardengine")


class Taking:
    """Pins and copies beside applies, then gives the snapshot its place among `snapshots`."""

    def __init__(self, shell: Shell, busy: Busy, snapshots: Snapshots, config: EngineConfig) -> None:
        self._shell = shell
        self._busy = busy
        self._snapshots = snapshots
        self._config = config
        self._policy = PolicyState(SnapshotPolicy(), _now_ms())
        self._told = False

    async def into(self, directory: Path, last_included: LogId | None) -> SnapshotMetadata:
        """See `Engine.generate_snapshot_data`."""
        runtime = self._shell.bind()
        with self._busy.one(runtime), writing_into(directory) as target:
            manifest = await self._take(runtime, target, last_included)
        metadata = self._snapshots.metadata = metadata_of(manifest)
        self._say(manifest.last_included, directory)
        return metadata

    async def create(self) -> SnapshotInfo:
        """See `Engine.create_snapshot`."""
        runtime = self._shell.bind()
        with self._busy.one(runtime), self._snapshots.partial() as partial:
            await self._take(runtime, partial.path, None)
            runtime.mark.check_sound()
            info = await self._shell.tasks.in_thread(lambda: self._snapshots.keep(partial))
            runtime.durability.check_place()  # else it counted, and lay where no start looks
        self._say(info.last_included, info.path)
        return info

    async def _take(self, runtime: Runtime, directory: Path, label: LogId | None) -> Manifest:
        timeout = self._config.snapshot_timeout_ms / 1000

        def begin(done: Done) -> None:
            runtime.snapshot(Request(label, directory, timeout, done))

        outcome = await called_back(begin, lambda: runtime.cancel_snapshot("its caller was cancelled"))
        if isinstance(outcome, SnapshotError):
            raise outcome
        return await self._shell.tasks.in_thread(lambda: self._snapshots.complete(directory, runtime.fixed, outcome))

    def _say(self, last: LogId, path: Path | str) -> None:
        log.info("%s: snapshot taken at index %d: %s", self._shell.readside.path, last.index, path)

    # ---- the policy ----------------------------------------------------------------------------------------------

    def follow(self, policy: SnapshotPolicy) -> None:
        """From now on take snapshots by themselves when `policy` says so."""
        self._policy.policy = policy

    def tick(self, runtime: Runtime) -> None:
        """Time has passed: begin a snapshot when one is due."""
        entries, size = runtime.take_counts()
        if not self._told:  # what earlier runs left without one
            self._told = True
            entries = max(entries, runtime.last_applied.index - self._snapshots.newest.index)
        self._policy.applied(entries, size)
        if self._shell.applies and not self._busy.taking and self._policy.due(_now_ms()):
            self._shell.tasks.spawn(self._scheduled())

    async def _scheduled(self) -> None:
        self._policy.begun(_now_ms())
        ok = False
        try:
            await self.create()
            ok = True
        except Exception as error:
            log.warning("the scheduled snapshot failed: %s", error)
        finally:
            self._policy.ended(_now_ms(), ok)


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000
