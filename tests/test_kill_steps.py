"""Workers that die at a chosen step, that hang, and that one command kills every time."""

from __future__ import annotations

import asyncio
import os
from itertools import count
from pathlib import Path

import pytest

from shardengine import ApplyResult, CompareAndSwap, Delete, Engine, EngineConfig, Entry, Put, WorkerFailedError, encode
from shardengine.shards import wire
from shardengine.shards.placement import shard_of, slot_of
from tests.conftest import halt
from tests.directories import folder_in, mark_of
from tests.dying import ENVIRONMENT, GATE, STEPS, Deadly, Dying
from tests.inside import tick_often
from tests.model import Model
from tests.taking import restarts

pytestmark = pytest.mark.usefixtures("forked_workers")
CONFIG = EngineConfig(map_bytes=64 << 20)
IMPATIENT = EngineConfig(map_bytes=64 << 20, worker_timeout_ms=800)


@pytest.fixture(autouse=True)
def tick(monkeypatch: pytest.MonkeyPatch) -> None:
    tick_often(monkeypatch)


@pytest.fixture
def faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where files tell workers when to die."""
    return folder_in(monkeypatch, ENVIRONMENT, tmp_path / "faults")


def key_on(shard: int, prefix: str = "key") -> bytes:
    """A key that lives on `shard` of two."""
    return next(key for n in count() if shard_of(slot_of(key := f"{prefix}{n}".encode()), 2) == shard)


def log(first: int, *commands: Put | Delete | CompareAndSwap) -> list[Entry]:
    return [Entry(index, 1, encode(command)) for index, command in enumerate(commands, first)]


@pytest.mark.parametrize("kind", ["a solo", "a vote", "staged and merged groups"])
async def test_a_worker_that_dies_at_any_step_answers_all_the_same(tmp_path: Path, faults: Path, kind: str) -> None:
    a, b = key_on(0), key_on(1)
    model = Model()
    async with Engine(tmp_path / "data", shards=2, machine=Dying, config=CONFIG) as db:

        async def apply(*chunks: list[Put | CompareAndSwap]) -> None:
            first, calls, expected = model.index + 1, [], []
            for chunk in chunks:
                entries = log(first, *chunk)
                calls.append(asyncio.create_task(db.apply_chunk(entries)))
                expected.append(model.apply(entries))
                first += len(chunk)
            assert await asyncio.gather(*calls) == expected

        for died, step in enumerate(STEPS, 1):
            await apply([Put(a, b"old"), Put(b, b"old")])
            (faults / step).touch()
            swap, lose = CompareAndSwap(a, b"old", step.encode()), CompareAndSwap(a, b"never", b"lost")
            match kind:
                case "a solo":
                    await apply([swap, lose, swap])
                case "a vote":
                    await apply([Put(b, b"new"), swap, lose, swap])
                case _:
                    await apply([Put(b, b"new")], [swap], [Put(b, b"newer"), lose], [swap], [Put(a, b"newer")])
            await apply([Put(a, b"end"), Put(b, b"end")])  # needs both workers: who died has a successor, who answered
            # has come to the step behind its answer
            assert not (faults / step).exists(), f"nobody came to the step {step}"
            assert restarts(db) == died
        assert dict(db.scan_prefix(b"").entries) == model.data and db.last_applied().index == model.index


async def test_a_vote_dies_with_its_worker_and_is_asked_for_again(tmp_path: Path, faults: Path) -> None:
    a, slow = key_on(0), key_on(1, "wait")
    os.mkfifo(faults / GATE)
    gate = os.open(faults / GATE, os.O_RDWR)
    async with Engine(tmp_path / "data", shards=2, machine=Dying, config=CONFIG) as db:
        workers = db._running().workers
        send, again = workers.send, asyncio.Event()
        parts: list[int] = []

        def watched(to: int, order: wire.Order) -> None:
            send(to, order)
            if isinstance(order, wire.Part):
                parts.append(to)
            if parts.count(0) == 2:
                again.set()

        workers.send = watched  # type: ignore[assignment, method-assign]
        (faults / "after answer").touch()  # the first to answer is the one that does not wait
        call = asyncio.create_task(db.apply_chunk(log(1, Put(a, b"1"), Put(slow, b"1"))))
        await again.wait()
        assert parts == [0, 1, 0] and db.is_empty()
        os.write(gate, b"1")
        assert await call == [ApplyResult(1, True), ApplyResult(2, True)]
        assert db.get_multi([a, slow]) == [b"1", b"1"] and restarts(db) == 1
    os.close(gate)


async def test_a_worker_that_is_stopped_is_replaced_when_its_time_is_up(tmp_path: Path) -> None:
    a, b = key_on(0), key_on(1)
    async with Engine(tmp_path / "data", shards=2, config=IMPATIENT) as db:
        await db.apply_chunk(log(1, Put(a, b"0"), Put(b, b"0")))
        stop_worker(db, 0)
        assert await db.apply_chunk(log(3, CompareAndSwap(a, b"0", b"1"))) == [ApplyResult(3, True)]
        assert restarts(db) >= 1
        before = restarts(db)
        stop_worker(db, 1)
        results = await db.apply_chunk(log(4, CompareAndSwap(a, b"1", b"2"), CompareAndSwap(b, b"1", b"2")))
        assert [result.succeeded for result in results] == [True, False]
        assert restarts(db) > before
        before = restarts(db)
        stop_worker(db, 1)
        await db.flush_async()
        assert mark_of(tmp_path / "data").clean
        assert restarts(db) > before
        assert db.get_multi([a, b]) == [b"2", b"0"]


def stop_worker(db: Engine, shard: int) -> None:
    halt(db.stats()["workers"][shard]["pid"])


async def test_a_worker_that_hangs_in_apply_is_replaced_and_its_chunk_applied(tmp_path: Path, faults: Path) -> None:
    async with Engine(tmp_path / "data", shards=2, machine=Deadly, config=IMPATIENT) as db:
        chunk = log(1, Put(b"hang", b"1"), Put(key_on(0), b"1"), Put(key_on(1), b"1"))
        assert await db.apply_chunk(chunk) == [ApplyResult(index, True) for index in (1, 2, 3)]
        assert restarts(db) >= 1
        assert db.get(b"hang") == b"1" and len(db) == 3


async def test_a_worker_that_hangs_while_the_engine_stops_does_not_keep_it(tmp_path: Path) -> None:
    db = Engine(tmp_path / "data", shards=2, config=IMPATIENT)
    db.start()
    await db.apply_chunk(log(1, Put(key_on(0), b"1"), Put(key_on(1), b"1")))
    stop_worker(db, 0)
    db.stop()
    db.close_storage()
    async with Engine(tmp_path / "data", config=CONFIG) as again:
        assert again.last_applied().index == 2 and len(again) == 2


DEADLY_SHARD = shard_of(slot_of(b"die"), 2)


@pytest.mark.parametrize("alone", [True, False], ids=["a solo", "on two shards"])
async def test_a_command_that_kills_its_worker_every_time_stops_the_engine_by_name(
    tmp_path: Path, faults: Path, alone: bool
) -> None:
    other = key_on(1 - DEADLY_SHARD)
    db = Engine(tmp_path / "data", shards=2, machine=Deadly, config=CONFIG)
    db.start()
    await db.apply_chunk(log(1, Put(b"die", b"0"), Put(other, b"0")))
    deadly = log(3, Delete(b"die")) if alone else log(3, Put(other, b"1"), Delete(b"die"))
    with pytest.raises(WorkerFailedError, match=r"entries 3 to \d killed the worker of shard") as caught:
        await db.apply_chunk(deadly)
    assert (caught.value.index, caught.value.shard) == (3, DEADLY_SHARD)
    assert not db.is_running()
    assert db.get_multi([b"die", other]) == [b"0", b"0"] and db.last_applied().index == 2
    with pytest.raises(WorkerFailedError):
        await db.apply_chunk(deadly)
    with pytest.raises(WorkerFailedError):
        db.stop()
    db.close_storage()
    (faults / "mended").touch()
    async with Engine(tmp_path / "data", machine=Deadly, config=CONFIG) as again:
        assert again.last_applied().index == 2
        await again.apply_chunk(deadly)
        assert again.get(b"die") is None


async def test_innocent_chunks_that_were_merged_with_a_deadly_one_are_applied(tmp_path: Path, faults: Path) -> None:
    a, b = key_on(0), key_on(1)
    db = Engine(tmp_path / "data", shards=2, machine=Deadly, config=CONFIG)
    db.start()
    await db.apply_chunk(log(1, Put(a, b"0"), Put(b, b"0")))
    groups = db.stats()["groups"]
    open_, staged, innocent = log(3, Put(a, b"1"), Put(b, b"1")), log(5, Put(b, b"2")), log(6, Put(a, b"3"))
    deadly, behind = log(7, Put(a, b"4"), Delete(b"die")), log(9, Put(b, b"5"))
    calls = [asyncio.create_task(db.apply_chunk(chunk)) for chunk in (open_, staged, innocent, deadly, behind)]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert outcomes[:3] == [
        [ApplyResult(3, True), ApplyResult(4, True)],
        [ApplyResult(5, True)],
        [ApplyResult(6, True)],
    ]
    assert [type(outcome) for outcome in outcomes[3:]] == [WorkerFailedError, WorkerFailedError]
    assert isinstance(outcomes[3], WorkerFailedError) and (outcomes[3].index, outcomes[3].last) == (7, 8)
    assert db.last_applied().index == 6 and db.get_multi([a, b]) == [b"3", b"2"]
    assert db.stats()["groups"] == groups + 4, "opened, staged, merged and taken back, then the innocent one alone"
    with pytest.raises(WorkerFailedError):
        db.stop()
    db.close_storage()
