"""What an install, a reset and a reshard leave for the next start, and what a power loss leaves of them."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shardengine import (
    Engine,
    LogId,
    SnapshotInfo,
    StartReport,
    StateUntrustedError,
    StoreFullError,
    run,
)
from shardengine.engine.run.reshard import reshard
from shardengine.engine.run.runtime import Runtime
from shardengine.shards.kv import KeyValue
from tests.conftest import halt
from tests.directories import reboot
from tests.streams import Follower, entries, term_at
from tests.taking import CONFIG as LARGE
from tests.taking import Feeder, holds, tree

pytestmark = pytest.mark.usefixtures("forked_workers")
CONFIG = msgspec.structs.replace(LARGE, map_bytes=16 << 20)  # copied whole, holes and all
SHARDS = (1, 2, 3, 5, 8)


def generations(path: Path) -> list[str]:
    return sorted(each.name for each in path.glob("*gen-*"))


async def check_after_restart(path: Path, index: int, seed: int = 7, **options: Any) -> StartReport:
    """Open the directory; it must hold the model's state at `index`, and go on."""
    db = Engine(path, config=CONFIG, **options)
    report = db.start()
    try:
        model = Follower(seed)
        await holds(db, model, index)
        await db.apply_chunk(entries(seed, index + 1, index + 20))
        await holds(db, model, index + 20)
    finally:
        await db.aclose()
    return report


