"""What lies above, in and beside a data directory: file systems that sync no names, and files that nobody of ours put
there."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shardengine import Engine, LogId, SnapshotError, SnapshotMetadata, StateUntrustedError, StoreError
from shardengine.engine.storage.files import make_directories
from tests.directories import applies_ten, config, die_in_mid_run, holds_ten, opened, reboot

SMALL = config("process")


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EACCES])
def test_a_directory_lies_below_one_that_cannot_be_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    path, sync, refused = tmp_path / "db", os.fsync, list[str]()
    path.mkdir(0o700)

    def refuse(descriptor: int) -> None:
        name = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        if name == str(tmp_path):
            refused.append(name)
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    opened(path, applies_ten, shards=2, config=SMALL)
    opened(path, holds_ten, config=SMALL)
    assert refused


def test_the_name_of_a_mount_point_is_not_ours_to_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    mounted, sync, synced = Path("/proc"), os.fsync, list[str]()

    def note(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    make_directories(mounted)
    assert synced == []


def test_only_names_that_may_not_be_on_the_disk_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync, synced = os.fsync, list[str]()

    def note(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    (tmp_path / "above").mkdir()
    below = tmp_path / "above" / "new" / "below"
    make_directories(below)
    assert synced == [tmp_path.name, "above", "new"]
    make_directories(below)  # who made it may have died before its name was synced
    assert synced.pop() == "new"
    (below / "file").touch()
    make_directories(below)
    assert synced == [tmp_path.name, "above", "new"]


@pytest.mark.parametrize("lost", ["the mark", "power"])
def test_an_untrusted_state_says_why_and_how_who_knows_better_takes_it_back(tmp_path: Path, lost: str) -> None:
    die_in_mid_run(tmp_path)
    if lost == "power":
        reboot(tmp_path)
    else:
        (tmp_path / "run-mark").write_bytes(b"junk")
    why = "clock was set by more than 2 seconds" if lost == "power" else "the run mark is missing or unreadable"
    for _ in range(2):
        with pytest.raises(StateUntrustedError, match=why) as caught:
            opened(tmp_path, config=SMALL)
        assert ("machine went down before the state" in caught.value.message) == (lost == "power")
        assert "renames set-aside-gen-000001 to gen-000001, and writes gen-000001 into CURRENT" in caught.value.hint
    opened(tmp_path, config=msgspec.structs.replace(SMALL, after_power_loss="empty"))
    (tmp_path / "set-aside-gen-000001").rename(tmp_path / "gen-000001")
    (tmp_path / "CURRENT").write_text("gen-000001")
    assert opened(tmp_path, holds_ten, config=SMALL).discarded is None


async def test_what_names_no_snapshot_is_refused_and_what_cannot_be_read_stops_no_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = SnapshotMetadata(LogId(3, 1), bytes(16))
    async with Engine(tmp_path, shards=1, config=SMALL) as db:
        db.persist_last_snapshot_metadata(good)
        none: Any = None
        text: Any = "text"
        for bad in (none, text, SnapshotMetadata(LogId(3, 1), text), SnapshotMetadata(none, b"")):
            for call in (db.update_last_snapshot_metadata, db.persist_last_snapshot_metadata):
                with pytest.raises(SnapshotError, match="names no snapshot"):
                    call(bad)
                assert db.snapshot_metadata() == good
    for damage in (b"", b"null", b"{", b"\xff"):
        (tmp_path / "snapshot-metadata").write_bytes(damage)
        caplog.clear()
        async with Engine(tmp_path, config=SMALL) as db:
            assert db.snapshot_metadata() is None
        assert "which snapshot the host named last" in caplog.text


def test_a_generation_that_somebody_else_makes_first_is_his(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(tmp_path, applies_ten, shards=2, config=SMALL)
    real, his = os.mkdir, tmp_path / "gen-000002" / "his"

    def overtaken(path: Any, *arguments: Any) -> None:
        if Path(path) == his.parent and not his.parent.exists():
            real(path)
            his.touch()
        real(path, *arguments)

    async def replace(db: Engine) -> None:
        with pytest.raises(StoreError, match="File exists"):
            await db.reset()
        await holds_ten(db)

    monkeypatch.setattr(os, "mkdir", overtaken)
    opened(tmp_path, replace, config=SMALL)
    assert his.exists()


def test_what_a_death_left_beside_a_file_is_swept_and_nobody_elses(tmp_path: Path) -> None:
    opened(tmp_path, applies_ten, shards=1, config=SMALL)
    generation = tmp_path / "gen-000001"
    ours = [tmp_path / f"{name}.new" for name in ("CURRENT", "config", "run-mark", "snapshot-metadata", "loads")]
    ours += [generation / "GENERATION.new", generation / "shard-000" / "ring.new"]
    foreign = [tmp_path / "notes.new", tmp_path / "CURRENT.new.old", tmp_path / "loads.new"]
    for file in [*ours, *foreign]:
        file.write_bytes(b"half")
    foreign[-1].unlink()
    foreign[-1].symlink_to(foreign[0])
    opened(tmp_path, holds_ten, config=SMALL)
    assert [file for file in [*ours, *foreign] if os.path.lexists(file)] == [foreign[-1], *foreign]
