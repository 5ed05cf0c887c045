"""What is durable, and what a sync that failed leaves: the kernel tells it once, the engine remembers it."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path
from typing import Any

import pytest

from shardengine import (
    Engine,
    EngineConfig,
    EngineError,
    LogId,
    SnapshotAssembler,
    SnapshotError,
    StartReport,
    StateUntrustedError,
    SyncFailedError,
    TravelError,
    run,
    stream_snapshot,
)
from shardengine.engine.snapshot.manifest import MANIFEST
from shardengine.engine.storage import runmark
from shardengine.engine.storage.generations import Generation
from shardengine.engine.storage.runmark import Boot
from tests.directories import config, die_in_mid_run, holds_ten, mark_of, opened, puts, reboot
from tests.syncs import Syncs, ends_with

PROCESS, POWER = config("process"), config("power")


# ---- a sync that fails -----------------------------------------------------------------------------------------------


def test_a_sync_that_failed_is_not_forgotten_by_the_next_one(tmp_path: Path, syncs: Syncs) -> None:
    async def main() -> None:
        db = Engine(tmp_path / "data", shards=2, config=PROCESS)
        db.start()
        await db.apply_chunk(puts(1, 10))
        await db.create_snapshot()
        await db.apply_chunk(puts(11, 10))
        assert db.stats()["sync_failed"] is None
        syncs.fails = ends_with("/decision")
        with pytest.raises(SyncFailedError, match="Input/output error"):
            db.flush()
        await db.apply_chunk(puts(21, 1))
        for _ in range(2):
            with pytest.raises(SyncFailedError, match="a sync failed in this run"):
                await db.flush_async()
        with pytest.raises(SyncFailedError):
            await db.create_snapshot()
        assert (db.durable(), db.last_applied()) == (LogId(10, 1), LogId(21, 1))
        assert "decision record" in db.stats()["sync_failed"]
        with pytest.raises(SyncFailedError):
            await db.aclose()

    run(main)
    mark = mark_of(tmp_path / "data")
    assert not mark.clean and mark.failure is not None
    aside = str(tmp_path / "data" / "set-aside-gen-000001")
    assert opened(tmp_path / "data", holds_ten) == StartReport("restored", LogId(10, 1), aside)
    assert opened(tmp_path / "data", holds_ten) == StartReport("opened", LogId(10, 1))


def test_a_flush_that_waited_behind_one_that_failed_fails_too(tmp_path: Path, syncs: Syncs) -> None:
    async def main() -> None:
        db = Engine(tmp_path, shards=2, config=PROCESS)
        db.start()
        await db.apply_chunk(puts(1, 10))
        syncs.fails = ends_with("/decision")
        flushes = [db.flush_async() for _ in range(3)]
        outcomes = await asyncio.gather(*flushes, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [SyncFailedError] * 3
        assert not mark_of(tmp_path).clean
        with pytest.raises(SyncFailedError):
            await db.aclose()

    run(main)


def test_a_failure_that_no_file_could_take_is_written_down_later(
    tmp_path: Path, syncs: Syncs, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        db = Engine(tmp_path, shards=2, config=PROCESS)
        db.start()
        await db.apply_chunk(puts(1, 10))
        syncs.fails = ends_with("/decision")
        with monkeypatch.context() as patched:
            patched.setattr(Path, "rename", _no_room)
            with pytest.raises(SyncFailedError):
                db.flush()
            assert mark_of(tmp_path).failure is None
        db._running().tick()
        assert mark_of(tmp_path).failure is not None
        with pytest.raises(SyncFailedError):
            await db.aclose()

    run(main)


def _no_room(*_: object) -> Path:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_mark_that_cannot_be_synced_lets_nothing_be_written(tmp_path: Path, syncs: Syncs) -> None:
    async def main() -> None:
        db = Engine(tmp_path, shards=2, config=PROCESS)
        db.start()
        syncs.fails = ends_with("/run-mark.new")
        with pytest.raises(SyncFailedError, match="run mark"):
            await db.apply_chunk(puts(1, 10))
        assert db.last_applied() == LogId(0, 0)
        await db.apply_chunk(puts(1, 10))
        assert not mark_of(tmp_path).clean and db.stats()["sync_failed"]
        with pytest.raises(SyncFailedError):
            await db.aclose()

    run(main)


def test_mode_power_acknowledges_nothing_after_a_sync_that_failed(tmp_path: Path, syncs: Syncs) -> None:
    async def main() -> None:
        db = Engine(tmp_path, shards=2, config=POWER)
        db.start()
        await db.apply_chunk(puts(1, 10))
        syncs.fails = ends_with("/decision")
        with pytest.raises(SyncFailedError):
            await db.flush_async()
        for _ in range(2):
            with pytest.raises(SyncFailedError, match="a sync failed in this run"):
                await db.apply_chunk(puts(11, 10))
        assert db.durable() == db.last_applied() == LogId(10, 1)
        with pytest.raises(SyncFailedError):
            await db.aclose()

    run(main)
    assert mark_of(tmp_path).failure is not None
    assert opened(tmp_path, holds_ten, config=POWER) == StartReport("opened", LogId(10, 1)), "it was verified"
    assert mark_of(tmp_path).clean


def test_mode_power_looks_at_every_page_after_a_sync_that_failed(tmp_path: Path, syncs: Syncs) -> None:
    async def main() -> None:
        db = Engine(tmp_path, shards=2, config=POWER)
        db.start()
        await db.apply_chunk(puts(1, 1000))
        syncs.fails = ends_with("/decision")
        with pytest.raises(SyncFailedError):
            db.flush()
        with pytest.raises(SyncFailedError):
            await db.aclose()

    run(main)
    data = tmp_path / "gen-000001" / "shard-000" / "data.mdb"
    content = bytearray(data.read_bytes())
    for page in range(3, len(content) // 4096):  # what the kernel had, and never wrote
        content[page * 4096 : page * 4096 + 64] = bytes(64)
    data.write_bytes(content)
    with pytest.raises(StateUntrustedError):
        opened(tmp_path, config=POWER)


def test_a_snapshot_whose_name_may_not_be_on_the_disk_does_not_count_when_it_is_asked_for_again(
    tmp_path: Path, syncs: Syncs
) -> None:
    async def take(db: Engine) -> None:
        await db.apply_chunk(puts(1, 5))
        first = await db.create_snapshot()
        await db.apply_chunk(puts(6, 5))
        syncs.fails = ends_with("/snapshots")
        with pytest.raises(SnapshotError):
            await db.create_snapshot()
        assert (db.snapshots(), db.durable()) == ([first], LogId(5, 1))
        assert [path.name for path in (tmp_path / "snapshots").iterdir()] == [Path(first.path).name]
        second = await db.create_snapshot()
        assert (db.snapshots(), db.durable()) == ([first, second], LogId(10, 1))

    opened(tmp_path, take, shards=2, config=PROCESS)


def test_a_start_that_lacks_what_it_takes_to_look_at_the_snapshots_is_refused_and_durable_never_falls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def take(db: Engine) -> None:
        await db.apply_chunk(puts(1, 10))
        await db.create_snapshot()

    opened(tmp_path, take, shards=2, config=PROCESS)
    real = os.open

    def refusal() -> str:
        db = Engine(tmp_path, config=PROCESS)
        try:
            db.start()
        except EngineError as error:
            return error.hint
        assert db.durable() == LogId(10, 1)
        db.stop()
        db.close_storage()
        return ""

    for refused in ("/snapshots", f"/{MANIFEST}"):

        def refuse(path: Any, *arguments: Any, end: str = refused, **options: Any) -> int:
            if isinstance(path, (str, Path)) and str(path).endswith(end):
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return real(path, *arguments, **options)

        monkeypatch.setattr(os, "open", refuse)
        assert "open files" in refusal()
    monkeypatch.setattr(os, "open", real)
    assert refusal() == ""


def test_a_snapshot_that_came_counts_when_the_disk_has_its_name_whoever_gave_it(tmp_path: Path, syncs: Syncs) -> None:
    async def take(db: Engine) -> None:
        await db.apply_chunk(puts(1, 5))
        await db.generate_snapshot_data(tmp_path / "taken", None)

    opened(tmp_path / "data", take, shards=2, config=PROCESS)

    def receive() -> Path:
        with SnapshotAssembler(tmp_path / "here") as assembler:
            for piece in stream_snapshot(tmp_path / "taken"):
                assembler.add(piece)
            return assembler.finish()

    (tmp_path / "here").mkdir()
    for _ in range(2):
        syncs.fails = ends_with("/here")
        with pytest.raises(TravelError):
            receive()
        assert list((tmp_path / "here").iterdir()) == []
        syncs.fails = lambda name: False
    path = receive()
    syncs.names.clear()
    assert receive() == path
    assert str(tmp_path / "here") in syncs.names


@pytest.mark.parametrize("name", ["ring", "decision"])
def test_a_decision_that_mode_power_cannot_sync_stops_the_engine_by_name(
    tmp_path: Path, syncs: Syncs, name: str
) -> None:
    async def main() -> None:
        db = Engine(tmp_path, shards=2, config=POWER)
        db.start()
        await db.apply_chunk(puts(1, 10))
        syncs.fails = ends_with(f"/{name}")
        with pytest.raises(SyncFailedError, match="decision record"):
            await db.apply_chunk(puts(11, 10))
        assert not db.is_running() and db.durable() == LogId(10, 1)
        with pytest.raises(SyncFailedError):
            await db.aclose()

    run(main)
    assert mark_of(tmp_path).failure is not None


# ---- which boot ------------------------------------------------------------------------------------------------------


def test_state_is_of_this_boot_by_id_and_time_or_by_what_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    die_in_mid_run(tmp_path)
    real = mark_of(tmp_path).boot
    for boot in (real, Boot("", real.time), Boot(real.id, real.time + 1)):
        monkeypatch.setattr(runmark, "_boot_id", lambda boot=boot: boot.id)
        monkeypatch.setattr(runmark, "_boot_time", lambda boot=boot: boot.time)
        assert runmark.trusted(mark_of(tmp_path), _generation(tmp_path), lambda: False)
    for boot in (Boot(real.id, real.time + 60), Boot("", real.time + 60), Boot("another", real.time)):
        monkeypatch.setattr(runmark, "_boot_id", lambda boot=boot: boot.id)
        monkeypatch.setattr(runmark, "_boot_time", lambda boot=boot: boot.time)
        assert not runmark.trusted(mark_of(tmp_path), _generation(tmp_path), lambda: False)
    with pytest.raises(StateUntrustedError):
        opened(tmp_path)


def _generation(path: Path) -> Generation:
    return Generation(path / "gen-000001")


def test_where_proc_is_hidden_an_engine_starts_and_trusts_its_own_boot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under `subset=pid`: nothing of /proc but processes."""
    read_text = Path.read_text

    def hidden(self: Path, *args: str, **options: str) -> str:
        if str(self).startswith(("/proc/sys", "/proc/stat")):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
        return read_text(self, *args, **options)

    die_in_mid_run(tmp_path)
    monkeypatch.setattr(Path, "read_text", hidden)
    assert opened(tmp_path, holds_ten).outcome == "opened"
    assert mark_of(tmp_path).boot.id == ""


def test_a_flush_makes_clean_what_a_start_after_a_power_loss_trusts(tmp_path: Path) -> None:
    async def main() -> None:
        async with Engine(tmp_path, shards=2, config=EngineConfig()) as db:
            await db.apply_chunk(puts(1, 10))
            await db.flush_async()
            assert db.durable() == LogId(0, 0)

    run(main)
    reboot(tmp_path)
    assert opened(tmp_path, holds_ten).outcome == "opened"


@pytest.mark.parametrize("settings", [PROCESS, POWER], ids=["process", "power"])
def test_an_engine_that_is_closed_flushes_once_and_again_when_something_was_written_since(
    tmp_path: Path, syncs: Syncs, settings: EngineConfig
) -> None:
    async def main() -> None:
        for later in (False, True):
            db = Engine(tmp_path / "data", shards=2, config=settings)
            db.start()
            await db.apply_chunk(puts(db.last_applied().index + 1, 10))
            await db.flush_async()
            if later:
                await db.apply_chunk(puts(11 + 10, 1))
            syncs.names.clear()
            db.stop()
            db.close_storage()
            assert bool(syncs.names) == later
            assert mark_of(tmp_path / "data").clean

    run(main)
