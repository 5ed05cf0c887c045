"""Chunks in, results and state out: against the dict model, and against every way a log can be delivered."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from shardengine import (
    ApplyResult,
    CompareAndSwap,
    Delete,
    Engine,
    EngineConfig,
    Entry,
    LogConflictError,
    LogGapError,
    LogId,
    LogOrderError,
    Put,
    encode,
)
from tests.directories import puts
from tests.killing import DEEP
from tests.model import Model, chunks_of, digest_of, log_of

CHUNK_SIZES = (1, 7, 256, 5_000)
Command = Put | Delete | CompareAndSwap | None  # None is a no-op


class Step(NamedTuple):
    """One entry to be: its command, by how much the term rises before it, and its proposer's clock."""

    command: Command
    rise: int
    time_ms: int


KEYS = st.sampled_from([b"a", b"b", b"c"]) | st.binary(min_size=1, max_size=12)
VALUES = st.sampled_from([b"", b"1", b"2"]) | st.binary(max_size=40)
COMMANDS = (
    st.builds(Put, KEYS, VALUES)
    | st.builds(Delete, KEYS)
    | st.builds(CompareAndSwap, KEYS, st.none() | VALUES, VALUES)
    | st.none()
)
STEPS = st.builds(Step, COMMANDS, st.sampled_from([0, 0, 0, 0, 1, 3]), st.integers(0, 1 << 41))


def long_stream(seed: int, length: int, keys: int) -> list[Step]:
    """As many steps as that, over so many keys, always the same for the same seed."""
    draw = random.Random(seed)
    values = [b"", b"1", b"2", bytes(300)]
    steps = []
    for _ in range(length):
        key = b"%d" % draw.randrange(keys)
        command = draw.choices(
            [Put(key, draw.choice(values)), Delete(key), CompareAndSwap(key, draw.choice([None, *values]), b"1"), None],
            [8, 2, 4, 1],
        )[0]
        steps.append(Step(command, draw.random() < 0.002, draw.randrange(1 << 41) if draw.random() < 0.01 else 0))
    return steps


STREAMS = st.lists(STEPS, min_size=1, max_size=40) | st.builds(
    long_stream, st.integers(0, 1 << 32), st.integers(1, 6_000), st.sampled_from([2, 300, 20_000])
)


class World:
    """One engine and its loop over many examples of one growing log. Every example has keys of its own, and is
    judged by what it adds to count and digest, so that one that fails can be shrunk."""

    def __init__(self, path: Path, shards: int) -> None:
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self._db = Engine(path, shards=shards)
        self._db.start()
        self._numbers = count()
        self._index = self._term = 0

    def close(self) -> None:
        self._runner.run(self._db.aclose())
        self._runner.close()

    def check(self, steps: Sequence[Step], chunk: int, at_once: int) -> None:
        self._runner.run(self._check(steps, chunk, at_once))

    async def _check(self, steps: Sequence[Step], chunk: int, at_once: int) -> None:
        db, prefix = self._db, next(self._numbers).to_bytes(4, "big")
        entries = self._entries(steps, prefix)
        model = Model()
        model.index, model.term = entries[0].index - 1, 0
        count_before, digest_before = len(db), int.from_bytes(await db.digest(), "big")
        results: list[ApplyResult] = []
        for window in range(0, len(entries), chunk * at_once):
            chunks = chunks_of(entries[window : window + chunk * at_once], chunk)
            for answered in await asyncio.gather(*map(db.apply_chunk, chunks)):
                results += answered
        assert results == model.apply(entries)
        assert db.scan_prefix(prefix).entries == model.scan(prefix)
        assert len(db) - count_before == len(model.data)
        added = (int.from_bytes(await db.digest(), "big") - digest_before) % (1 << 128)
        assert added.to_bytes(16, "big") == model.digest()
        assert db.last_applied() == LogId(entries[-1].index, entries[-1].term)
        assert [db.entry_term(entry.index) for entry in entries[-3:]] == [entry.term for entry in entries[-3:]]

    def _entries(self, steps: Sequence[Step], prefix: bytes) -> list[Entry]:
        entries = []
        for command, rise, time_ms in steps:
            self._index += 1
            self._term = max(1, self._term + rise)
            match command:
                case Put(key, value):
                    data = encode(Put(prefix + key, value))
                case Delete(key):
                    data = encode(Delete(prefix + key))
                case CompareAndSwap(key, expected, value):
                    data = encode(CompareAndSwap(prefix + key, expected, value))
                case _:
                    data = b""
            entries.append(Entry(self._index, self._term, data, time_ms))
        return entries


