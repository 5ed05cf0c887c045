"""Commands over several shards answer and leave what they would in one place, one after the other."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardengine import ChunkFailedError, ChunkTooLargeError, Context, Entry, Machine, Tx, encode
from shardengine.shards import wire
from tests.indoors import Indoors, outcomes
from tests.killing import DEEP
from tests.machines import Add, Bloat, Ledger, Move
from tests.model import chunks_of, log_of
from tests.wander import STEPS, Wander, Wanderer, one_by_one
from tests.wanders import wanders

SHARDS = [1, 2, 3, 8]


@contextmanager
def indoors(machine: type[Machine], shards: int, **facts: Any) -> Iterator[Indoors]:
    with tempfile.TemporaryDirectory() as folder:
        house = Indoors(Path(folder), machine, shards, **facts)
        try:
            yield house
        finally:
            house.close()


@settings(max_examples=300 if DEEP else 150)
@given(
    commands=st.lists(wanders(), min_size=1, max_size=40),
    size=st.sampled_from([1, 3, 7, 40]),
    shards=st.sampled_from(SHARDS),
    seed=st.randoms(use_true_random=False),
)
def test_any_machine_answers_as_in_one_place_whatever_the_chunks_the_shards_and_who_is_faster(
    commands: list[Wander], size: int, shards: int, seed: st.DataObject
) -> None:
    records: dict[bytes, bytes] = {}
    expected = one_by_one(commands, records)
    with indoors(Wanderer, shards) as house:
        house.choose = seed.randrange  # type: ignore[attr-defined]
        deliveries = house.accept(chunks_of(log_of(map(encode, commands)), size))
        house.run()
        assert [outcome for delivery in deliveries for outcome in outcomes(delivery)] == expected
        assert house.records == records


@settings(max_examples=100 if DEEP else 50)
@given(
    commands=st.lists(wanders((*STEPS, "fail", "fail")), min_size=1, max_size=30),
    shards=st.sampled_from(SHARDS),
    seed=st.randoms(use_true_random=False),
)
def test_a_chunk_whose_command_fails_leaves_no_trace_and_names_a_command_that_does(
    commands: list[Wander], shards: int, seed: st.DataObject
) -> None:
    records: dict[bytes, bytes] = {}
    with indoors(Wanderer, shards) as house:
        house.choose = seed.randrange  # type: ignore[attr-defined]
        try:
            expected: list[Any] | None = one_by_one(commands, records)
        except ValueError:
            expected = None
        if expected is None:
            with pytest.raises(ChunkFailedError, match=r"entry [0-9]+ failed its chunk: ValueError: after") as caught:
                house.apply(log_of(map(encode, commands)))
            blamed = commands[caught.value.index - 1]
            assert "fail" in [what for what, _ in blamed.steps]
            assert house.records == {}
            assert house.apply(log_of([encode(Wander([b"a0"], [("get", 0)]))])) == [[None]]
        else:
            assert house.apply(log_of(map(encode, commands))) == expected
            assert house.records == records


def spanning(house: Indoors) -> int:
    """How many orders of an exchange were sent."""
    return sum(isinstance(order, (wire.Ask, wire.Writes)) for _, order in house.sent)


def letters(house: Indoors) -> tuple[bytes, bytes]:
    """Two letters of two shards."""
    place = house.place
    return next((bytes([a]), bytes([b])) for a in b"abcdef" for b in b"abcdef" if place(bytes([a])) < place(bytes([b])))


def test_a_machine_that_stays_in_its_partitions_has_no_exchange() -> None:
    with indoors(Ledger, 2) as house:
        house.apply(log_of([encode(Move(b"a/1", b"a/2", 0)), *(encode(Add(b"%d" % n, 1)) for n in range(50))]))
        assert spanning(house) == 0


def test_a_group_has_one_exchange_however_many_commands_span_in_however_many_chunks() -> None:
    with indoors(Ledger, 2) as house:
        one, other = letters(house)
        moves = [encode(Move(one + b"/%d" % n, other + b"/%d" % n, 0)) for n in range(30)]
        house.accept(chunks_of(log_of(moves), 5))
        house.run()
        parts = [order for _, order in house.sent if isinstance(order, wire.Part) and order.pause]
        assert len(parts) == 2 * 3, "six chunks are three groups: the last four go together"
        assert spanning(house) == 2 * 3, "and nothing is asked twice"


def test_keys_that_are_named_come_along_and_others_are_asked_for_together() -> None:
    with indoors(Wanderer, 2) as house:
        one, other = letters(house)
        names = [one + b"0", other + b"0"]
        house.apply(log_of([encode(Wander(names, [("get", 0), ("put", 1), ("get", 1)]))]))
        assert not [order for _, order in house.sent if isinstance(order, wire.Ask)]
        house.apply(log_of([encode(Wander(names, [("scan", 0), ("scan", 1), ("get found", 0)]))], first=2))
        asked = [order.question for _, order in house.sent if isinstance(order, wire.Ask)]
        ranges = [(question.number, len(question.ranges)) for question in asked]
        assert ranges[:4] == [(1, 1), (1, 1), (2, 1), (2, 1)], "both shards at once, for one scan after the other"


def test_what_follows_in_a_taken_partition_is_the_coordinators_until_the_group_ends() -> None:
    with indoors(Ledger, 2) as house:
        one, other = letters(house)
        commands = [
            Add(one + b"/1", 5),
            Move(one + b"/1", other + b"/1", 2),
            Add(one + b"/1", 1),
            Add(other + b"/2", 1),
        ]
        assert house.apply(log_of(map(encode, commands))) == [5, None, 4, 1]
        parts = [order for _, order in house.sent if isinstance(order, wire.Part)]
        assert [part.extent.length > 0 for part in parts] == [True, False], "the first command is a shard's, no other"
        house.sent.clear()
        assert house.apply([Entry(5, 1, encode(Add(one + b"/1", 1)))]) == [5]
        assert spanning(house) == 0


def test_writes_that_pass_a_half_fail_their_chunk_with_the_limit_and_no_other() -> None:
    with indoors(Ledger, 2, half_bytes=1 << 14) as house:
        one, other = letters(house)
        small = [encode(Move(one + b"/1", other + b"/1", 0))]
        large = [encode(Move(one + b"/1", other + b"/1", 0)), encode(Bloat(one + b"/2", 20_000))]
        first, second, third, fourth = house.accept(
            [log_of(small), log_of(small, 2), log_of(large, 3), log_of(small, 5)]
        )
        house.run()
        assert outcomes(first) == outcomes(second) == [None]
        with pytest.raises(ChunkTooLargeError, match="raise ring_bytes") as caught:
            third.results()
        assert (caught.value.limit, caught.value.size > 20_000) == (1 << 14, True)
        with pytest.raises(Exception, match="ahead of it, failed"):
            fourth.results()
        assert house.apply(log_of(small, 3)) == [None]


def test_values_that_pass_a_half_fail_their_chunk_with_the_limit() -> None:
    with indoors(Ledger, 2, half_bytes=1 << 14) as house:
        one, other = letters(house)
        house.apply(log_of([encode(Bloat(one + b"/%d" % n, 9_000)) for n in range(2)]))
        moves = [encode(Move(one + b"/%d" % n, other + b"/1", 0)) for n in range(2)]
        with pytest.raises(ChunkTooLargeError, match="ask for more than 16384 bytes") as caught:
            house.apply(log_of(moves, first=3))
        assert caught.value.limit == 1 << 14
        assert house.apply(log_of([encode(Move(other + b"/3", other + b"/1", 0))], first=3)) == [None]


class Pop(msgspec.Struct, array_like=True, tag=1):
    names: list[bytes]


class Popper(Machine):
    """Changes its command while it runs, which is its own affair: a key is a letter, its partition, and a digit."""

    name = "test.popper"
    command = Pop

    def keys(self, command: Pop) -> list[bytes]:
        return command.names

    def partition_key(self, key: bytes) -> bytes:
        return key[:1]

    def apply(self, tx: Tx, command: Pop, context: Context) -> None:
        last = command.names.pop()
        tx.get(command.names[0][:1] + b"9")
        tx.put(last, tx.get(last) or b"" + b"x")
        if last.endswith(b"!"):
            raise ValueError("told to fail")


def test_a_command_that_is_run_again_is_as_it_was_whatever_apply_has_made_of_it() -> None:
    contents = []
    for shards in (1, 2):
        with indoors(Popper, shards) as house, indoors(Popper, 2) as two:
            one, other = letters(two)
            names = [[one + b"1", other + b"1", one + b"2"], [other + b"1", one + b"3"], [one + b"1", other + b"!"]]
            *good, bad = house.accept([log_of([encode(Pop(each))], index) for index, each in enumerate(names, 1)])
            house.run()
            assert [outcomes(delivery) for delivery in good] == [[None], [None]]
            with pytest.raises(ChunkFailedError):
                bad.results()
            contents.append(house.records)
    assert contents[0] == contents[1] and len(contents[0]) == 2


def test_a_group_takes_no_more_commands_than_its_shards_may_answer() -> None:
    with indoors(Ledger, 2) as house:
        one, other = letters(house)
        moves = [encode(Move(one + b"/%d" % n, other + b"/%d" % n, 0)) for n in range(2_000)]
        house.accept(chunks_of(log_of(moves), 20))
        house.run()
        assert house.coordinator.applied.index == 2_000
        assert not [order for _, order in house.sent if isinstance(order, wire.Abort)]
        assert len({order.position.group for _, order in house.sent if isinstance(order, wire.Part)}) < 20


class Stopping(Ledger):
    """Ctrl-C comes while its commands run."""

    def apply(self, tx: Tx, command: Any, context: Context) -> Any:
        if isinstance(command, Move) and command.amount == 7:
            raise KeyboardInterrupt
        return super().apply(tx, command, context)


def test_an_interrupt_of_the_program_comes_out_and_blames_no_entry() -> None:
    with indoors(Stopping, 2) as house:
        one, other = letters(house)
        (delivery,) = house.accept([log_of([encode(Move(one + b"/1", other + b"/1", 7))])])
        with pytest.raises(KeyboardInterrupt):
            house.run()
        house.run()
        with pytest.raises(ChunkFailedError, match="KeyboardInterrupt") as caught:
            delivery.results()
        assert "index" not in caught.value.facts
        assert house.apply(log_of([encode(Move(one + b"/1", other + b"/1", 0))])) == [None]


class Fickle(Ledger):
    """A machine whose `partition_key` does not take a key that one of its commands makes."""

    def partition_key(self, key: bytes) -> bytes:
        if key.endswith(b"made"):
            raise LookupError("no such place")
        return super().partition_key(key)

    def apply(self, tx: Tx, command: Any, context: Context) -> Any:
        tx.get(command.source + b"made") if isinstance(command, Move) else None
        return super().apply(tx, command, context)


def test_a_machine_that_fails_outside_of_apply_fails_its_chunk_and_not_the_engine() -> None:
    with indoors(Fickle, 2) as house:
        one, other = letters(house)
        with pytest.raises(ChunkFailedError, match="no such place"):
            house.apply(log_of([encode(Move(one + b"/1", other + b"/1", 0))]))
        assert house.apply(log_of([encode(Add(one + b"/1", 3))])) == [3]


def test_commands_that_take_too_long_together_are_tried_again_chunk_by_chunk() -> None:
    with indoors(Ledger, 2) as house:
        house.patience = 2
        one, other = letters(house)
        move = encode(Move(one + b"/1", other + b"/1", 0))
        deliveries = house.accept(chunks_of(log_of([move] * 6), 1))
        house.run()
        assert [outcomes(delivery) for delivery in deliveries] == [[None]] * 6
        with pytest.raises(ChunkFailedError, match="OvertimeError") as caught:
            house.apply(log_of([move] * 6, first=7))
        assert caught.value.index == 9
