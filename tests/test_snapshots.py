"""Snapshots hold exactly the state that their manifests name, whatever goes on while they are taken."""

from __future__ import annotations

import asyncio
import copy
import itertools
import random
from collections import deque
from pathlib import Path

import msgspec
import pytest

from shardengine import (
    ChunkFailedError,
    Engine,
    Entry,
    LogId,
    SnapshotError,
    SnapshotInfo,
    SnapshotInProgressError,
    SnapshotLabelError,
    SnapshotMetadata,
    SnapshotPolicy,
    encode,
)
from shardengine.engine.snapshot.manifest import read_manifest
from tests.inside import replacing, taking
from tests.killing import DEEP
from tests.machines import Add, Fail, Ledger
from tests.model import log_of
from tests.streams import Follower, chunk_ends, entries, term_at
from tests.taking import CONFIG, Feeder, holds, holds_exactly, tree

SHARDS = (1, 2, 3, 5, 8)
SNAPSHOTS = 40 if DEEP else 24  # a stream; 120 in all
WINDOW = 6


async def take_at_random_moments(db: Engine, seed: int, folder: Path) -> list[Path]:
    """Apply a stream, and take one snapshot after another of it, each begun after a random number of its chunks."""
    rng = random.Random(seed)
    paths: list[Path] = []
    taking: asyncio.Task[bytes] | None = None
    flying: deque[asyncio.Task[object]] = deque()
    start = 0
    for end in chunk_ends(str(seed), 0, 40):
        flying.append(asyncio.create_task(db.apply_chunk(entries(seed, start + 1, end))))
        start = end
        while len(flying) >= rng.randint(1, WINDOW):
            await flying.popleft()
        if taking is not None and taking.done():
            assert (await taking).hex() == read_manifest(paths[-1]).checksum
            taking = None
            if len(paths) == SNAPSHOTS:
                break
        if taking is None and rng.random() < 0.3:
            paths.append(folder / f"{len(paths):03}")
            taking = asyncio.create_task(db.generate_snapshot_data(paths[-1], None))
    await asyncio.gather(*flying)
    assert db.last_applied().index == start
    return paths


def other_than(shards: int) -> int:
    """A shard count, so that each is a target once: 3 for 1, 5 for 2, 8 for 3, 1 for 5, 2 for 8."""
    return SHARDS[(SHARDS.index(shards) + 2) % len(SHARDS)]


@pytest.mark.parametrize("shards", SHARDS)
async def test_a_snapshot_of_a_full_speed_stream_is_the_models_state_at_its_index_on_any_shard_count(
    tmp_path: Path, shards: int
) -> None:
    seed = 100 + shards
    async with Engine(tmp_path / "data", shards=shards, config=CONFIG) as db:
        paths = await take_at_random_moments(db, seed, tmp_path / "snapshots")
    model = Follower(seed)
    indices = []
    chosen: list[tuple[Path, Follower]] = []  # in the midst of the stream, and later for each target
    for number, path in enumerate(paths):
        indices.append(holds_exactly(path, model).last_included.index)
        if number % 7 == 3:
            chosen.append((path, copy.deepcopy(model)))
    assert len(indices) == SNAPSHOTS and indices == sorted(indices) and len(set(indices)) > SNAPSHOTS // 2
    for target, (path, there) in zip(SHARDS if DEEP else [other_than(shards)], chosen, strict=False):
        async with Engine(tmp_path / str(target), shards=target, config=CONFIG) as replica:
            await replica.restore(path)
            await holds(replica, there, there.index)
            await replica.apply_chunk(entries(seed, there.index + 1, there.index + 50))
            await holds(replica, there, there.index + 50)


async def test_a_label_cuts_the_log_where_it_says_however_much_is_in_flight(tmp_path: Path) -> None:
    rng = random.Random(3)
    async with Engine(tmp_path / "data", shards=3, config=CONFIG) as db:
        feeder = Feeder(db)
        await feeder.feed(5)
        model = Follower(feeder.model.seed)
        for number in range(12):
            sizes = [rng.choice([1, 2, 30]) for _ in range(12)]
            label = feeder.sent + sum(sizes[: rng.randint(1, 12)])
            path = tmp_path / "snapshots" / str(number)
            if number % 2:
                taking = asyncio.create_task(db.generate_snapshot_data(path, LogId(label, term_at(label))))
                await asyncio.sleep(0)
                await feeder.feed(*sizes)
            else:  # everything is in flight already, most of it still queued
                label = feeder.sent + sum(sizes)
                flying = [feeder.send(size) for size in sizes]
                await asyncio.sleep(0)
                taking = asyncio.create_task(db.generate_snapshot_data(path, LogId(label, term_at(label))))
                await asyncio.gather(*flying)
                await feeder.feed(1, 1)
            checksum = await taking
            manifest = holds_exactly(path, model, deep=number == 11)
            assert manifest.last_included == LogId(label, term_at(label))
            assert manifest.checksum == checksum.hex()
            assert db.snapshot_metadata() == SnapshotMetadata(LogId(label, term_at(label)), checksum)
        await feeder.check()


