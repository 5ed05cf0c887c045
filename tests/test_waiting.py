"""Calls that wait: for room in flight, first in, first out, for an index to be readable, for a flush or a snapshot."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from shardengine import (
    Engine,
    EngineConfig,
    EngineStateError,
    Entry,
    LogGapError,
    LogId,
    Put,
    SnapshotAbortedError,
    StoreError,
    encode,
)
from tests.directories import puts
from tests.inside import one_turn
from tests.model import chunks_of, log_of

NARROW = EngineConfig(in_flight_chunks_max=2)


async def test_calls_wait_for_room_first_in_first_out(tmp_path: Path) -> None:
    async with Engine(tmp_path / "db", shards=2, config=NARROW) as db:
        chunks = chunks_of(puts(1, 120), 3)
        seen: list[int] = []

        async def apply(chunk: Sequence[Entry]) -> None:
            await db.apply_chunk(chunk)
            seen.append(chunk[0].index)

        tasks = [asyncio.ensure_future(apply(chunk)) for chunk in chunks]
        await asyncio.sleep(0)
        assert (db.stats()["in_flight_chunks"], db.stats()["waiting_calls"]) == (2, len(chunks) - 2)
        while not all(task.done() for task in tasks):
            assert db.stats()["in_flight_chunks"] <= 2
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)
        assert seen == [chunk[0].index for chunk in chunks]


async def test_bytes_in_flight_are_bounded_and_a_larger_chunk_goes_alone(tmp_path: Path) -> None:
    async with Engine(tmp_path / "db", shards=2, config=EngineConfig(in_flight_bytes_max=5_000)) as db:
        datas = [encode(Put(b"k%d" % number, bytes(2_000))) for number in range(30)]
        large = log_of([encode(Put(b"large%d" % number, bytes(9_000))) for number in range(3)], first=31)
        tasks = [asyncio.ensure_future(db.apply_chunk([entry])) for entry in log_of(datas)]
        tasks += [asyncio.ensure_future(db.apply_chunk([entry])) for entry in large]
        while not all(task.done() for task in tasks):
            stats = db.stats()
            # one chunk is accepted while there is any room: it may stick out by its own size
            assert stats["in_flight_bytes"] < 5_000 + 9_200
            assert stats["in_flight_chunks"] <= 3
            await asyncio.sleep(0)
        assert db.last_applied() == LogId(33, 1)


async def test_a_call_cancelled_while_it_waits_for_room_is_withdrawn(tmp_path: Path) -> None:
    async with Engine(tmp_path / "db", shards=2, config=NARROW) as db:
        accepted = [asyncio.ensure_future(db.apply_chunk(chunk)) for chunk in chunks_of(puts(1, 4), 2)]
        waiting = asyncio.ensure_future(db.apply_chunk(puts(5, 2)))
        behind = asyncio.ensure_future(db.apply_chunk(puts(7, 2)))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await asyncio.gather(*accepted)
        with pytest.raises(LogGapError, match="starts at index 7, the next index is 5"):
            await behind
        assert db.last_applied() == LogId(4, 1)
        await db.apply_chunk(puts(5, 4))
        assert len(db) == 8


async def test_a_call_cancelled_once_accepted_loses_its_result_only(tmp_path: Path) -> None:
    async with Engine(tmp_path / "db", shards=2) as db:
        task = asyncio.ensure_future(db.apply_chunk(puts(1, 3)))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await db.apply_chunk(puts(4, 1))
        assert len(db) == 4


async def test_waiting_for_an_index_ends_when_it_is_readable(tmp_path: Path) -> None:
    async with Engine(tmp_path / "db", shards=2) as db:
        seen: list[tuple[int, bytes | None]] = []

        async def wait(index: int) -> None:
            await db.wait_applied(index)
            seen.append((index, db.get(b"k%d" % index)))

        waiters = [asyncio.ensure_future(wait(index)) for index in (6, 2, 4)]
        await asyncio.sleep(0)
        await db.wait_applied(0)
        for first in (1, 3, 5):
            await db.apply_chunk(puts(first, 2))
        await asyncio.gather(*waiters)
        assert seen == [(2, b"v2"), (4, b"v4"), (6, b"v6")]
        await db.wait_applied(6)
        with pytest.raises(TimeoutError):
            await db.wait_applied(7, timeout=0.001)


async def test_chunks_get_their_turn_between_flushes(tmp_path: Path) -> None:
    async with Engine(tmp_path, shards=2) as db:
        applied = False

        async def flush() -> None:
            while not applied:
                await db.flush_async()

        flushing = [asyncio.ensure_future(flush()) for _ in range(3)]
        await asyncio.sleep(0)
        await asyncio.wait_for(db.apply_chunk(puts(1, 10)), 30)
        applied = True
        await asyncio.gather(*flushing)


async def test_a_failure_while_a_snapshot_waits_for_its_label_comes_out_of_the_stop(tmp_path: Path) -> None:
    db = Engine(tmp_path / "db", shards=2)
    db.start()
    await db.apply_chunk(puts(1, 10))
    snapshot = asyncio.ensure_future(db.generate_snapshot_data(tmp_path / "snapshot", LogId(20, 1)))
    while not db._running().coordinator.pinning.busy:
        await one_turn()
    db._running().coordinator.fail(StoreError("the end"))
    with pytest.raises(SnapshotAbortedError, match="the end"):
        await snapshot
    with pytest.raises(StoreError, match="the end"):
        db.stop()
    db.close_storage()


async def test_a_log_does_not_begin_beside_a_snapshot(tmp_path: Path) -> None:
    """While a snapshot pins, nothing is decided, and what is not decided would be lost without a word."""
    async with Engine(tmp_path / "db", shards=2) as db:
        snapshot = asyncio.ensure_future(db.create_snapshot())
        while not db._running().coordinator.pinning.busy:
            await one_turn()
        with pytest.raises(EngineStateError, match="a snapshot is being taken"):
            db.update_last_applied(LogId(1000, 3))
        await snapshot
        db.update_last_applied(LogId(1000, 3))
        assert db.last_applied() == LogId(1000, 3)
