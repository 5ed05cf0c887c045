"""Polling before sleeping: how long, when not, and what it makes of the engine's loop."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from shardengine import Engine, EngineConfig, Entry, Put, encode
from shardengine.engine.commit.coordinator import BRIEF_BYTES
from shardengine.ipc.spin import REST_MAX, REST_MIN, Spin
from tests.conftest import halt
from tests.inside import shell_of


class Core:
    """A clock, and a core that is given back `away` microseconds after each yield."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0
        self.away = 10
        monkeypatch.setattr("shardengine.ipc.spin.time.perf_counter_ns", lambda: 1_000 * self.now)
        monkeypatch.setattr("shardengine.ipc.spin.os.sched_yield", self._yield)

    def _yield(self) -> None:
        self.now += self.away


def looks(spin: Spin) -> int:
    """How often it looks again in one wait; -1: it sleeps at once."""
    if not spin.begin():
        return -1
    count = 0
    while spin.again():
        count += 1
    return count


def test_it_polls_for_as_long_as_it_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    Core(monkeypatch)
    assert [looks(Spin(us)) for us in (0, 5, 10, 100, 1_000)] == [-1, 0, 0, 9, 99]


def test_where_the_core_is_wanted_it_rests_ever_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    core, spin = Core(monkeypatch), Spin(100)
    core.away = 4_000
    rests = []
    for _ in range(10):
        assert looks(spin) == 0
        waits = 0
        while not spin.begin():
            waits += 1
        rests.append(waits)
    assert rests[:3] == [REST_MIN, 2 * REST_MIN - 2, 4 * REST_MIN - 6]
    assert rests == sorted(rests) and REST_MAX // 2 < rests[-1] <= REST_MAX
    core.away = 10
    assert looks(spin) == 9
    for _ in range(REST_MAX):
        looks(spin)
    core.away = 4_000
    looks(spin)
    assert [looks(spin) for _ in range(REST_MIN + 1)] == [-1] * REST_MIN + [0]


@pytest.fixture
def yields(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One for each time this process gives its core away."""
    seen: list[None] = []
    sched_yield = os.sched_yield

    def counted() -> None:
        seen.append(None)
        sched_yield()

    monkeypatch.setattr("shardengine.ipc.spin.os.sched_yield", counted)
    return seen


def put(index: int, size: int = 10) -> list[Entry]:
    return [Entry(index, 1, encode(Put(b"k", bytes(size))))]


async def until_it_polls(db: Engine, yields: list[None]) -> None:
    """Apply chunks until one is polled for: where the core was lost before, some are not."""
    for index in range(db.last_applied().index + 1, 4 * REST_MIN):
        await db.apply_chunk(put(index))
        if yields:
            return
    pytest.fail("it never polls")


PATIENT: dict[str, Any] = {"spin_us": 10_000}


async def test_the_loop_stays_awake_while_a_small_chunk_is_in_flight_and_no_longer(
    tmp_path: Path, yields: list[None]
) -> None:
    async with Engine(tmp_path, shards=2, config=EngineConfig(**PATIENT)) as db:
        await db.apply_chunk(put(1))
        yields.clear()
        await until_it_polls(db, yields)
        seen = len(yields)
        for _ in range(100):
            await asyncio.sleep(0)
        assert len(yields) == seen


@pytest.mark.parametrize(
    ("settings", "size"),
    [({"spin_us": 0}, 10), (PATIENT | {"durability": "power"}, 10), (PATIENT, BRIEF_BYTES)],
    ids=["told not to", "a disk to wait for", "a large chunk"],
)
async def test_it_sleeps_where_polling_is_no_use(
    tmp_path: Path, yields: list[None], settings: dict[str, Any], size: int
) -> None:
    async with Engine(tmp_path, shards=2, config=EngineConfig(**settings)) as db:
        await db.apply_chunk(put(1, size))
        assert yields == []


async def test_a_worker_that_does_not_answer_is_not_polled_for_longer_than_was_said(
    tmp_path: Path, yields: list[None]
) -> None:
    async with Engine(tmp_path, shards=1, config=EngineConfig(spin_us=1_000)) as db:
        pid = db.stats()["workers"][0]["pid"]
        halt(pid)
        applying = asyncio.ensure_future(db.apply_chunk(put(1)))
        await asyncio.sleep(0)
        while shell_of(db)._awake:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert yields
        os.kill(pid, signal.SIGCONT)
        await applying


def test_a_loop_that_is_closed_in_the_middle_does_not_spoil_the_next(tmp_path: Path, yields: list[None]) -> None:
    db = Engine(tmp_path, shards=1, config=EngineConfig(**PATIENT))
    db.start()

    async def abandon() -> None:
        applying = asyncio.ensure_future(db.apply_chunk(put(1)))
        await asyncio.sleep(0)
        applying.cancel()

    loop = asyncio.new_event_loop()
    loop.run_until_complete(abandon())
    loop.close()
    db.stop()
    yields.clear()

    async def again() -> None:
        async with db:
            await until_it_polls(db, yields)

    asyncio.run(again())


def test_workers_are_told_how_long_to_poll(tmp_path: Path) -> None:
    db = Engine(tmp_path, shards=1, config=EngineConfig(spin_us=77))
    db.start()
    try:
        assert db._running()._spec(0).spin_us == 77
    finally:
        db.stop()
        db.close_storage()