async def test_the_state_of_now_can_be_labelled_while_nothing_is_in_flight_and_so_can_the_empty_one(
    tmp_path: Path,
) -> None:
    async with Engine(tmp_path / "data", shards=2, config=CONFIG) as db:
        feeder = Feeder(db)
        await db.generate_snapshot_data(tmp_path / "empty", LogId(0, 0))
        await feeder.feed(30)
        await db.generate_snapshot_data(tmp_path / "thirty", db.last_applied())
    manifest = read_manifest(tmp_path / "empty")
    assert (manifest.last_included, manifest.term_runs, sum(part.entries for part in manifest.parts)) == (
        LogId(0, 0),
        [],
        0,
    )
    holds_exactly(tmp_path / "thirty", Follower(7))
    async with Engine(tmp_path / "other", shards=3, config=CONFIG) as replica:
        await replica.restore(tmp_path / "empty")
        await holds(replica, Follower(7), 0)
        await replica.restore(tmp_path / "thirty")
        await holds(replica, Follower(7), 30)


async def refused(db: Engine, path: Path, label: LogId, match: str) -> SnapshotLabelError:
    """That label cannot be placed, and nothing is left of the attempt."""
    with pytest.raises(SnapshotLabelError, match=match) as caught:
        await db.generate_snapshot_data(path, label)
    assert not path.exists()
    return caught.value


async def test_a_label_that_cannot_be_placed_is_refused_with_the_numbers_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    async with Engine(tmp_path / "data", shards=2, config=CONFIG) as db:
        feeder = Feeder(db)
        await feeder.feed(40, 20)
        error = await refused(db, path, LogId(59, 1), "the state at index 59 is past: 60 is applied")
        assert (error.asked, error.applied) == (59, 60)
        await refused(db, path, LogId(60, 2), "entry 60 has term 1, not 2")
        flying = feeder.send(20)
        await asyncio.sleep(0)
        error = await refused(db, path, LogId(79, 1), "inside the chunk of entries 61 to 80.*take one at index 80")
        assert (error.asked, error.first, error.last) == (79, 61, 80)
        await flying
        later = asyncio.create_task(refused(db, path, LogId(90, 1), "90 lies inside the chunk of entries 81 to 100"))
        await asyncio.sleep(0)
        await feeder.feed(20)
        await later
        later = asyncio.create_task(refused(db, path, LogId(120, 9), "entry 120 has term 1, not 9"))
        await asyncio.sleep(0)
        await feeder.feed(20, 20, 20)
        await later
        await feeder.check()
        await db.generate_snapshot_data(path, LogId(160, 1))
    holds_exactly(path, Follower(7))


async def test_a_label_inside_a_group_that_is_under_way_is_refused_and_holds_nothing_up(tmp_path: Path) -> None:
    async with Engine(tmp_path / "data", shards=2, config=CONFIG) as db:
        feeder = Feeder(db)
        flying = [feeder.send(20) for _ in range(5)]  # the last three go together
        await flying[0]
        assert db.last_applied().index == 20
        error = await refused(
            db, tmp_path / "snapshot", LogId(80, 1), "index 80 lay inside a group, of chunks up to 100"
        )
        assert (error.asked, error.applied) == (80, 100)
        await asyncio.gather(*flying)
        await feeder.feed(3, 3)
        await feeder.check()


async def test_what_is_staged_behind_the_label_waits_even_if_it_needs_no_vote(tmp_path: Path) -> None:
    async with Engine(tmp_path / "data", shards=2, config=CONFIG) as db:
        taking = asyncio.create_task(db.generate_snapshot_data(tmp_path / "snapshot", LogId(20, 1)))
        flying = [asyncio.create_task(db.apply_chunk(chunk)) for chunk in (entries(7, 1, 20), [Entry(21, 1, b"")])]
        await asyncio.gather(*flying, taking)
        assert db.last_applied() == LogId(21, 1)
    assert holds_exactly(tmp_path / "snapshot", Follower(7)).last_included == LogId(20, 1)


