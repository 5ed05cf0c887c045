"""Going on from a snapshot of another node, where the log does not hold what this one needs next."""

from __future__ import annotations

import asyncio
import logging
import time
from itertools import count
from pathlib import Path

from shardengine.engine.engine import Engine
from shardengine.engine.errors import (
    EngineError,
    LogClosedError,
    LogTruncatedError,
    SnapshotDamagedError,
    SnapshotError,
    SnapshotInProgressError,
    StoreError,
)
from shardengine.engine.node.fetching import answered, fetch
from shardengine.engine.node.giving import gives, wanted
from shardengine.engine.node.members import ROUNDS, Members
from shardengine.engine.node.place import place_of_snapshot
from shardengine.engine.node.shared import Member, SharedLog
from shardengine.engine.node.shelf import Shelf
from shardengine.engine.run.tasks import Tasks
from shardengine.engine.snapshot.folder import remove_snapshot
from shardengine.shards.types import LogId

RETRY_S = 0.5
PAUSE_S = 10.0
"""So long, at most, between tries that fail: each may copy a whole snapshot."""
log = logging.getLogger("shardengine")


class Bootstrap:
    """Fetches and installs snapshots. `stalled`: what it waits for; None: nothing."""

    def __init__(
        self, engine: Engine, asked: SharedLog, members: Members, directory: Path, shelf: Shelf | None = None
    ) -> None:
        self.stalled: str | None = None
        self._failures = 0
        self._engine = engine
        self._log = asked
        self._members = members
        self._snapshots = directory / "snapshots"
        self._shelf = shelf
        self._work = Tasks()

    async def install(self, truncated: LogTruncatedError, patience_s: float | None = None) -> int:
        """Wait for a member that gives a snapshot newer than the state, behind which the log goes on; install it.
        Where none does, one of a shared directory will do, or a member is asked to take one. Returns the position to
        read on from.

        Raises `truncated` once nobody gave one for `patience_s` (None: never), what the log or the engine failed with.
        """
        self._failures = 0
        first, since = truncated.facts.get("first", 0), time.monotonic()
        self.stalled = f"a snapshot is needed from another node: {truncated.message}"
        log.warning("%s", self.stalled)
        try:
            for turn in count(1):
                await self._members.round()
                if await self._install_any(first) or (turn >= ROUNDS and await self._install_shelved(first)):
                    return await place_of_snapshot(self._engine, self._log)
                if turn >= ROUNDS:
                    await self._have_one_taken(first, turn)
                if patience_s is not None and time.monotonic() - since >= patience_s:
                    raise truncated.again()
                await asyncio.sleep(min(PAUSE_S, RETRY_S * (1 + self._failures)))
            raise AssertionError
        finally:
            self.stalled = None

    def _givers(self, first: int) -> list[Member]:
        """Who may give one, the newest first."""
        applied = self._engine.last_applied()
        able = [member for member in self._members.others() if gives(member, first, applied)]
        return sorted(able, key=lambda member: member.snapshot, reverse=True)

    async def _have_one_taken(self, first: int, turn: int) -> None:
        """Where nobody gives a snapshot that reaches, ask one whose state does, each in turn, to take one."""
        applied = self._engine.last_applied()
        able = [one for one in self._members.others() if one.applied.term + 1 >= first and one.applied > applied]
        if not able or self._givers(first):
            return
        try:
            await answered(self._log, able[turn % len(able)].node, wanted(b"", 0, first))
        except LogClosedError:
            raise
        except EngineError as error:
            log.debug("no snapshot was taken: %s", error)

    async def _install_any(self, first: int) -> bool:
        for member in self._givers(first):
            if await self._install_from(member, first):
                return True
        return False

    async def _install_from(self, member: Member, first: int) -> bool:
        applied = self._engine.last_applied()

        def suits(label: LogId) -> bool:
            return label.term + 1 >= first and label > applied

        try:
            path = await fetch(self._log, member.node, self._snapshots, suits)
        except LogClosedError:
            raise
        except (EngineError, TimeoutError) as error:
            return self._failed(f"node {member.node} on {member.host} could give no snapshot: {error}")
        try:
            await self._restore(path)
        except (SnapshotError, StoreError) as error:
            return self._failed(f"the snapshot from node {member.node} on {member.host} was not installed: {error}")
        log.info("%s: goes on from a snapshot of node %s", self._snapshots, member.node)
        return True

    async def _install_shelved(self, first: int) -> bool:
        shelf, applied = self._shelf, self._engine.last_applied()
        if shelf is None:
            return False
        try:
            path = await self._work.in_thread(lambda: shelf.take(first, applied, self._snapshots))
            if path is None:
                return False
            await self._restore(path)
        except (SnapshotError, StoreError) as error:
            return self._failed(f"no shared snapshot can be installed: {error}")
        log.info("%s: goes on from a shared snapshot", path)
        return True

    def _failed(self, why: str) -> bool:
        self.stalled = why
        self._failures += 1
        log.warning("%s", why)
        return False

    async def _restore(self, path: Path) -> None:
        """It lies among the node's own, of whose lineage the state is from then on: it counts, and a power loss leaves
        it."""
        while True:
            try:
                await self._engine.restore(path)
                return
            except SnapshotInProgressError:
                await asyncio.sleep(RETRY_S)
            except SnapshotDamagedError:
                await self._work.in_thread(lambda: remove_snapshot(path))
                raise
