"""The decision file survives a write that is cut short anywhere, and a start tells what it may go on from."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from shardengine.engine.commit.actions import Group
from shardengine.engine.commit.decision import (
    SLOT_BYTES,
    DecisionFile,
    Record,
    Recovery,
    create_decision,
    encode_runs,
    recover,
)
from shardengine.engine.errors import CommitRuleError, DamagedError
from shardengine.engine.intake.tail import TERM_RUNS_MAX
from shardengine.ipc.ring import Extent
from shardengine.shards.placement import SHARDS_MAX
from shardengine.shards.types import U64_MAX, LogId, Position, Standing


def record_of(number: int, *shards: int) -> Record:
    """A record of group `number`, which ends at ten times that index."""
    position = Position(number, number * 10, 1, number * 100)
    extents = {shard: Extent(8 * number, 64, 0xFACE + shard) for shard in shards}
    return Record(position, [LogId(1, 1)], extents, 1)


def recovery_at(number: int, redo: Group | None, committed: frozenset[int]) -> Recovery:
    return Recovery(at(number), [LogId(1, 1)] if number else [], redo, committed)


def at(number: int) -> Position:
    return record_of(number).position if number else Position()


def read(path: Path) -> Record:
    file = DecisionFile(path)
    try:
        return file.record
    finally:
        file.close()


def write(path: Path, record: Record) -> None:
    file = DecisionFile(path)
    try:
        file.write(record)
    finally:
        file.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A decision file that holds records 1 and 2."""
    path = tmp_path / "decision"
    create_decision(path, record_of(1, 0))
    write(path, record_of(2, 0, 1))
    return path


def slots(path: Path) -> list[bytes]:
    data = path.read_bytes()
    assert len(data) == 2 * SLOT_BYTES
    return [data[:SLOT_BYTES], data[SLOT_BYTES:]]


def used(slot: bytes) -> int:
    return len(slot.rstrip(b"\0"))


# ---- the file --------------------------------------------------------------------------------------------------------


def test_a_record_comes_back_as_it_was_written(path: Path) -> None:
    full = Record(at(7), [LogId(i, i) for i in range(9)], {s: Extent(s, 8, 1 << 63) for s in range(64)}, 3)
    write(path, full)
    assert read(path) == full


def test_the_largest_record_that_can_be_fits_its_slot_and_a_larger_one_is_refused_before_a_byte_is_written(
    path: Path,
) -> None:
    most = Position(U64_MAX, U64_MAX, U64_MAX, U64_MAX)
    shards = {shard: Extent(U64_MAX, U64_MAX, U64_MAX) for shard in range(SHARDS_MAX)}
    largest = Record(most, [LogId(U64_MAX, U64_MAX)] * TERM_RUNS_MAX, shards, U64_MAX)
    write(path, largest)
    assert read(path) == largest
    before = slots(path)
    with pytest.raises(CommitRuleError, match="passes its slot"):
        write(path, Record(most, [LogId(U64_MAX, U64_MAX)] * (4 * TERM_RUNS_MAX), shards, 1))
    assert slots(path) == before and read(path) == largest


def test_records_go_into_the_two_slots_in_turn(path: Path) -> None:
    for number in range(3, 8):
        before = slots(path)
        write(path, record_of(number, 1))
        changed = [slot for slot in (0, 1) if slots(path)[slot] != before[slot]]
        assert changed == [(number - 1) % 2]
        assert read(path) == record_of(number, 1)


def test_one_open_file_alternates_as_well(path: Path) -> None:
    file = DecisionFile(path)
    for number in range(3, 8):
        file.write(record_of(number, 0))
        assert file.record == read(path) == record_of(number, 0)
        assert {read_slot(path, slot) for slot in (0, 1)} == {number - 1, number}
    file.close()


def read_slot(path: Path, slot: int) -> int:
    """The group in one slot, read as if the other were lost."""
    alone = path.with_name("alone")
    halves = [bytes(SLOT_BYTES), bytes(SLOT_BYTES)]
    halves[slot] = slots(path)[slot]
    alone.write_bytes(b"".join(halves))
    return read(alone).position.group


