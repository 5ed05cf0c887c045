"""Commands over several shards answer and leave what they would in one place, one after the other."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardengine import ChunkFailedError, ChunkTooLargeError, Entry, Machine, encode
from shardengine.shards import wire
from tests.indoors import Indoors, outcomes
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


@settings(max_examples=300)
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


@settings(max_examples=100)
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
            assert 1 <= caught.value.index <= len(commands)
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
