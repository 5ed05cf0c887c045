"""A machine whose commands wander over shards, in engines: long random logs in chunks of every size, many in flight."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from shardengine import Engine, EngineConfig, Entry, encode
from shardengine.adaptors import MemoryStateMachine
from tests.killing import seeded
from tests.streams import term_at
from tests.wander import DIGITS, STEPS, Wander, Wanderer

CONFIG = EngineConfig(map_bytes=64 << 20, ring_bytes=4 << 20)
STRETCHES = ((1, 150), (7, 700), (256, 2560), (5000, 10_001))
"""How large chunks are, and how many entries go in such."""
PARTITIONS = bytes(range(ord("A"), ord("A") + 40))
PLAIN_STEPS = tuple(step for step in STEPS if "scan" not in step and step != "take first")
SCANNING = 0.1
SPANNING = 0.3


def command(rng: random.Random) -> Wander:
    """One of a single partition, or of two or three; few of them scan."""
    count = rng.choice([2, 2, 3]) if rng.random() < SPANNING else 1
    names = [bytes([rng.choice(PARTITIONS), rng.choice(DIGITS)]) for _ in range(count)]
    steps = STEPS if rng.random() < SCANNING else PLAIN_STEPS
    return Wander(names, [(rng.choice(steps), rng.randrange(3)) for _ in range(rng.randint(1, 4))])


def chunks(rng: random.Random, first: int, size: int, count: int) -> list[list[Entry]]:
    log = [Entry(index, term_at(index), encode(command(rng))) for index in range(first, first + count)]
    return [log[at : at + size] for at in range(0, count, size)]


@pytest.mark.parametrize("shards", [1, 2, 3, 8])
async def test_commands_that_wander_answer_as_in_one_place_whatever_the_chunks_and_the_shards(
    tmp_path: Path, shards: int
) -> None:
    rng = seeded()
    model = MemoryStateMachine(Wanderer)
    model.start()
    async with Engine(tmp_path / "data", shards=shards, machine=Wanderer, config=CONFIG) as db:
        for size, count in STRETCHES:
            log = chunks(rng, model.last_applied().index + 1, size, count)
            expected = [await model.apply_chunk(chunk) for chunk in log]
            before = db.stats()["groups"]
            calls = [asyncio.create_task(db.apply_chunk(chunk)) for chunk in log]
            for call, results in zip(calls, expected, strict=True):
                assert list(await call) == list(results)
            if len(log) > 50:
                assert db.stats()["groups"] - before < len(log), "chunks went together"
            assert db.last_applied() == model.last_applied()
            assert db.scan_prefix(b"").entries == model.scan_prefix(b"").entries
            assert await db.digest() == await model.digest()
    model.stop()
