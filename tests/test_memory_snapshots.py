"""Snapshots of a state machine in memory: an engine's and its own are one format, and what is wrong is refused."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shardengine import (
    Engine,
    EngineConfig,
    EngineError,
    LogId,
    Put,
    SnapshotDamagedError,
    SnapshotError,
    SnapshotFormatError,
    SnapshotLabelError,
    SnapshotMetadata,
    SnapshotStaleError,
    encode,
    valid_snapshots,
)
from shardengine.adaptors import MemoryStateMachine
from shardengine.engine.snapshot.manifest import read_manifest, write_manifest
from shardengine.shards.types import Entry, Limits
from tests.directories import contents, puts
from tests.machines import Add, LaterLedger, Ledger, Stamp
from tests.model import log_of

NOTHING = (LogId(0, 0), 0)


def started(*args: Any, **options: Any) -> MemoryStateMachine:
    memory = MemoryStateMachine(*args, **options)
    memory.start()
    return memory


async def taken(memory: MemoryStateMachine, path: Path) -> SnapshotMetadata:
    return SnapshotMetadata(memory.last_applied(), await memory.generate_snapshot_data(path))


@pytest.mark.parametrize("shards", [1, 3])
async def test_an_engine_and_memory_install_each_others_snapshots(tmp_path: Path, shards: int) -> None:
    log = log_of([encode(Add(b"%d" % (n % 700), n)) for n in range(3_000)])
    memory = started(Ledger)
    await memory.apply_chunk(log)
    metadata = await taken(memory, tmp_path / "memory")
    assert memory.snapshot_metadata() == metadata
    async with Engine(tmp_path / "db", shards=shards, machine=Ledger) as db:
        await db.apply_snapshot_from_file(metadata, tmp_path / "memory")
        assert (await db.digest(), db.last_applied()) == (await memory.digest(), LogId(3_000, 1))
        await db.apply_chunk(log_of([encode(Add(b"new", 1)), b""], first=3_001, term=3))
        checksum = await db.generate_snapshot_data(tmp_path / "engine")
        metadata = SnapshotMetadata(db.last_applied(), checksum)
        other = started(Ledger)
        await other.apply_snapshot_from_file(metadata, tmp_path / "engine")
        assert (await other.digest(), other.last_applied(), len(other)) == (await db.digest(), LogId(3_002, 3), 701)
        assert other.scan_prefix(b"") == db.scan_prefix(b"")
        assert [other.entry_term(index) for index in (3_000, 3_001)] == [1, 3]
        assert other.snapshot_metadata() == metadata
        assert await other.apply_chunk(log_of([encode(Add(b"new", 1))], first=3_003, term=3)) == (
            await db.apply_chunk(log_of([encode(Add(b"new", 1))], first=3_003, term=3))
        )


async def test_the_log_clock_limits_and_choices_travel_with_a_snapshot(tmp_path: Path) -> None:
    memory = started(Ledger, limits=Limits(value_bytes_max=40), bad_entry="reject")
    await memory.apply_chunk([Entry(1, 1, encode(Stamp(b"a")), 77)])
    metadata = await taken(memory, tmp_path / "s")
    other = started(Ledger)
    await other.apply_snapshot_from_file(metadata, tmp_path / "s")
    results = await other.apply_chunk([Entry(2, 1, encode(Stamp(b"a")), 5), Entry(3, 1, encode(Put(b"", b"")))])
    assert [results[0].value, results[1].succeeded] == [[2, 1, 77], False]
    strict = started(Ledger, limits=Limits(value_bytes_max=41))
    with pytest.raises(SnapshotFormatError, match="value_bytes_max=40; the configuration asks for 41"):
        await strict.apply_snapshot_from_file(metadata, tmp_path / "s")
    assert (strict.last_applied(), len(strict)) == NOTHING


def damages(content: bytes, every: int) -> Iterator[bytes]:
    """One byte changed, at every place or at some; cut short; made longer."""
    for place in sorted({*range(0, len(content), every), *range(40), *range(len(content) - 40, len(content))}):
        changed = bytearray(content)
        changed[place] ^= 0x20
        yield bytes(changed)
    for size in {0, 1, len(content) // 2, len(content) - 2}:
        yield content[:size]
    yield content + b"\0"


@pytest.mark.parametrize(("name", "every"), [("manifest.json", 1), ("shard-000.mdb", 61)])
async def test_damage_anywhere_is_refused_and_changes_nothing(tmp_path: Path, name: str, every: int) -> None:
    memory, path = started(), tmp_path / "s"
    await memory.apply_chunk(puts(1, 3))
    metadata = await taken(memory, path)
    other = started()
    await other.apply_chunk(puts(1, 1))
    view, whole = other.view(), (path / name).read_bytes()
    for damaged in damages(whole, every):
        (path / name).write_bytes(damaged)
        with pytest.raises((SnapshotDamagedError, SnapshotFormatError)):
            await other.apply_snapshot_from_file(metadata, path)
    (path / name).unlink()
    with pytest.raises(SnapshotDamagedError):
        await other.apply_snapshot_from_file(metadata, path)
    assert (other.last_applied(), other.snapshot_metadata(), view.get(b"k1")) == (LogId(1, 1), None, b"v1")
    (path / name).write_bytes(whole)
    await other.apply_snapshot_from_file(metadata, path)
    assert other.last_applied() == LogId(3, 1)


@pytest.mark.parametrize("beside", [b'"key_bytes_max"', b'"file"', b'"lineage"'])
async def test_a_manifest_that_says_more_than_it_may_is_damaged(tmp_path: Path, beside: bytes) -> None:
    memory, path = started(), tmp_path / "s"
    metadata = await taken(memory, path)
    manifest = (path / "manifest.json").read_bytes()
    (path / "manifest.json").write_bytes(manifest.replace(beside, b'"more": 1, ' + beside))
    with pytest.raises(SnapshotDamagedError, match="unknown field `more`"):
        await memory.apply_snapshot_from_file(metadata, path)


async def test_a_part_that_a_forger_made_whole_is_looked_at_record_by_record(tmp_path: Path) -> None:
    memory, path = started(), tmp_path / "s"
    await memory.apply_chunk(puts(1, 3))
    await taken(memory, path)
    manifest = msgspec.structs.replace(read_manifest(path), limits=Limits(key_bytes_max=1)).summed()
    (path / "manifest.json").unlink()
    write_manifest(path, manifest)
    with pytest.raises(SnapshotDamagedError, match=r"of 2 bytes with a value of 2, is over Limits"):
        await started().apply_snapshot_from_file(
            SnapshotMetadata(manifest.last_included, bytes.fromhex(manifest.checksum)), path
        )


async def test_a_snapshot_that_is_another_is_refused_as_by_an_engine(tmp_path: Path) -> None:
    memory, path = started(LaterLedger), tmp_path / "s"
    await memory.apply_chunk(log_of([encode(Add(b"a", 1))]))
    metadata = await taken(memory, path)
    wrong = [
        (SnapshotMetadata(LogId(2, 1), metadata.checksum), LaterLedger, SnapshotDamagedError),
        (SnapshotMetadata(metadata.last_included, bytes(16)), LaterLedger, SnapshotDamagedError),
        (metadata, Ledger, SnapshotFormatError),
    ]
    for named, machine, kind in wrong:
        other = started(machine)
        async with Engine(tmp_path / machine.__name__, shards=2, machine=machine) as db:
            errors: list[EngineError] = []
            for each in (other, db):
                with pytest.raises(kind) as caught:
                    await each.apply_snapshot_from_file(named, path)
                errors.append(caught.value)
        assert (type(errors[0]), errors[0].message, errors[0].facts) == (
            type(errors[1]),
            errors[1].message,
            errors[1].facts,
        )
        assert (other.last_applied(), len(other)) == NOTHING


async def test_an_older_snapshot_is_stale_and_changes_nothing(tmp_path: Path) -> None:
    memory = started()
    await memory.apply_chunk(puts(1, 3))
    metadata = await taken(memory, tmp_path / "s")
    await memory.apply_chunk(puts(4, 1))
    with pytest.raises(SnapshotStaleError, match="ends at index 3; the state stands at 4") as caught:
        await memory.apply_snapshot_from_file(metadata, tmp_path / "s")
    assert (caught.value.asked, caught.value.applied, len(memory)) == (3, 4, 4)


async def test_a_restore_takes_what_is_there_and_goes_back_only_when_forced(tmp_path: Path) -> None:
    memory = started()
    await memory.apply_chunk(puts(1, 3))
    await taken(memory, tmp_path / "s")
    other = started()
    await other.restore(tmp_path / "s")
    await other.generate_snapshot_data(tmp_path / "same")
    await memory.apply_chunk(puts(4, 1))
    with pytest.raises(SnapshotStaleError):
        await memory.restore(tmp_path / "s")
    await memory.restore(tmp_path / "s", force=True)
    assert (memory.last_applied(), len(memory)) == (LogId(3, 1), 3)
    await memory.generate_snapshot_data(tmp_path / "back")
    lineages = [read_manifest(tmp_path / name).lineage for name in ("s", "same", "back")]
    assert lineages[0] == lineages[1] != lineages[2]


async def test_a_label_is_the_state_or_refused(tmp_path: Path) -> None:
    memory = started()
    await memory.apply_chunk(puts(1, 3, term=2))
    for label, said in [(LogId(2, 2), "is past"), (LogId(4, 2), "is to come"), (LogId(3, 1), "has term 2, not 1")]:
        with pytest.raises(SnapshotLabelError, match=said):
            await memory.generate_snapshot_data(tmp_path / "s", label)
    assert not (tmp_path / "s").exists()
    await memory.generate_snapshot_data(tmp_path / "s", LogId(3, 2))
    assert read_manifest(tmp_path / "s").last_included == LogId(3, 2)


async def test_a_snapshot_goes_into_an_empty_directory_and_a_failure_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = started()
    await memory.apply_chunk(puts(1, 3))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a file").write_text("of somebody")
    with pytest.raises(SnapshotError, match="holds 'a file'"):
        await memory.generate_snapshot_data(tmp_path / "full")
    assert contents(tmp_path) == {"full/a file": b"of somebody"}

    fsync = os.fsync

    def refuse(descriptor: int) -> None:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(SnapshotError, match="No space left") as caught:
        await memory.generate_snapshot_data(tmp_path / "new" / "s")
    assert caught.value.hint == "free disk space"
    assert contents(tmp_path) == {"full/a file": b"of somebody"}
    assert memory.snapshot_metadata() is None


@pytest.mark.parametrize("size", [0, 1, 2_000, 2_100, 5_000, 300_000])
async def test_values_of_any_size_go_through_a_snapshot(tmp_path: Path, size: int) -> None:
    memory = started()
    await memory.apply_chunk(
        log_of([encode(Put(b"%05d" % n, bytes([n % 251]) * size)) for n in range(5_000 // (size + 1) + 4)])
    )
    metadata = await taken(memory, tmp_path / "0001")
    other = started()
    await other.apply_snapshot_from_file(metadata, tmp_path / "0001")
    assert await other.digest() == await memory.digest()
    assert other.scan_prefix(b"") == memory.scan_prefix(b"")


async def test_an_empty_state_has_a_snapshot_and_it_is_listed_as_any(tmp_path: Path) -> None:
    memory = started()
    memory.update_last_applied(LogId(9, 2))
    path = tmp_path / f"{9:020}-{2:010}"
    metadata = await taken(memory, path)
    (info,) = valid_snapshots(tmp_path)
    assert (info.last_included, info.entries, info.checksum, info.shards) == (LogId(9, 2), 0, metadata.checksum, 1)
    other = started()
    await other.apply_snapshot_from_file(metadata, path)
    assert (other.last_applied(), len(other)) == (LogId(9, 2), 0)
    async with Engine(tmp_path / "db", config=EngineConfig(shards=2)) as db:
        await db.apply_snapshot_from_file(metadata, path)
        assert db.last_applied() == LogId(9, 2)


async def test_the_last_snapshot_is_what_was_named_taken_or_installed_last(tmp_path: Path) -> None:
    memory, named = started(), SnapshotMetadata(LogId(5, 1), bytes(16))
    assert memory.snapshot_metadata() is None
    memory.update_last_snapshot_metadata(named)
    assert memory.snapshot_metadata() == named
    with pytest.raises(SnapshotError, match="names no snapshot"):
        memory.persist_last_snapshot_metadata("a snapshot")  # type: ignore[arg-type]
    metadata = await taken(memory, tmp_path / "s")
    assert memory.snapshot_metadata() == metadata
    memory.persist_last_snapshot_metadata(named)
    memory.stop()
    assert memory.snapshot_metadata() == named