async def test_a_chunk_that_fails_at_the_label_can_be_sent_again_and_is_then_in_the_snapshot(tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    async with Engine(tmp_path / "data", shards=2, machine=Ledger, config=CONFIG) as db:
        await db.apply_chunk(log_of([encode(Add(b"a", 1)), encode(Add(b"b", 1)), encode(Add(b"c", 1))]))
        taking = asyncio.create_task(db.generate_snapshot_data(path, LogId(5, 1)))
        await asyncio.sleep(0)
        good, bad = encode(Add(b"a", 1)), encode(Fail(b"a"))
        for _ in range(2):
            with pytest.raises(ChunkFailedError):
                await db.apply_chunk(log_of([good, bad], 4))  # a solo
        await db.apply_chunk(log_of([good, good], 4))
        await db.apply_chunk(log_of([good], 6))
        await taking
        assert db.get(b"a") == b"4"
        async with Engine(tmp_path / "other", shards=1, machine=Ledger, config=CONFIG) as replica:
            await replica.restore(path)
            assert replica.get_multi([b"a", b"b", b"c"]) == [b"3", b"1", b"1"]
            assert replica.last_applied() == LogId(5, 1)


async def test_one_snapshot_is_taken_at_a_time_and_none_beside_an_install(tmp_path: Path) -> None:
    async with Engine(tmp_path / "data", shards=2, config=CONFIG) as db:
        feeder = Feeder(db)
        await feeder.feed(10)
        first = asyncio.create_task(db.generate_snapshot_data(tmp_path / "first", None))
        await asyncio.sleep(0)
        seen: set[object] = set()
        while not first.done():  # at every step of it, its last files included
            seen.add(db._running().coordinator.pinning.busy)
            with pytest.raises(SnapshotInProgressError):
                await db.generate_snapshot_data(tmp_path / "second", None)
            with pytest.raises(SnapshotInProgressError):
                await db.create_snapshot()
            with pytest.raises(SnapshotInProgressError):
                await db.reset()
            assert not (tmp_path / "second").exists() and not (tmp_path / "data" / "snapshots").exists()
            await asyncio.sleep(0)
        await first
        assert seen == {True, False}
        install = asyncio.create_task(db.restore(tmp_path / "first"))
        while not install.done():
            if replacing(db):
                with pytest.raises(SnapshotInProgressError):
                    await db.create_snapshot()
                with pytest.raises(SnapshotInProgressError):
                    await db.reset()
                seen.add("installing")
            await asyncio.sleep(0)
        await install
        assert "installing" in seen
        await db.create_snapshot()
        await feeder.check()


async def test_a_directory_that_is_not_empty_is_refused_and_left_alone(tmp_path: Path) -> None:
    async with Engine(tmp_path / "data", shards=2, config=CONFIG) as db:
        await Feeder(db).feed(10)
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "file").write_text("mine")
        with pytest.raises(SnapshotError, match="is not empty: it holds 'file'"):
            await db.generate_snapshot_data(tmp_path / "mine", None)
        with pytest.raises(SnapshotError, match="cannot write a snapshot into"):
            await db.generate_snapshot_data(tmp_path / "mine" / "file", None)
        assert tree(tmp_path / "mine") == {"file": b"mine"}
        (tmp_path / "empty").mkdir()
        await db.generate_snapshot_data(tmp_path / "empty", None)
        holds_exactly(tmp_path / "empty", Follower(7))


async def test_the_newest_snapshots_by_index_are_kept_and_foreign_files_stay(tmp_path: Path) -> None:
    config = msgspec.structs.replace(CONFIG, snapshots_keep=2)
    folder = tmp_path / "data" / "snapshots"
    async with Engine(tmp_path / "data", shards=2, config=config) as db:
        feeder = Feeder(db)
        assert db.snapshots() == [] and db.snapshot_metadata() is None
        taken: list[SnapshotInfo] = []
        for _ in range(4):
            await feeder.feed(15)
            (folder / "foreign").mkdir(parents=True, exist_ok=True)
            taken.append(await db.create_snapshot())
            assert db.snapshots() == taken[-2:]
        assert [info.last_included.index for info in taken] == [15, 30, 45, 60]
        assert {path.name for path in folder.iterdir()} == {"foreign", *(Path(info.path).name for info in taken[2:])}
        again = await db.create_snapshot()
        assert again == taken[3] and db.snapshots() == taken[2:]
        await db.restore(again.path)  # another generation: the same state in other bytes
        assert await db.create_snapshot() == taken[3] and db.snapshots() == taken[2:]
        assert db.snapshot_metadata() == SnapshotMetadata(again.last_included, again.checksum)
        await db.apply_snapshot_from_file(SnapshotMetadata(again.last_included, again.checksum), again.path)
    model = Follower(7)
    for info in taken[2:]:
        manifest = holds_exactly(Path(info.path), model)
        assert (info.shards, info.entries) == (2, len(model.records))
        assert info.bytes == sum(part.bytes for part in manifest.parts)


