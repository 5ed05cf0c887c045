"""What happens while a group pauses in an exchange: snapshots, flushes, reads, a stop, a worker that hangs; and chunks
that fail there.

One worker is stopped before it reads its part, so the other, which has answered, waits for what the coordinator's
commands write.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from shardengine import (
    ChunkAbortedError,
    ChunkFailedError,
    Engine,
    EngineConfig,
    Entry,
    LogId,
    Machine,
    SnapshotError,
    encode,
)
from shardengine.adaptors import MemoryStateMachine
from shardengine.engine.run.crew import Crew
from shardengine.shards import wire
from tests.conftest import halt
from tests.directories import folder_in, mark_of
from tests.dying import ENVIRONMENT, DyingWanderer
from tests.inside import one_turn, runtime_of, tick_often
from tests.logs import Oracle, Wandering, log_named
from tests.taking import restarts
from tests.wander import Wander, Wanderer

pytestmark = pytest.mark.usefixtures("forked_workers")
CONFIG = EngineConfig(map_bytes=64 << 20)
IMPATIENT = EngineConfig(map_bytes=64 << 20, worker_timeout_ms=800)
BEFORE, AFTER = Wandering.PERIOD - 1, Wandering.PERIOD + 3
"""Where the group that pauses begins, and ends; one that asks for more."""
NAMED = Wandering.PERIOD + 6, Wandering.PERIOD + 9
"""And one whose commands name all they need."""


@pytest.fixture(autouse=True)
def tick(monkeypatch: pytest.MonkeyPatch) -> None:
    tick_often(monkeypatch)


def pid_of(db: Engine, shard: int) -> int:
    pid: int = db.stats()["workers"][shard]["pid"]
    return pid


def awaited(db: Engine, of: int, kind: type[wire.Answer], times: int = 1) -> asyncio.Event:
    """Set once workers of the shard `of` have said so many things of this kind, and the coordinator has listened."""
    runtime = runtime_of(db)
    assert runtime is not None
    original, heard, said = runtime.coordinator.on_answer, asyncio.Event(), list[wire.Answer]()

    def on_answer(shard: int, answer: wire.Answer) -> None:
        original(shard, answer)
        if shard == of and isinstance(answer, kind):
            said.append(answer)
        if len(said) == times:
            heard.set()

    runtime.coordinator.on_answer = on_answer  # type: ignore[method-assign]
    return heard


class Paused:
    """An engine in an exchange: shard 0 has answered, the worker of shard 1 is stopped."""

    def __init__(self, db: Engine, call: asyncio.Task[Any], group: tuple[int, int]) -> None:
        self.db = db
        self.call = call
        self.before, self.after = group
        self.stopped = pid_of(db, 1)

    def go_on(self) -> None:
        os.kill(self.stopped, signal.SIGCONT)

    async def ends_well(self) -> None:
        """The group is applied as in one place."""
        assert list(await self.call) == model_at(self.before).advance(self.after)
        await self.holds(self.after)

    async def holds(self, index: int) -> None:
        """What can be read is the state at `index`."""
        model = model_at(index)
        assert self.db.last_applied().index == index
        assert dict(self.db.scan_prefix(b"").entries) == model.records
        assert await self.db.digest() == model.digest()


def model_at(index: int) -> Oracle:
    model = Oracle(log_named("wander", 0, 2))
    model.advance(index)
    return model


@asynccontextmanager
async def paused(
    path: Path,
    config: EngineConfig = CONFIG,
    machine: type[Machine] = Wanderer,
    group: tuple[int, int] = (BEFORE, AFTER),
) -> AsyncIterator[Paused]:
    log = log_named("wander", 0, 2)
    async with Engine(path, shards=2, machine=machine, config=config) as db:
        await db.apply_chunk(log.entries(1, group[0]))
        answered = awaited(db, 0, wire.Values)
        halt(pid_of(db, 1))
        call = asyncio.create_task(db.apply_chunk(log.entries(group[0] + 1, group[1])))
        await answered.wait()
        yield Paused(db, call, group)


@pytest.mark.parametrize("label", [None, LogId(AFTER, 1)], ids=["now", "behind the group"])
async def test_a_snapshot_during_an_exchange_is_a_published_state_and_no_other(
    tmp_path: Path, label: LogId | None
) -> None:
    async with paused(tmp_path / "data") as house:
        taking = asyncio.create_task(house.db.generate_snapshot_data(tmp_path / "taken", label))
        await one_turn()
        house.go_on()
        await taking
        await house.ends_well()
        metadata = house.db.snapshot_metadata()
        assert metadata is not None
        assert metadata.last_included.index == (BEFORE if label is None else AFTER)
        memory = MemoryStateMachine(Wanderer)
        memory.start()
        await memory.apply_snapshot_from_file(metadata, tmp_path / "taken")
        assert await memory.digest() == model_at(metadata.last_included.index).digest()


async def test_a_worker_that_dies_during_a_pin_and_an_exchange_costs_the_snapshot_and_nothing_else(
    tmp_path: Path,
) -> None:
    async with paused(tmp_path / "data") as house:
        taking = asyncio.create_task(house.db.generate_snapshot_data(tmp_path / "taken"))
        await one_turn()
        os.kill(house.stopped, signal.SIGKILL)
        with pytest.raises(SnapshotError, match="died"):
            await taking
        await house.ends_well()
        assert restarts(house.db) == 1 and not (tmp_path / "taken").exists()
        await house.db.generate_snapshot_data(tmp_path / "taken", LogId(AFTER, 1))


async def test_a_vote_in_an_exchange_dies_with_its_worker_and_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = folder_in(monkeypatch, ENVIRONMENT, tmp_path / "faults")
    async with paused(tmp_path / "data", machine=DyingWanderer, group=NAMED) as house:
        waiting = pid_of(house.db, 0)
        halt(waiting)
        (faults / "after Vote of shard-001").write_text("x")
        again = awaited(house.db, 1, wire.Vote, times=2)
        house.go_on()
        await again.wait()
        await house.holds(house.before)
        os.kill(waiting, signal.SIGCONT)
        await house.ends_well()
        assert restarts(house.db) == 1


async def test_reads_during_an_exchange_are_of_what_is_published(tmp_path: Path) -> None:
    async with paused(tmp_path / "data") as house:
        await house.holds(BEFORE)
        with house.db.view() as view:
            seen = view.scan_prefix(b"").entries
            house.go_on()
            await house.ends_well()
            assert (view.revision, view.scan_prefix(b"").entries) == (BEFORE, seen)


async def test_a_flush_during_an_exchange_waits_for_its_group(tmp_path: Path) -> None:
    async with paused(tmp_path / "data") as house:
        flushing = asyncio.create_task(house.db.flush_async())
        await one_turn()
        assert not flushing.done() and not mark_of(tmp_path / "data").clean
        house.go_on()
        await flushing
        assert mark_of(tmp_path / "data").clean and house.db.last_applied().index == AFTER
        await house.ends_well()


async def test_a_stop_during_an_exchange_finishes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with paused(tmp_path / "data") as house:
        poll = Crew.poll

        def polled(self: Crew, *args: Any) -> None:
            monkeypatch.setattr(Crew, "poll", poll)
            house.go_on()
            poll(self, *args)

        monkeypatch.setattr(Crew, "poll", polled)
        house.db.stop()
        assert list(await house.call) == model_at(BEFORE).advance(AFTER)
    async with Engine(tmp_path / "data", machine=Wanderer, config=CONFIG) as again:
        assert again.last_applied().index == AFTER
        assert await again.digest() == model_at(AFTER).digest()


async def test_a_worker_that_hangs_before_it_answers_is_replaced_and_asked_again(tmp_path: Path) -> None:
    async with paused(tmp_path / "data", IMPATIENT) as house:
        await house.ends_well()
        assert restarts(house.db) >= 1


async def test_a_worker_that_hangs_while_it_pauses_is_replaced_once_it_owes_a_vote(tmp_path: Path) -> None:
    async with paused(tmp_path / "data", IMPATIENT, group=NAMED) as house:
        first = pid_of(house.db, 0)
        halt(first)
        house.go_on()
        await house.ends_well()
        assert pid_of(house.db, 0) != first


# ---- chunks that fail ------------------------------------------------------------------------------------------------

ONE, OTHER = (name[:1] for name in Wandering(2).names)
SPAN = [ONE + b"0", OTHER + b"0"]
FAIL = [("get", 0), ("fail", 0)] * 6
Chunk = list[Wander]
FINE: Chunk = [Wander(SPAN[:1], [("put", 0)]), Wander(SPAN, [("get", 0), ("put", 1)]), Wander(SPAN[1:], [("get", 0)])]


def log(first: int, chunk: Chunk) -> list[Entry]:
    return [Entry(index, 1, encode(command)) for index, command in enumerate(chunk, first)]


FAILING: dict[str, Chunk] = {
    "of the coordinator": [FINE[0], Wander(SPAN, FAIL), FINE[1]],
    "behind one that asks": [Wander(SPAN, [("put", 1), ("scan", 0), ("put found", 0)]), Wander(SPAN, FAIL)],
    "in a taken partition": [FINE[1], Wander(SPAN[1:], FAIL)],
    "of a shard": [Wander(SPAN[:1], FAIL), FINE[1], FINE[2]],
    "of the other shard": [FINE[0], Wander(SPAN[1:], FAIL), FINE[1]],
}


@pytest.mark.parametrize("chunk", FAILING.values(), ids=FAILING)
async def test_a_chunk_with_an_exchange_fails_by_name_and_leaves_nothing(tmp_path: Path, chunk: Chunk) -> None:
    memory = MemoryStateMachine(Wanderer)
    memory.start()
    async with Engine(tmp_path / "data", shards=2, machine=Wanderer, config=CONFIG) as db:
        sent = [log(1, FINE), log(4, FINE), log(7, chunk), log(7 + len(chunk), FINE), log(10 + len(chunk), FINE)]
        outcomes = await asyncio.gather(*map(db.apply_chunk, sent), return_exceptions=True)
        assert results_of(outcomes[:2]) == [list(await memory.apply_chunk(fine)) for fine in sent[:2]]
        with pytest.raises(ChunkFailedError, match="ValueError: after") as expected:
            await memory.apply_chunk(sent[2])
        failed, *behind = outcomes[2:]
        assert isinstance(failed, ChunkFailedError) and failed.index == expected.value.index
        assert [type(error) for error in behind] == [ChunkAbortedError, ChunkAbortedError]
        await equal(db, memory)
        for fine in (log(7, FINE), log(10, FINE)):
            assert list(await db.apply_chunk(fine)) == list(await memory.apply_chunk(fine))
        await equal(db, memory)


async def test_when_the_coordinators_command_and_a_shards_fail_one_of_them_is_named(tmp_path: Path) -> None:
    apart = next(key for key in (b"%c0" % letter for letter in b"abcdefgh") if key[:1] not in (ONE, OTHER))
    async with Engine(tmp_path / "data", shards=2, machine=Wanderer, config=CONFIG) as db:
        with pytest.raises(ChunkFailedError) as caught:
            await db.apply_chunk(log(1, [FINE[0], Wander(SPAN, FAIL), Wander([apart], FAIL)]))
        assert caught.value.index in (2, 3) and db.is_empty() and db.last_applied().index == 0
        assert [result.succeeded for result in await db.apply_chunk(log(1, FINE))] == [True] * 3


async def test_a_command_over_shards_that_is_rejected_leaves_no_trace_and_its_chunk_is_applied(tmp_path: Path) -> None:
    memory = MemoryStateMachine(Wanderer)
    memory.start()
    refused = Wander(SPAN, [("put", 0), ("put", 1), *[("get", 0), ("reject", 0)] * 8])
    async with Engine(tmp_path / "data", shards=2, machine=Wanderer, config=CONFIG) as db:
        chunk = log(1, [FINE[0], refused, FINE[1], FINE[2]])
        results = await db.apply_chunk(chunk)
        assert list(results) == list(await memory.apply_chunk(chunk))
        assert [result.succeeded for result in results] == [True, False, True, True]
        await equal(db, memory)


def results_of(outcomes: Sequence[Any]) -> list[Any]:
    return [outcome if isinstance(outcome, BaseException) else list(outcome) for outcome in outcomes]


async def equal(db: Engine, memory: MemoryStateMachine) -> None:
    assert db.last_applied() == memory.last_applied()
    assert db.scan_prefix(b"").entries == memory.scan_prefix(b"").entries
    assert await db.digest() == await memory.digest()