@pytest.mark.parametrize("end", ["front", "back"])
def test_a_write_that_is_torn_at_any_byte_leaves_the_older_record_readable(path: Path, end: str) -> None:
    before = slots(path)
    write(path, record_of(3, 0, 1))
    after = slots(path)
    length = max(used(before[0]), used(after[0]))
    for count in range(length + 1):  # so many bytes reached the disk, from the front of the slot or from its back
        split = count if end == "front" else length - count
        old, new = (before[0], after[0]) if end == "back" else (after[0], before[0])
        torn = old[:split] + new[split:]
        path.write_bytes(torn + before[1])
        assert read(path) == record_of(3 if torn == after[0] else 2, 0, 1), count


def test_the_write_after_a_torn_one_goes_over_the_torn_slot(path: Path) -> None:
    before = slots(path)
    write(path, record_of(3, 0, 1))
    after = slots(path)
    for count in range(1, used(after[0])):
        path.write_bytes(after[0][:count] + before[0][count:] + before[1])
        write(path, record_of(4, 1))
        assert slots(path)[1] == before[1], "the only readable record was written over"
        assert read(path) == record_of(4, 1)


@pytest.mark.parametrize("slot", [0, 1])
def test_a_flipped_bit_anywhere_in_a_slot_makes_it_unreadable_and_the_other_is_taken(path: Path, slot: int) -> None:
    before = slots(path)
    for byte in range(used(before[slot])):
        damaged = bytearray(before[slot])
        damaged[byte] ^= 1 << byte % 8
        path.write_bytes(b"".join([bytes(damaged), before[1]] if slot == 0 else [before[0], bytes(damaged)]))
        assert read(path) == (record_of(1, 0) if slot == 1 else record_of(2, 0, 1)), byte


@pytest.mark.parametrize(
    "content",
    [b"", bytes(2 * SLOT_BYTES), b"\xff" * 2 * SLOT_BYTES, b"\0" * 23, bytes(SLOT_BYTES)],
    ids=["empty", "zeroes", "ones", "shorter than a head", "one slot"],
)
def test_two_unreadable_slots_are_damage(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(DamagedError, match="neither slot holds a readable decision record") as caught:
        DecisionFile(path)
    assert caught.value.path == str(path)
    assert path.read_bytes() == content


def test_a_decision_file_is_made_only_where_there_is_none(path: Path) -> None:
    with pytest.raises(FileExistsError):
        create_decision(path, record_of(9))
    assert read(path) == record_of(2, 0, 1)


def test_a_missing_file_is_an_error_of_the_file_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        DecisionFile(tmp_path / "decision")


# ---- the judgement ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "positions", "expected"),
    [
        (Record(Position(), [], {}, 1), (0, 0), recovery_at(0, None, frozenset())),
        (record_of(5, 0, 1), (5, 5), recovery_at(5, None, frozenset())),
        (record_of(5, 0), (5, 3), recovery_at(5, None, frozenset())),
        (record_of(5), (3, 4), recovery_at(5, None, frozenset())),
        (record_of(5, 0, 1), (5, 4), recovery_at(5, Group(5, frozenset({0, 1})), frozenset({0}))),
        (record_of(5, 0, 1), (2, 4), recovery_at(5, Group(5, frozenset({0, 1})), frozenset())),
        (record_of(5, 1), (2, 4), recovery_at(5, Group(5, frozenset({1})), frozenset())),
        (record_of(5, 0, 2), (0, 4, 5), recovery_at(5, Group(5, frozenset({0, 2})), frozenset({2}))),
        (record_of(5, 0, 1), (5, 6), recovery_at(6, None, frozenset())),
        (record_of(5, 0, 1), (9, 8), recovery_at(9, None, frozenset())),
        (Record(Position(), [], {}, 1), (0, 2), recovery_at(2, None, frozenset())),
    ],
    ids=[
        "a fresh generation",
        "all done",
        "a shard without a part stands wherever it did",
        "a no-op group is the record alone",
        "one participant has not committed",
        "no participant has",
        "only a participant redoes",
        "redo in some of three shards",
        "a solo is ahead of the record",
        "two solos are, and the newest is where the engine stands",
        "a solo before the first record",
    ],
)
def test_a_start_goes_on_from_the_record_and_the_shards(
    record: Record, positions: tuple[int, ...], expected: Recovery
) -> None:
    new = b"" if record.term_runs else encode_runs([LogId(1, 1)])
    assert recover(record, [Standing(at(number), new if number else b"") for number in positions]) == expected