async def test_a_snapshot_of_another_log_makes_way_for_one_at_the_same_entry(tmp_path: Path) -> None:
    async with Engine(tmp_path / "other", shards=1, config=CONFIG) as other:
        stranger = Feeder(other, seed=8)
        await stranger.feed(30)
        await other.generate_snapshot_data(tmp_path / "strange", None)
    async with Engine(tmp_path / "data", shards=2, config=CONFIG) as db:
        await Feeder(db).feed(30)
        own = await db.create_snapshot()
        await db.restore(tmp_path / "strange")
        strange = await db.create_snapshot()
        assert strange.path == own.path and db.snapshots() == [strange]
        holds_exactly(Path(strange.path), Follower(8))


async def test_what_lies_in_the_way_of_a_snapshot_is_named_and_left_alone(tmp_path: Path) -> None:
    async with Engine(tmp_path / "data", shards=2, config=CONFIG) as db:
        feeder = Feeder(db)
        await feeder.feed(30)
        info = await db.create_snapshot()
        (Path(info.path) / "shard-000.mdb").write_bytes(b"damaged")
        before = tree(Path(info.path).parent)
        with pytest.raises(SnapshotError, match=f"cannot write {info.path}"):
            await db.create_snapshot()
        assert tree(Path(info.path).parent) == before
        await feeder.feed(1)
        later = await db.create_snapshot()
        assert db.snapshots() == [later]


async def test_a_policy_takes_snapshots_by_itself_until_it_is_taken_away(tmp_path: Path) -> None:
    async with Engine(tmp_path / "data", shards=2, config=CONFIG) as db:
        feeder = Feeder(db)
        await feeder.feed(99)
        db.set_snapshot_policy(SnapshotPolicy(entries=100))
        for _ in range(2):
            known = db.snapshots()
            while db.snapshots() == known:
                await feeder.feed(40)
        db.set_snapshot_policy(SnapshotPolicy())
        while taking(db):
            await feeder.feed(1)
        snapshots = db.snapshots()
        gaps = [b.last_included.index - a.last_included.index for a, b in itertools.pairwise(snapshots)]
        assert snapshots[0].last_included.index >= 100 and all(gap >= 100 for gap in gaps)
        await feeder.feed(300)
        assert not taking(db) and db.snapshots() == snapshots
        assert max(info.last_included for info in snapshots) == db.durable()
        await feeder.check()
    model = Follower(7)
    for info in snapshots:
        holds_exactly(Path(info.path), model)


async def test_the_metadata_of_the_last_snapshot_is_kept_as_the_contract_says(tmp_path: Path) -> None:
    named = SnapshotMetadata(LogId(9, 1), bytes(16))
    async with Engine(tmp_path / "data", shards=1, config=CONFIG) as db:
        await Feeder(db).feed(10)
        checksum = await db.generate_snapshot_data(tmp_path / "s", None)
        assert db.snapshot_metadata() == SnapshotMetadata(LogId(10, 1), checksum)
        db.persist_last_snapshot_metadata(named)
        db.update_last_snapshot_metadata(SnapshotMetadata(LogId(10, 1), checksum))
        assert db.snapshot_metadata() == SnapshotMetadata(LogId(10, 1), checksum)
    async with Engine(tmp_path / "data", config=CONFIG) as db:
        assert db.snapshot_metadata() == named
        await db.restore(tmp_path / "s")
        assert db.snapshot_metadata() == SnapshotMetadata(LogId(10, 1), checksum)
    async with Engine(tmp_path / "data", config=CONFIG) as db:
        assert db.snapshot_metadata() == SnapshotMetadata(LogId(10, 1), checksum), "what was installed"
