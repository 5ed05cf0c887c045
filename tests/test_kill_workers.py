"""SIGKILL of single workers at random moments of a long stream: callers notice a delay and nothing else."""

from __future__ import annotations

import os
import select
import signal
from pathlib import Path
from typing import Any

import pytest

from shardengine import Engine, EngineConfig, WorkerFailedError
from shardengine.engine.run.processes import Workers
from shardengine.shards import wire
from tests.feeding import Feeder, Killer, holds, rampage
from tests.killing import DEEP, seeded
from tests.logs import Plain
from tests.streams import Follower, entries

CONFIG = EngineConfig(map_bytes=64 << 20)
ORDERS = (wire.Part, wire.Commit, wire.Solo)


@pytest.mark.parametrize(("shards", "kills"), [(2, 50), (3, 50), (2, 51), (3, 51)] if DEEP else [(2, 50), (3, 50)])
async def test_a_worker_killed_at_random_moments_is_a_delay_and_nothing_else(
    tmp_path: Path, shards: int, kills: int
) -> None:
    rng = seeded()
    async with Engine(tmp_path / "data", shards=shards, config=CONFIG) as db:
        seed = rng.randrange(1, 1 << 30)
        feeder = Feeder(db, Plain(seed), Follower(seed), seed)
        killer = Killer(db, feeder, rng, ORDERS)
        await rampage(killer, feeder, kills)
        await holds(db, feeder)
        assert sum(worker["restarts"] for worker in db.stats()["workers"]) == killer.kills >= kills


async def test_a_killed_worker_is_gone_and_another_pid_is_in_its_place(tmp_path: Path) -> None:
    async with Engine(tmp_path / "data", shards=2, config=CONFIG) as db:
        await db.apply_chunk(entries(1, 1, 50))
        before = db.stats()["workers"]
        descriptor = os.pidfd_open(before[1]["pid"])
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        await db.apply_chunk(entries(1, 51, 100))
        assert select.select([descriptor], [], [], 0)[0], "the killed process lives"
        os.close(descriptor)
        after = db.stats()["workers"]
        assert after[0] == before[0]
        assert after[1]["restarts"] == 1 and after[1]["pid"] != before[1]["pid"]


@pytest.mark.parametrize("times", [1, 3, 9])
def test_workers_killed_while_the_engine_starts_are_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    kill_the_first(monkeypatch, times)
    db = Engine(tmp_path / "data", shards=2, config=CONFIG)
    db.start()
    assert [worker["restarts"] for worker in db.stats()["workers"]] == [0, times]
    db.stop()
    db.close_storage()


def test_workers_that_never_get_ready_are_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kill_the_first(monkeypatch, 1000)
    db = Engine(tmp_path / "data", shards=2, config=CONFIG)
    with pytest.raises(WorkerFailedError, match="shard 1 died 10 times in a row") as caught:
        db.start()
    assert caught.value.shard == 1
    assert not db.is_running()


def kill_the_first(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Kill the first `times` workers of shard 1 as soon as they are started."""
    original = Workers.start

    def start(self: Workers, shard: int) -> Any:
        link = original(self, shard)
        if shard == 1 and self.starts[shard] <= times:
            self.kill(shard)
        return link

    monkeypatch.setattr(Workers, "start", start)
