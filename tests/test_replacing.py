"""Moving over to another generation: what goes on while the old one is removed, and what a cancel then leaves."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from shardengine import Engine, EngineStoppedError, LogId, SnapshotInProgressError
from shardengine.engine.run.runtime import Runtime
from shardengine.engine.snapshot.build import build
from shardengine.engine.storage.generations import Generation
from tests.inside import one_turn, replacing, runtime_of
from tests.streams import Follower
from tests.taking import CONFIG, Feeder, holds


class Held:
    """Removals of generations, which wait until they are let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go = threading.Event()
        remove = Generation.remove

        def held(generation: Generation) -> None:
            assert self.go.wait(60)
            remove(generation)

        monkeypatch.setattr(Generation, "remove", held)


def generations(path: Path) -> list[str]:
    return sorted(each.name for each in path.glob("gen-*"))


async def moved_over(db: Engine) -> None:
    """Return when another run has taken over."""
    before = runtime_of(db)
    while runtime_of(db) is before:
        await one_turn()


async def test_chunks_are_applied_while_the_old_generation_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Engine(tmp_path / "data", shards=2, config=CONFIG) as db:
        await Feeder(db).feed(50)
        removals = Held(monkeypatch)
        reset = asyncio.create_task(db.reset())
        await moved_over(db)
        feeder = Feeder(db)
        await feeder.feed(30, 40)
        await feeder.check()
        with pytest.raises(SnapshotInProgressError):
            await db.create_snapshot()
        assert not reset.done() and not replacing(db)
        assert generations(tmp_path / "data") == ["gen-000001", "gen-000002"]
        removals.go.set()
        await reset
        assert generations(tmp_path / "data") == ["gen-000002"]
        await feeder.check()


async def test_an_install_that_is_cancelled_after_the_flip_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Engine(tmp_path / "data", shards=2, config=CONFIG) as db:
        await Feeder(db).feed(50)
        info = await db.create_snapshot()
        await db.reset()
        removals = Held(monkeypatch)
        restoring = asyncio.create_task(db.restore(info.path))
        await moved_over(db)
        restoring.cancel()
        removals.go.set()
        with pytest.raises(asyncio.CancelledError):
            await restoring
        await holds(db, Follower(7), 50)
        named = db.snapshot_metadata()
        assert named is not None and (named.last_included, named.checksum) == (info.last_included, info.checksum)
        assert generations(tmp_path / "data") == ["gen-000003"]
        await db.reset()
        assert db.last_applied() == LogId(0, 0)


async def test_an_install_that_is_cancelled_twice_leaves_no_generation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builds, go = threading.Event(), threading.Event()

    def held(*what: Any) -> Any:
        builds.set()
        assert go.wait(60)
        return build(*what)

    monkeypatch.setattr("shardengine.engine.run.replacing.build", held)
    async with Engine(tmp_path / "data", shards=2, config=CONFIG) as db:
        await Feeder(db).feed(50)
        info = await db.create_snapshot()
        restoring = asyncio.create_task(db.restore(info.path))
        while not builds.is_set():
            await one_turn()
        for _ in range(3):
            restoring.cancel()
            await one_turn()
        assert not restoring.done(), "something still builds"
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await restoring
        assert generations(tmp_path / "data") == ["gen-000001"]
        await db.restore(info.path)


async def test_a_state_is_replaced_though_no_thread_can_be_had_once_it_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, started = threading.Thread.start, list[threading.Thread]()

    def refuse_all_but_the_first(thread: threading.Thread) -> None:
        started.append(thread)
        if len(started) > 1:
            raise RuntimeError("can't start new thread")
        start(thread)

    async with Engine(tmp_path / "data", shards=2, config=CONFIG) as db:
        await Feeder(db).feed(50)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse_all_but_the_first)
            await db.reset()
        assert len(started) > 2 and db.is_empty()
        assert generations(tmp_path / "data") == ["gen-000002"]


class Slow:
    """Workers of a run that are not there before the loop has had so many turns."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, turns: int) -> None:
        self.turns = 0
        self.asked = asyncio.Event()
        ready = Runtime.ready

        def later(runtime: Runtime) -> bool:
            self.asked.set()
            return ready(runtime) and self.turns >= turns

        monkeypatch.setattr(Runtime, "ready", later)


async def test_the_loop_goes_on_and_the_old_state_is_read_while_new_workers_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Engine(tmp_path / "data", shards=2, config=CONFIG) as db:
        feeder = Feeder(db)
        await feeder.feed(50)
        slow = Slow(monkeypatch, turns=300)
        reset = asyncio.create_task(db.reset())
        await slow.asked.wait()
        while slow.turns < 300:
            slow.turns += 1
            await feeder.check()
        await reset
        assert db.is_empty() and generations(tmp_path / "data") == ["gen-000002"]


@pytest.mark.parametrize("how", ["cancelled", "stopped"])
async def test_nothing_is_left_of_new_workers_when_a_reset_ends_before_they_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    async with Engine(tmp_path / "data", shards=2, config=CONFIG) as db:
        await Feeder(db).feed(50)
        slow = Slow(monkeypatch, turns=1)
        reset = asyncio.create_task(db.reset())
        await slow.asked.wait()
        if how == "stopped":
            db.stop()
        else:
            reset.cancel()
        with pytest.raises(EngineStoppedError if how == "stopped" else asyncio.CancelledError):
            await reset
        assert generations(tmp_path / "data") == ["gen-000001"]
        if how == "cancelled":
            await holds(db, Follower(7), 50)
            slow.turns = 1
            await db.reset()
            assert db.is_empty()
