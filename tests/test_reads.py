"""Every read is a cut: all shards at exactly `last_applied()`, for as long as somebody holds it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from shardengine import (
    Delete,
    Engine,
    EngineConfig,
    Entry,
    LogId,
    Put,
    ScanResult,
    SnapshotInProgressError,
    StoreFullError,
    TooManyViewsError,
    View,
    ViewClosedError,
    encode,
)
from tests.inside import reads_of
from tests.model import Model, log_of

FLIPS = 3_000
KEYS = [b"key%d" % number for number in range(64)]


def flip(index: int) -> list[Entry]:
    """The chunk number `index`, of 64 entries that set all keys to that number."""
    return log_of([encode(Put(key, b"%d" % index)) for key in KEYS], first=64 * (index - 1) + 1)


def check(reader: Engine | View, index: int) -> int:
    """The version that all keys are of, which is that of `index`."""
    (version,) = {int(value) for value in reader.get_multi(KEYS) if value is not None}
    assert index == 64 * version
    assert reader.get(KEYS[version % 64]) == b"%d" % version
    assert len(reader) == len(KEYS)
    return version


async def test_no_reader_ever_sees_two_versions_of_a_chunk(tmp_path: Path) -> None:
    async with Engine(tmp_path / "db", shards=3, config=EngineConfig(views_max=400)) as db:
        assert len({reads_of(db).owner(key) for key in KEYS}) == 3
        await db.apply_chunk(flip(1))
        views, seen, draw = list[View](), set[int](), random.Random(11)

        async def read() -> None:
            while db.last_applied().index < 64 * FLIPS:
                seen.add(check(db, db.last_applied().index))
                await asyncio.sleep(0)

        async def hold() -> None:
            while db.last_applied().index < 64 * FLIPS:
                views.append(db.view())
                for view in draw.sample(views, min(5, len(views))):
                    check(view, view.revision)
                if len(views) > 100:
                    views.pop(draw.randrange(len(views))).close()
                await asyncio.sleep(0)

        async def apply() -> None:
            for first in range(2, FLIPS + 1, 7):
                await asyncio.gather(*[db.apply_chunk(flip(n)) for n in range(first, min(first + 7, FLIPS + 1))])
                check(db, 64 * min(first + 6, FLIPS))

        await asyncio.gather(apply(), read(), read(), hold())
        for view in views:
            check(view, view.revision)
            view.close()
        assert check(db, db.last_applied().index) == FLIPS
        assert len(seen) > 100, "the readers ran beside the applies"
        assert db.stats()["pinned_cuts"] == 0


async def test_a_read_on_waking_sees_the_chunk_that_was_waited_for(tmp_path: Path) -> None:
    async with Engine(tmp_path / "db", shards=3) as db:
        for index in range(1, 200):
            await db.apply_chunk(flip(index))
            assert db.last_applied() == LogId(64 * index, 1)
            assert db.get(KEYS[index % 64]) == b"%d" % index


async def test_a_view_repeats_its_reads_while_applies_go_on(tmp_path: Path) -> None:
    async with Engine(tmp_path / "db", shards=3) as db:
        await db.apply_chunk(flip(1))
        digest = await db.digest()
        with db.view() as view, db.view() as twin:
            before = view.scan_prefix(b"key")
            assert bool(view)
            await db.apply_chunk(flip(2))
            await db.apply_chunk(log_of([encode(Delete(key)) for key in KEYS[:60]], first=129))
            await db.apply_chunk(log_of([encode(Put(b"key", b""))], first=189))
            assert view.scan_prefix(b"key") == before
            assert (view.revision, len(view)) == (64, 64)
            assert view.get(b"key") is None
            twin.close()
            twin.close()
            assert view.get_multi(KEYS) == [b"1"] * 64
            assert db.stats()["pinned_cuts"] == 1
        assert (len(db), db.stats()["pinned_cuts"], db.stats()["views"]) == (5, 0, 0)
        with pytest.raises(ViewClosedError, match="revision 64 cannot be read: it was closed"):
            view.get(b"key")
        assert await db.digest() != digest


def finished(coroutine: Coroutine[Any, Any, bytes]) -> bytes:
    """Run a coroutine that only ever lets others go on to its end, with nobody else going on."""
    while True:
        try:
            coroutine.send(None)
        except StopIteration as ended:
            return bytes(ended.value)


async def test_a_digest_is_of_one_index_though_applies_go_on(tmp_path: Path) -> None:
    async with Engine(tmp_path / "db", shards=3) as db:
        model = Model()
        entries = log_of([encode(Put(b"%d" % number, b"")) for number in range(20_000)])
        model.apply(entries)
        await db.apply_chunk(entries)
        digest = db.digest()
        digest.send(None)  # it has read a slice, and lets others go on
        await db.apply_chunk(log_of([encode(Put(b"%d" % number, b"new")) for number in range(20_000)], first=20_001))
        assert finished(digest) == model.digest()
        assert await db.digest() != model.digest()


async def test_views_are_counted_and_limited(tmp_path: Path) -> None:
    async with Engine(tmp_path / "db", shards=2, config=EngineConfig(views_max=3)) as db:
        views = []
        for index in range(1, 4):
            await db.apply_chunk(flip(index))
            views.append(db.view())
        with pytest.raises(TooManyViewsError, match="raise views_max"):
            db.view()
        assert db.stats()["views"] == 3
        await db.apply_chunk(flip(4))
        views.pop().close()
        with db.view() as view:
            assert view.get(KEYS[0]) == b"4"
        assert [view.get(KEYS[0]) for view in views] == [b"1", b"2"]


async def test_a_view_that_outlives_its_age_limit_is_closed_for_it(tmp_path: Path) -> None:
    async with Engine(tmp_path / "db", shards=2, config=EngineConfig(view_age_max_ms=1)) as db:
        await db.apply_chunk(flip(1))
        view = db.view()
        index = 1
        while db.stats()["views"]:  # the engine looks at its views every now and then
            index += 1
            await db.apply_chunk(flip(index))
        with pytest.raises(ViewClosedError, match="older than view_age_max_ms=1"):
            view.get_multi(KEYS)


async def test_a_read_that_goes_through_many_publishes_leaves_no_transaction_open(tmp_path: Path) -> None:
    """LMDB has `views_max` + 16 reader slots a shard: one that is lost each time would soon be one too many."""
    async with Engine(tmp_path / "db", shards=2, config=EngineConfig(views_max=2)) as db:
        for index in range(1, 200):
            view = db.view()
            await db.apply_chunk(flip(index))
            view.close()
        assert db.get(KEYS[5]) == b"199"


PREFIXES = [b"", b"a", b"ab", b"\xff", b"\xff\xff", b"a\xff", b"zz", b"\0"]


async def test_scans_are_pages_of_one_sorted_dict(tmp_path: Path) -> None:
    draw = random.Random(7)
    alphabet = [b"", b"a", b"b", b"ab", b"\xff", b"\xff\xff", b"a\xff", b"\0", b"z"]
    keys = {b"".join(draw.choices(alphabet, k=4)) for _ in range(600)} - {b""}
    async with Engine(tmp_path / "db", shards=3) as db:
        entries, model = log_of([encode(Put(key, key[::-1])) for key in draw.sample(sorted(keys), len(keys))]), Model()
        model.apply(entries)
        await db.apply_chunk(entries)
        revision = len(entries)
        for prefix in PREFIXES:
            expected = model.scan(prefix)
            assert db.scan_prefix(prefix) == ScanResult(expected, revision, more=False)
            assert db.scan_prefix(prefix, reverse=True) == ScanResult(expected[::-1], revision, more=False)
            for reverse in (False, True):
                for limit in (1, 7, 1_000):
                    assert list(paged(db, prefix, limit, reverse)) == expected[:: -1 if reverse else 1]
            for start in [*draw.sample(sorted(keys), 20), b"", b"\xff" * 9, prefix + b"\x80"]:
                above = [record for record in expected if record[0] > start]
                below = [record for record in expected[::-1] if record[0] < start]
                assert db.scan_prefix(prefix, start_after=start).entries == above
                assert db.scan_prefix(prefix, start_after=start, reverse=True).entries == below
        assert db.scan_prefix(b"", limit=0) == ScanResult([], revision, more=True)
        assert db.scan_prefix(b"nothing", limit=0) == ScanResult([], revision, more=False)
        with pytest.raises(ValueError, match="limit is -1"):
            db.scan_prefix(b"", limit=-1)


def paged(db: Engine, prefix: bytes, limit: int, reverse: bool) -> Iterator[tuple[bytes, bytes]]:
    """Everything with `prefix`, a page of `limit` at a time."""
    start: bytes | None = None
    while True:
        page = db.scan_prefix(prefix, limit, start, reverse)
        assert len(page.entries) == limit if page.more else len(page.entries) <= limit
        yield from page.entries
        if not page.more:
            return
        start = page.entries[-1][0]


async def test_a_key_that_no_record_can_have_reads_as_absent(tmp_path: Path) -> None:
    async with Engine(tmp_path / "db", shards=2) as db:
        await db.apply_chunk(flip(1))
        assert db.get(b"") is None
        assert db.get(bytes(10_000)) is None
        assert db.get_multi([b"", KEYS[0], bytes(512)]) == [None, b"1", None]
        assert db.get_multi([]) == []


async def test_compacting_gives_disk_back_and_changes_nothing_that_is_read(tmp_path: Path) -> None:
    async with Engine(tmp_path / "db", shards=2) as db:
        await db.apply_chunk(log_of([encode(Put(b"%d" % number, bytes(2_000))) for number in range(4_000)]))
        gone = [encode(Delete(b"%d" % number)) for number in range(3_900)]
        await db.apply_chunk(log_of(gone, first=4_001))
        view = db.view()
        before = (await db.digest(), len(db), db.last_applied(), db.entry_term(7_900), db.scan_prefix(b""))
        used = db.stats()["bytes_on_disk"]
        chunks = [db.apply_chunk(flip_at(7_901)), db.compact()]
        await asyncio.gather(*chunks)
        after_chunk = await db.digest()
        assert db.stats()["bytes_on_disk"] < used / 3
        with pytest.raises(ViewClosedError, match="replaced as a whole"):
            view.get(b"1")
        await db.apply_chunk([Entry(7_965, 2, encode(Put(b"more", b"")))])
        await db.compact()
        assert before[0] != after_chunk != await db.digest()
        assert (len(db), db.last_applied()) == (165, LogId(7_965, 2))
        assert (db.entry_term(7_900), db.entry_term(7_965)) == (1, 2)
        kept = await db.digest()
    async with Engine(tmp_path / "db") as db:
        assert (await db.digest(), db.last_applied()) == (kept, LogId(7_965, 2))


async def test_one_snapshot_or_compaction_at_a_time(tmp_path: Path) -> None:
    async with Engine(tmp_path / "db", shards=2) as db:
        await db.apply_chunk(flip_at(1))
        snapshot = asyncio.ensure_future(db.create_snapshot())
        await asyncio.sleep(0)
        with pytest.raises(SnapshotInProgressError):
            await db.compact()
        assert (await snapshot).last_included == db.last_applied()
        compacting = asyncio.ensure_future(db.compact())
        await asyncio.sleep(0)
        with pytest.raises(SnapshotInProgressError):
            await db.create_snapshot()
        await compacting


def flip_at(first: int) -> list[Entry]:
    return log_of([encode(Put(key, b"1")) for key in KEYS], first=first)


async def test_a_map_that_was_full_once_takes_chunks_again_when_a_view_is_closed(tmp_path: Path) -> None:
    config = EngineConfig(map_bytes=8 << 20)
    async with Engine(tmp_path / "db", shards=1, config=config) as db:
        index = await churn(db, 1)
        with db.view() as view:
            with pytest.raises(StoreFullError, match=r"raise map_bytes.*compact\(\)"):
                await churn(db, index, rounds=100)
            assert len(view) == 500
        index = await churn(db, db.last_applied().index + 1, rounds=40)
    async with Engine(tmp_path / "db", config=config) as db:
        await churn(db, index, rounds=40)
        assert len(db) == 500


async def churn(db: Engine, first: int, rounds: int = 1) -> int:
    """Rewrite 500 records of 130 bytes, a few at a time. Returns the next index."""
    for at in range(first, first + 500 * rounds, 50):
        await db.apply_chunk(log_of([encode(Put(b"%d" % (n % 500), bytes(130))) for n in range(at, at + 50)], first=at))
    return first + 500 * rounds