@pytest.fixture
def world(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[World]:
    made = World(tmp_path / "db", request.param)
    yield made
    made.close()


@pytest.mark.parametrize("world", [1, 2, 3, 8], indirect=True, ids="{} shards".format)
@given(steps=STREAMS, chunk=st.sampled_from(CHUNK_SIZES), at_once=st.sampled_from([1, 4, 40]))
@settings(max_examples=40)
def test_results_contents_and_digest_are_those_of_a_dict(
    world: World, steps: list[Step], chunk: int, at_once: int
) -> None:
    world.check(steps[: chunk * 400], chunk, at_once)


@pytest.mark.parametrize("chunk", CHUNK_SIZES)
async def test_every_shard_count_answers_one_log_alike(tmp_path: Path, chunk: int) -> None:
    length = (12_000 if DEEP else 6_000) // (8 // chunk + 1)
    datas = [encode(step.command) if step.command else b"" for step in long_stream(chunk, length, 500)]
    entries, model = log_of(datas), Model()
    expected = model.apply(entries)
    for shards in (1, 2, 3, 8):
        async with Engine(tmp_path / f"{shards}", shards=shards) as db:
            results: list[ApplyResult] = []
            for part in chunks_of(entries, chunk):
                results += await db.apply_chunk(part)
            assert results == expected
            assert await db.digest() == model.digest() == digest_of(db.scan_prefix(b"").entries)
            assert (len(db), db.is_empty()) == (len(model.data), False)


async def test_an_empty_chunk_is_answered_with_nothing(tmp_path: Path) -> None:
    async with Engine(tmp_path / "db", shards=2) as db:
        assert await db.apply_chunk([]) == []
        assert db.last_applied() == LogId(0, 0)
        assert db.is_empty()


async def test_entries_applied_before_change_nothing_and_say_so(tmp_path: Path) -> None:
    async with Engine(tmp_path / "db", shards=2) as db:
        await db.apply_chunk(puts(1, 10))
        digest = await db.digest()
        again = await db.apply_chunk(puts(4, 7))
        assert again == [ApplyResult(index, True, already_applied=True) for index in range(4, 11)]
        assert (await db.digest(), db.last_applied()) == (digest, LogId(10, 1))
        mixed = await db.apply_chunk(puts(9, 5))
        assert [result.already_applied for result in mixed] == [True, True, False, False, False]
        assert db.last_applied() == LogId(13, 1)
        assert len(db) == 13


async def test_a_swap_delivered_again_does_not_swap_back(tmp_path: Path) -> None:
    async with Engine(tmp_path / "db", shards=2) as db:
        await db.apply_chunk(log_of([encode(Put(b"k", b"a"))]))
        swaps = log_of(
            [encode(CompareAndSwap(b"k", b"c", b"d")), encode(CompareAndSwap(b"k", b"a", b"c"))],
            first=2,
        )
        first = await db.apply_chunk(swaps)
        assert [result.succeeded for result in first] == [False, True]
        again = await db.apply_chunk(swaps)
        assert all(result.already_applied for result in again)
        assert db.get(b"k") == b"c"


async def test_of_a_chunk_that_overlaps_only_what_is_new_is_applied(tmp_path: Path) -> None:
    async with Engine(tmp_path / "db", shards=2) as db:
        swaps = log_of([encode(CompareAndSwap(b"k", b"%d" % n if n else None, b"%d" % (n + 1))) for n in range(3)])
        assert (await db.apply_chunk(swaps[:1]))[0].succeeded
        known, *fresh = await db.apply_chunk(swaps)
        assert known.already_applied
        assert [(result.index, result.succeeded, result.already_applied) for result in fresh] == [
            (2, True, False),
            (3, True, False),
        ]
        assert db.get(b"k") == b"3"


async def test_entries_in_flight_share_the_first_outcome(tmp_path: Path) -> None:
    async with Engine(tmp_path / "db", shards=3) as db:
        entries = log_of(
            [encode(CompareAndSwap(b"k", None, b"1")), encode(CompareAndSwap(b"k", None, b"2")), b""]
            + [encode(CompareAndSwap(b"x%d" % n, None, b"")) for n in range(40)]
        )
        whole, head, overlapping, tail = await asyncio.gather(
            db.apply_chunk(entries[:30]),
            db.apply_chunk(entries[:2]),
            db.apply_chunk(entries[1:]),
            db.apply_chunk(entries[20:]),
        )
        expected = Model().apply(entries)
        assert whole == expected[:30]
        assert head == expected[:2]
        assert overlapping == expected[1:]
        assert tail == expected[20:]
        assert db.last_applied() == LogId(len(entries), 1)
        assert (await db.apply_chunk(entries))[1] == ApplyResult(2, True, already_applied=True)


async def test_an_entry_in_flight_is_delivered_again_with_its_own_data_or_refused(tmp_path: Path) -> None:
    async with Engine(tmp_path / "db", shards=3) as db:
        log, other = puts(1, 9), [Entry(7, 1, encode(Put(b"k7", b"another value")))]
        first = asyncio.gather(db.apply_chunk(log[:5]), db.apply_chunk(log[5:]))
        await asyncio.sleep(0)
        for chunk in (other, [*log[:6], *other], [*log[4:6], *other, *puts(8, 5)]):
            with pytest.raises(LogConflictError, match="entry 7 has other data") as caught:
                await db.apply_chunk(chunk)
            assert caught.value.index == 7
        again = await db.apply_chunk([*log, *puts(10, 2)])
        await first
        assert [result.index for result in again] == list(range(1, 12)) and all(result.succeeded for result in again)
        assert db.get(b"k7") == b"v7" and db.last_applied().index == 11


async def test_term_0_is_a_term(tmp_path: Path) -> None:
    async with Engine(tmp_path / "db", shards=2) as db:
        await db.apply_chunk(puts(1, 3, term=0))
        assert [db.entry_term(index) for index in range(5)] == [None, 0, 0, 0, None]
        with pytest.raises(LogConflictError, match="entry 2 has term 1, but was accepted with term 0"):
            await db.apply_chunk(puts(2, 1, term=1))
        await db.apply_chunk([*puts(4, 1, term=0), *puts(5, 1, term=2)])
        snapshot = await db.create_snapshot()
    async with Engine(tmp_path / "db") as db:
        assert [db.entry_term(index) for index in range(7)] == [None, 0, 0, 0, 0, 2, None]
        with pytest.raises(LogConflictError):
            await db.apply_chunk(puts(1, 1, term=2))
    async with Engine(tmp_path / "other", shards=3) as db:
        await db.restore(snapshot.path)
        assert [db.entry_term(index) for index in range(7)] == [None, 0, 0, 0, 0, 2, None]


@pytest.mark.parametrize("count", [1, 400])
async def test_results_of_many_chunks_in_one_group_are_each_their_own(tmp_path: Path, count: int) -> None:
    async with Engine(tmp_path / "db", shards=2, config=EngineConfig(in_flight_chunks_max=1024)) as db:
        swaps = log_of([encode(CompareAndSwap(b"k%d" % (n % 7), None, b"")) for n in range(count + 7)])
        expected = Model().apply(swaps)
        answers = await asyncio.gather(*[db.apply_chunk([entry]) for entry in swaps])
        assert [answer[0] for answer in answers] == expected
        assert db.stats()["groups"] < count or count == 1


WRONG_CHUNKS = {
    "a gap": (puts(12, 2), LogGapError, {"expected": 11, "got": 12}),
    "a gap inside": ([*puts(11, 2), *puts(14, 1)], LogGapError, {"expected": 13, "got": 14}),
    "an index below one": (puts(0, 3), LogGapError, {"expected": 11, "got": 0}),
    "a falling index": ([*puts(11, 2), *puts(11, 1)], LogOrderError, {"expected": 13, "got": 11}),
    "a repeated index": ([*puts(11, 1), *puts(11, 1)], LogOrderError, {"expected": 12, "got": 11}),
    "a falling term": (puts(11, 2, term=2), LogOrderError, {"index": 11, "term": 2, "before": 3}),
    "a falling term inside": ([*puts(11, 1, 5), *puts(12, 1, 4)], LogOrderError, {"index": 12, "term": 4, "before": 5}),
    "a contradicting term": (puts(10, 3, term=4), LogConflictError, {"index": 10, "term": 4, "accepted": 3}),
    "an old contradicting term": (puts(3, 1, term=2), LogConflictError, {"index": 3, "term": 2, "accepted": 1}),
}


async def refuses(db: Engine, name: str) -> None:
    """A wrong chunk is refused, and says what is wrong with it."""
    entries, error, facts = WRONG_CHUNKS[name]
    with pytest.raises(error) as caught:
        await db.apply_chunk(entries)
    assert {key: caught.value.facts[key] for key in facts} == facts
    assert str(facts.get("got", facts.get("index"))) in caught.value.message
    assert caught.value.hint


async def test_a_chunk_that_does_not_continue_the_log_is_refused_whole(tmp_path: Path) -> None:
    async with Engine(tmp_path / "db", shards=2) as db:
        await asyncio.gather(db.apply_chunk(puts(1, 5, term=1)), db.apply_chunk(puts(6, 5, term=3)))
        for name in WRONG_CHUNKS:
            await refuses(db, name)
            assert (db.last_applied(), len(db)) == (LogId(10, 3), 10), name
        await db.apply_chunk(puts(11, 1, term=3))
        assert db.last_applied() == LogId(11, 3)


@pytest.mark.parametrize("name", WRONG_CHUNKS)
async def test_so_is_one_that_does_not_continue_what_is_in_flight(tmp_path: Path, name: str) -> None:
    async with Engine(tmp_path / "db", shards=2) as db:
        accepted = asyncio.gather(db.apply_chunk(puts(1, 5, term=1)), db.apply_chunk(puts(6, 5, term=3)))
        await asyncio.sleep(0)
        await refuses(db, name)
        await accepted
        assert (db.last_applied(), len(db)) == (LogId(10, 3), 10)
        await db.apply_chunk(puts(11, 1, term=3))
        assert db.last_applied() == LogId(11, 3)


@pytest.mark.parametrize(("term", "time_ms"), [(1 << 64, 0), (1, 1 << 64)])
@pytest.mark.parametrize("count", [1, 3])
async def test_a_number_that_64_bits_do_not_hold_is_refused(
    tmp_path: Path, term: int, time_ms: int, count: int
) -> None:
    async with Engine(tmp_path / "db", shards=2) as db:
        with pytest.raises(LogOrderError, match="18446744073709551616"):
            await db.apply_chunk([*puts(1, count - 1), Entry(count, term, encode(Put(b"k", b"v")), time_ms)])
        await db.apply_chunk([*puts(1, 2), Entry(3, (1 << 64) - 1, b"", (1 << 64) - 1)])
        assert db.last_applied() == LogId(3, (1 << 64) - 1)


async def test_entry_term_knows_what_is_applied_and_no_more(tmp_path: Path) -> None:
    async with Engine(tmp_path / "db", shards=2) as db:
        await db.apply_chunk([*puts(1, 2, term=2), *puts(3, 1, term=2), *puts(4, 2, term=7)])
        assert [db.entry_term(index) for index in range(7)] == [None, 2, 2, 2, 7, 7, None]
    async with Engine(tmp_path / "db") as db:
        assert [db.entry_term(index) for index in range(7)] == [None, 2, 2, 2, 7, 7, None]


async def test_entries_of_any_clock_are_accepted(tmp_path: Path) -> None:
    async with Engine(tmp_path / "db", shards=2) as db:
        entries = [
            Entry(index, 1, encode(Put(b"k%d" % index, b"")), time_ms)
            for index, time_ms in enumerate([5, 0, 3, (1 << 64) - 1, 7], 1)
        ]
        assert all(result.succeeded for result in await db.apply_chunk(entries))
        assert len(db) == 5
