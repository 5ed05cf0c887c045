"""An engine that is told where its log stands: passing over entries that carry no command, and nothing else."""

from __future__ import annotations

import asyncio
import errno
import os
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardengine import (
    Engine,
    EngineConfig,
    EngineStateError,
    EngineStoppedError,
    Entry,
    LogConflictError,
    LogGapError,
    LogId,
    LogOrderError,
    Put,
    StoreError,
    encode,
    run,
)
from shardengine.engine.commit.decision import DecisionFile
from shardengine.engine.intake.tail import TERM_RUNS_MAX, Tail, normalised
from tests.directories import config, in_another_process, mark_of, opened, puts, reboot
from tests.inside import one_turn, replacing

SMALL = config("process")


def entry(index: int, term: int) -> Entry:
    return Entry(index, term, encode(Put(b"k%d" % index, b"v%d" % index)))


@pytest.mark.parametrize("durability", ["process", "power"])
def test_entries_without_commands_are_passed_over_and_count_as_applied(tmp_path: Path, durability: Any) -> None:
    async def feed(db: Engine) -> None:
        await db.apply_chunk(puts(1, 10))
        before = await db.digest()
        waiter = asyncio.ensure_future(db.wait_applied(15))
        await one_turn()
        db.update_last_applied(LogId(15, 1))
        await waiter
        assert (db.last_applied(), await db.digest(), len(db)) == (LogId(15, 1), before, 10)
        with pytest.raises(LogGapError, match="the next index is 16"):
            await db.apply_chunk([entry(17, 1)])
        await look(db)
        results = await db.apply_chunk([entry(index, 1) for index in range(8, 18)])
        assert [result.already_applied for result in results] == [True] * 8 + [False] * 2
        assert (db.get(b"k11"), db.get(b"k16"), len(db)) == (None, b"v16", 12)
        db.update_last_applied(LogId(20, 1))

    async def look(db: Engine) -> None:
        assert [db.entry_term(index) for index in (0, 1, 10, 11, 15)] == [None, 1, 1, 1, 1]
        assert db.entry_term(db.last_applied().index + 1) is None

    opened(tmp_path, feed, shards=2, config=config(durability))
    assert opened(tmp_path, look, config=config(durability)).last_applied == LogId(20, 1)


def test_one_entry_of_a_later_term_is_known_by_it(tmp_path: Path) -> None:
    async def feed(db: Engine) -> None:
        await db.apply_chunk(puts(1, 10))
        db.update_last_applied(LogId(11, 3))

    async def look(db: Engine) -> None:
        assert (db.last_applied(), db.entry_term(10), db.entry_term(11)) == (LogId(11, 3), 1, 3)
        for wrong in (2, 4):
            with pytest.raises(LogConflictError, match="accepted with term 3"):
                await db.apply_chunk([entry(11, wrong)])
        with pytest.raises(LogOrderError):
            await db.apply_chunk([entry(12, 2)])
        assert (await db.apply_chunk([entry(10, 1), entry(11, 3)]))[1].already_applied

    opened(tmp_path, feed, shards=2, config=SMALL)
    opened(tmp_path, look, config=SMALL)


async def test_terms_that_nobody_knows_are_told_of_nobody_and_contradict_nothing(tmp_path: Path) -> None:
    async def look(db: Engine) -> None:
        assert [db.entry_term(index) for index in (10, 11, 19, 20)] == [None, None, None, 4]
        for term in (1, 2, 4):
            assert (await db.apply_chunk([entry(15, term)]))[0].already_applied
        with pytest.raises(LogConflictError, match="accepted with term 4"):
            await db.apply_chunk([entry(20, 3)])
        db.update_last_applied(LogId(15, 3))
        assert db.last_applied() == LogId(20, 4)

    async with Engine(tmp_path / "db", shards=2) as db:
        await db.apply_chunk(puts(1, 10))
        db.update_last_applied(LogId(20, 4))
        await look(db)
        info = await db.create_snapshot()
    async with Engine(tmp_path / "db") as db:
        await look(db)
        await db.compact()
        await look(db)
    async with Engine(tmp_path / "other", shards=3) as db:
        await db.restore(info.path)
        await look(db)
        with pytest.raises(LogOrderError):
            await db.apply_chunk([entry(21, 3)])
        await db.apply_chunk([entry(21, 4)])


