"""What a start makes of the directory it finds, and what a stop leaves."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from shardengine import (
    DamagedError,
    Engine,
    EngineConfig,
    EngineError,
    FormatError,
    LogId,
    StartReport,
    StateUntrustedError,
    run,
)
from shardengine.engine.commit.decision import SLOT_BYTES, DecisionFile
from tests.directories import (
    applies_ten,
    change_mark,
    contents,
    die_after_deciding,
    die_in_mid_run,
    holds_ten,
    mark_of,
    opened,
    puts,
    reboot,
    refused_unchanged,
)
from tests.model import Model, chunks_of

POWER = EngineConfig(durability="power")


# ---- outcomes --------------------------------------------------------------------------------------------------------


def test_a_start_reports_what_it_found(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "db"
    assert opened(path, applies_ten, shards=2) == StartReport("created", LogId(0, 0))
    assert opened(path, holds_ten) == StartReport("opened", LogId(10, 1))
    die_in_mid_run(tmp_path / "killed")
    assert opened(tmp_path / "killed", holds_ten) == StartReport("opened", LogId(10, 1))


def test_a_decided_group_is_redone_at_the_next_start(tmp_path: Path) -> None:
    die_after_deciding(tmp_path / "db")

    async def check(db: Engine) -> None:
        model = Model()
        model.apply(puts(1, 20))
        assert (len(db), await db.digest()) == (20, model.digest())
        await db.apply_chunk(puts(21, 5))
        assert db.last_applied() == LogId(25, 1)

    assert opened(tmp_path / "db", check) == StartReport("redone", LogId(20, 1))
    assert opened(tmp_path / "db") == StartReport("opened", LogId(25, 1))


def test_a_half_built_generation_is_removed(tmp_path: Path) -> None:
    opened(tmp_path, applies_ten, shards=2)
    shutil.copytree(tmp_path / "gen-000001", tmp_path / "gen-000002")
    (tmp_path / "gen-000002" / "GENERATION").unlink()
    assert opened(tmp_path, holds_ten) == StartReport("opened", LogId(10, 1))
    assert not (tmp_path / "gen-000002").exists()


def test_a_creation_that_was_cut_short_is_done_again(tmp_path: Path) -> None:
    opened(tmp_path, shards=2)
    (tmp_path / "CURRENT").unlink()
    assert opened(tmp_path, applies_ten, shards=3) == StartReport("created", LogId(0, 0))
    assert opened(tmp_path, holds_ten, shards=3) == StartReport("opened", LogId(10, 1))
    assert sorted(one.name for one in tmp_path.glob("gen-*")) == [(tmp_path / "CURRENT").read_text()]


def test_a_ring_of_another_size_is_replaced_when_nothing_is_to_be_redone(tmp_path: Path) -> None:
    opened(tmp_path, applies_ten, shards=2, config=EngineConfig(ring_bytes=128 * 1024))
    assert opened(tmp_path, holds_ten, config=EngineConfig(ring_bytes=64 * 1024)).outcome == "opened"
    assert (tmp_path / "gen-000001" / "shard-000" / "ring").stat().st_size == 64 * 1024


def test_a_group_is_redone_from_rings_of_another_size_than_asked_for(tmp_path: Path) -> None:
    die_after_deciding(tmp_path)
    assert opened(tmp_path, config=EngineConfig(ring_bytes=64 * 1024)) == StartReport("redone", LogId(20, 1))


# ---- power loss ------------------------------------------------------------------------------------------------------


def test_unsynced_state_of_another_boot_is_refused_and_set_aside_whole(tmp_path: Path) -> None:
    die_in_mid_run(tmp_path)
    reboot(tmp_path)
    before = contents(tmp_path / "gen-000001")
    for _ in range(2):  # the refusal is not forgotten
        with pytest.raises(StateUntrustedError, match="set-aside-gen-000001") as caught:
            opened(tmp_path)
        assert "after_power_loss" in caught.value.hint
        assert contents(Path(caught.value.discarded)) == before
        assert not list(tmp_path.glob("gen-*"))


@pytest.mark.parametrize("refused_before", [False, True])
def test_an_empty_start_after_a_power_loss_keeps_the_old_state_aside(tmp_path: Path, refused_before: bool) -> None:
    die_in_mid_run(tmp_path)
    reboot(tmp_path)
    before = contents(tmp_path / "gen-000001")
    if refused_before:
        with pytest.raises(StateUntrustedError):
            opened(tmp_path)
    aside = tmp_path / "set-aside-gen-000001"
    emptied = opened(tmp_path, applies_ten, shards=2, config=EngineConfig(after_power_loss="empty"))
    assert emptied == StartReport("emptied", LogId(0, 0), str(aside))
    assert contents(aside) == before
    assert (tmp_path / "CURRENT").read_text() == "gen-000002"
    assert opened(tmp_path, holds_ten) == StartReport("opened", LogId(10, 1))
    assert contents(aside) == before


@pytest.mark.parametrize("damage", ["missing", "garbage", "of another directory"])
def test_state_whose_run_mark_cannot_be_read_is_not_trusted(tmp_path: Path, damage: str) -> None:
    opened(tmp_path, applies_ten, shards=2)
    mark = tmp_path / "run-mark"
    if damage == "missing":
        mark.unlink()
    elif damage == "garbage":
        mark.write_bytes(b"{")
    else:
        change_mark(tmp_path, lineage="another")
    with pytest.raises(StateUntrustedError):
        opened(tmp_path)


def test_state_that_was_stopped_or_flushed_is_trusted_after_a_power_loss(tmp_path: Path) -> None:
    opened(tmp_path, applies_ten, shards=2)
    reboot(tmp_path)
    assert opened(tmp_path, holds_ten) == StartReport("opened", LogId(10, 1))


def test_state_of_mode_power_is_trusted_after_a_power_loss(tmp_path: Path) -> None:
    die_in_mid_run(tmp_path, durability="power")
    assert not mark_of(tmp_path).clean
    reboot(tmp_path)
    assert opened(tmp_path, holds_ten, config=POWER) == StartReport("opened", LogId(10, 1))


def test_mode_power_vouches_for_what_mode_process_left_only_after_it_synced_it(tmp_path: Path) -> None:
    die_in_mid_run(tmp_path)
    db = Engine(tmp_path, config=POWER)
    db.start()
    assert mark_of(tmp_path).clean
    db.stop()
    db.close_storage()


def test_the_run_mark_is_unclean_from_the_first_write_to_the_next_flush(tmp_path: Path) -> None:
    async def main() -> None:
        async with Engine(tmp_path, shards=2) as db:
            assert mark_of(tmp_path).clean
            await db.apply_chunk(puts(1, 10))
            assert not mark_of(tmp_path).clean
            db.flush()
            assert mark_of(tmp_path).clean
            await db.apply_chunk(puts(11, 1))
            assert not mark_of(tmp_path).clean
            applying = asyncio.gather(*map(db.apply_chunk, chunks_of(puts(12, 60), 3)))
            await asyncio.gather(*[db.flush_async() for _ in range(3)])
            await applying
            await db.flush_async()
            assert mark_of(tmp_path).clean
        assert mark_of(tmp_path).clean

    run(main)
    assert opened(tmp_path).last_applied == LogId(71, 1)


def test_what_is_durable_in_mode_process_is_the_newest_snapshot_and_never_falls(tmp_path: Path) -> None:
    async def main() -> None:
        async with Engine(tmp_path, shards=2) as db:
            await db.apply_chunk(puts(1, 10))
            db.flush()
            assert db.durable() == LogId(0, 0), "the next write makes doubtful what was flushed"
            await db.create_snapshot()
            assert db.durable() == LogId(10, 1)
            await db.apply_chunk(puts(11, 10))
            assert db.durable() == LogId(10, 1)
            await db.flush_async()
            assert db.durable() == LogId(10, 1)

    run(main)
    reboot(tmp_path)
    opened(tmp_path, _is_durable_up_to_10)


async def _is_durable_up_to_10(db: Engine) -> None:
    assert (db.durable(), db.last_applied()) == (LogId(10, 1), LogId(20, 1))


def test_everything_applied_is_durable_in_mode_power(tmp_path: Path) -> None:
    async def check(db: Engine) -> None:
        for first in range(1, 31, 3):
            await db.apply_chunk(puts(first, 3))
            assert db.durable() == db.last_applied() == LogId(first + 2, 1)

    opened(tmp_path, check, shards=2, config=POWER)


# ---- damage ----------------------------------------------------------------------------------------------------------


def scribble(path: Path, offset: int, data: bytes = b"scribble") -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def damage_record(generation: Path, *, newest: bool) -> None:
    """Change one bit of a decision record so that only its checksum can tell."""
    file = DecisionFile(generation / "decision")
    slot = file._slots._target ^ newest
    file.close()
    data = bytearray((generation / "decision").read_bytes())
    length = int.from_bytes(data[slot * SLOT_BYTES + 8 : slot * SLOT_BYTES + 16], "little")
    last = slot * SLOT_BYTES + 24 + length - 1
    scribble(generation / "decision", last, bytes([data[last] ^ 2]))


def test_a_directory_that_is_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("hello")
    refused_unchanged(tmp_path, FormatError, "no data directory, and not empty: it holds 'thesis.tex'")


def test_one_unreadable_decision_record_is_survived_and_two_are_damage(tmp_path: Path) -> None:
    opened(tmp_path, applies_ten, shards=2)
    damage_record(tmp_path / "gen-000001", newest=False)
    opened(tmp_path, holds_ten)
    damage_record(tmp_path / "gen-000001", newest=True)
    refused_unchanged(tmp_path, DamagedError, "neither slot holds a readable decision record")


def test_a_lost_newest_decision_record_is_damage_that_is_noticed(tmp_path: Path) -> None:
    async def use(db: Engine) -> None:
        await db.apply_chunk(puts(1, 10))
        await db.apply_chunk(puts(11, 10))

    opened(tmp_path, use, shards=2)
    damage_record(tmp_path / "gen-000001", newest=True)
    refused_unchanged(tmp_path, DamagedError, "contradicts")  # two shards ahead of the record at one group: no solos


def test_a_damaged_part_of_a_decided_group_is_refused(tmp_path: Path) -> None:
    die_after_deciding(tmp_path)
    file = DecisionFile(tmp_path / "gen-000001" / "decision")
    extent = file.record.participants[1]
    file.close()
    scribble(tmp_path / "gen-000001" / "shard-001" / "ring", extent.offset + extent.length - 2, b"x")
    refused_unchanged(tmp_path, DamagedError, "does not match its checksum")


def test_a_cut_ring_under_a_decided_group_is_refused(tmp_path: Path) -> None:
    die_after_deciding(tmp_path)
    os.truncate(tmp_path / "gen-000001" / "shard-001" / "ring", 0)
    with pytest.raises(EngineError, match="a ring of 0 bytes"):
        opened(tmp_path)
