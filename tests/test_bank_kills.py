"""A bank while workers, or everything, are killed: no view ever shows money made or lost, and every result, every
balance and the digest are those of the memory machine, for every shard count. It has 2,000 accounts; 10,000 with
`HYPOTHESIS_PROFILE=deep`."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from pathlib import Path

import pytest

from shardengine import Engine, EngineConfig
from shardengine.machines.bank import Bank
from shardengine.shards import wire
from tests.banking import ACCOUNTS, LOOK_EVERY_S, OPENING_CHUNK, Banking, check, look, look_and_check
from tests.feeding import Feeder, Killer, holds, rampage
from tests.kill_child import Acknowledged, Opened, Orders, Viewed
from tests.killing import DEEP, WATCHDOG_S, Judge, Prey, note, seeded
from tests.logs import Oracle
from tests.taking import restarts
from tests.test_kill_everything import START_S, STARTS_KILLED, spin, stream_orders

CONFIG = EngineConfig(map_bytes=64 << 20)
PERCENTS = pytest.mark.parametrize("percent", [0, 10, 100])


def with_percents(counts: list[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """With each percentage of transfers over two shards; one shard has none."""
    return [(*count, percent) for count in counts for percent in (0, 10, 100) if count[0] > 1 or not percent]


class Looker:
    """Looks at views, new ones and some that it has kept for a while."""

    def __init__(self, db: Engine, rng: random.Random) -> None:
        self.views = 0
        self._db = db
        self._rng = rng

    async def run(self) -> None:
        while True:
            with self._db.view() as kept:
                for _ in range(self._rng.randrange(3)):
                    await self._pause()
                    look_and_check(self._db, self._rng)
                    self.views += 1
                check(kept.revision, *look(kept, self._rng))
                self.views += 1
            await self._pause()

    async def _pause(self) -> None:
        await asyncio.sleep(self._rng.random() * LOOK_EVERY_S)


@pytest.mark.usefixtures("forked_workers")
@pytest.mark.parametrize(
    ("shards", "kills", "percent"),
    with_percents([(1, 15), (2, 19), (3, 18), (8, 15)] if DEEP else [(1, 8), (2, 12), (3, 12), (8, 10)]),
)
async def test_workers_of_a_bank_are_killed_at_random_moments_and_no_money_is_lost(
    tmp_path: Path, shards: int, kills: int, percent: int
) -> None:
    rng = seeded()
    log = Banking(rng.randrange(1, 1 << 30), shards, percent)
    async with Engine(tmp_path / "data", shards=shards, machine=Bank, config=CONFIG) as db:
        feeder = Feeder(db, log, Oracle(log), log.seed)
        orders: list[type[wire.Order]] = [wire.Part, wire.Commit] if shards > 1 else [wire.Solo]
        if percent:
            orders.append(wire.Writes)
        killer, looker = Killer(db, feeder, rng, orders), Looker(db, random.Random(log.seed))
        looking = asyncio.create_task(looker.run())
        await rampage(killer, feeder, kills)
        if looking.done():
            await looking
        looking.cancel()
        await holds(db, feeder)
        note(f"{killer.kills} kills, {looker.views} views, {feeder.submitted} entries")
        assert len(db) == ACCOUNTS and looker.views > kills
        assert restarts(db) == killer.kills >= kills


@pytest.mark.parametrize(
    ("shards", "rounds", "percent"),
    with_percents([(1, 20), (2, 12), (2, 13), (3, 9), (3, 8), (8, 6)] if DEEP else [(1, 10), (2, 12), (3, 9), (8, 4)]),
)
def test_a_bank_is_killed_as_a_whole_at_random_moments_and_no_money_is_lost(
    tmp_path: Path, shards: int, rounds: int, percent: int
) -> None:
    rng = seeded()
    seed = rng.randrange(1, 1 << 30)
    judge = Judge(tmp_path / "data", shards, seed, f"bank {percent}")
    for number in range(rounds):
        orders = stream_orders(judge, rng, f"{seed}/{number}", number, views=True)
        with judge.prey(orders) as prey:
            if number and rng.random() < STARTS_KILLED:
                judge.judge(list(prey.frames(time.monotonic() + rng.random() * START_S[orders.forked])), orders)
            else:
                live(prey, judge, orders, rng)
            prey.kill_everything()
            judge.judge(prey.rest(), orders)
            assert prey.process.wait(WATCHDOG_S) == -signal.SIGKILL, prey.errors()
        judge.crashed()
    judge.finish()
    note(f"{judge.crashes} kills, {judge.redone} redone, {judge.views} views, {judge.model.index} entries")
    assert judge.model.index > ACCOUNTS and judge.views > rounds


def live(prey: Prey, judge: Judge, orders: Orders, rng: random.Random) -> None:
    """Let it open its directory, and apply some chunks; the accounts at least."""
    left = rng.choice([0, 1, rng.randrange(30)]) + 5 * (judge.acknowledged < ACCOUNTS)
    for frame in prey.frames():
        judge.judge([frame], orders)
        assert isinstance(frame, (Opened, Acknowledged, Viewed)), frame
        left -= isinstance(frame, Acknowledged)
        if left <= 0:
            break
    spin(rng)


@pytest.mark.usefixtures("forked_workers")
@PERCENTS
async def test_a_bank_answers_the_same_for_every_shard_count(tmp_path: Path, percent: int) -> None:
    log = Banking(seeded().randrange(1, 1 << 30), 8, percent)
    model = Oracle(log)
    ends = [*range(OPENING_CHUNK, ACCOUNTS + 1, OPENING_CHUNK)]
    ends += [ACCOUNTS + more for more in (500, 501, 1500, 3000)]
    expected = [model.advance(end) for end in ends]
    assert any(not result.succeeded for results in expected for result in results)
    for shards in (1, 2, 3, 8):
        async with Engine(tmp_path / f"{shards}", shards=shards, machine=Bank, config=CONFIG) as db:
            starts = [0, *ends]
            chunks = [log.entries(first + 1, last) for first, last in zip(starts, ends, strict=False)]
            calls = [asyncio.create_task(db.apply_chunk(chunk)) for chunk in chunks]
            assert [list(results) for results in await asyncio.gather(*calls)] == expected
            assert (await db.digest(), dict(db.scan_prefix(b"").entries)) == (model.digest(), model.records)
