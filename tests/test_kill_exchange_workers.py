"""Workers that die at each step of an exchange, their own or the coordinator's: callers notice a delay only."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from shardengine import ApplyResult, Engine, EngineConfig, WorkerFailedError
from tests.directories import folder_in
from tests.dying import ENVIRONMENT, EXCHANGE_STEPS, DyingWanderer
from tests.inside import runtime_of
from tests.kill_points import ARMED, Points, arm
from tests.killing import note, seeded
from tests.logs import Oracle, Wandering
from tests.taking import restarts
from tests.wander import Wanderer

pytestmark = pytest.mark.usefixtures("forked_workers")
CONFIG = EngineConfig(map_bytes=64 << 20)
SLICES = 3


class Script:
    """The script of tests/logs.py, round after round, and the model beside it."""

    def __init__(self, db: Engine, shards: int) -> None:
        self.db = db
        self._log = Wandering(shards)
        self.model = Oracle(self._log)

    async def apply(self, ends: Sequence[int]) -> None:
        """Apply chunks that end there, all in flight together."""
        calls, expected = [], list[list[ApplyResult]]()
        for last in ends:
            calls.append(asyncio.create_task(self.db.apply_chunk(self._log.entries(self.model.index + 1, last))))
            expected.append(self.model.advance(last))
        assert [list(results) for results in await asyncio.gather(*calls)] == expected

    def round(self) -> list[list[int]]:
        return self._log.script(self.model.index)

    async def holds(self) -> None:
        assert self.db.last_applied().index == self.model.index
        assert dict(self.db.scan_prefix(b"").entries) == self.model.records
        assert await self.db.digest() == self.model.digest()


def files_for(kind: str, shard: int) -> dict[str, str]:
    """By step, how often it is reached before the worker of `shard` dies there: by the group that is open, or by the
    one that is staged behind it, which is asked nothing more."""
    steps = [step for step in EXCHANGE_STEPS if kind != "staged" or "Values 1" not in step]
    return {f"{step} of shard-{shard:03}": ".x" if kind == "staged" else "x" for step in steps}


@pytest.mark.parametrize("kind", ["alone", "with a group behind it", "staged"])
@pytest.mark.parametrize("shard", [0, 1])
async def test_a_worker_that_dies_at_any_step_of_an_exchange_answers_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard: int, kind: str
) -> None:
    faults = folder_in(monkeypatch, ENVIRONMENT, tmp_path / "faults")
    async with Engine(tmp_path / "data", shards=2, machine=DyingWanderer, config=CONFIG) as db:
        script = Script(db, 2)
        for died, (name, times) in enumerate(files_for(kind, shard).items(), 1):
            first, alone, staged = script.round()
            await script.apply(first)
            if kind == "alone":
                (faults / name).write_text(times)
            await script.apply(alone)
            if kind != "alone":
                (faults / name).write_text(times)
            await script.apply(staged)
            await script.apply(script.round()[0])  # it needs both workers
            assert not (faults / name).exists(), f"it did not come to {name}"
            assert restarts(db) == died, name
        await script.holds()


KILLERS = pytest.mark.parametrize("step", ["before Values 0", "after write"])


@KILLERS
async def test_a_group_that_kills_its_worker_again_and_again_in_an_exchange_is_applied_chunk_by_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    faults = folder_in(monkeypatch, ENVIRONMENT, tmp_path / "faults")
    async with Engine(tmp_path / "data", shards=2, machine=DyingWanderer, config=CONFIG) as db:
        script = Script(db, 2)
        groups = db.stats()["groups"]
        (faults / f"{step} of shard-001").write_text("..xxx")  # not the first two, but those that go together
        await script.apply([16 + 3, 2 * 16 + 3, 3 * 16 + 3, 4 * 16 + 3])
        assert restarts(db) == 3 and db.stats()["groups"] == groups + 5, "taken back, and sent one by one"
        await script.holds()


@KILLERS
async def test_a_chunk_that_kills_its_worker_again_and_again_in_an_exchange_stops_the_engine_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    faults = folder_in(monkeypatch, ENVIRONMENT, tmp_path / "faults")
    db = Engine(tmp_path / "data", shards=2, machine=DyingWanderer, config=CONFIG)
    db.start()
    log = Wandering(2)
    await db.apply_chunk(log.entries(1, 15))
    (faults / f"{step} of shard-001").write_text("xxx")
    with pytest.raises(WorkerFailedError, match="entries 16 to 19 killed the worker of shard 1") as caught:
        await db.apply_chunk(log.entries(16, 19))
    assert (caught.value.index, caught.value.shard) == (16, 1)
    assert db.last_applied().index == 15 and len(db) > 0
    with pytest.raises(WorkerFailedError):
        db.stop()
    db.close_storage()
    async with Engine(tmp_path / "data", machine=DyingWanderer, config=CONFIG) as again:
        model = Oracle(log)
        model.advance(15)
        assert await again.digest() == model.digest()
        assert list(await again.apply_chunk(log.entries(16, 19))) == model.advance(19)


@pytest.mark.parametrize("part", range(SLICES))
async def test_a_worker_that_dies_at_any_step_of_the_coordinators_is_a_delay_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    for owner, name in ARMED:
        monkeypatch.setattr(owner, name, getattr(owner, name))  # so that it is put back
    rng = seeded()
    async with Engine(tmp_path / "data", shards=2, machine=Wanderer, config=CONFIG) as db:
        script, runtime = Script(db, 2), runtime_of(db)
        assert runtime is not None
        points = arm(0, group=False, exchanges=True, strike=lambda: runtime.workers.kill(rng.randrange(2)))
        names = await pass_through(script, points, 0)
        assert {"before running entry 5", "before laying writes behind the parts"} <= set(names)
        for kills, fatal in enumerate(range(1 + part, 1 + len(names), SLICES), 1):
            note(f"{fatal} of {len(names)}: {names[fatal - 1]}")
            await pass_through(script, points, fatal)
            assert restarts(db) == kills
        await script.holds()


async def pass_through(script: Script, points: Points, fatal: int) -> list[str]:
    """Go through the script, with this point fatal. Returns those that were reached."""
    first, *groups = script.round()
    await script.apply(first)
    points.again(fatal)
    for ends in groups:
        await script.apply(ends)
    names = points.names.copy()
    points.again(0)
    await script.apply(script.round()[0])  # it needs both workers
    return names