async def test_a_generation_is_named_only_once_its_workers_have_said_hello(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Engine(tmp_path / "data", shards=3, config=CONFIG) as db:
        old = (tmp_path / "data" / "CURRENT").read_text()
        complete, named = Runtime.complete, []

        def completed(self: Runtime) -> None:
            complete(self)
            assert self.coordinator.up == {0, 1, 2}
            named.append((tmp_path / "data" / "CURRENT").read_text())

        monkeypatch.setattr(Runtime, "complete", completed)
        await db.reset()
        assert named == [old] != [(tmp_path / "data" / "CURRENT").read_text()]


async def test_a_reset_empties_the_state_and_the_log_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "data"
    async with Engine(path, shards=3, config=CONFIG) as db:
        feeder = Feeder(db)
        await feeder.feed(300, 500)
        lineage = db._running().fixed.lineage
        info = await db.create_snapshot()
        for count in (1, 2):
            await db.reset()
            assert db.is_empty() and db.entry_term(0) is None
            await holds(db, Follower(7), 0)
            assert db.durable() == LogId(0, 0)
            assert generations(path) == [f"gen-{1 + count:06}"]
        assert db.snapshots() == [info]
        assert db._running().fixed.lineage != lineage, "what was taken before a reset is no state of the new log"
        again = Feeder(db)
        await again.feed(100, 20)
        await again.check()
        await db.restore(info.path)
        await holds(db, Follower(7), 800)
        await db.reset()
    await check_after_restart(path, 0)


async def test_a_flush_that_an_install_overtakes_is_answered(tmp_path: Path) -> None:
    async with Engine(tmp_path / "data", shards=2, config=CONFIG) as db:
        feeder = Feeder(db)
        await feeder.feed(100)
        halt(db.stats()["workers"][1]["pid"])
        flushes = [asyncio.create_task(db.flush_async()) for _ in range(2)]
        await asyncio.sleep(0)
        await db.reset()
        await asyncio.gather(*flushes)
        assert db.last_applied() == LogId(0, 0)


async def test_an_install_is_durable_from_the_flip_on_and_the_run_mark_says_so(tmp_path: Path) -> None:
    path = tmp_path / "data"
    async with Engine(tmp_path / "source", shards=2, config=CONFIG) as source:
        await Feeder(source).feed(300)
        await source.generate_snapshot_data(tmp_path / "snapshot", None)
    async with Engine(path, shards=3, config=CONFIG) as db:
        await db.apply_chunk(entries(7, 1, 10))
        await db.restore(tmp_path / "snapshot")
        assert db.last_applied() == LogId(300, 1)
        shutil.copytree(path, tmp_path / "lost", ignore=shutil.ignore_patterns("LOCK"))  # as a power loss finds it
        await db.apply_chunk(entries(7, 301, 310))
        await db.flush_async()
        assert db.durable() == LogId(0, 0), "there is no snapshot of its own"
    reboot(tmp_path / "lost")
    report = await check_after_restart(tmp_path / "lost", 300)
    assert report.outcome == "opened"
    await check_after_restart(path, 310)


def lose_power(path: Path, *ends: int, strange: Path | None = None) -> list[SnapshotInfo]:
    """Leave a directory as a power loss does: a snapshot at each of `ends` and 10 entries more. `strange` is
    installed first."""
    taken: list[SnapshotInfo] = []

    async def work() -> None:
        db = Engine(path, shards=3, config=CONFIG)
        db.start()
        if strange is not None:
            await db.restore(strange)
        for end in ends:
            await db.apply_chunk(entries(7, db.last_applied().index + 1, end))
            taken.append(await db.create_snapshot())
            assert db.durable() == LogId(end, term_at(end))
        await db.apply_chunk(entries(7, db.last_applied().index + 1, db.last_applied().index + 10))
        assert db.durable() == (taken[-1].last_included if taken else LogId(0, 0))
        shutil.copytree(path, path.with_name("lost"), ignore=shutil.ignore_patterns("LOCK"))
        await db.aclose()

    run(work)
    shutil.rmtree(path)
    path.with_name("lost").rename(path)
    reboot(path)
    return taken


def test_after_a_power_loss_the_newest_snapshot_is_restored_and_reported(tmp_path: Path) -> None:
    path = tmp_path / "data"
    lose_power(path, 100, 200, 750)
    report = run(lambda: check_after_restart(path, 750))
    assert report == StartReport("restored", LogId(750, term_at(750)), str(path / "set-aside-gen-000001"))
    assert generations(path) == ["gen-000002", "set-aside-gen-000001"]
    report = run(lambda: check_after_restart(path, 770, shards=3))
    assert report.outcome == "opened" and report.discarded is None


@pytest.mark.parametrize("damage", ["a bit", "cut off", "no manifest"])
def test_a_damaged_newest_snapshot_is_passed_over_for_the_one_before(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "data"
    file = Path(lose_power(path, 100, 200)[1].path) / "shard-001.mdb"
    if damage == "a bit":
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    elif damage == "cut off":
        os.truncate(file, 4096)
    else:
        file.with_name("manifest.json").unlink()
    report = run(lambda: check_after_restart(path, 100))
    assert report.outcome == "restored"
    assert ("not restored: " in caplog.text) == (damage == "a bit")


def test_a_snapshot_of_another_log_is_not_restored_by_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "data"
    strange = lose_power(tmp_path / "other", 300)[0]
    lose_power(path, 100)
    shutil.copytree(strange.path, path / "snapshots" / Path(strange.path).name)
    shutil.copytree(path, tmp_path / "refused")
    report = run(lambda: check_after_restart(path, 100))
    assert report.outcome == "restored" and "is of another lineage, machine, or set of limits" in caplog.text
    (own,) = (each for each in (tmp_path / "refused" / "snapshots").iterdir() if each.name != Path(strange.path).name)
    shutil.rmtree(own)
    with pytest.raises(StateUntrustedError):
        Engine(tmp_path / "refused", config=CONFIG).start()
    assert generations(tmp_path / "refused") == ["set-aside-gen-000001"]


def test_the_log_that_counts_is_that_of_the_installed_snapshot_even_at_a_second_start(tmp_path: Path) -> None:
    """An engine took over another log's state, and snapshots of its own before and after."""
    path = tmp_path / "data"
    strange = lose_power(tmp_path / "other", 300)[0]
    before = lose_power(path, 900)[0]

    async def take_over() -> None:
        async with Engine(path, config=CONFIG) as db:
            assert db.durable() == LogId(900, term_at(900))
            await db.restore(strange.path, force=True)
            await db.apply_chunk(entries(7, 301, 301))
            assert db.durable() == LogId(0, 0), "no snapshot would be restored"

    run(take_over)
    taken = lose_power(path, 350)
    assert [Path(each.path).name for each in taken] != [Path(before.path).name]
    Path(path / "snapshots").rename(tmp_path / "elsewhere")
    with pytest.raises(StateUntrustedError):
        Engine(path, config=CONFIG).start()
    (tmp_path / "elsewhere").rename(path / "snapshots")
    report = run(lambda: check_after_restart(path, 350, shards=None))
    assert report.outcome == "restored"


@pytest.mark.parametrize("before", SHARDS)
async def test_a_directory_is_converted_to_any_shard_count(tmp_path: Path, before: int) -> None:
    path = tmp_path / "data"
    async with Engine(path, shards=before, config=CONFIG) as db:
        await db.apply_chunk(entries(7, 1, 900))
        lineage = db._running().fixed.lineage
    index, had = 900, before
    steps: list[tuple[int, int]] = []
    for after in SHARDS:
        steps.clear()
        assert reshard(path, after, KeyValue, CONFIG, lambda *step: steps.append(step)) == had
        assert bool(steps) == (had != after) and all(done <= total for done, total in steps)
        assert not steps or steps[-1][0] == steps[-1][1]
        assert len(generations(path)) == 1
        had = after
    db = Engine(path, shards=before, config=CONFIG, reshard=True)
    assert db.start() == StartReport("opened", LogId(index, term_at(index)), None)
    await holds(db, Follower(7), index)
    assert db._running().shards == before and db._running().fixed.lineage == lineage
    assert db.entry_term(1) == 1
    await db.aclose()


async def test_a_reshard_redoes_what_was_decided_first(tmp_path: Path) -> None:
    from tests.directories import config, die_after_deciding, puts

    path = tmp_path / "data"
    die_after_deciding(path)
    assert reshard(path, 3, KeyValue, config("process")) == 2
    async with Engine(path, config=config("process")) as db:
        assert db.last_applied().index == 20 and len(db) == 20
        await db.apply_chunk(puts(21, 1))
    assert reshard(tmp_path / "new", 3, KeyValue, CONFIG) == 3
    assert not (tmp_path / "new").exists()


@contextmanager
def full_disk(allowed: int) -> Iterator[None]:
    """No file of this process can grow beyond `allowed` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (allowed, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("shards", [2, 3])
@pytest.mark.parametrize("allowed", [0, 4096, 100_000, 2 << 20])
async def test_a_disk_that_is_full_during_an_install_or_a_reset_changes_nothing(
    tmp_path: Path, shards: int, allowed: int
) -> None:
    path = tmp_path / "data"
    config = msgspec.structs.replace(CONFIG, ring_bytes=8 << 20)
    async with Engine(tmp_path / "source", shards=2, config=CONFIG) as source:
        await Feeder(source).feed(300)
        await source.generate_snapshot_data(tmp_path / "snapshot", None)
    async with Engine(path, shards=shards, config=config) as db:
        feeder = Feeder(db)
        await feeder.feed(50)
        before = (tree(path), db._running())
        with full_disk(allowed):
            with pytest.raises(StoreFullError, match="ulimit -f"):
                await db.restore(tmp_path / "snapshot")
            with pytest.raises(StoreFullError, match="ulimit -f"):
                await db.reset()
        assert (tree(path), db._running()) == before
        await feeder.check()
        await feeder.feed(10)
        await db.restore(tmp_path / "snapshot")
        await holds(db, Follower(7), 300)
