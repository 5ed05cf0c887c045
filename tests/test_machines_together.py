"""The machines to start from where their commands lie on several shards: in engines as in memory, and in rehearsals."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardengine import ApplyResult, Engine, rehearse
from shardengine.adaptors import MemoryStateMachine
from tests.inprocess import entries_of
from tests.model import chunks_of
from tests.test_machines import KINDS, Kind, steps_of


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


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_rehearsal_finds_nothing(kind: Kind) -> None:
    entries = entries_of(steps_of(kind, seed=7, length=300))
    report = rehearse(kind.machine, entries, chunks=[7, 100], hash_seeds=[1])
    assert (report.entries, len(report.runs)) == (300, 8)
    assert 0 < report.rejected < 300
