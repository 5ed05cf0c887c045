"""Whatever lies among snapshots: no start is stopped or held up by it, and no manifest is more than an error."""

from __future__ import annotations

import os
import resource
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shardengine import Engine, SnapshotDamagedError, SnapshotError, SnapshotFormatError
from shardengine.engine.snapshot.folder import snapshot_at, valid_snapshots
from shardengine.engine.snapshot.manifest import MANIFEST, read_manifest
from shardengine.engine.snapshot.transfer import stream_snapshot
from shardengine.engine.storage.generations import Directory
from shardengine.shards.types import Limits, LogId
from tests.snapshots import make_snapshot, part_of
from tests.streams import Follower
from tests.taking import CONFIG, Feeder, holds

PARTS = [b"one", b"two"]

JSON: dict[str, Callable[[bytes], bytes]] = {
    "not UTF-8": lambda whole: whole.replace(b"kv", b"\xff\xfe"),
    "no bytes": lambda _: b"",
    "null": lambda _: b"null",
    "5,000 brackets": lambda _: b"[" * 5000,
    "5,000 objects": lambda _: b'{"a":' * 5000,
    "a deep format": lambda _: b'{"format":' + b"[" * 900 + b"]" * 900 + b"}",
    "a format that is true": lambda whole: whole.replace(b'"format": 1', b'"format": true'),
    "half a character": lambda whole: whole.replace(b"kv", b"\\ud800"),
    "a number beyond all": lambda whole: whole.replace(b'"clock": 1000', b'"clock": 1' + b"0" * 400),
    "a number beyond 64 bits": lambda whole: whole.replace(b'"clock": 1000', b'"clock": 99999999999999999999'),
    "a fraction": lambda whole: whole.replace(b'"clock": 1000', b'"clock": 1000.5'),
}


@pytest.mark.parametrize("what", JSON)
def test_a_damaged_manifest_is_an_error_by_name(tmp_path: Path, what: str) -> None:
    path = make_snapshot(tmp_path, PARTS)
    whole = (path / MANIFEST).read_bytes()
    damaged = JSON[what](whole)
    assert damaged != whole
    (path / MANIFEST).write_bytes(damaged)
    with pytest.raises(SnapshotError) as caught:
        read_manifest(path)
    assert str(path) in str(caught.value) and len(str(caught.value)) < 1000
    assert valid_snapshots(tmp_path) == []
    with pytest.raises(SnapshotError):
        stream_snapshot(path)


CANNOT_BE: list[dict[str, Any]] = [
    {"shards": 0, "parts": []},
    {"shards": -1},
    {"shards": 3},
    {"parts": [part_of(0, b"one"), part_of(0, b"one")]},
    {"clock": -1},
    {"last_included": LogId(-7, 2)},
    {"last_included": LogId(7, -2)},
    {"limits": Limits(0, 1)},
    {"limits": Limits(481, 1)},
    {"limits": Limits(1, 0)},
    {"limits": Limits(1, (1 << 30) + 1)},
    {"bad_entry": "ignore"},
    {"term_runs": [LogId(8, 2)]},
    {"term_runs": [LogId(1, 3)]},
    {"term_runs": [LogId(-1, 1), LogId(2, 2)]},
    {"term_runs": [LogId(4, 1), LogId(2, 2)]},
    {"parts": [part_of(0, b"one"), msgspec.structs.replace(part_of(1, b"two"), entries=-1)]},
    {"parts": [part_of(0, b"one"), msgspec.structs.replace(part_of(1, b"two"), bytes=-3)]},
    {"parts": [part_of(0, b"one"), msgspec.structs.replace(part_of(1, b"two"), checksum="x")]},
    {"parts": [part_of(0, b"one"), msgspec.structs.replace(part_of(1, b""), entries=54)]},
    {"parts": [part_of(0, b"one"), msgspec.structs.replace(part_of(1, b"two"), file="../x")]},
    {"parts": [part_of(0, b"one"), msgspec.structs.replace(part_of(1, b"two"), file="/etc/x")]},
]


