"""The machines to start from where their commands lie on several shards: in engines as in memory, and in rehearsals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shardengine import ApplyResult, Engine, Entry, encode, rehearse
from shardengine.adaptors import MemoryStateMachine
from shardengine.engine.machines.common import prefix_of
from shardengine.machines import queue
from tests.inprocess import Bench, entries_of
from tests.model import chunks_of
from tests.test_machines import KINDS, Kind, steps_of
from tests.test_spanning import indoors


@pytest.mark.parametrize("shards", [1, 2, 5])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
async def test_an_engine_answers_as_memory_does(tmp_path: Path, kind: Kind, shards: int) -> None:
    entries = entries_of(steps_of(kind, seed=shards, length=1_500))
    async with MemoryStateMachine(kind.machine) as memory, Engine(tmp_path, shards=shards, machine=kind.machine) as db:
        expected, answered = list[ApplyResult](), list[ApplyResult]()
        for chunk in (*chunks_of(entries[:30], 1), *chunks_of(entries[30:], 210)):
            expected += await memory.apply_chunk(chunk)
            answered += await db.apply_chunk(chunk)
            assert answered[-len(chunk) :] == expected[-len(chunk) :]
        assert sum(result.succeeded for result in expected) > 200
        assert db.scan_prefix(b"") == memory.scan_prefix(b"")
        assert await db.digest() == await memory.digest()


@pytest.mark.parametrize("shards", [1, 2])
def test_long_messages_move_between_shards_as_within_one(shards: int) -> None:
    bench = Bench(queue.Queue)
    with indoors(queue.Queue, shards, half_bytes=1 << 24) as house:
        source, target = two_places(house.place) if shards > 1 else (b"0", b"1")
        pushes = [queue.Push(source, bytes([number]) * (900_000 + number)) for number in range(30)]
        moves = [queue.Move(source, target, 100), queue.Lease(source, b"x", 9, 100), queue.Lease(target, b"x", 9, 100)]
        chunks = [[push] for push in pushes] + [moves] * 12
        index, expected, answered = 0, list[Any](), list[Any]()
        for chunk in chunks:
            expected += [bench.value(command) for command in chunk]
            answered += house.apply([Entry(index + at, 1, encode(command)) for at, command in enumerate(chunk, 1)])
            index += len(chunk)
        assert answered == expected
        bench.end_group()
        assert house.records == bench.records
    moved = [value for value in expected[30:] if isinstance(value, int)]
    assert (sum(moved), max(moved)) == (16, 2)


def two_places(place: Callable[[bytes], int]) -> tuple[bytes, bytes]:
    """Two queues that lie on two shards."""
    names = [b"%d" % number for number in range(9)]
    first, *others = names
    return first, next(name for name in others if place(prefix_of(name)) != place(prefix_of(first)))


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_rehearsal_finds_nothing(kind: Kind) -> None:
    entries = entries_of(steps_of(kind, seed=7, length=300))
    report = rehearse(kind.machine, entries, chunks=[7, 100], hash_seeds=[1])
    assert (report.entries, len(report.runs)) == (300, 8)
    assert 0 < report.rejected < 300
