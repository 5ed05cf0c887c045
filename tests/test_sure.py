"""Groups that no shard can refuse: decided before anybody is asked, where that is sure, and only there."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from engine import CompareAndSwap, Engine, EngineConfig, Entry, LogId, Put, StartReport, WorkerFailedError, encode
from engine.coordinator import DECIDED_KILLS_MAX
from engine.processes import Workers
from shards import wire
from shards.part import SMALL_BYTES, SMALL_ENTRIES
from shards.placement import shard_of, slot_of
from shards.puts import COMPILED

pytestmark = pytest.mark.skipif(not COMPILED, reason="puts are told apart by the compiled part")
VOTED = ["Part", "Part", "Commit", "Commit"]
SURE = ["decided Part", "decided Part"]


@pytest.fixture
def orders(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What workers are told, from now on."""
    told: list[str] = []
    send = Workers.send

    def watched(self: Workers, shard: int, order: wire.Order) -> None:
        told.append(f"{'decided ' * (isinstance(order, wire.Part) and order.decided)}{type(order).__name__}")
        send(self, shard, order)

    monkeypatch.setattr(Workers, "send", watched)
    return told


def key(shard: int, number: int = 0) -> bytes:
    return [name for name in (b"%d" % n for n in range(1_000)) if shard_of(slot_of(name), 2) == shard][number]


class Feed:
    """Sends chunks of commands, and says which orders each of them took."""

    def __init__(self, db: Engine, orders: list[str]) -> None:
        self._db = db
        self._orders = orders
        self.term = 1

    async def __call__(self, *commands: Any) -> list[str]:
        self._orders.clear()
        first = self._db.last_applied().index + 1
        results = await self._db.apply_chunk([Entry(first + n, self.term, encode(c)) for n, c in enumerate(commands)])
        assert all(result.succeeded for result in results)
        return list(self._orders)


async def test_small_puts_over_several_shards_are_decided_at_once(tmp_path: Path, orders: list[str]) -> None:
    both = Put(key(0), b"v"), Put(key(1), b"v")
    async with Engine(tmp_path, shards=2) as db:
        feed = Feed(db, orders)
        assert await feed(*both) == VOTED, "nobody has said that there is room"
        assert await feed(*both) == SURE
        feed.term += 1
        assert await feed(*both) == SURE
        assert await feed(both[0]) == ["Solo"]
        feed.term += 1
        assert await feed(both[0]) == ["decided Part"], "a solo would leave the new term unrecorded"
        assert await feed(both[0], CompareAndSwap(key(1), b"v", b"w")) == VOTED, "its outcome must be told"
        assert await feed(*both) == SURE
        assert db.get_multi([key(0), key(1)]) == [b"v", b"v"]


async def test_what_is_not_small_is_voted_on(tmp_path: Path, orders: list[str]) -> None:
    async with Engine(tmp_path, shards=2) as db:
        feed = Feed(db, orders)
        await feed(Put(key(0), b""), Put(key(1), b""))
        most = [Put(key(n % 2, n), b"") for n in range(SMALL_ENTRIES)]
        assert await feed(*most) == SURE
        assert await feed(*most, Put(key(0), b"")) == VOTED
        assert await feed(Put(key(0), b""), Put(key(1), bytes(SMALL_BYTES - 200))) == SURE
        assert await feed(Put(key(0), b""), Put(key(1), bytes(SMALL_BYTES))) == VOTED


@pytest.mark.parametrize("shards", [2, 3])
async def test_a_decided_group_that_kills_its_workers_stops_the_engine_and_is_redone_by_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards: int
) -> None:
    both = Put(key(0), b"v"), Put(key(1), b"v")
    send = Workers.send

    def murderous(self: Workers, shard: int, order: wire.Order) -> None:
        if isinstance(order, wire.Part) and order.decided and shard == 1:
            self.kill(1)
        send(self, shard, order)

    with suppress(WorkerFailedError):
        async with Engine(tmp_path, shards=2) as db:
            feed = Feed(db, [])
            await feed(*both)
            with monkeypatch.context() as patch:
                patch.setattr(Workers, "send", murderous)
                with pytest.raises(WorkerFailedError, match="entries 3 to 4 killed the worker of shard 1") as caught:
                    await feed(*both)
            assert caught.value.shard == 1
            assert db.last_applied().index == 2 and db.get(key(1)) == b"v" and not db.is_running()
            assert db.stats()["workers"][1]["restarts"] == DECIDED_KILLS_MAX - 1
    db = Engine(tmp_path, shards=shards, reshard=True)
    try:
        assert db.start() == StartReport("redone", LogId(4, 1))
    finally:
        await db.aclose()


@pytest.mark.parametrize("filling", ["both", "solos"])
async def test_a_shard_whose_map_fills_up_is_asked_again(tmp_path: Path, orders: list[str], filling: str) -> None:
    def small() -> list[Put]:
        return [Put(b"%d-%d" % (rounds, n), bytes(200)) for n in range(60)]

    rounds = 0
    async with Engine(tmp_path, shards=2, config=EngineConfig(map_bytes=12 << 20)) as db:
        feed = Feed(db, orders)
        await feed(*small())
        while await feed(*small()) == SURE:
            rounds += 1
            for n in range(10 if filling == "solos" else 0):
                assert await feed(Put(key(0) + b"/%d-%d" % (rounds, n), bytes(9_000))) in (["Solo"], SURE[:1])
        assert rounds > 1
        assert orders == VOTED


async def test_a_solo_tells_of_room_too(tmp_path: Path, orders: list[str]) -> None:
    both = Put(key(0), b"v"), Put(key(1), b"v")
    async with Engine(tmp_path, shards=2) as db:
        await Feed(db, orders)(*both)
    async with Engine(tmp_path, shards=2) as db:
        feed = Feed(db, orders)
        assert [await feed(both[0]), await feed(both[1])] == [["Solo"], ["Solo"]]
        assert await feed(*both) == SURE


async def test_the_word_of_a_dead_worker_counts_no_more(tmp_path: Path, orders: list[str]) -> None:
    both = Put(key(0), b"v"), Put(key(1), b"v")
    async with Engine(tmp_path, shards=2) as db:
        feed = Feed(db, orders)
        await feed(*both)
        runtime = db._running()
        runtime.workers.kill(1)
        assert runtime.pump(lambda: 1 not in runtime.coordinator.up, 60_000)
        assert await feed(*both) == VOTED
        assert await feed(*both) == SURE
