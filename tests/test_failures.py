"""What goes wrong inside a chunk leaves no trace on any shard, names what did it, and the engine goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from shardengine import (
    ApplyResult,
    BadEntryError,
    ChunkAbortedError,
    ChunkFailedError,
    ChunkTooLargeError,
    Delete,
    Engine,
    EngineConfig,
    EngineError,
    Entry,
    LogGapError,
    LogId,
    Put,
    StoreFullError,
    UndeclaredKeyError,
    encode,
)
from tests.killing import DEEP, note
from tests.machines import Add, Bloat, Fail, Faulty, Ledger, Move, Reject, Stamp, Trespass, Unhappy
from tests.model import chunks_of, log_of

SHARDS = pytest.mark.parametrize("shards", [1, 2, 3, 8] if DEEP else [1, 2, 3])


def adds(first: int, count: int) -> list[Entry]:
    return log_of([encode(Add(b"%d" % index, index)) for index in range(first, first + count)], first)


def replaced(entries: Sequence[Entry], index: int, command: Any) -> list[Entry]:
    """The same entries with another command at `index`."""
    return [Entry(one.index, one.term, encode(command)) if one.index == index else one for one in entries]


async def outcomes(db: Engine, chunks: Sequence[Sequence[Entry]]) -> list[Any]:
    return await asyncio.gather(*map(db.apply_chunk, chunks), return_exceptions=True)


@SHARDS
async def test_a_chunk_that_fails_leaves_no_trace_on_any_shard(tmp_path: Path, shards: int) -> None:
    async with Engine(tmp_path / "db", shards=shards, machine=Ledger) as db:
        await db.apply_chunk(adds(1, 40))
        digest = await db.digest()
        for failing in (41, 60, 80):
            with pytest.raises(ChunkFailedError, match=f"entry {failing} failed.*ValueError: told to fail") as caught:
                await db.apply_chunk(replaced(adds(41, 40), failing, Fail(b"%d" % failing)))
            assert caught.value.index == failing
            assert (db.last_applied(), await db.digest(), len(db)) == (LogId(40, 1), digest, 40)
        results = await db.apply_chunk(adds(41, 40))
        assert results == [ApplyResult(index, True, index) for index in range(41, 81)]
        assert db.last_applied() == LogId(80, 1)
    async with Engine(tmp_path / "db", machine=Ledger) as db:
        assert (db.last_applied(), len(db)) == (LogId(80, 1), 80)


@SHARDS
async def test_the_first_failing_entry_is_named_whichever_shard_it_is_on(tmp_path: Path, shards: int) -> None:
    async with Engine(tmp_path / "db", shards=shards, machine=Ledger) as db:
        for first in range(1, 30):
            failing = log_of([encode(Fail(b"%d" % index)) for index in range(first, 40)], first)
            with pytest.raises(ChunkFailedError) as caught:
                await db.apply_chunk([*adds(1, first - 1), *failing])
            assert caught.value.index == first
        assert (db.last_applied(), len(db)) == (LogId(0, 0), 0)


@SHARDS
async def test_chunks_behind_a_failing_one_fail_too_and_those_before_it_are_applied(
    tmp_path: Path, shards: int
) -> None:
    async with Engine(tmp_path / "db", shards=shards, machine=Ledger) as db:
        # The first chunk opens a group, the second is staged, the others wait and make up the third together.
        chunks = chunks_of(replaced(adds(1, 120), 75, Fail(b"75")), 20)
        applied, failed, aborted = chunks[:3], chunks[3], chunks[4:]
        results = await outcomes(db, chunks)
        assert results[:3] == [[ApplyResult(one.index, True, one.index) for one in chunk] for chunk in applied]
        assert type(results[3]) is ChunkFailedError and results[3].index == 75
        for chunk, error in zip(aborted, results[4:], strict=True):
            assert type(error) is ChunkAbortedError
            assert (error.first, error.last) == (chunk[0].index, chunk[-1].index)
            assert (error.failed_first, error.failed_last) == (failed[0].index, failed[-1].index)
            assert "told to fail" in str(error) and f"applied up to {chunk[0].index - 1}" in error.hint
        assert (db.last_applied(), len(db)) == (LogId(60, 1), 60)
        with pytest.raises(LogGapError):
            await db.apply_chunk(aborted[0])
        assert await outcomes(db, chunks_of(adds(61, 60), 20)) == [
            [ApplyResult(one.index, True, one.index) for one in chunk] for chunk in chunks_of(adds(61, 60), 20)
        ]


async def test_a_chunk_merged_into_the_group_of_a_failing_one_is_applied_on_its_own(tmp_path: Path) -> None:
    async with Engine(tmp_path / "db", shards=2, machine=Ledger) as db:
        await outcomes(db, chunks_of(adds(1, 100), 20))
        assert db.stats()["groups"] == 3, "five chunks at once are three groups: the last three go together"
        results = await outcomes(db, chunks_of(replaced(adds(101, 100), 170, Fail(b"170")), 20))
        assert [len(result) for result in results[:3]] == [20, 20, 20]
        assert [type(result) for result in results[3:]] == [ChunkFailedError, ChunkAbortedError]
        assert db.last_applied() == LogId(160, 1)
        assert db.stats()["groups"] == 7, "two, then the abandoned one, whose number is not used again, then one"


async def test_a_re_delivery_of_a_failing_chunk_in_flight_shares_its_failure(tmp_path: Path) -> None:
    async with Engine(tmp_path / "db", shards=2, machine=Ledger) as db:
        chunk = replaced(adds(1, 20), 9, Fail(b"9"))
        first, again, part = await outcomes(db, [chunk, chunk, chunk[2:4]])
        assert [type(one) for one in (first, again, part)] == [ChunkFailedError] * 3
        assert {one.index for one in (first, again, part)} == {9}


@SHARDS
async def test_a_command_that_touches_an_undeclared_key_fails_whatever_the_shard_count(
    tmp_path: Path, shards: int
) -> None:
    async with Engine(tmp_path / "db", shards=shards, machine=Ledger) as db:
        for how in ("get", "put", "delete"):
            chunk = replaced(adds(1, 20), 7, Trespass(b"7", b"other", how))
            with pytest.raises(UndeclaredKeyError, match="b'other', which lies in no partition") as caught:
                await db.apply_chunk(chunk)
            assert (caught.value.index, caught.value.key) == (7, b"other")
            with pytest.raises(UndeclaredKeyError) as caught:
                await db.apply_chunk(replaced(adds(1, 20), 7, Trespass(b"7", bytes(10_000), how)))
            assert caught.value.key == bytes(10_000) and len(caught.value.message) < 200
            assert (db.last_applied(), len(db)) == (LogId(0, 0), 0)


@SHARDS
async def test_a_rejected_command_leaves_no_trace_and_says_why(tmp_path: Path, shards: int) -> None:
    async with Engine(tmp_path / "db", shards=shards, machine=Ledger) as db:
        results = await db.apply_chunk(
            log_of(
                map(
                    encode,
                    [
                        Add(b"a/one", 5),
                        Move(b"a/one", b"a/two", 3),
                        Move(b"a/one", b"a/two", 3),
                        Reject(b"a/one", "because"),
                        Reject(b"b", ""),
                        Add(b"a/two", 0),
                    ],
                )
            )
        )
        assert results == [
            ApplyResult(1, True, 5),
            ApplyResult(2, True),
            ApplyResult(3, False, reason="not enough"),
            ApplyResult(4, False, reason="because"),
            ApplyResult(5, False, reason=""),
            ApplyResult(6, True, 3),
        ]
        assert db.get_multi([b"a/one", b"a/two", b"b"]) == [b"2", b"3", None]


@SHARDS
async def test_a_command_knows_where_in_the_log_it_stands(tmp_path: Path, shards: int) -> None:
    async with Engine(tmp_path / "db", shards=shards, machine=Ledger) as db:
        terms, clocks = [1, 1, 2, 2, 5], [7, 0, 3, 9, 8]
        entries = [
            Entry(index, term, encode(Stamp(b"%d" % index)), clock)
            for index, (term, clock) in enumerate(zip(terms, clocks, strict=True), 1)
        ]
        results = await db.apply_chunk(entries)
        assert [result.value for result in results] == [[1, 1, 7], [2, 1, 7], [3, 2, 7], [4, 2, 9], [5, 5, 9]]
        (later,) = await db.apply_chunk([Entry(6, 5, encode(Stamp(b"6")), 0)])
        assert later.value == [6, 5, 9]


@SHARDS
async def test_each_entry_of_a_chunk_has_a_clock_of_its_own(tmp_path: Path, shards: int) -> None:
    async with Engine(tmp_path / "db", shards=shards, machine=Ledger) as db:
        clocks = [50, 60, 55, 70]
        entries = [Entry(index, 1, encode(Stamp(b"%d" % index)), clock) for index, clock in enumerate(clocks, 1)]
        results = await db.apply_chunk(entries)
        assert [result.value for result in results] == [[1, 1, 50], [2, 1, 60], [3, 1, 60], [4, 1, 70]]


BAD = {
    "an empty key": (encode(Put(b"", b"")), "a key of 0 bytes"),
    "an over-long key": (encode(Put(bytes(33), b"")), "a key of 33 bytes; allowed are 1 to key_bytes_max=32"),
    "an over-long value": (encode(Put(b"k", bytes(101))), "a value of 101 bytes, over value_bytes_max=100"),
    "no msgpack": (b"\xc1", "no command"),
    "no command": (encode(["what", b"k"]), "no command"),
    "an unknown command": (encode([99, b"k"]), "no command"),
    "a cut command": (encode(Put(b"k", b"value"))[:-1], "no command"),
    "bytes behind a command": (encode(Delete(b"k")) + b"\0", "no command"),
    "a field too many": (encode([2, b"k", b"more"]), "no command"),
}
LIMITS = {"key_bytes_max": 32, "value_bytes_max": 100}


@pytest.mark.parametrize("shards", [1, 3])
async def test_bad_data_is_refused_by_name_before_any_shard_sees_a_byte(tmp_path: Path, shards: int) -> None:
    async with Engine(tmp_path / "db", shards=shards, config=EngineConfig(**LIMITS)) as db:  # type: ignore[arg-type]
        good = [encode(Put(b"%d" % number, bytes(100))) for number in range(9)]
        await db.apply_chunk(log_of([*good, encode(Put(bytes(32), b""))]))
        for last, (name, (data, reason)) in zip(count(10, step=10), BAD.items(), strict=False):
            note(name)
            digest, groups = await db.digest(), db.stats()["groups"]
            with pytest.raises(BadEntryError, match=reason):
                db.check(data)
            for at in (0, 4, 9):
                with pytest.raises(BadEntryError, match=reason) as caught:
                    await db.apply_chunk(log_of([*good[:at], data, *good[at:]], first=last + 1))
                assert caught.value.index == last + 1 + at
            assert (db.last_applied(), await db.digest(), db.stats()["groups"]) == (LogId(last, 1), digest, groups)
            await db.apply_chunk(log_of([*good, b""], first=last + 1))
            assert db.last_applied() == LogId(last + 10, 1)


def test_check_passes_what_may_be_proposed(tmp_path: Path) -> None:
    db = Engine(tmp_path / "db", shards=1)
    db.start()
    for data in (b"", encode(Put(b"k", bytes(1 << 20))), encode(Delete(bytes(480)))):
        db.check(data)
    db.stop()


async def test_rejected_data_is_consumed_and_answered_alike_on_every_shard_count(tmp_path: Path) -> None:
    good = [encode(Put(b"%d" % number, b"")) for number in range(30)]
    datas = [data for number, one in enumerate(good) for data in (one, list(BAD.values())[number % len(BAD)][0])]
    answers, digests = [], set()
    config = EngineConfig(bad_entry="reject", **LIMITS)  # type: ignore[arg-type]
    for shards in (1, 2, 3, 8):
        async with Engine(tmp_path / f"{shards}", shards=shards, config=config) as db:
            for size in (60, 1, 7)[shards % 3 :][:1]:
                results = [one for chunk in chunks_of(log_of(datas), size) for one in await db.apply_chunk(chunk)]
                answers.append(results)
            digests.add(await db.digest())
            assert db.last_applied() == LogId(60, 1)
            with pytest.raises(BadEntryError):
                db.check(datas[1])
    assert all(answer == answers[0] for answer in answers)
    assert len(digests) == 1
    assert [result.succeeded for result in answers[0]] == [True, False] * 30
    reasons = [reason for _, reason in BAD.values()]
    for number, result in enumerate(answers[0][1::2]):
        assert result.reason is not None and reasons[number % len(BAD)] in result.reason


async def test_a_machine_whose_keys_fail_is_told_so_by_check(tmp_path: Path) -> None:
    async with Engine(tmp_path / "db", shards=2, machine=Unhappy) as db:
        with pytest.raises(BadEntryError, match="failed: RuntimeError: keys are out"):
            await db.apply_chunk(log_of([encode(Delete(b"k"))]))
        assert db.last_applied() == LogId(0, 0)


@pytest.mark.parametrize("shards", [1, 2])
async def test_a_part_over_the_ring_limit_is_refused_with_the_setting_to_raise(tmp_path: Path, shards: int) -> None:
    config = EngineConfig(ring_bytes=64 * 1024)
    async with Engine(tmp_path / "db", shards=shards, config=config) as db:
        with pytest.raises(ChunkTooLargeError, match="raise ring_bytes") as caught:
            await db.apply_chunk(log_of([encode(Put(b"k", bytes(100))) for _ in range(150)]))
        assert caught.value.limit == config.part_bytes_max == 16 * 1024 < caught.value.size
        assert db.last_applied() == LogId(0, 0)
        largest = log_of([encode(Put(b"k", bytes(16_000)))])
        await db.apply_chunk(largest)
        entries = log_of([encode(Put(b"k%d" % number, bytes(9_000))) for number in range(60)], first=2)
        await outcomes(db, chunks_of(entries, 1))
        assert (db.last_applied(), len(db)) == (LogId(61, 1), 61)


@pytest.mark.parametrize("shards", [1, 2])
async def test_a_full_map_fails_the_chunk_with_its_numbers_and_later_ones_go_on(tmp_path: Path, shards: int) -> None:
    config = EngineConfig(map_bytes=4 << 20)
    async with Engine(tmp_path / "db", shards=shards, config=config) as db:
        await db.apply_chunk(log_of([encode(Put(b"%d" % number, bytes(1_000))) for number in range(100)]))
        digest = await db.digest()
        with pytest.raises(StoreFullError, match="raise map_bytes") as caught:
            await db.apply_chunk(log_of([encode(Put(b"x%d" % n, bytes(1_000))) for n in range(7_000)], first=101))
        error = caught.value
        assert error.used < error.limit == config.map_bytes < error.needed
        assert (await db.digest(), db.last_applied(), len(db)) == (digest, LogId(100, 1), 100)
        index = 100
        full = False
        while not full:
            try:
                await db.apply_chunk(log_of([encode(Put(b"y%d" % index, bytes(20_000)))], first=index + 1))
                index += 1
            except StoreFullError:
                full = True
        assert 101 < index < 100 + shards * (config.map_bytes // 20_000)
        assert db.last_applied() == LogId(index, 1)
        await db.apply_chunk(log_of([b""], first=index + 1))
        assert db.stats()["failure"] is None
    async with Engine(tmp_path / "db", config=EngineConfig(map_bytes=16 << 20)) as db:
        assert db.last_applied() == LogId(index + 1, 1)
        await db.apply_chunk(log_of([encode(Delete(b"y100")), encode(Put(b"z", bytes(20_000)))], first=index + 2))
        assert db.get(b"y100") is None and db.get(b"z") == bytes(20_000)


@pytest.mark.parametrize("shards", [1, 2])
async def test_a_full_disk_fails_the_chunk_and_later_ones_succeed_once_there_is_room(
    tmp_path: Path, shards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAULT_DIRECTORY", str(tmp_path))
    async with Engine(tmp_path / "db", shards=shards, machine=Faulty) as db:
        await db.apply_chunk(log_of([encode(Put(b"%d" % number, b"")) for number in range(20)]))
        (tmp_path / "disk-full").touch()
        large = log_of([encode(Put(b"x%d" % n, bytes(1_000))) for n in range(20_000 * shards)], first=21)
        chunks = chunks_of(large, 5_000)
        results = await outcomes(db, chunks)
        failed = next(at for at, result in enumerate(results) if isinstance(result, EngineError))
        assert isinstance(results[failed], StoreFullError)
        assert "No space left on device" in results[failed].message and "free disk space" in results[failed].hint
        assert results[failed].used < results[failed].needed < results[failed].limit
        assert {type(result) for result in results[failed + 1 :]} == {ChunkAbortedError}
        assert db.last_applied().index == 20 + sum(len(chunk) for chunk in chunks[:failed])
        assert db.get(b"7") == b""
        (tmp_path / "disk-full").unlink()
        for chunk in chunks[failed:]:
            await db.apply_chunk(chunk)
        assert len(db) == 20 + len(large)


async def test_a_full_disk_under_the_rings_fails_the_chunk_and_the_engine_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, offset: int, length: int) -> None:
        raise OSError(28, "No space left on device")

    async with Engine(tmp_path / "db", shards=2) as db:
        with monkeypatch.context() as patch:
            patch.setattr("os.posix_fallocate", full)
            with pytest.raises(StoreFullError, match="No space left on device"):
                await db.apply_chunk(log_of([encode(Put(b"k", b"v"))]))
        assert db.last_applied() == LogId(0, 0)
        await db.apply_chunk(log_of([encode(Put(b"k", b"v"))]))
        assert db.get(b"k") == b"v"


async def test_a_value_that_apply_makes_too_large_fails_its_chunk_with_the_limit(tmp_path: Path) -> None:
    async with Engine(tmp_path / "db", shards=2, machine=Ledger, config=EngineConfig(value_bytes_max=500)) as db:
        with pytest.raises(BadEntryError, match="at most 500 bytes") as caught:
            await db.apply_chunk(log_of([encode(Bloat(b"k", 500)), encode(Bloat(b"k", 501))]))
        assert (caught.value.index, caught.value.limit) == (2, 500)
        assert len(db) == 0
