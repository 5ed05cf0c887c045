"""A snapshot that is given up leaves no file and no pin, names why, and costs neither an entry nor the engine."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
from pathlib import Path

import msgspec
import pytest

from shardengine import Engine, SnapshotAbortedError, SnapshotError
from shardengine.engine.commit.barrier import Stage
from shardengine.engine.config import EngineConfig
from shardengine.shards.types import LogId
from tests.conftest import halt
from tests.streams import Follower
from tests.taking import CONFIG, GATES, Feeder, Gate, Gated, holds_exactly, pins, restarts

pytestmark = pytest.mark.usefixtures("forked_workers")
HASTY = msgspec.structs.replace(CONFIG, snapshot_timeout_ms=300)
IMPATIENT = msgspec.structs.replace(CONFIG, worker_timeout_ms=600)


@pytest.fixture
def gates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where gates for copies are."""
    path = tmp_path / "gates"
    path.mkdir()
    monkeypatch.setenv(GATES, str(path))
    return path


def gated(tmp_path: Path, config: EngineConfig = CONFIG) -> Engine:
    return Engine(tmp_path / "data", shards=2, machine=Gated, config=config)


def stage(db: Engine) -> Stage:
    return db._running().coordinator.pinning.stage


def worker(db: Engine, shard: int) -> int:
    return int(db.stats()["workers"][shard]["pid"])


async def reach(feeder: Feeder, wanted: Stage) -> int:
    """Apply chunk after chunk until the snapshot has come so far. Returns how many it took."""
    count = 0
    while stage(feeder.db) is not wanted:
        await feeder.feed(10)
        count += 1
    return count


async def given_up(feeder: Feeder, taking: asyncio.Task[object], match: str, path: Path) -> None:
    """The snapshot is aborted while chunks are applied, with that reason; nothing of it is left; the next one works."""
    while not taking.done():
        await feeder.feed(10)
    with pytest.raises(SnapshotAbortedError, match=match):
        await taking
    await whole_again(feeder, path)


async def whole_again(feeder: Feeder, path: Path) -> None:
    db = feeder.db
    assert stage(db) is Stage.IDLE and not path.exists() and pins(db) == 0
    assert db.snapshots() == [] and db.snapshot_metadata() is None
    await feeder.feed(10, 1, 1)
    await feeder.check()
    await db.generate_snapshot_data(path, None)
    assert pins(db) == 0
    holds_exactly(path, Follower(7))