@pytest.mark.parametrize(
    ("record", "positions", "shards"),
    [
        (record_of(5, 0, 1), [at(6), at(4)], {1}),
        (record_of(5, 0), [at(5), at(5)], {1}),
        (record_of(5, 0, 1), [at(5), Position(5, 51, 1, 500)], {1}),
        (record_of(5, 0, 1), [at(5), Position(5, 50, 2, 500)], {1}),
        (record_of(5, 0, 1), [Position(5, 50, 1, 501), at(5)], {0}),
        (record_of(5, 0, 1), [at(5), Position(6, 50, 1, 500)], {1}),
        (record_of(5, 0, 1), [at(6), at(6)], {0, 1}),
        (record_of(5, 0, 1), [at(7), Position(6, 80, 1, 800)], {0, 1}),
        (record_of(5, 1), [Position(3, 50, 1, 500), at(5)], {0}),
        (record_of(5, 2), [at(3), Position(3, 20, 1, 300), at(5)], {0, 1}),
        (record_of(5, 0, 2), [at(5), at(5)], {1}),
        (record_of(5, 0, 2), [at(5), at(4)], {2}),
    ],
    ids=[
        "ahead of a record that is not done elsewhere",
        "at a group it had no part in",
        "at the group with another index",
        "at the group with another term",
        "at the group with another clock",
        "ahead of the record but not of its index",
        "two shards ahead at one group, which no solo leaves",
        "two shards ahead, the older group at the later index",
        "below the record but not below its index",
        "two shards at one group in different places",
        "a participant that does not exist, and a shard that took its part",
        "a participant that does not exist",
    ],
)
def test_a_contradiction_between_record_and_shards_is_damage_and_names_the_shard(
    record: Record, positions: list[Position], shards: set[int]
) -> None:
    with pytest.raises(DamagedError, match=r"shard \d stands at .* contradicts") as caught:
        recover(record, [Standing(position) for position in positions])
    assert caught.value.shard in shards
    assert caught.value.hint


RECORDED = Record(Position(5, 50, 2, 0), [LogId(1, 1), LogId(40, 2)], {0: Extent(0, 64, 1), 1: Extent(0, 64, 2)}, 1)


def standing(group: int, term: int, *runs: LogId) -> Standing:
    return Standing(Position(group, group * 10, term, 0), encode_runs(runs))


def test_terms_that_began_behind_the_record_are_those_of_the_newest_solo() -> None:
    done = standing(5, 2)
    assert recover(RECORDED, [done, done]).term_runs == RECORDED.term_runs
    assert recover(RECORDED, [standing(6, 2), done]).term_runs == RECORDED.term_runs
    first, second = LogId(51, 3), LogId(65, 7)
    older, newer = standing(6, 3, first), standing(7, 7, first, second)
    for standings in ([older, newer], [newer, older], [done, newer]):
        assert recover(RECORDED, standings).term_runs == [*RECORDED.term_runs, first, second]
    stale, elsewhere = (
        standing(4, 1, LogId(31, 1)),
        msgspec.structs.replace(RECORDED, participants={1: Extent(0, 64, 2)}),
    )
    assert recover(elsewhere, [stale, done]).term_runs == RECORDED.term_runs


@pytest.mark.parametrize(
    "solo",
    [
        standing(6, 3),
        standing(6, 4, LogId(51, 3)),
        standing(6, 3, LogId(50, 3)),
        standing(6, 3, LogId(61, 3)),
        standing(6, 2, LogId(51, 2)),
        standing(6, 3, LogId(55, 3), LogId(51, 4)),
        Standing(Position(6, 60, 3, 0), b"\xc1"),
        Standing(Position(6, 60, 3, 0), encode_runs([LogId(51, 3)])[:-1]),
    ],
    ids=[
        "none, of a new term",
        "up to another term",
        "that begin in the record",
        "that begin beyond it",
        "of the record's term",
        "that fall",
        "that are no message",
        "cut off",
    ],
)
def test_terms_of_a_solo_that_do_not_go_on_from_the_record_are_damage(solo: Standing) -> None:
    with pytest.raises(
        DamagedError, match=r"shard 1 ends at .* do not go on from those of the decision record"
    ) as caught:
        recover(RECORDED, [standing(5, 2), solo])
    assert caught.value.shard == 1 and caught.value.hint
