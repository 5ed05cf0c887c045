"""What is installed is what was checked: structure, entries, place and limits of every part, whatever the manifest
promises and whoever writes beside us."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shardengine import Engine, EngineConfig, SnapshotDamagedError, SnapshotError, run
from shardengine.engine.snapshot.check import Claim
from shardengine.engine.snapshot.manifest import MANIFEST, Manifest, PartInfo, read_manifest, write_manifest
from shardengine.engine.verify import _in_children, verify_directory, verify_snapshot
from shardengine.shards.digest import checksum128
from shardengine.shards.store import PAGE_BYTES, Identity
from shardengine.shards.types import Limits, LogId
from tests.directories import puts
from tests.killing import note
from tests.streams import Follower
from tests.taking import CONFIG, Feeder, holds, tree

UNVERIFIED = msgspec.structs.replace(CONFIG, snapshot_verify=False)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two snapshots of three shards of the same log: `early` at 200, `late` at 300."""
    path = tmp_path_factory.mktemp("source")

    async def take() -> None:
        async with Engine(path / "data", shards=3, config=CONFIG) as db:
            feeder = Feeder(db)
            await feeder.feed(200)
            await db.generate_snapshot_data(path / "early")
            await feeder.feed(100)
            await db.generate_snapshot_data(path / "late")

    run(take)
    shutil.rmtree(path / "data")
    return path


@pytest.fixture
def snapshot(source: Path, tmp_path: Path) -> Path:
    """The late one, to be forged."""
    return Path(shutil.copytree(source / "late", tmp_path / "snapshot"))


def resum(path: Path, change: Callable[[PartInfo], PartInfo] = lambda part: part, **changes: Any) -> None:
    """Give a forged snapshot a manifest that agrees with its files, but for what is changed."""
    manifest = read_manifest(path)
    parts = []
    for part in manifest.parts:
        data = (path / part.file).read_bytes()
        parts.append(
            change(msgspec.structs.replace(part, bytes=len(data), checksum=checksum128(data).hex())),
        )
    write_manifest(path, msgspec.structs.replace(manifest, parts=parts, **changes).summed())


def part(number: int, path: Path) -> Path:
    return path / f"shard-{number:03}.mdb"


def of_one(number: int, **changes: Any) -> Callable[[PartInfo], PartInfo]:
    """That part's info with these changes."""

    def change(info: PartInfo) -> PartInfo:
        return msgspec.structs.replace(info, **changes) if info.file == part(number, Path()).name else info

    return change


def swap(one: Path, other: Path) -> None:
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)


Steps = list[Callable[[Path], object]]

FORGED: dict[str, tuple[str, Steps]] = {
    "swapped parts": ("belongs to shard", [lambda p: swap(part(0, p), part(1, p)), resum]),
    "a part twice": ("belongs to shard", [lambda p: shutil.copy(part(0, p), part(1, p)), resum]),
    "a part of no byte": (
        "cut off",
        [lambda p: part(1, p).write_bytes(b""), lambda p: resum(p, of_one(1, entries=0))],
    ),
    "a part of no LMDB": ("is damaged", [lambda p: part(1, p).write_bytes(os.urandom(20_000)), resum]),
    "an entry too few": ("entries, not 7", [lambda p: resum(p, of_one(2, entries=7))]),
    "a state beyond the label": (
        "beyond Position",
        [lambda p: resum(p, last_included=LogId(25, 1), term_runs=[LogId(1, 1)])],
    ),
    "another machine's": ("belongs to machine", [lambda p: resum(p, machine="test.other")]),
    "another shard count": (
        "belongs to shards 3, not 2",
        [resum, lambda p: write_manifest(p, two_of(read_manifest(p)))],
    ),
}


def two_of(manifest: Manifest) -> Manifest:
    return msgspec.structs.replace(manifest, shards=2, parts=manifest.parts[:2]).summed()


@pytest.mark.parametrize("config", [CONFIG, UNVERIFIED], ids=["verified", "not"])
@pytest.mark.parametrize("shards", [3, 2])
async def test_a_forged_snapshot_is_refused_whether_or_not_its_pages_are_verified(
    tmp_path: Path, source: Path, shards: int, config: EngineConfig
) -> None:
    async with Engine(tmp_path / "data", shards=shards, config=config) as db:
        await Feeder(db).feed(20)
        before = tree(db._path)
        for what, (match, steps) in FORGED.items():
            note(what)
            snapshot = Path(shutil.copytree(source / "late", tmp_path / what))
            for step in steps:
                step(snapshot)
            with pytest.raises(SnapshotError, match=match):
                await db.restore(snapshot)
            assert tree(db._path) == before
            await holds(db, Follower(7), 20)


async def test_records_over_the_limits_of_the_manifest_are_refused(tmp_path: Path, snapshot: Path) -> None:
    for limits in (Limits(3, 16 << 10), Limits(480, 10)):
        resum(snapshot, limits=limits)
        with pytest.raises(SnapshotDamagedError, match="is over Limits"):
            verify_snapshot(snapshot, deep=True)
        config = msgspec.structs.replace(CONFIG, value_bytes_max=None)
        async with Engine(tmp_path / "data", shards=3, config=config) as db:
            with pytest.raises(SnapshotDamagedError, match="is over Limits"):
                await db.restore(snapshot)


@pytest.mark.parametrize("entries", [0, 54])
async def test_a_part_without_a_byte_never_stands_for_a_shard(tmp_path: Path, snapshot: Path, entries: int) -> None:
    part(1, snapshot).write_bytes(b"")
    resum(snapshot, of_one(1, entries=entries))
    async with Engine(tmp_path / "data", shards=3, config=UNVERIFIED) as db:
        with pytest.raises(SnapshotDamagedError, match=r"no byte|cut off"):
            await db.restore(snapshot)
        assert db.is_empty()