async def test_a_worker_that_dies_before_it_has_pinned_costs_the_snapshot_only(tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    async with Engine(tmp_path / "data", shards=3, config=CONFIG) as db:
        feeder = Feeder(db)
        await feeder.feed(100)
        halt(worker(db, 1))
        taking = asyncio.create_task(db.generate_snapshot_data(path, None))
        await asyncio.sleep(0)
        assert stage(db) is Stage.PINNING
        chunk = feeder.send(50)
        os.kill(worker(db, 1), signal.SIGKILL)
        await given_up(feeder, taking, "the worker of shard 1 died", path)
        await chunk
        assert restarts(db) == 1


async def test_a_worker_that_dies_while_its_answer_is_awaited_at_the_label_costs_the_snapshot_only(
    tmp_path: Path,
) -> None:
    path = tmp_path / "snapshot"
    async with Engine(tmp_path / "data", shards=2, config=CONFIG) as db:
        feeder = Feeder(db)
        await feeder.feed(100)
        taking = asyncio.create_task(db.generate_snapshot_data(path, LogId(150, 1)))
        await feeder.feed(40)
        os.kill(worker(db, 0), signal.SIGKILL)  # nothing is pinned yet: that costs nothing
        await feeder.feed(10, 20)
        await taking
        assert holds_exactly(path, Follower(7)).last_included == LogId(150, 1)
        assert restarts(db) == 1


async def test_a_worker_that_hangs_before_it_has_pinned_is_replaced_like_one_that_hangs_in_a_chunk(
    tmp_path: Path,
) -> None:
    path = tmp_path / "snapshot"
    async with Engine(tmp_path / "data", shards=2, config=IMPATIENT) as db:
        feeder = Feeder(db)
        await feeder.feed(100)
        halt(worker(db, 0))
        with pytest.raises(SnapshotAbortedError, match="the worker of shard 0 died"):
            await db.generate_snapshot_data(path, None)
        await whole_again(feeder, path)


async def test_a_worker_that_dies_in_its_copy_costs_the_snapshot_only(tmp_path: Path, gates: Path) -> None:
    path = tmp_path / "snapshot"
    async with gated(tmp_path) as db:
        feeder = Feeder(db)
        await feeder.feed(100)
        gate = Gate(gates, 1)
        taking = asyncio.create_task(db.generate_snapshot_data(path, None))
        await reach(feeder, Stage.COPYING)
        assert pins(db) >= 1
        gate.remove()
        os.kill(worker(db, 1), signal.SIGKILL)
        await given_up(feeder, taking, "the worker of shard 1 died", path)
        assert restarts(db) == 1


async def test_a_worker_that_dies_after_its_copy_costs_nothing(tmp_path: Path, gates: Path) -> None:
    path = tmp_path / "snapshot"
    async with gated(tmp_path) as db:
        feeder = Feeder(db)
        await feeder.feed(100)
        gate = Gate(gates, 1)
        taking = asyncio.create_task(db.generate_snapshot_data(path, None))
        while db._running().coordinator.pinning._barrier._waiting != {1} or stage(db) is not Stage.COPYING:
            await feeder.feed(10)
        os.kill(worker(db, 0), signal.SIGKILL)
        await feeder.feed(10, 10)
        gate.open()
        await taking
        holds_exactly(path, Follower(7))
        assert restarts(db) == 1


async def test_a_worker_that_hangs_in_its_copy_is_given_up_at_the_deadline_and_never_holds_up_an_apply(
    tmp_path: Path, gates: Path
) -> None:
    path = tmp_path / "snapshot"
    async with gated(tmp_path, HASTY) as db:
        feeder = Feeder(db)
        await feeder.feed(100)
        gate = Gate(gates, 0)
        taking = asyncio.create_task(db.generate_snapshot_data(path, None))
        await reach(feeder, Stage.COPYING)
        assert await reach(feeder, Stage.RELEASING) > 0, "chunks were applied until the time was up"
        assert pins(db) == 1 and not taking.done(), "the copy still holds its pin"
        gate.remove()
        await given_up(feeder, taking, r"it took longer than 0\.3 s", path)
        assert restarts(db) == 1, "it did not let go, so it was killed"


async def test_a_copy_that_ends_after_the_deadline_keeps_its_worker(tmp_path: Path, gates: Path) -> None:
    path = tmp_path / "snapshot"
    async with gated(tmp_path, msgspec.structs.replace(CONFIG, snapshot_timeout_ms=1000)) as db:
        feeder = Feeder(db)
        await feeder.feed(100)
        gate = Gate(gates, 0)
        taking = asyncio.create_task(db.generate_snapshot_data(path, None))
        await reach(feeder, Stage.RELEASING)
        gate.open()
        await given_up(feeder, taking, r"it took longer than 1\.0 s", path)
        assert restarts(db) == 0


@pytest.mark.parametrize("where", [Stage.WAITING, Stage.PINNING, Stage.COPYING])
async def test_a_call_that_is_cancelled_has_cleaned_up_when_it_returns(
    tmp_path: Path, gates: Path, where: Stage
) -> None:
    path = tmp_path / "snapshot"
    async with gated(tmp_path) as db:
        feeder = Feeder(db)
        await feeder.feed(100)
        gate = Gate(gates, 1) if where is Stage.COPYING else None
        label = LogId(10**6, 1) if where is Stage.WAITING else None
        taking = asyncio.create_task(db.generate_snapshot_data(path, label))
        await asyncio.sleep(0)
        if where is not Stage.PINNING:
            await reach(feeder, where)
        assert stage(db) is where
        taking.cancel()
        if gate is not None:
            await asyncio.to_thread(gate.open)
        with pytest.raises(asyncio.CancelledError):
            await taking
        await whole_again(feeder, path)
        assert restarts(db) == 0


async def test_a_kept_snapshot_that_is_cancelled_leaves_nothing_in_the_directory(tmp_path: Path, gates: Path) -> None:
    async with gated(tmp_path) as db:
        feeder = Feeder(db)
        await feeder.feed(100)
        gate = Gate(gates, 1)
        taking = asyncio.create_task(db.create_snapshot())
        await reach(feeder, Stage.COPYING)
        taking.cancel()
        await asyncio.to_thread(gate.open)
        with pytest.raises(asyncio.CancelledError):
            await taking
        assert list((tmp_path / "data" / "snapshots").iterdir()) == []
        await whole_again(feeder, tmp_path / "snapshot")


async def test_a_label_that_never_comes_is_given_up_at_the_deadline(tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    async with Engine(tmp_path / "data", shards=2, config=HASTY) as db:
        feeder = Feeder(db)
        await feeder.feed(100)
        taking = asyncio.create_task(db.generate_snapshot_data(path, LogId(10**9, 1)))
        await given_up(feeder, taking, r"it took longer than 0\.3 s", path)


async def test_an_engine_that_stops_gives_a_snapshot_up(tmp_path: Path, gates: Path) -> None:
    path = tmp_path / "snapshot"
    db = gated(tmp_path)
    db.start()
    feeder = Feeder(db)
    await feeder.feed(100)
    gate = Gate(gates, 1)
    taking = asyncio.create_task(db.generate_snapshot_data(path, None))
    await reach(feeder, Stage.COPYING)
    opening = asyncio.create_task(asyncio.to_thread(gate.open))
    await db.aclose()
    await opening
    with pytest.raises(SnapshotAbortedError, match="the engine stops"):
        await taking
    assert not path.exists()


@pytest.mark.parametrize("who", ["a worker", "the coordinator"])
async def test_a_disk_that_is_full_gives_the_snapshot_up_and_leaves_no_file(tmp_path: Path, who: str) -> None:
    path = tmp_path / "snapshot"
    async with Engine(tmp_path / "data", shards=2, config=CONFIG) as db:
        feeder = Feeder(db)
        await feeder.feed(100)
        pid, allowed = (worker(db, 1), 8192) if who == "a worker" else (0, 64)
        before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (allowed, before[1]))
        try:
            for taking in (db.generate_snapshot_data(path, None), db.create_snapshot()):
                with pytest.raises(SnapshotError, match="File too large"):
                    await taking
        finally:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
        assert list((tmp_path / "data" / "snapshots").iterdir()) == []
        await whole_again(feeder, path)
        assert restarts(db) == 0
