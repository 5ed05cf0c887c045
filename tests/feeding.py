"""A stream without end, whose results are compared with the model's, and who kills workers meanwhile."""

from __future__ import annotations

import asyncio
import os
import random
import select
import signal
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from shardengine import ApplyResult, Engine
from shardengine.shards import wire
from tests.logs import Log, Model

ITERATIONS_MAX = 300
MOMENT_S = 0.004


class Feeder:
    """Feeds a random log for ever, some chunks in flight, and compares every result with the model's."""

    def __init__(self, db: Engine, log: Log, follower: Model, seed: int) -> None:
        self.follower = follower
        self.submitted = 0
        self.ending = False
        self._db = db
        self._log = log
        self._ends = log.ends(f"{seed}", 0, 96)
        self._rng = random.Random(seed)
        self._flying: deque[asyncio.Task[Sequence[ApplyResult]]] = deque()

    async def run(self) -> None:
        while not self.ending:
            first, last = self.submitted + 1, next(self._ends)
            self.submitted = last
            self._flying.append(asyncio.create_task(self._db.apply_chunk(self._log.entries(first, last))))
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

    def __init__(self, db: Engine, feeder: Feeder, rng: random.Random, orders: Sequence[type[wire.Order]]) -> None:
        """`orders`: kinds that are sent again and again."""
        self.workers = db._running().workers
        self.kills = 0
        self._db = db
        self._feeder = feeder
        self._rng = rng
        self._orders = orders
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
        kind, before = self._rng.choice(self._orders), self._rng.random() < 0.5
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
        moment = self._rng.random() * self._rng.choice([0.01, 0.1])  # one that is forked says hello sooner

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


async def rampage(killer: Killer, feeder: Feeder, kills: int) -> None:
    """Kill so many times while the feeder feeds, then let it end."""
    feeding = asyncio.create_task(feeder.run())
    killing = asyncio.create_task(strike(killer, kills))
    await asyncio.wait([feeding, killing], return_when=asyncio.FIRST_COMPLETED)
    if feeding.done():
        killing.cancel()
        await feeding
    await killing
    feeder.ending = True
    await feeding


async def strike(killer: Killer, kills: int) -> None:
    for _ in range(kills):
        await killer.kill()


async def holds(db: Engine, feeder: Feeder) -> None:
    """The engine has the model's state at the end of all that was fed."""
    model = feeder.follower
    assert db.last_applied().index == model.index == feeder.submitted
    assert dict(db.scan_prefix(b"").entries) == model.records
    assert await db.digest() == model.digest()
