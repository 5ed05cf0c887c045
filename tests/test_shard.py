"""A worker's duties without its process: parts in order, one at a time, until nothing of a decided one can be lost."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Set
from typing import Any

import msgspec
import pytest

from shardengine import CompareAndSwap, KeyValue, Machine, Put, encode
from shardengine.ipc.errors import EngineError
from shardengine.ipc.ring import Extent, aligned
from shardengine.shards import wire
from shardengine.shards.errors import StoreError, StoreFullError
from shardengine.shards.part import Run, pack, pack_runs
from shardengine.shards.shard import Shard
from shardengine.shards.transaction import Record
from shardengine.shards.types import Limits, Position
from tests.machines import Add, Fail, Ledger, Reject

ANSWER_BYTES_MAX = 1000


class DictStore:
    """A store that is a dict. `faults` are raised, in turn, by the calls they name."""

    def __init__(self) -> None:
        self.data: dict[bytes, bytes] = {}
        self.position = Position()
        self.solo: bytes | None = None
        self.runs = b""
        self.faults: list[tuple[str, EngineError]] = []
        self.open: dict[bytes, bytes | None] | None = None

    def _fault(self, call: str) -> None:
        if self.faults and self.faults[0][0] == call:
            raise self.faults.pop(0)[1]

    def begin(self) -> None:
        assert self.open is None
        self.open = {}

    def get(self, key: bytes) -> bytes | None:
        assert self.open is not None
        return self.open[key] if key in self.open else self.data.get(key)

    def scan(self, prefix: bytes, partitions: Set[bytes], limit: int | None, reverse: bool) -> Iterator[Record]:
        assert self.open is not None
        merged = {**self.data, **self.open}
        keys = sorted((key for key in merged if key.startswith(prefix)), reverse=reverse)
        return ((key, value) for key in keys if (value := merged[key]) is not None)

    def write(self, writes: dict[bytes, bytes | None]) -> None:
        assert self.open is not None
        self._fault("write")
        self.open.update(writes)

    def put_sorted(self, pairs: list[tuple[bytes, bytes]], longest: int) -> None:
        assert pairs == sorted(pairs) and longest >= max(len(value) for _, value in pairs)
        self.write(dict(pairs))

    def commit(self, position: Position, solo_results: bytes | None = None, solo_runs: bytes = b"") -> None:
        assert self.open is not None
        writes, self.open = self.open, None
        self._fault("commit")
        merged = {**self.data, **writes}
        self.data = {key: value for key, value in merged.items() if value is not None}
        self.position, self.solo, self.runs = position, solo_results, solo_runs

    def abort(self) -> None:
        self.open = None

    def sync(self) -> None:
        self._fault("sync")


class World:
    """A shard, its store, and the bytes of its ring."""

    def __init__(self, machine: Machine) -> None:
        self.store = DictStore()
        self.ring = b""
        self.shard = Shard(self.store, machine, Limits(), self._view, ANSWER_BYTES_MAX)

    def handle(self, order: Any) -> list[wire.Answer]:
        return list(self.shard.handle(order))

    def retry(self) -> list[wire.Answer]:
        return list(self.shard.retry())

    def _view(self, at: int, length: int) -> memoryview:
        return memoryview(self.ring)[at : at + length]

    def extent(self, *groups: tuple[int, list[Any]]) -> Extent:
        """Put parts into the ring, one behind the other: commands as the entries from 10 * group on."""
        start = aligned(len(self.ring))
        for group, commands in groups:
            offsets = array("I", range(len(commands)))
            packed = pack(10 * group, pack_runs([Run(1, 1, 0)]), offsets, list(map(encode, commands)))
            self.ring += bytes(-len(self.ring) % 8) + packed
        return Extent(start, len(self.ring) - start, 0)

    def part(self, group: int, *commands: Any, decided: bool = False) -> list[wire.Answer]:
        position = Position(group, 10 * group + 9, 1, 0)
        return self.handle(wire.Part(position, self.extent((group, list(commands))), decided))

    def solo(self, group: int, *commands: Any) -> wire.SoloDone:
        order = wire.Solo(Position(group, 10 * group + 9, 1, 0), self.extent((group, list(commands))), b"runs")
        (answer,) = self.handle(order)
        assert isinstance(answer, wire.SoloDone)
        return answer


def add(amount: int) -> Add:
    return Add(b"k", amount)


def kinds(answers: list[wire.Answer]) -> list[tuple[str, Any]]:
    """What is said of which group; votes with how they went."""
    said = []
    for answer in answers:
        name = type(answer).__name__.lower()
        if isinstance(answer, wire.Vote):
            name = "yes" if answer.problem is None else "no"
        said.append((name, getattr(answer, "group", None)))
    return said


@pytest.fixture
def world() -> World:
    return World(Ledger())


FULL = StoreFullError("full", used=1)


def test_a_part_is_applied_and_voted_on_and_committed_when_told(world: World) -> None:
    (vote,) = world.part(1, add(5), Reject(b"k", "because"), add(2))
    assert isinstance(vote, wire.Vote) and vote.results is not None and vote.problem is None
    assert vote.results.rejected == {11: "because"}
    assert {index: msgspec.msgpack.decode(value) for index, value in vote.results.values.items()} == {10: 5, 12: 7}
    assert world.store.data == {}
    assert kinds(world.handle(wire.Commit(1))) == [("committed", 1)]
    assert (world.store.data, world.store.position.group) == ({b"k": b"7"}, 1)


def test_a_staged_part_waits_for_the_commit_of_the_one_before(world: World) -> None:
    assert kinds(world.part(1, add(1))) == [("yes", 1)]
    assert world.part(2, add(1)) == []
    assert world.part(3, add(1)) == []
    answers = world.handle(wire.Commit(1))
    assert kinds(answers) == [("committed", 1), ("yes", 2)]
    assert kinds(world.handle(wire.Commit(2))) == [("committed", 2), ("yes", 3)]
    assert world.store.data == {b"k": b"2"}


def test_an_abort_forgets_its_group_and_all_behind_it(world: World) -> None:
    world.part(1, add(1))
    world.part(2, add(10))
    assert world.handle(wire.Abort(1)) == []
    assert kinds(world.part(3, add(100))) == [("yes", 3)]
    world.part(4, add(1_000))
    world.part(5, add(10_000))
    assert world.handle(wire.Abort(4)) == [], "what it works on is older, and stays"
    assert kinds(world.handle(wire.Commit(3))) == [("committed", 3)]
    assert world.store.data == {b"k": b"100"}
    assert world.handle(wire.Abort(9)) == []


def test_a_no_leaves_no_transaction_and_the_abort_that_follows_makes_way(world: World) -> None:
    (vote,) = world.part(1, add(1), Fail(b"k"), add(1))
    assert isinstance(vote, wire.Vote) and vote.problem is not None
    assert (vote.index, vote.problem.kind, vote.problem.message) == (11, "ValueError", "told to fail")
    assert world.store.open is None
    assert world.part(2, add(1)) == [], "what is staged does not start after a no"
    assert world.handle(wire.Abort(1)) == []
    assert kinds(world.part(3, add(1))) == [("yes", 3)]


def test_a_store_that_is_full_votes_no_and_names_no_entry(world: World) -> None:
    world.store.faults = [("write", FULL)]
    (vote,) = world.part(1, add(1))
    assert isinstance(vote, wire.Vote) and vote.problem is not None
    assert (vote.index, vote.problem.kind, vote.problem.facts) == (None, "StoreFullError", {"used": 1})
    assert world.store.open is None


@pytest.mark.parametrize("fault", ["write", "commit"])
def test_a_decided_part_stalls_until_it_can_be_committed(world: World, fault: str) -> None:
    world.store.faults = [(fault, StoreFullError("busy"))] * 3
    assert kinds(world.part(1, add(1), decided=True)) == [("stalled", 1)]
    assert world.shard.stalled
    assert world.part(2, add(1)) == []
    assert kinds(world.retry()) == [("stalled", 1)]
    assert kinds(world.retry()) == [("stalled", 1)]
    assert kinds(world.retry()) == [("committed", 1), ("yes", 2)]
    assert not world.shard.stalled
    assert world.store.data == {b"k": b"1"}


def test_a_commit_that_fails_for_another_reason_than_room_ends_the_worker(world: World) -> None:
    world.store.faults = [("commit", StoreError("an I/O error"))] * 2
    world.part(1, add(1))
    with pytest.raises(StoreError, match="an I/O error"):
        world.handle(wire.Commit(1))


def test_a_commit_that_fails_after_a_yes_is_applied_again_from_the_ring(world: World) -> None:
    world.store.faults = [("commit", StoreFullError("busy"))]
    world.part(1, add(1), add(1))
    assert kinds(world.handle(wire.Commit(1))) == [("stalled", 1)]
    assert world.store.data == {}
    assert kinds(world.retry()) == [("committed", 1)]
    assert world.store.data == {b"k": b"2"}


def test_a_decided_part_is_committed_without_a_vote(world: World) -> None:
    assert kinds(world.part(1, add(1), decided=True)) == [("committed", 1)]
    assert kinds(world.part(2, add(1))) == [("yes", 2)]


def test_a_solo_is_committed_with_its_results(world: World) -> None:
    done = world.solo(1, add(3), Reject(b"k", "because"))
    assert done.problem is None and done.results is not None
    assert world.store.solo is not None
    stored = wire.decode_results(world.store.solo)
    assert (stored.rejected, stored.values) == ({11: "because"}, {10: 3})
    assert (world.store.runs, world.store.data) == (b"runs", {b"k": b"3"})


@pytest.mark.parametrize("fault", ["write", "commit"])
def test_a_solo_that_fails_is_rolled_back(world: World, fault: str) -> None:
    world.store.faults = [(fault, FULL)]
    done = world.solo(1, add(3))
    assert done.problem is not None and (done.problem.kind, done.index) == ("StoreFullError", None)
    failed = world.solo(2, add(3), Fail(b"k"))
    assert failed.problem is not None and failed.index == 21
    assert (world.store.data, world.store.open) == ({}, None)
    assert world.solo(3, add(3)).problem is None


def test_parts_of_one_extent_are_applied_in_their_order(world: World) -> None:
    extent = world.extent((1, [add(1)]), (2, [add(10), add(100)]))
    (vote,) = world.handle(wire.Part(Position(1, 29, 1, 0), extent, False))
    assert isinstance(vote, wire.Vote) and vote.results is not None
    values = {index: msgspec.msgpack.decode(value) for index, value in vote.results.values.items()}
    assert values == {10: 1, 20: 11, 21: 111}


def test_a_part_that_does_not_decode_is_voted_down_by_name(world: World) -> None:
    extent = world.extent((1, [add(1)]))
    for length, last, said in (
        (1, b"", "no part"),
        (10, b"", "no part"),
        (extent.length - 1, b"", "cut short"),
        (extent.length, b"\xc1", "does not decode"),
    ):
        world.ring = world.ring[: extent.offset + extent.length - len(last)] + last
        damaged = Extent(extent.offset, length, 0)
        (vote,) = world.handle(wire.Part(Position(1, 19, 1, 0), damaged, False))
        assert isinstance(vote, wire.Vote) and vote.problem is not None
        assert vote.problem.kind == "RingError" and said in vote.problem.message
        world.handle(wire.Abort(1))


def test_a_flush_says_what_the_disk_said(world: World) -> None:
    world.store.faults = [("sync", StoreError("no"))]
    (failed,) = world.handle(wire.Flush(7))
    assert isinstance(failed, wire.Flushed) and failed.problem is not None
    assert (failed.token, failed.problem.kind) == (7, "StoreError")
    assert world.handle(wire.Flush(8)) == [wire.Flushed(8, None)]


def test_plain_puts_and_other_commands_of_one_part_are_applied_in_log_order() -> None:
    world = World(KeyValue())
    puts = [Put(b"b", b"1"), Put(b"a", b"2"), Put(b"b", b"3")]
    assert kinds(world.part(1, *puts)) == [("yes", 1)]
    world.handle(wire.Commit(1))
    assert world.store.data == {b"a": b"2", b"b": b"3"}
    extent = world.extent((2, [Put(b"a", b"4")]), (3, [CompareAndSwap(b"a", b"4", b"5")]), (4, [Put(b"b", b"6")]))
    (vote,) = world.handle(wire.Part(Position(2, 49, 1, 0), extent, False))
    assert isinstance(vote, wire.Vote) and vote.results == wire.PartResults({}, {})
    world.handle(wire.Commit(2))
    assert world.store.data == {b"a": b"5", b"b": b"6"}


def test_a_commit_is_answered_before_the_part_behind_it_begins(world: World) -> None:
    world.part(1, add(1))
    world.part(2, Fail(b"b"))
    answers = world.shard.handle(wire.Commit(1))
    assert next(answers) == wire.Committed(1) and world.store.open is None
    assert kinds(list(answers)) == [("no", 2)]
