"""Snapshots, compactions, flushes, digests, views and dying workers beside a feeder, some of them cancelled: whatever
they meet, nothing acknowledged is lost, and what is left is the model's.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from shardengine import Engine, SnapshotAbortedError, SnapshotInProgressError, run
from shardengine.engine.verify import verify_snapshot
from tests.streams import Follower, chunk_ends, entries
from tests.taking import CONFIG

TURNS = 40  # things that are begun beside the feeder
TURNS_OF_THE_LOOP_MAX = 400  # before one is cancelled
REFUSED = (SnapshotInProgressError, SnapshotAbortedError)


class Beside:
    """One engine, a feeder, and what else is asked of it meanwhile."""

    def __init__(self, db: Engine, seed: int) -> None:
        self._db = db
        self._seed = seed
        self._draw = random.Random(seed)
        self._works: list[Callable[[], Awaitable[object]]] = [
            db.create_snapshot,
            db.compact,
            db.flush_async,
            db.digest,
            self._look,
            self._kill,
        ]
        self.acknowledged = 0

    async def _look(self) -> None:
        with self._db.view() as view:
            before = view.revision, len(view)
            await asyncio.sleep(0)
            assert (view.revision, len(view)) == before

    async def _kill(self) -> None:
        os.kill(self._draw.choice(self._db.stats()["workers"])["pid"], signal.SIGKILL)

    async def _feed(self) -> None:
        for last in chunk_ends(str(self._seed), 0, 200):
            await self._db.apply_chunk(entries(self._seed, self.acknowledged + 1, last))
            self.acknowledged = last

    async def _turn(self) -> None:
        """Begin one or two things; some are cancelled after a while."""
        tasks = [asyncio.ensure_future(self._draw.choice(self._works)()) for _ in range(self._draw.choice((1, 1, 2)))]
        for task in tasks:
            if self._draw.random() < 0.3:
                for _ in range(self._draw.randrange(TURNS_OF_THE_LOOP_MAX)):
                    await asyncio.sleep(0)
                task.cancel()
        for ended in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(ended, BaseException) and not isinstance(ended, (asyncio.CancelledError, *REFUSED)):
                raise ended

    async def live(self) -> None:
        feeder = asyncio.ensure_future(self._feed())
        for _ in range(TURNS):
            await self._turn()
            assert not feeder.done() or feeder.exception() is None
        feeder.cancel()
        await asyncio.wait([feeder])
        last = self._db.last_applied().index + 1
        await self._db.apply_chunk(entries(self._seed, last, last))


@pytest.mark.parametrize("seed", range(1, 5))
def test_whatever_goes_on_beside_a_feeder_nothing_acknowledged_is_lost(tmp_path: Path, seed: int) -> None:
    follower = Follower(seed)

    async def live() -> None:
        async with Engine(tmp_path / "data", shards=2, config=CONFIG) as db:
            beside = Beside(db, seed)
            await beside.live()
            follower.advance(db.last_applied().index)
            assert follower.index > beside.acknowledged
            assert await db.digest() == follower.digest()

    async def look() -> None:
        async with Engine(tmp_path / "data", config=CONFIG) as db:
            assert db.last_applied().index == follower.index
            assert await db.digest() == follower.digest()
            at = Follower(seed)
            for snapshot in sorted(db.snapshots(), key=lambda snapshot: snapshot.last_included.index):
                at.advance(snapshot.last_included.index)
                parts = verify_snapshot(Path(snapshot.path), deep=True).parts
                assert sum(part.entries for part in parts) == len(at.records)

    run(live)
    run(look)
