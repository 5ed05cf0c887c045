"""Snapshots of another lineage neither count nor replace the state, and do not pile up."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import msgspec
import pytest

from shardengine import Engine, LogId, SnapshotDamagedError, SnapshotError, SnapshotInfo, StateUntrustedError, run
from shardengine.engine.snapshot.folder import prune, valid_snapshots
from shardengine.engine.snapshot.manifest import read_manifest
from tests.directories import reboot
from tests.snapshots import make_snapshot, manifest_for
from tests.streams import Follower, entries
from tests.taking import CONFIG, holds

KEEP = msgspec.structs.replace(CONFIG, snapshots_keep=2, map_bytes=16 << 20)


async def taken_at(db: Engine, *ends: int, seed: int = 7) -> list[SnapshotInfo]:
    """Apply the log of a seed up to each of `ends`, and take a snapshot there."""
    found = []
    for end in ends:
        await db.apply_chunk(entries(seed, db.last_applied().index + 1, end))
        found.append(await db.create_snapshot())
    return found


def after_a_power_loss(path: Path, lost: Path) -> Path:
    """The directory as a power loss leaves it in the middle of a run."""
    shutil.copytree(path, lost, ignore=shutil.ignore_patterns("LOCK"))
    reboot(lost)
    return lost


def lineage(db: Engine) -> str:
    return db._running().fixed.lineage


async def test_after_a_reset_a_snapshot_stays_though_older_ones_have_higher_indices(tmp_path: Path) -> None:
    path = tmp_path / "data"
    async with Engine(path, shards=2, config=KEEP) as db:
        await taken_at(db, 100, 200, 300)
        await db.reset()
        for end in (10, 20, 30):
            (info,) = await taken_at(db, end, seed=8)
            assert Path(info.path).is_dir() and info in db.snapshots()
            await db.apply_chunk(entries(8, end + 1, end + 5))
            assert db.durable() == info.last_included == LogId(end, 1)
        lost = after_a_power_loss(path, tmp_path / "lost")
    assert {info.last_included.index for info in valid_snapshots(path / "snapshots")} == {20, 30, 200, 300}
    async with Engine(lost, config=KEEP) as db:
        await holds(db, Follower(8), 30)


async def test_going_back_begins_a_lineage_and_the_future_that_was_left_never_returns(tmp_path: Path) -> None:
    path = tmp_path / "data"
    async with Engine(path, shards=2, config=KEEP) as db:
        early, late = await taken_at(db, 100, 200)
        before = lineage(db)
        await db.restore(early.path, force=True)
        assert lineage(db) != before and late in db.snapshots()
        await db.apply_chunk(entries(7, 101, 110))
        assert db.durable() == LogId(0, 0), "no snapshot of this future is there yet"
        lost = after_a_power_loss(path, tmp_path / "lost")
        with pytest.raises(StateUntrustedError):
            Engine(lost, config=KEEP).start()
        (own,) = await taken_at(db, 120)
        await db.apply_chunk(entries(7, 121, 121))
        assert db.durable() == own.last_included
        lost = after_a_power_loss(path, tmp_path / "again")
    async with Engine(lost, config=KEEP) as db:
        await holds(db, Follower(7), 120)


async def test_a_snapshot_of_the_same_index_brings_no_abandoned_future_back_either(tmp_path: Path) -> None:
    """The second restore does not go back, but a snapshot of that log is here that is ahead."""
    path = tmp_path / "data"
    async with Engine(path, shards=2, config=KEEP) as db:
        early, _ = await taken_at(db, 100, 200)
        await db.restore(early.path, force=True)
        await db.restore(early.path)
        assert lineage(db) != read_manifest(Path(early.path)).lineage
        await db.apply_chunk(entries(7, 101, 110))
        assert db.durable() == LogId(0, 0)


async def test_an_ordinary_install_goes_over_to_the_snapshots_log_and_counts_what_is_here_of_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with Engine(tmp_path / "source", shards=1, config=KEEP) as source:
        infos = await taken_at(source, 100, 200)
        there = lineage(source)
    path = tmp_path / "data"
    shutil.copytree(tmp_path / "source" / "snapshots", path / "snapshots")
    (path / "snapshots").rename(tmp_path / "aside")
    async with Engine(path, shards=2, config=KEEP) as db:
        (tmp_path / "aside").rename(path / "snapshots")
        await db.apply_chunk(entries(8, 1, 50))
        await db.restore(path / "snapshots" / Path(infos[1].path).name)
        assert lineage(db) == there and caplog.text == ""
        await db.apply_chunk(entries(7, 201, 210))
        assert db.durable() == infos[1].last_included


async def test_a_damaged_snapshot_ahead_of_the_state_vouches_for_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "data"
    async with Engine(path, shards=2, config=KEEP) as db:
        early, late = await taken_at(db, 100, 200)
        await db.apply_chunk(entries(7, 201, 210))
        lost = after_a_power_loss(path, tmp_path / "lost")
    name = Path(late.path).name
    part = lost / "snapshots" / name / "shard-001.mdb"
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    async with Engine(lost, config=KEEP) as db:
        await holds(db, Follower(7), 100)
        assert f"{part} is damaged" in caplog.text
        await db.apply_chunk(entries(7, 101, 150))
        assert db.durable() == early.last_included
        await db.apply_chunk(entries(7, 151, 200))
        with pytest.raises(SnapshotDamagedError, match="shard-001"):
            await db.create_snapshot()  # the damaged one has its name, and is not what we rely on
        (later,) = await taken_at(db, 201)
        assert db.durable() == later.last_included


def names(folder: Path) -> set[int]:
    return {info.last_included.index for info in valid_snapshots(folder)}


async def test_a_snapshot_that_cannot_be_read_any_more_lets_nothing_fall_while_the_engine_runs(tmp_path: Path) -> None:
    async with Engine(tmp_path, shards=2, config=KEEP) as db:
        (info,) = await taken_at(db, 100)
        (Path(info.path) / "manifest.json").write_bytes(b"junk")
        await db.compact()
        assert not db.snapshots() and db.durable() == info.last_included
        await db.reset()
        assert db.durable() == LogId(0, 0)
    async with Engine(tmp_path, config=KEEP) as db:
        assert db.durable() == LogId(0, 0)


def test_of_other_logs_those_that_were_written_last_stay_and_none_goes_before_ours_is_there(tmp_path: Path) -> None:
    for number, index in enumerate((900, 5, 500, 15)):
        path = make_snapshot(tmp_path, [b"x"], index, lineage=f"other {number}")
        stamp = 10**18 + number
        os.utime(path, ns=(stamp, stamp))
    for index in (10, 20, 30, 1000):
        make_snapshot(tmp_path, [b"x"], index)
    ours = manifest_for([b"x"], 30)
    assert [Path(path).name[:20] for path in prune(tmp_path, 2, ours)] == [f"{index:020}" for index in (5, 10, 900)]
    assert names(tmp_path) == {20, 30, 1000, 500, 15}
    assert prune(tmp_path, 2, ours) == []


async def test_one_of_another_log_has_its_name_back_when_ours_cannot_take_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Engine(tmp_path / "data", shards=1, config=KEEP) as db:
        (info,) = await taken_at(db, 10)
        await db.reset()
        await db.apply_chunk(entries(8, 1, 10))
        rename = Path.rename

        def refused(path: Path, target: Path) -> Path:
            if path.name.startswith(".partial-"):
                raise OSError(28, "No space left on device", str(path))
            return rename(path, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", refused)
            with pytest.raises(SnapshotError, match="No space left"):
                await db.create_snapshot()
        assert db.snapshots() == [info] and db.durable().index < 10
        own = await db.create_snapshot()
        assert own.path == info.path and db.snapshots() == [own] != [info]


def test_junk_that_cannot_be_swept_is_told_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user's half-written snapshot, say. Even root cannot remove what the system refuses."""
    path = tmp_path / "data"
    run(_made(path))
    (path / "snapshots" / ".partial-create-1-2").mkdir(parents=True)
    remove = shutil.rmtree

    def refused(target: Path) -> None:
        if Path(target).name.startswith(".partial-create-1-2"):
            raise PermissionError(13, "Permission denied", str(target))
        remove(target)

    monkeypatch.setattr(shutil, "rmtree", refused)
    with caplog.at_level(logging.WARNING):
        run(_made(path))
    assert "cannot be removed: [Errno 13]" in caplog.text


async def _made(path: Path) -> None:
    async with Engine(path, shards=1, config=KEEP) as db:
        await db.create_snapshot()
