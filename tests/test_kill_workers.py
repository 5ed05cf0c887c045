"""SIGKILL of single workers at random moments of a long stream: callers notice a delay and nothing else."""

from __future__ import annotations

import asyncio
import os
import random
import select
import signal
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from shardengine import ApplyResult, Engine, EngineConfig, WorkerFailedError
from shardengine.engine.run.processes import Workers
from shardengine.shards import wire
from tests.killing import seeded
from tests.streams import Follower, chunk_ends, entries

CONFIG = EngineConfig(map_bytes=64 << 20)
ORDERS = (wire.Part, wire.Commit, wire.Solo)
ITERATIONS_MAX = 300
MOMENT_S = 0.004


class Feeder:
    """Feeds a random log for ever, some chunks in flight, and compares every result with the model's."""

    def __init__(self, db: Engine, seed: int) -> None:
        self.follower = Follower(seed)
        self.submitted = 0
        self.ending = False
        self._db = db
        self._ends = chunk_ends(f"{seed}", 0, 96)
        self._rng = random.Random(seed)
        self._flying: deque[asyncio.Task[Sequence[ApplyResult]]] = deque()

    async def run(self) -> None:
        while not self.ending:
            first, last = self.submitted + 1, next(self._ends)
            self.submitted = last
            self._flying.append(asyncio.create_task(self._db.apply_chunk(entries(self.follower.seed, first, last))))
            await self._land(self._rng.randint(0, 6))
        await self._land(0)

    async def _land(self, flying: int) -> None:
        """Wait until no more than so many chunks are in flight."""
        while len(self._flying) > flying:
            results = await self._flying.popleft()
            assert results == self.follower.advance(results[-1].index)


class Killer:
    """Kills a worker at a moment of one of several kinds, and waits until the stream is beyond it.

    A group whose worker dies three times is held for the killer. So no kill comes before all that was in flight at the
    one before is applied.
    """

    def __init__(self, db: Engine, feeder: Feeder, rng: random.Random) -> None:
        self.workers = db._running().workers
        self.kills = 0
        self._db = db
        self._feeder = feeder
        self._rng = rng
        self._send, self._start = self.workers.send, self.workers.start

    async def kill(self) -> None:
        shard = self._rng.randrange(self._db.stats()["shards"])
        starts = self.workers.starts[shard]
        kinds = [self._at_an_iteration, self._from_a_thread, self._at_a_publish, self._at_an_order, self._and_again]
        await self._rng.choice(kinds)(shard)
        await self._beyond(lambda: self.workers.starts[shard] > starts)

    async def _beyond(self, true: Callable[[], bool]) -> None:
        """Wait until `true()`, and then for what is in flight."""
        while not true():
            await self._progress()
        await self._db.wait_applied(self._feeder.submitted)

    async def _progress(self) -> None:
        await self._db.wait_applied(self._db.last_applied().index + 1)

    def _strike(self, shard: int) -> None:
        self.kills += 1
        self.workers.kill(shard)

    async def _at_an_iteration(self, shard: int) -> None:
        for _ in range(self._rng.randrange(ITERATIONS_MAX)):
            await asyncio.sleep(0)
        self._strike(shard)

    async def _from_a_thread(self, shard: int) -> None:
        moment = self._rng.random() * MOMENT_S
        self.kills += 1

        def strike() -> None:
            select.select([], [], [], moment)
            pid = self.workers.pid(shard)
            assert pid is not None
            os.kill(pid, signal.SIGKILL)

        await asyncio.to_thread(strike)

    async def _at_a_publish(self, shard: int) -> None:
        for _ in range(self._rng.randrange(4)):
            await self._progress()
        self._strike(shard)

    async def _at_an_order(self, shard: int) -> None:
        """Just before, or just after, an order of some kind is sent to it."""
        kind, before = self._rng.choice(ORDERS), self._rng.random() < 0.5
        struck = asyncio.get_running_loop().create_future()

        def send(to: int, order: wire.Order) -> None:
            chosen = to == shard and isinstance(order, kind) and not struck.done()
            if chosen and before:
                self._strike(shard)
            self._send(to, order)
            if chosen:
                if not before:
                    self._strike(shard)
                struck.set_result(None)

        self.workers.send = send  # type: ignore[assignment, method-assign]
        await struck
        self.workers.send = self._send  # type: ignore[method-assign]

    async def _and_again(self, shard: int) -> None:
        """It, and then the one in its place, before or after that says hello."""
        struck = asyncio.get_running_loop().create_future()
        moment = self._rng.random() * 0.1

        def start(at: int) -> Any:
            if at == shard:
                self.workers.start = self._start  # type: ignore[method-assign]
                asyncio.get_running_loop().call_later(moment, again)
            return self._start(at)

        def again() -> None:
            self._strike(shard)
            struck.set_result(None)

        self.workers.start = start  # type: ignore[assignment, method-assign]
        self._strike(shard)
        starts = self.workers.starts[shard]
        await struck
        await self._beyond(lambda: self.workers.starts[shard] == starts + 2)


