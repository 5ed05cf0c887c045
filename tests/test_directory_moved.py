"""A data directory that is moved, removed, replaced or cleaned, also under a running engine; and its names."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from shardengine import ConfigError, DamagedError, DirectoryChangedError, Engine, EngineError, run
from shardengine.engine.run.durability import _TICKS_A_LOOK
from shardengine.engine.storage.files import Lock, filesystem_of
from shardengine.engine.storage.generations import LOCK_BYTES
from shardengine.engine.verify import verify_directory
from tests.directories import applies_ten, config, contents, holds_ten, in_another_process, mark_of, opened, puts

SMALL = config("process")


# ---- moved, removed, replaced ----------------------------------------------------------------------------------------


def test_a_directory_that_is_renamed_under_a_running_engine_stops_it_before_anything_lands_at_the_old_name(
    tmp_path: Path,
) -> None:
    old, moved = tmp_path / "data", tmp_path / "moved"
    opened(tmp_path / "other", applies_ten, shards=2, config=SMALL)

    async def main() -> None:
        db = Engine(old, shards=2, config=SMALL)
        db.start()
        await db.apply_chunk(puts(1, 10))
        old.rename(moved)
        shutil.copytree(tmp_path / "other", old)
        before = contents(old)
        for attempt in (db.flush_async, db.create_snapshot, db.reset):
            with pytest.raises(DirectoryChangedError, match="was moved"):
                await attempt()
        await holds_ten(db)
        with pytest.raises(DirectoryChangedError):
            await db.aclose()
        assert contents(old) == before and not mark_of(moved).clean

    run(main)
    assert opened(moved, holds_ten, config=SMALL).outcome == "opened"


@pytest.mark.parametrize("name", ["LOCK", "gen-000001/shard-000/owner", "gen-000001/shard-001/lock.mdb"])
def test_an_engine_notices_that_what_keeps_others_out_is_gone(tmp_path: Path, name: str) -> None:
    async def main() -> None:
        db = Engine(tmp_path, shards=2, config=SMALL)
        db.start()
        await db.apply_chunk(puts(1, 10))
        (tmp_path / name).unlink()
        for _ in range(_TICKS_A_LOOK):
            db._running().tick()
        assert not db.is_running()
        with pytest.raises(DirectoryChangedError, match="clean"):
            await db.apply_chunk(puts(11, 1))
        with pytest.raises(DirectoryChangedError):
            await db.aclose()

    run(main)


def test_a_worker_is_not_started_again_beside_a_readers_table_that_was_replaced(tmp_path: Path) -> None:
    async def main() -> None:
        db = Engine(tmp_path, shards=2, config=SMALL)
        db.start()
        await db.apply_chunk(puts(1, 10))
        (tmp_path / "gen-000001" / "shard-000" / "lock.mdb").unlink()
        os.kill(db.stats()["workers"][0]["pid"], 9)
        with pytest.raises(DirectoryChangedError):
            await db.apply_chunk(puts(11, 10))
        with pytest.raises(DirectoryChangedError):
            await db.aclose()

    run(main)


def test_a_second_engine_is_refused_though_the_lock_was_removed(tmp_path: Path) -> None:
    async def main() -> None:
        db = Engine(tmp_path, shards=2, config=SMALL)
        db.start()
        await db.apply_chunk(puts(1, 10))
        (tmp_path / "LOCK").unlink()
        told = in_another_process(
            """
            try:
                Engine(sys.argv[1], config=EngineConfig(start_timeout_ms=200)).start()
            except EngineError as error:
                print(type(error).__name__)
            """,
            tmp_path,
        )
        assert told.strip() == "EngineLockedError"
        with pytest.raises(DirectoryChangedError):
            await db.aclose()

    run(main)


def test_a_stopped_directory_that_was_cleaned_is_mended_or_refused_by_name(tmp_path: Path) -> None:
    opened(tmp_path, applies_ten, shards=2, config=SMALL)
    (tmp_path / "LOCK").unlink()
    table = tmp_path / "gen-000001" / "shard-000" / "lock.mdb"
    table.unlink()
    opened(tmp_path, holds_ten, config=SMALL)
    assert table.stat().st_blocks * 512 >= LOCK_BYTES, "what LMDB writes into unasked has its disk"
    owner = tmp_path / "gen-000001" / "shard-001" / "owner"
    owner.unlink()
    with pytest.raises(DamagedError, match=r"owner is missing.*make that file, empty"):
        opened(tmp_path, config=SMALL)
    owner.touch(0o600)
    opened(tmp_path, holds_ten, config=SMALL)


def test_a_lock_is_taken_on_the_file_that_has_the_name(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "LOCK")
    (tmp_path / "LOCK").unlink()
    lock.take()
    try:
        assert (tmp_path / "LOCK").read_text() == str(os.getpid())
    finally:
        lock.close()


# ---- names -----------------------------------------------------------------------------------------------------------


def test_a_relative_path_means_the_same_after_the_host_changed_its_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    opened(there / "data", applies_ten, shards=2, config=SMALL)
    monkeypatch.chdir(here)

    async def main() -> None:
        db = Engine("data", shards=2, config=SMALL)
        monkeypatch.chdir(there)
        before = contents(there)
        db.start()
        await db.apply_chunk(puts(1, 5))
        os.kill(db.stats()["workers"][0]["pid"], 9)
        await db.apply_chunk(puts(6, 5))
        await db.create_snapshot()
        await db.flush_async()
        await db.restore((await db.create_snapshot()).path, force=True)
        await db.aclose()
        assert contents(there) == before

    run(main)
    opened(here / "data", holds_ten, config=SMALL)


@pytest.mark.parametrize("name", [b"a b \xc3\xa4", b"\xff\xfe"], ids=["not ASCII", "not UTF-8"])
def test_directories_may_have_any_name(tmp_path: Path, name: bytes) -> None:
    path = os.fsencode(tmp_path) + b"/" + name

    async def main() -> None:
        async with Engine(path, shards=2, config=SMALL) as db:
            await db.apply_chunk(puts(1, 10))
            info = await db.create_snapshot()
            await db.restore(info.path)
            await db.generate_snapshot_data(os.fsdecode(path + b"/snapshots/own"), None)
            await holds_ten(db)

    run(main)
    opened(Path(os.fsdecode(path)), holds_ten, config=SMALL)
    assert verify_directory(os.fsdecode(path)) == []


@pytest.mark.parametrize("path", ["a\0b", b"a\0b", None, 7, "\ud800"])
def test_what_is_no_path_is_refused_by_name(path: object) -> None:
    with pytest.raises(ConfigError, match="is no path"):
        Engine(path)  # type: ignore[arg-type]


def test_a_link_that_leads_in_a_circle_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(EngineError):
        Engine(tmp_path / "a").start()


def test_a_directory_may_be_named_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    opened(tmp_path / "link", applies_ten, shards=2, config=SMALL)
    opened(tmp_path / "real", holds_ten, config=SMALL)


def test_mount_points_may_have_any_name(monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = (
        b"1 1 0:1 / / rw - ext4 /dev/sda rw\n"
        b"2 1 0:2 / /mnt/a\\040b\\134c rw shared:1 - nfs4 host:/ rw\n"
        b"3 1 0:3 / /mnt/\xc3\xa4\xff rw - cifs //host rw\n"
    )
    monkeypatch.setattr(Path, "read_bytes", lambda self: mounts)
    assert filesystem_of(Path("/mnt/a b\\c/data")) == "nfs4"
    assert filesystem_of(Path(os.fsdecode(b"/mnt/\xc3\xa4\xff/data"))) == "cifs"
    assert filesystem_of(Path("/mnt/ab")) == "ext4"
    monkeypatch.setattr(Path, "read_bytes", lambda self: mounts.partition(b"\n")[2])
    assert filesystem_of(Path("/mnt/ab")) == "unknown", "as in a chroot"
