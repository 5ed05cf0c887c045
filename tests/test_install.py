"""An install replaces the whole state at once, or changes nothing at all."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shardengine import (
    Engine,
    LogGapError,
    LogId,
    SnapshotDamagedError,
    SnapshotError,
    SnapshotFormatError,
    SnapshotMetadata,
    SnapshotStaleError,
    ViewClosedError,
    run,
)
from shardengine.engine.snapshot.manifest import MANIFEST, read_manifest, write_manifest
from shardengine.shards.types import Limits
from tests.inside import one_turn, replacing
from tests.machines import Other
from tests.streams import Follower, entries
from tests.taking import CONFIG, Feeder, holds, tree

AT = 300


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Snapshots of one log, of three shards: `early` at 200, `late` at 300."""
    path = tmp_path_factory.mktemp("source")

    async def take() -> None:
        async with Engine(path / "data", shards=3, config=CONFIG) as db:
            feeder = Feeder(db)
            await feeder.feed(100, 100)
            await db.generate_snapshot_data(path / "early", None)
            await feeder.feed(100)
            await db.generate_snapshot_data(path / "late", None)

    run(take)
    shutil.rmtree(path / "data")
    return path


@pytest.fixture
def snapshot(source: Path, tmp_path: Path) -> Path:
    """The late one, to be damaged."""
    return Path(shutil.copytree(source / "late", tmp_path / "snapshot"))


def named(path: Path) -> SnapshotMetadata:
    manifest = read_manifest(path)
    return SnapshotMetadata(manifest.last_included, bytes.fromhex(manifest.checksum))


async def unchanged(db: Engine, error: type[Exception], match: str, path: Path, **how: Any) -> None:
    """That install is refused by name; state, index and directory are as they were."""
    before = (tree(db._path), db.last_applied(), await db.digest(), db.snapshot_metadata(), db._running())
    with pytest.raises(error, match=match):
        await db.restore(path, **how)
    assert (tree(db._path), db.last_applied(), await db.digest(), db.snapshot_metadata(), db._running()) == before


