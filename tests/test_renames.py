"""Nothing is undone after a rename: from there on the new name may be on the disk, whatever the sync behind it says."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from shardengine import DirectoryChangedError, Engine, EngineError, LogId, StartReport, StoreError, SyncFailedError, run
from shardengine.engine.storage.generations import Directory, Generation
from shardengine.ipc.files import SyncError
from tests.directories import config, holds_ten, mark_of, opened, puts
from tests.syncs import Syncs

PROCESS = config("process")


def test_an_install_whose_name_may_not_be_on_the_disk_keeps_both_generations(tmp_path: Path, syncs: Syncs) -> None:
    path = tmp_path / "data"

    async def main() -> None:
        db = Engine(path, shards=2, config=PROCESS)
        db.start()
        await db.apply_chunk(puts(1, 10))
        info = await db.create_snapshot()
        await db.apply_chunk(puts(11, 10))
        syncs.fails = lambda name: name == str(path) and (path / "CURRENT").read_text() == "gen-000002"
        await db.restore(info.path, force=True)
        await holds_ten(db)
        assert sorted(one.name for one in path.glob("gen-*")) == ["gen-000001", "gen-000002"]
        assert "CURRENT" in db.stats()["sync_failed"]
        await db.apply_chunk(puts(11, 1))
        with pytest.raises(SyncFailedError):
            await db.aclose()

    run(main)


def test_a_flush_in_flight_at_an_install_whose_name_may_not_be_on_the_disk_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old generation, which CURRENT may yet name, has not been synced: its mark must not say so."""
    answers: list[EngineError | None] = []
    make_current = Directory.make_current

    async def main() -> None:
        db = Engine(tmp_path, shards=2, config=PROCESS)
        db.start()
        await db.apply_chunk(puts(1, 10))
        info = await db.create_snapshot()

        def unsynced(directory: Directory, generation: Generation) -> SyncError | None:
            db._running().request_flush(answers.append)
            assert make_current(directory, generation) is None
            return SyncError(errno.EIO, "lost", str(tmp_path))

        monkeypatch.setattr(Directory, "make_current", unsynced)
        await db.restore(info.path, force=True)
        assert [type(answer) for answer in answers] == [SyncFailedError]
        mark = mark_of(tmp_path)
        assert not mark.clean and mark.failure is not None
        with pytest.raises(SyncFailedError):
            await db.aclose()

    run(main)


def test_an_install_that_fails_behind_the_rename_keeps_what_current_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "data"
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        renamed = rename(self, target)
        if self.name == "CURRENT.new":
            raise KeyboardInterrupt
        return renamed

    async def main() -> None:
        db = Engine(path, shards=2, config=PROCESS)
        db.start()
        await db.apply_chunk(puts(1, 10))
        with monkeypatch.context() as patched:
            patched.setattr(Path, "rename", interrupted)
            with pytest.raises(KeyboardInterrupt):
                await db.reset()
        with pytest.raises(DirectoryChangedError, match="another state"):
            await db.apply_chunk(puts(11, 1))
        with pytest.raises(DirectoryChangedError):
            await db.aclose()

    run(main)
    assert sorted(one.name for one in path.glob("gen-*")) == ["gen-000001", "gen-000002"]
    assert opened(path, config=PROCESS) == StartReport("opened", LogId(0, 0))


def test_a_reshard_whose_name_may_not_be_on_the_disk_keeps_both_generations(tmp_path: Path, syncs: Syncs) -> None:
    async def fill(db: Engine) -> None:
        await db.apply_chunk(puts(1, 10))

    opened(tmp_path, fill, shards=2, config=PROCESS)
    syncs.fails = lambda name: name == str(tmp_path) and (tmp_path / "CURRENT").read_text() == "gen-000002"
    with pytest.raises(SyncFailedError, match="may not be on the disk"):
        opened(tmp_path, shards=3, reshard=True, config=PROCESS)
    assert sorted(one.name for one in tmp_path.glob("gen-*")) == ["gen-000001", "gen-000002"]
    assert opened(tmp_path, holds_ten, shards=3, config=PROCESS).last_applied == LogId(10, 1)


def test_what_current_does_not_name_is_removed_only_when_the_disk_has_current(tmp_path: Path, syncs: Syncs) -> None:
    opened(tmp_path, shards=2, config=PROCESS)
    (tmp_path / "gen-000002").mkdir()
    syncs.fails = lambda name: name == str(tmp_path)
    with pytest.raises(StoreError):
        opened(tmp_path, config=PROCESS)
    assert (tmp_path / "gen-000002").exists()
    opened(tmp_path, config=PROCESS)
    assert not (tmp_path / "gen-000002").exists()


def test_every_name_that_a_start_and_a_snapshot_make_is_synced_into_its_parent(tmp_path: Path, syncs: Syncs) -> None:
    path = tmp_path / "a" / "b" / "data"

    async def main() -> None:
        async with Engine(path, shards=2, config=PROCESS) as db:
            generation = path / "gen-000001"
            parents = {tmp_path, tmp_path / "a", tmp_path / "a" / "b", path, generation}
            parents |= {generation / f"shard-{shard:03}" for shard in range(2)}
            assert {str(parent) for parent in parents} <= set(syncs.names)
            await db.apply_chunk(puts(1, 1))
            syncs.names.clear()
            await db.generate_snapshot_data(tmp_path / "c" / "d", None)
            assert {str(tmp_path), str(tmp_path / "c"), str(tmp_path / "c" / "d")} <= set(syncs.names)
            syncs.names.clear()
            await db.create_snapshot()
            assert {str(path), str(path / "snapshots")} <= set(syncs.names)

    run(main)