@given(st.integers(0, 1 << 30))
def test_a_tail_never_tells_a_term_that_an_entry_does_not_have(seed: int) -> None:
    """The model is the log itself: some of it comes in chunks, the rest is passed over."""
    chance = random.Random(seed)
    tail, log = Tail(0, 0, 0, []), [Entry(0, 0, b"")]
    for _ in range(chance.randrange(1, 12)):
        more = [chance.randrange(3) // 2 for _ in range(chance.randrange(1, 6))]
        for step in more:
            log.append(Entry(len(log), log[-1].term + step, b""))
        last = LogId(log[-1].index, log[-1].term)
        if chance.randrange(2):
            tail.extend(normalised(log[tail.index + 1 :], 0))
        else:
            tail.check_name(last)
            tail.pass_over(last)
        assert (tail.index, tail.term, tail.term_of(tail.index)) == (last.index, last.term, last.term)
        assert all(tail.term_of(one.index) in (None, one.term) for one in log)
        assert tail.check(normalised(log[1:], 0)) == tail.index
        runs = tail.term_runs
        assert all(one.index < two.index and one.term < two.term for one, two in pairwise(runs))


def test_terms_of_what_is_not_applied_yet_are_not_forgotten_however_many_they_are() -> None:
    tail, count = Tail(0, 0, 0, []), 3 * TERM_RUNS_MAX
    runs = [LogId(index, 2 * index) for index in range(1, count + 1)]
    tail.extend(normalised([Entry(run.index, run.term, b"") for run in runs], 0))
    tail.forget_old_runs(5)
    assert tail.kept_runs(7) == runs[:7] and tail.runs_between(5, 7) == runs[5:7] and tail.runs_between(7, 7) == []
    tail.forget_old_runs(count)
    assert tail.term_runs == runs[-2 * TERM_RUNS_MAX :] and tail.kept_runs(count) == runs[-TERM_RUNS_MAX:]


async def test_what_contradicts_the_log_is_refused_and_at_or_below_it_nothing_happens(tmp_path: Path) -> None:
    async with Engine(tmp_path / "db", shards=2) as db:
        with pytest.raises(LogOrderError, match="names no entry"):
            db.update_last_applied(LogId(0, 5))
        db.update_last_applied(LogId(0, 0))
        await db.apply_chunk(puts(1, 10, term=2))
        await db.apply_chunk(puts(11, 10, term=4))
        groups = db.stats()["groups"]
        for update in (db.update_last_applied, db.persist_last_applied):
            for nothing in (LogId(0, 0), LogId(5, 2), LogId(10, 2), LogId(11, 4), LogId(20, 4)):
                update(nothing)
            for wrong, error, text in (
                (LogId(20, 5), LogConflictError, "entry 20 has term 5, but was accepted with term 4"),
                (LogId(20, 3), LogConflictError, "entry 20 has term 3"),
                (LogId(5, 4), LogConflictError, "entry 5 has term 4, but was accepted with term 2"),
                (LogId(21, 3), LogOrderError, "entry 21 has term 3, after an entry of term 4"),
            ):
                with pytest.raises(error, match=text) as caught:
                    update(wrong)
                assert caught.value.hint
            assert (db.last_applied(), db.stats()["groups"]) == (LogId(20, 4), groups)
        await db.apply_chunk(puts(21, 1, term=4))


async def test_nothing_is_passed_over_while_chunks_are_in_flight_or_wait(tmp_path: Path) -> None:
    """What a chunk that waits carries would be taken for applied."""
    async with Engine(tmp_path / "db", shards=2, config=EngineConfig(in_flight_chunks_max=1)) as db:
        tasks = [asyncio.ensure_future(db.apply_chunk(puts(1 + 10 * at, 10))) for at in range(3)]
        await one_turn()
        db.update_last_applied(LogId(0, 0))
        refused = 0
        while db.last_applied().index < 30:
            with pytest.raises(EngineStateError, match=r"in flight, and \d calls wait for room") as caught:
                db.update_last_applied(LogId(40, 1))
            assert caught.value.hint
            refused += 1
            await one_turn()
        assert refused and [results[0].already_applied for results in await asyncio.gather(*tasks)] == [False] * 3
        db.update_last_applied(LogId(40, 1))
        assert (db.last_applied(), len(db)) == (LogId(40, 1), 30)


async def test_nothing_is_passed_over_while_another_state_is_built(tmp_path: Path) -> None:
    async with Engine(tmp_path / "db", shards=2) as db:
        await db.apply_chunk(puts(1, 10))
        resetting = asyncio.ensure_future(db.reset())
        while not replacing(db):
            await one_turn()
        with pytest.raises(EngineStateError, match="another state is being installed"):
            db.update_last_applied(LogId(40, 1))
        await resetting
        db.update_last_applied(LogId(40, 1))
        assert (db.last_applied(), db.is_empty()) == (LogId(40, 1), True)


def test_an_update_counts_as_a_write_until_it_is_persisted(tmp_path: Path) -> None:
    async def use(db: Engine) -> None:
        db.update_last_applied(LogId(15, 1))
        assert not mark_of(tmp_path).clean
        db.persist_last_applied(LogId(15, 1))
        assert mark_of(tmp_path).clean

    opened(tmp_path, use, shards=1, config=SMALL)


@pytest.mark.parametrize("last", [LogId(10, 1), LogId(15, 2)], ids=["where it stands", "beyond"])
def test_what_is_persisted_survives_a_power_loss(tmp_path: Path, last: LogId) -> None:
    in_another_process(
        """
        async def main():
            db = Engine(sys.argv[1], shards=2, config=config("process"))
            db.start()
            await db.apply_chunk(puts(1, 10))
            db.persist_last_applied(LogId(int(sys.argv[2]), int(sys.argv[3])))
            os._exit(0)
        run(main)
        """,
        tmp_path,
        last.index,
        last.term,
    )
    assert mark_of(tmp_path).clean
    reboot(tmp_path)
    assert opened(tmp_path, config=SMALL).last_applied == last


@pytest.mark.parametrize("step", ["before the record", "after the record"])
def test_a_death_while_entries_are_passed_over_leaves_one_place_for_all_shards(tmp_path: Path, step: str) -> None:
    in_another_process(
        """
        from shardengine.engine.commit.decision import DecisionFile
        write = DecisionFile.write

        def dies(self, record):
            if sys.argv[2] == "after the record":
                write(self, record)
            os._exit(0)

        async def main():
            db = Engine(sys.argv[1], shards=2, config=config("process"))
            db.start()
            await db.apply_chunk(puts(1, 10))
            DecisionFile.write = dies
            db.update_last_applied(LogId(15, 2))
        run(main)
        """,
        tmp_path,
        step,
    )

    async def go_on(db: Engine) -> None:
        last = db.last_applied()
        await db.apply_chunk([entry(last.index + 1, 2)])
        await db.apply_chunk(puts(last.index + 2, 10, term=2))
        assert len(db) == 21

    report = opened(tmp_path, go_on, config=SMALL)
    assert report.last_applied == (LogId(10, 1) if step == "before the record" else LogId(15, 2))
    assert opened(tmp_path, config=SMALL).last_applied.index == report.last_applied.index + 11


def test_a_record_that_cannot_be_written_fails_the_engine_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: DecisionFile, record: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    db = Engine(tmp_path, shards=2, config=SMALL)
    db.start()
    run(db.apply_chunk(puts(1, 10)))
    with monkeypatch.context() as patched:
        patched.setattr(DecisionFile, "write", refuse)
        with pytest.raises(StoreError, match="no decision record"):
            db.update_last_applied(LogId(15, 1))
    assert not db.is_running() and db.last_applied() == LogId(10, 1)
    for update in (db.update_last_applied, db.persist_last_applied):
        with pytest.raises(StoreError, match="no decision record"):
            update(LogId(5, 1))
    with pytest.raises(StoreError, match="no decision record"):
        db.stop()
    with pytest.raises(EngineStoppedError):
        db.update_last_applied(LogId(15, 1))
    assert opened(tmp_path, config=SMALL).last_applied == LogId(10, 1)