@pytest.mark.parametrize("changes", CANNOT_BE, ids=lambda changes: str(sorted(changes)))
async def test_a_manifest_that_says_what_cannot_be_is_refused_everywhere(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    path = make_snapshot(tmp_path / "here", PARTS, **changes)
    with pytest.raises(SnapshotDamagedError, match="says what cannot be"):
        read_manifest(path)
    with pytest.raises(SnapshotDamagedError, match="says what cannot be"):
        stream_snapshot(path)
    async with Engine(tmp_path / "data", shards=1, config=CONFIG) as db:
        with pytest.raises(SnapshotDamagedError, match="says what cannot be"):
            await db.restore(path, force=True)
    assert valid_snapshots(tmp_path / "here") == []


def test_another_number_of_slots_is_another_format(tmp_path: Path) -> None:
    with pytest.raises(SnapshotFormatError, match="slots 4096"):
        read_manifest(make_snapshot(tmp_path, PARTS, slots=4096))


NAME = f"{50:020}-{1:010}"


def folder_with(path: Path, make: Callable[[Path], object]) -> None:
    path.mkdir()
    make(path / MANIFEST)


def huge(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


JUNK: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a link to itself": lambda path: path.symlink_to(path),
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
    "an empty folder": lambda path: path.mkdir(),
    "a pipe for a manifest": lambda path: folder_with(path, os.mkfifo),
    "a link to a device for a manifest": lambda path: folder_with(path, lambda file: file.symlink_to("/dev/zero")),
    "a link to itself for a manifest": lambda path: folder_with(path, lambda file: file.symlink_to(file)),
    "a folder for a manifest": lambda path: folder_with(path, lambda file: file.mkdir()),
    "a terabyte of nothing for a manifest": lambda path: folder_with(path, huge),
    "brackets for a manifest": lambda path: folder_with(path, lambda file: file.write_bytes(b"[" * 100_000)),
}


@pytest.mark.parametrize("what", JUNK)
async def test_junk_among_the_snapshots_neither_stops_nor_delays_a_start(tmp_path: Path, what: str) -> None:
    folder = tmp_path / "data" / "snapshots"
    async with Engine(tmp_path / "data", shards=1, config=CONFIG) as db:
        await Feeder(db).feed(10)
        info = await db.create_snapshot()
    for name in (NAME, ".partial-create-1-x", ".removing-x"):
        JUNK[what](folder / name)
    async with Engine(tmp_path / "data", config=CONFIG) as db:
        assert db.snapshots() == [info] == valid_snapshots(folder)
        assert db.stats()["bytes_on_disk"] > 0
        await holds(db, Follower(7), 10)
        with pytest.raises(SnapshotError):
            await db.restore(folder / NAME)
        feeder = Feeder(db)
        feeder.sent = 10
        await feeder.feed(5)
        later = await db.create_snapshot()
        assert db.snapshots() == [info, later]
    assert os.path.lexists(folder / NAME)


@pytest.mark.parametrize("make", [os.mkfifo, Path.touch])
async def test_something_else_in_the_place_of_the_snapshots_stops_no_start(
    tmp_path: Path, make: Callable[[Path], object]
) -> None:
    async with Engine(tmp_path / "data", shards=1, config=CONFIG):
        make(tmp_path / "data" / "snapshots")
    async with Engine(tmp_path / "data", config=CONFIG) as db:
        assert db.snapshots() == []
        with pytest.raises(SnapshotError, match="cannot write"):
            await db.create_snapshot()


def test_the_size_on_the_disk_is_told_though_a_snapshot_goes_while_it_is_looked_at(tmp_path: Path) -> None:
    path = make_snapshot(tmp_path / "snapshots", PARTS)
    (tmp_path / "stays").write_bytes(bytes(1 << 16))
    done: list[str] = []

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "os.scandir" and not done and str(arguments[0]) == str(path):
            done.append(event)
            shutil.rmtree(path)

    sys.addaudithook(hook)
    assert Directory(tmp_path).bytes_on_disk() >= 1 << 16
    assert done and not path.exists()


def test_what_this_process_lacks_makes_no_snapshot_a_damaged_one(tmp_path: Path) -> None:
    """Else a start without a descriptor would pass over the newest snapshot, or find none and begin empty."""
    path = make_snapshot(tmp_path, PARTS)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    refusals: list[SnapshotError] = []
    try:
        for look in (lambda: read_manifest(path), lambda: snapshot_at(path), lambda: valid_snapshots(tmp_path)):
            try:
                look()
            except SnapshotError as error:
                refusals.append(error)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert [type(error) for error in refusals] == [SnapshotError] * 3
    assert all("raise the limit of open files" in error.hint for error in refusals)
