"""Under a log whose every frame has a term of its own, small chunks are still solos, and no term is lost with them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from shardengine import Engine, Entry, LogId
from shardengine.engine.commit.decision import SOLO_RUNS_MAX, encode_runs
from shardengine.engine.intake.tail import TERM_RUNS_MAX
from shardengine.engine.run.processes import Workers
from shardengine.engine.snapshot.manifest import read_manifest
from shardengine.engine.verify import verify_directory
from shardengine.shards import wire
from tests.kill_child import CONFIG
from tests.killing import Judge, note
from tests.logs import Framed
from tests.test_kill_points import count_points, run_to_death


@pytest.mark.parametrize("shards", [1, 2])
def test_death_of_everything_at_any_step_of_such_a_log_leaves_the_terms_of_all_that_is_applied(
    tmp_path: Path, shards: int
) -> None:
    judge = Judge(tmp_path / "data", shards, 0, "framed")
    points = count_points(judge, judge.orders("script", fatal=0))
    solos = {f"before sending Solo to shard {shard}" for shard in range(shards)}
    assert {"in the middle of a record", *solos} <= set(points)
    beyond = len(points) - points[::-1].index("after a publish")  # what a stop does is no matter of terms
    for fatal, name in enumerate(points[:beyond], 1):
        note(f"{fatal} of {len(points)}: {name}")
        run_to_death(judge, judge.orders("script", fatal=fatal, group=True))
    judge.finish()


def overheard(monkeypatch: pytest.MonkeyPatch) -> list[wire.Order]:
    """What is sent to workers from now on."""
    sent: list[wire.Order] = []
    original = Workers.send

    def send(self: Workers, shard: int, order: wire.Order) -> None:
        sent.append(order)
        original(self, shard, order)

    monkeypatch.setattr(Workers, "send", send)
    return sent


async def one_by_one(db: Engine, log: list[Entry]) -> None:
    for entry in log:
        await db.apply_chunk([entry])


def check_terms(db: Engine, log: list[Entry]) -> None:
    assert db.last_applied() == LogId(log[-1].index, log[-1].term)
    assert [db.entry_term(entry.index) for entry in log] == [entry.term for entry in log]


@pytest.mark.parametrize("shards", [1, 2])
async def test_chunks_of_new_terms_are_solos_but_one_when_many_terms_are_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards: int
) -> None:
    log = Framed(shards).entries(1, 2 * SOLO_RUNS_MAX + 3)
    async with Engine(tmp_path, shards=shards, config=CONFIG) as db:
        sent = overheard(monkeypatch)
        await one_by_one(db, log)
        voted = [order.position.index for order in sent if isinstance(order, wire.Part)]
        solos = [order for order in sent if isinstance(order, wire.Solo)]
        assert voted == [1, SOLO_RUNS_MAX + 2, 2 * SOLO_RUNS_MAX + 3]
        assert len(solos) == 2 * SOLO_RUNS_MAX
        check_terms(db, log)
        sent.clear()
        await db.apply_chunk([Entry(log[-1].index + 1, log[-1].term, log[0].data)])
        await db.apply_chunk([Entry(log[-1].index + 2, log[-1].term, log[0].data)])
        assert [order.runs for order in sent if isinstance(order, wire.Solo)] == [b"", b""], "no new term, no byte"


async def test_a_solo_takes_its_term_along_though_thousands_more_wait_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Framed(1).entries(1, 3 + 3 * TERM_RUNS_MAX)
    async with Engine(tmp_path, shards=1, config=msgspec.structs.replace(CONFIG, group_bytes_max=64 << 10)) as db:
        await db.apply_chunk(log[:1])
        sent = overheard(monkeypatch)
        await asyncio.gather(*(db.apply_chunk(chunk) for chunk in (log[1:2], log[2:3], log[3:])))
        runs = [order.runs for order in sent if isinstance(order, wire.Solo)]
        assert runs == [encode_runs([LogId(2, 6)]), encode_runs([LogId(2, 6), LogId(3, 9)])]


async def test_terms_that_solos_left_behind_are_there_in_whatever_comes_next(tmp_path: Path) -> None:
    log = Framed(2).entries(1, 8)
    async with Engine(tmp_path, shards=2, config=CONFIG) as db:
        await one_by_one(db, log[:5])
    assert verify_directory(tmp_path) == []
    async with Engine(tmp_path, shards=2, config=CONFIG) as db:
        check_terms(db, log[:5])
        await one_by_one(db, log[5:])
        info = await db.create_snapshot()
        runs = [LogId(entry.index, entry.term) for entry in log]
        assert read_manifest(Path(info.path)).term_runs == runs
        await db.compact()
        check_terms(db, log)
        log += Framed(2).entries(9, 10)
        await one_by_one(db, log[8:])
        db.update_last_applied(LogId(11, 40))
        assert [db.entry_term(index) for index in (10, 11)] == [30, 40]
        log += [Entry(11, 40, b""), Entry(12, 41, log[0].data), Entry(13, 42, log[1].data)]
        await one_by_one(db, log[11:])
    db = Engine(tmp_path, shards=3, config=CONFIG, reshard=True)
    db.start()
    try:
        check_terms(db, log)
        await db.restore(info.path, force=True)
        check_terms(db, log[:8])
        await one_by_one(db, log[8:10])
        check_terms(db, log[:10])
        await db.reset()
        await one_by_one(db, log[:2])
        check_terms(db, log[:2])
    finally:
        await db.aclose()