def second_open(path: Path, act: Callable[[], object]) -> Callable[[], int]:
    """Do `act` when this process is about to open `path` for the second time. Returns how to ask how often it did."""
    opened, ended = 0, False

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal opened
        if not ended and event == "open" and str(arguments[0]) == str(path):
            opened += 1
            if opened == 2:
                act()

    def end() -> int:
        nonlocal ended
        ended = True
        return opened

    sys.addaudithook(hook)
    return end


@pytest.mark.parametrize("shards", [2, 3])
async def test_a_part_is_read_once_so_nothing_can_be_swapped_in_between(
    tmp_path: Path, source: Path, snapshot: Path, shards: int
) -> None:
    async with Engine(tmp_path / "data", shards=shards, config=CONFIG) as db:
        ends = [
            second_open(part(number, snapshot), lambda: shutil.copy(part(0, source / "early"), part(0, snapshot)))
            for number in range(3)
        ]
        await db.restore(snapshot)
        assert [end() for end in ends] == [1, 1, 1]
        await holds(db, Follower(7), 300)


async def test_a_part_that_is_overwritten_while_it_is_copied_is_refused(tmp_path: Path, snapshot: Path) -> None:
    """The same file, other bytes: what was read is not what is there, and is what is judged."""
    victim = part(2, snapshot)
    garbage = os.urandom(victim.stat().st_size)
    done: list[bool] = []

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if not done and event == "open" and str(arguments[0]).endswith("taken-002.mdb"):
            done.append(True)
            victim.write_bytes(garbage)

    sys.addaudithook(hook)
    async with Engine(tmp_path / "data", shards=3, config=CONFIG) as db:
        with pytest.raises(SnapshotDamagedError, match="checksum does not match"):
            await db.restore(snapshot)
        assert done and db.is_empty()


async def test_two_engines_of_one_process_restore_the_same_snapshot_at_once(tmp_path: Path, snapshot: Path) -> None:
    async with (
        Engine(tmp_path / "one", shards=2, config=CONFIG) as one,
        Engine(tmp_path / "other", shards=5, config=CONFIG) as other,
    ):
        await asyncio.gather(one.restore(snapshot), other.restore(snapshot))
        await holds(one, Follower(7), 300)
        await holds(other, Follower(7), 300)
        assert not [file for db in (one, other) for file in db._path.rglob("taken-*")]


# pages that are wrong under a right checksum


def pages(file: Path) -> range:
    return range(2, file.stat().st_size // PAGE_BYTES)


def forge_page(file: Path, number: int) -> None:
    """Let a page be of no kind that LMDB knows."""
    with file.open("r+b") as content:
        content.seek(number * PAGE_BYTES + 10)
        content.write(b"\xff\xff")


def forgeries(path: Path) -> Iterator[Path]:
    """The snapshot with one page after another forged, under a right checksum."""
    file = part(1, path)
    whole = file.read_bytes()
    for number in pages(file):
        forge_page(file, number)
        resum(path)
        yield file
        file.write_bytes(whole)


async def test_a_forged_page_is_refused_and_ends_no_process(tmp_path: Path, snapshot: Path) -> None:
    async with Engine(tmp_path / "data", shards=2, config=CONFIG) as db:
        for file in forgeries(snapshot):
            with pytest.raises(SnapshotDamagedError, match=f"{file} is damaged: "):
                await db.restore(snapshot)
            assert db.is_empty()
    forge_page(part(1, snapshot), max(pages(part(1, snapshot))))
    resum(snapshot)
    with pytest.raises(SnapshotDamagedError, match=r"shard-001\.mdb is damaged: "):
        verify_snapshot(snapshot, deep=True)


def test_a_live_page_that_ends_whoever_reads_it_is_a_finding_and_the_other_shards_are_judged_too(
    tmp_path: Path,
) -> None:
    async def fill() -> None:
        async with Engine(tmp_path, shards=3, config=CONFIG) as db:
            await db.apply_chunk(puts(1, 2000))

    run(fill)
    for shard in (0, 1):
        file = tmp_path / "gen-000001" / f"shard-{shard:03}" / "data.mdb"
        for number in pages(file):
            forge_page(file, number)
    findings = verify_directory(tmp_path)
    assert {finding.shard for finding in findings} == {0, 1}


def test_a_child_that_dies_or_fails_is_the_verdict_on_what_it_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child imports this module's machine by name; what that does is what a page could do."""
    monkeypatch.setenv("DEADLY_AT", str(tmp_path / "shard-001.mdb"))
    for number in range(3):
        part(number, tmp_path).write_bytes(b"")
    claims = [Claim(part(n, Path()).name, Identity("", n, 3, 1 << 14, "m"), Limits()) for n in range(3)]
    verdicts = _in_children(tmp_path, claims, None)
    assert all("cut off" in verdict.problems[0] for verdict in verdicts) and len(verdicts) == 3
    from tests.machines import Deadly

    verdicts = _in_children(tmp_path, claims, Deadly)
    assert len(verdicts) == 3 and all("SIGABRT" in verdict.problems[0] for verdict in verdicts)


def test_the_manifest_of_a_snapshot_is_the_only_one_that_was_read(tmp_path: Path, snapshot: Path) -> None:
    """Read twice, it could be another one the second time."""
    end = second_open(snapshot / MANIFEST, lambda: None)

    async def install() -> None:
        async with Engine(tmp_path / "data", shards=2, config=CONFIG) as db:
            await db.restore(snapshot)

    run(install)
    assert end() <= 1