def flip(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1 << at % 8
    file.write_bytes(data)


def edit(path: Path, **changes: Any) -> None:
    """Change a manifest, and its checksum with it."""
    write_manifest(path, msgspec.structs.replace(read_manifest(path), **changes).summed())


def forge(path: Path, **changes: Any) -> None:
    """Change a manifest's JSON and leave its checksum as it was."""
    found = msgspec.json.decode((path / MANIFEST).read_bytes())
    (path / MANIFEST).write_bytes(msgspec.json.encode({**found, **changes}))


def cut(file: Path, size: int) -> None:
    os.truncate(file, size)


def exchange(one: Path, other: Path) -> None:
    aside = one.rename(one.with_name("aside"))
    other.rename(one)
    aside.rename(other)


Damage = tuple[str, type[SnapshotError], Callable[[], object]]


def damages(path: Path, early: Path) -> Iterator[Damage]:
    """What can be wrong with a snapshot: what the refusal says, its kind, and how to make it so."""
    manifest = read_manifest(path)
    for part in manifest.parts:
        file, size = path / part.file, part.bytes
        for at in (0, size // 2, size - 1):
            yield f"{part.file} is damaged: its checksum", SnapshotDamagedError, partial(flip, file, at)
        yield (
            f"{part.file} is damaged: {size - 1} bytes, not {size}",
            SnapshotDamagedError,
            partial(cut, file, size - 1),
        )
        yield f"{part.file} is damaged: 0 bytes", SnapshotDamagedError, partial(cut, file, 0)
        yield f"{part.file} is damaged", SnapshotDamagedError, partial(shutil.copy, early / part.file, file)
        yield f"{part.file} is damaged: .*No such file", SnapshotDamagedError, file.unlink
    limits = Limits(100, manifest.limits.value_bytes_max)
    outside = [msgspec.structs.replace(manifest.parts[0], file="../late/shard-000.mdb"), *manifest.parts[1:]]
    file = path / MANIFEST
    for match, damage in (
        ("is damaged", partial(exchange, path / "shard-000.mdb", path / "shard-001.mdb")),
        ("is no snapshot: it has no manifest", file.unlink),
        ("is no manifest", partial(file.write_bytes, b"{")),
        ("does not match its checksum", partial(forge, path, clock=1)),
        ("does not match its checksum", partial(forge, path, lineage="mine")),
        ("is no manifest", partial(forge, path, more=1)),
        ("leads out", partial(edit, path, parts=outside)),
        ("2 parts for 3 shards", partial(edit, path, parts=manifest.parts[:2])),
    ):
        yield match, SnapshotDamagedError, damage
    for match, damage in (
        ("has format 2; this version reads format 1", partial(edit, path, format=2)),
        ("machine 'other' version 1", partial(edit, path, machine="other")),
        ("version 99", partial(edit, path, machine_version=99)),
        ("taken with key_bytes_max=100; .* asks for 480", partial(edit, path, limits=limits)),
    ):
        yield match, SnapshotFormatError, damage


async def test_whatever_is_wrong_with_a_snapshot_it_is_refused_by_name_and_changes_nothing(
    tmp_path: Path, source: Path
) -> None:
    config = msgspec.structs.replace(CONFIG, key_bytes_max=480)
    path = tmp_path / "snapshot"
    async with Engine(tmp_path / "data", shards=2, config=config) as db:
        await Feeder(db).feed(50)
        shutil.copytree(source / "late", path)
        count = len(list(damages(path, source / "early")))
        for number in range(count):
            shutil.rmtree(path)
            shutil.copytree(source / "late", path)
            match, error, damage = list(damages(path, source / "early"))[number]
            damage()
            await unchanged(db, error, match, path)
        await unchanged(db, SnapshotDamagedError, "is no snapshot", tmp_path / "nowhere")
        await unchanged(db, SnapshotDamagedError, "is unreadable", path / "shard-001.mdb")
        await holds(db, Follower(7), 50)
    assert count == 33


async def test_any_bit_flipped_or_byte_cut_off_in_a_manifest_is_refused(tmp_path: Path, snapshot: Path) -> None:
    file = snapshot / MANIFEST
    whole = file.read_bytes()
    expected = read_manifest(snapshot)
    async with Engine(tmp_path / "data", shards=1, config=CONFIG) as db:
        for at in range(0, len(whole), 7):
            for damaged in (whole[:at], whole[:at] + bytes([whole[at] ^ 1 << at % 7]) + whole[at + 1 :]):
                file.write_bytes(damaged)
                try:
                    assert read_manifest(snapshot) == expected, "white space"
                except SnapshotError:
                    await unchanged(db, SnapshotError, "manifest", snapshot)


async def test_a_snapshot_that_is_not_the_one_that_was_named_is_refused(tmp_path: Path, source: Path) -> None:
    early, late = named(source / "early"), named(source / "late")
    async with Engine(tmp_path / "data", shards=2, config=CONFIG) as db:
        for wrong in (
            early,
            SnapshotMetadata(late.last_included, early.checksum),
            SnapshotMetadata(LogId(300, 2), late.checksum),
        ):
            with pytest.raises(SnapshotDamagedError, match=r"not .* at LogId") as caught:
                await db.apply_snapshot_from_file(wrong, source / "late")
            assert caught.value.path == str(source / "late")
            assert db.snapshot_metadata() is None
        await holds(db, Follower(7), 0)
        await db.apply_snapshot_from_file(late, source / "late")
        assert db.snapshot_metadata() == late
        await holds(db, Follower(7), AT)


async def test_an_older_snapshot_is_refused_unless_it_is_forced(tmp_path: Path, source: Path) -> None:
    async with Engine(tmp_path / "data", shards=2, config=CONFIG) as db:
        feeder = Feeder(db)
        await feeder.feed(200, 1)
        await unchanged(db, SnapshotStaleError, "ends at index 200; the state stands at 201", source / "early")
        with pytest.raises(SnapshotStaleError):
            await db.apply_snapshot_from_file(named(source / "early"), source / "early")
        await db.restore(source / "early", force=True)
        await holds(db, Follower(7), 200)
        await db.restore(source / "early")  # of the same index
        feeder.sent = 200
        await feeder.feed(30, 70)
        await feeder.check()


async def test_another_lineage_comes_along_without_a_word_and_other_limits_with_one(
    tmp_path: Path, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = read_manifest(source / "late")
    own = msgspec.structs.replace(CONFIG, value_bytes_max=None)
    narrow = msgspec.structs.replace(CONFIG, value_bytes_max=8 << 10)
    async with Engine(tmp_path / "narrow", shards=2, config=narrow):
        pass
    async with Engine(tmp_path / "narrow", config=own) as db:
        await db.restore(source / "late")
        assert "brings other limits along" in caplog.text
        assert db._running().fixed.limits.value_bytes_max == 16 << 10
    caplog.clear()
    async with Engine(tmp_path / "data", shards=2, config=CONFIG):
        pass
    async with Engine(tmp_path / "data", config=own) as db:
        await db.restore(source / "late")
        assert caplog.text == ""
        assert db._running().fixed.lineage == manifest.lineage
        await db.apply_chunk(entries(7, AT + 1, 800))
        assert [db.entry_term(index) for index in (1, AT, 699, 700, 800, 801)] == [1, 1, 1, 2, 2, None]
    async with Engine(tmp_path / "data", config=own) as db:
        await holds(db, Follower(7), 800)
        assert db._running().fixed.lineage == manifest.lineage
        own_snapshot = await db.create_snapshot()
        assert read_manifest(Path(own_snapshot.path)).lineage == manifest.lineage


async def test_a_machine_of_another_name_refuses_it(tmp_path: Path, source: Path) -> None:
    async with Engine(tmp_path / "data", shards=1, machine=Other, config=CONFIG) as db:
        await unchanged(db, SnapshotFormatError, "belongs to machine", source / "late")


async def test_chunks_in_flight_are_waited_for_and_those_that_come_after_are_judged_anew(
    tmp_path: Path, source: Path
) -> None:
    async with Engine(
        tmp_path / "data", shards=2, config=msgspec.structs.replace(CONFIG, in_flight_chunks_max=4)
    ) as db:
        feeder = Feeder(db)
        flying = [feeder.send(10) for _ in range(4)]
        await asyncio.sleep(0)
        install = asyncio.create_task(db.restore(source / "late"))
        waited = asyncio.create_task(db.wait_applied(AT))
        while not replacing(db):
            await one_turn()
        below = asyncio.create_task(db.apply_chunk(entries(7, 41, 60)))
        across = asyncio.create_task(db.apply_chunk(entries(7, 291, 310)))
        above = asyncio.create_task(db.apply_chunk(entries(7, 311, 330)))
        gap = asyncio.create_task(db.apply_chunk(entries(7, 332, 340)))
        await asyncio.gather(*flying)
        await install
        await waited
        assert all(result.already_applied for result in await below)
        assert [result.already_applied for result in await across] == [True] * 10 + [False] * 10
        await above
        with pytest.raises(LogGapError):
            await gap
        await holds(db, Follower(7), 330)


async def test_a_call_that_was_given_its_turn_waits_again_when_an_install_begins_before_it_takes_it(
    tmp_path: Path,
) -> None:
    async with Engine(
        tmp_path / "data", shards=2, config=msgspec.structs.replace(CONFIG, in_flight_chunks_max=1)
    ) as db:
        feeder = Feeder(db)

        async def first() -> None:
            await db.apply_chunk(entries(7, 1, 10))
            await db.reset()  # the second call was given its turn by now, and has not taken it

        resetting = asyncio.create_task(first())
        await asyncio.sleep(0)
        second = asyncio.create_task(db.apply_chunk(entries(7, 11, 20)))
        await resetting
        with pytest.raises(LogGapError):
            await second
        await holds(db, Follower(7), 0)
        await feeder.feed(10)
        await feeder.check()


async def test_reads_during_an_install_come_from_the_old_state_or_from_the_new_one(
    tmp_path: Path, source: Path
) -> None:
    late = Follower(7)
    late.advance(AT)
    async with Engine(tmp_path / "data", shards=3, config=CONFIG) as db:
        feeder = Feeder(db)
        await feeder.feed(100)
        old = Follower(7)
        old.advance(100)
        view = db.view()
        digest = asyncio.create_task(db.digest())
        install = asyncio.create_task(db.restore(source / "late"))
        seen = set()
        while not install.done():
            index = db.last_applied().index
            seen.add(index)
            expected = (old if index == 100 else late).records
            assert dict(db.scan_prefix(b"").entries) == expected and len(db) == len(expected)
            assert view.revision != 100 or index != 100 or view.get_multi(expected) == list(expected.values())
            await asyncio.sleep(0)
        await install
        assert 100 in seen and db.last_applied().index == AT
        with pytest.raises(ViewClosedError, match="replaced as a whole"):
            view.get(b"key-1")
        assert await digest == old.digest()
        await holds(db, Follower(7), AT)


async def test_a_digest_that_an_install_overtakes_says_so(tmp_path: Path) -> None:
    async with Engine(tmp_path / "data", shards=2, config=CONFIG) as db:
        feeder = Feeder(db)
        await feeder.feed(*[100] * 25)
        digests = [asyncio.create_task(db.digest())]
        reset = asyncio.create_task(db.reset())
        while not reset.done():  # one of them, at least, is in the middle when the state is replaced
            digests.append(asyncio.create_task(db.digest()))
            await asyncio.sleep(0)
        await reset
        outcomes = await asyncio.gather(*digests, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {bytes, ViewClosedError}