@pytest.mark.parametrize(("shards", "kills"), [(2, 50), (3, 50), (2, 51), (3, 51)])
async def test_a_worker_killed_at_random_moments_is_a_delay_and_nothing_else(
    tmp_path: Path, shards: int, kills: int
) -> None:
    rng = seeded()
    async with Engine(tmp_path / "data", shards=shards, config=CONFIG) as db:
        feeder = Feeder(db, rng.randrange(1, 1 << 30))
        feeding = asyncio.create_task(feeder.run())
        killer = Killer(db, feeder, rng)
        killing = asyncio.create_task(rampage(killer, kills))
        await asyncio.wait([feeding, killing], return_when=asyncio.FIRST_COMPLETED)
        if feeding.done():
            killing.cancel()
            await feeding
        await killing
        feeder.ending = True
        await feeding
        model = feeder.follower
        assert db.last_applied().index == model.index == feeder.submitted
        assert dict(db.scan_prefix(b"").entries) == model.records
        assert await db.digest() == model.digest()
        assert sum(worker["restarts"] for worker in db.stats()["workers"]) == killer.kills >= kills


async def rampage(killer: Killer, kills: int) -> None:
    for _ in range(kills):
        await killer.kill()


async def test_a_killed_worker_is_gone_and_another_pid_is_in_its_place(tmp_path: Path) -> None:
    async with Engine(tmp_path / "data", shards=2, config=CONFIG) as db:
        await db.apply_chunk(entries(1, 1, 50))
        before = db.stats()["workers"]
        descriptor = os.pidfd_open(before[1]["pid"])
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        await db.apply_chunk(entries(1, 51, 100))
        assert select.select([descriptor], [], [], 0)[0], "the killed process lives"
        os.close(descriptor)
        after = db.stats()["workers"]
        assert after[0] == before[0]
        assert after[1]["restarts"] == 1 and after[1]["pid"] != before[1]["pid"]


@pytest.mark.parametrize("times", [1, 3, 9])
def test_workers_killed_while_the_engine_starts_are_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    kill_the_first(monkeypatch, times)
    db = Engine(tmp_path / "data", shards=2, config=CONFIG)
    db.start()
    assert [worker["restarts"] for worker in db.stats()["workers"]] == [0, times]
    db.stop()
    db.close_storage()


def test_workers_that_never_get_ready_are_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kill_the_first(monkeypatch, 1000)
    db = Engine(tmp_path / "data", shards=2, config=CONFIG)
    with pytest.raises(WorkerFailedError, match="shard 1 died 10 times in a row") as caught:
        db.start()
    assert caught.value.shard == 1
    assert not db.is_running()


def kill_the_first(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Kill the first `times` workers of shard 1 as soon as they are started."""
    original = Workers.start

    def start(self: Workers, shard: int) -> Any:
        link = original(self, shard)
        if shard == 1 and self.starts[shard] <= times:
            self.kill(shard)
        return link

    monkeypatch.setattr(Workers, "start", start)
