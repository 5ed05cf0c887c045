"""Term and vote: on the disk before the call returns, never older than that after any death, and no state's own."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shardengine import (
    DamagedError,
    DirectoryChangedError,
    Engine,
    EngineStateError,
    EngineStoppedError,
    FileRefusedError,
    HardState,
    HardStateError,
    StoreError,
    StoreFullError,
    SyncFailedError,
)
from shardengine.engine import slots as slots_module
from shardengine.engine.storage.hardstate import SLOT_BYTES, VOTED_FOR_BYTES_MAX, HardStateFile
from shardengine.engine.verify import verify_directory
from tests.directories import (
    config,
    die_in_mid_run,
    mark_of,
    opened,
    puts,
    reboot,
    refused_unchanged,
)
from tests.hardstates import NEW, OLD, found, saved
from tests.inside import runtime_of
from tests.syncs import Syncs, ends_with

SMALL = config("process")


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Engine]:
    """An engine that runs, of one shard."""
    engine = Engine(tmp_path / "data", shards=1, config=SMALL)
    engine.start()
    yield engine
    engine.stop()


@pytest.mark.parametrize("durability", ["process", "power"])
def test_what_was_saved_is_told_until_the_stop_and_after_the_next_start(tmp_path: Path, durability: Any) -> None:
    db = Engine(tmp_path, shards=1, config=config(durability))
    calls: list[Callable[[], object]] = [db.hard_state, db.save_hard_state, lambda: db.save_hard_state(NEW)]
    for call in calls:
        with pytest.raises(EngineStateError, match="does not run"):
            call()
    db.start()
    assert db.hard_state() is None
    db.save_hard_state()
    assert db.hard_state() is None and not (tmp_path / "hardstate").exists()
    for state in (OLD, NEW, HardState((1 << 64) - 1, "é" * (VOTED_FOR_BYTES_MAX // 2))):
        db.save_hard_state(state)
        assert db.hard_state() == state
        db.stop()
        for call in calls:
            with pytest.raises(EngineStoppedError):
                call()
        db.start()
        assert db.hard_state() == state
    db.stop()


# ---- what may follow -------------------------------------------------------------------------------------------------


def test_a_term_does_not_fall_and_a_vote_is_given_once(db: Engine) -> None:
    for state in (HardState(3, None), HardState(3, "a"), HardState(3, "a"), HardState(5, None), HardState(5, "b")):
        db.save_hard_state(state)
        assert db.hard_state() == state
    for refused, text in (
        (HardState(4, None), "term 4 is below term 5"),
        (HardState(5, "a"), "term 5 went to 'b', and cannot become 'a'"),
        (HardState(5, None), "term 5 went to 'b', and cannot become None"),
    ):
        with pytest.raises(HardStateError, match=text) as caught:
            db.save_hard_state(refused)
        assert caught.value.hint and caught.value.facts["term"] == refused.term
        assert db.hard_state() == HardState(5, "b")
    db.save_hard_state(HardState(6, "a"))
    assert found_by_the_next_start(db) == HardState(6, "a")


def found_by_the_next_start(db: Engine) -> HardState | None:
    db.stop()
    db.start()
    return db.hard_state()


@pytest.mark.parametrize(
    "wrong",
    [
        5,
        (5, "a"),
        HardState(-1, None),
        HardState(1 << 64, None),
        HardState(True, None),
        HardState(1.0, None),  # type: ignore[arg-type]
        HardState(1, b"a"),  # type: ignore[arg-type]
        HardState(1, "a" * (VOTED_FOR_BYTES_MAX + 1)),
        HardState(1, "\ud800"),
    ],
)
def test_what_is_no_hard_state_is_refused_by_name(tmp_path: Path, wrong: Any) -> None:
    file = HardStateFile(tmp_path)
    with pytest.raises(HardStateError) as caught:
        file.save(wrong)
    assert caught.value.hint and file.state is None and not list(tmp_path.iterdir())


# ---- on the disk before it returns -----------------------------------------------------------------------------------


@pytest.mark.parametrize("durability", ["process", "power"])
def test_it_is_written_then_synced_then_told(
    tmp_path: Path, syncs: Syncs, monkeypatch: pytest.MonkeyPatch, durability: Any
) -> None:
    db = Engine(tmp_path, shards=1, config=config(durability))
    path, seen = tmp_path / "hardstate", list[tuple[str, bytes]]()

    def look(name: str) -> bool:
        file = next((Path(one) for one in (f"{path}.new", str(path)) if Path(one).exists()), None)
        seen.append((Path(name).name, file.read_bytes() if file else b""))
        return False

    def save(state: HardState | None) -> list[tuple[str, bool]]:
        """The syncs that a save made, and whether the new content was there to be synced."""
        seen.clear()
        db.save_hard_state(state)
        content = path.read_bytes()
        return [(name, data == content) for name, data in seen]

    db.start()
    syncs.fails = look
    assert save(OLD) == [("hardstate.new", True), (tmp_path.name, True)]
    assert save(NEW) == [("hardstate", True)]
    before = path.read_bytes()
    assert save(None) == [("hardstate", True)] and path.read_bytes() != before
    db.stop()
    content = path.read_bytes()
    refused = OSError(errno.EIO, os.strerror(errno.EIO))
    monkeypatch.setattr(slots_module, "write_all", lambda *_: (_ for _ in ()).throw(refused))
    with pytest.raises(StoreError, match="cannot be opened"):
        db.start()  # what was found is written once more: a dead run may have written what only the system knows of
    monkeypatch.undo()
    with_syncs = Syncs(monkeypatch)
    db.start()
    assert str(path) in with_syncs.names and path.read_bytes() == content
    db.stop()


# ---- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("newest", [0, 1], ids=["in slot 0", "in slot 1"])
def test_of_a_slot_that_is_torn_anywhere_the_other_one_is_taken(tmp_path: Path, newest: int) -> None:
    middle = [] if newest else [HardState(6, "node-a")]
    file = saved(tmp_path, OLD, *middle, NEW)
    whole = file.read_bytes()
    older = middle[-1] if middle else OLD
    for slot, then in ((newest, older), (1 - newest, NEW)):
        start = slot * SLOT_BYTES
        kept = whole[start : start + 24 + int.from_bytes(whole[start + 8 : start + 16], "little")]
        torn = [flipped(kept, at, bits) for at in range(len(kept)) for bits in (1, 0x80)]
        torn += [kept[:at].ljust(len(kept), b"\0") for at in range(len(kept))]
        for one in torn:
            file.write_bytes(whole[:start] + one + whole[start + len(kept) :])
            assert one == kept or found(tmp_path) == then, (slot, one)
    for at in range(SLOT_BYTES, SLOT_BYTES + 24):  # slot 1 is cut off
        file.write_bytes(whole[:at])
        assert found(tmp_path) == (older if newest else NEW)
    saved(tmp_path, HardState(8, "node-c"))
    assert found(tmp_path) == HardState(8, "node-c") and file.stat().st_size > SLOT_BYTES


def flipped(data: bytes, at: int, bits: int) -> bytes:
    return data[:at] + bytes([data[at] ^ bits]) + data[at + 1 :]


@pytest.mark.parametrize("content", [b"", b"x", bytes(2 * SLOT_BYTES), b"\xff" * 2 * SLOT_BYTES, bytes(SLOT_BYTES)])
def test_a_file_without_a_readable_slot_stops_the_start_by_name(tmp_path: Path, content: bytes) -> None:
    opened(tmp_path, shards=1, config=SMALL)
    file = saved(tmp_path, OLD, NEW)
    whole = file.read_bytes()
    file.write_bytes(content)
    refused_unchanged(tmp_path, DamagedError, f"{file}: neither slot", config=SMALL)
    (finding,) = verify_directory(tmp_path)
    assert f"{file}: neither slot" in finding.problem
    file.write_bytes(whole)
    assert (verify_directory(tmp_path), file.read_bytes(), found(tmp_path)) == ([], whole, NEW)


def test_a_link_in_its_place_is_not_followed_and_a_file_that_is_gone_is_missed(tmp_path: Path, db: Engine) -> None:
    db.save_hard_state(OLD)
    file = tmp_path / "data" / "hardstate"
    file.rename(tmp_path / "elsewhere")
    for linked in (False, True):
        if linked:
            file.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(DirectoryChangedError, match=str(file)):
            db.save_hard_state(NEW)
        assert db.hard_state() == OLD
    db.stop()
    refused_unchanged(tmp_path / "data", FileRefusedError, "symbolic link", config=SMALL)
    file.unlink()
    shutil.copy(tmp_path / "elsewhere", file)
    db.start()
    assert db.hard_state() == OLD


# ---- what a failure leaves -------------------------------------------------------------------------------------------


def test_after_a_sync_that_failed_the_one_before_counts_and_is_not_written_over(
    tmp_path: Path, db: Engine, syncs: Syncs, monkeypatch: pytest.MonkeyPatch
) -> None:
    db.save_hard_state(OLD)
    syncs.fails = ends_with("/hardstate")
    with pytest.raises(SyncFailedError, match="hard state"):
        db.save_hard_state(NEW)
    assert db.hard_state() == OLD
    with monkeypatch.context() as patched:
        patched.setattr(slots_module, "write_all", half_written)
        with pytest.raises(StoreFullError):
            db.save_hard_state(HardState(7, "node-a"))
    assert db.hard_state() == found(tmp_path / "data") == OLD
    db.save_hard_state(HardState(7, "node-c"))  # nobody was told of the other vote
    assert found_by_the_next_start(db) == HardState(7, "node-c")


def half_written(descriptor: int, data: bytes, offset: int) -> None:
    os.pwrite(descriptor, data[: len(data) // 2], offset)
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("what", ["/hardstate.new", "/data"])
def test_a_first_save_that_fails_leaves_nothing_that_counts(
    tmp_path: Path, db: Engine, syncs: Syncs, what: str
) -> None:
    syncs.fails = ends_with(what)
    with pytest.raises(SyncFailedError):
        db.save_hard_state(NEW)
    assert db.hard_state() is None
    syncs.names.clear()
    db.save_hard_state(HardState(7, "node-c"))
    assert [Path(name).name for name in syncs.names] == ["hardstate.new", "data"]
    assert found_by_the_next_start(db) == HardState(7, "node-c")


def test_an_engine_that_has_failed_still_takes_a_vote(tmp_path: Path) -> None:
    db = Engine(tmp_path, shards=1, config=SMALL)
    db.start()
    runtime = runtime_of(db)
    assert runtime is not None
    runtime.fail(StoreError("the end"))
    db.save_hard_state(NEW)
    assert (db.is_running(), db.hard_state(), len(db)) == (False, NEW, 0)
    with pytest.raises(StoreError, match="the end"):
        db.stop()
    assert found(tmp_path) == NEW


# ---- it is no state's own --------------------------------------------------------------------------------------------


def test_whatever_becomes_of_the_state_it_stays(tmp_path: Path) -> None:
    path, file = tmp_path / "data", tmp_path / "data" / "hardstate"

    async def live(db: Engine) -> None:
        db.save_hard_state(NEW)
        kept = file.read_bytes()
        await db.apply_chunk(puts(1, 10))
        info = await db.create_snapshot()
        await db.compact()
        assert (db.hard_state(), file.read_bytes()) == (NEW, kept)
        await db.reset()
        assert (db.hard_state(), file.read_bytes()) == (NEW, kept)
        await db.restore(info.path)
        assert (db.hard_state(), file.read_bytes()) == (NEW, kept)
        await db.apply_chunk(puts(11, 1))

    async def look(db: Engine) -> None:
        assert db.hard_state() == NEW

    opened(path, live, shards=2, config=SMALL)
    kept = file.read_bytes()
    assert opened(path, look, shards=3, reshard=True, config=SMALL).last_applied.index == 11
    assert file.read_bytes() == kept


def test_a_power_loss_that_takes_the_state_leaves_it(tmp_path: Path) -> None:
    die_in_mid_run(tmp_path)
    kept = saved(tmp_path, OLD, NEW).read_bytes()
    assert not mark_of(tmp_path).clean
    reboot(tmp_path)

    async def look(db: Engine) -> None:
        assert (db.hard_state(), len(db)) == (NEW, 0)

    emptied = msgspec.structs.replace(SMALL, after_power_loss="empty")
    assert opened(tmp_path, look, config=emptied).outcome == "emptied"
    assert (tmp_path / "hardstate").read_bytes() == kept


def test_what_a_save_that_died_left_beside_it_is_swept(tmp_path: Path) -> None:
    opened(tmp_path, shards=1, config=SMALL)
    (tmp_path / "hardstate.new").write_bytes(b"half")
    opened(tmp_path, config=SMALL)
    assert not (tmp_path / "hardstate.new").exists()
