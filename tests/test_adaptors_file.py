"""The file of `FileStateMachine`: cut anywhere, changed anywhere, of another boot; checkpoints; and calls of all stores
that are interrupted anywhere.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from io import FileIO
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from shardengine import (
    FormatError,
    StoreDamagedError,
    StoreFullError,
    SyncFailedError,
)
from shardengine.adaptors import FileStateMachine
from shardengine.engine.adaptors import journal
from shardengine.engine.adaptors.base import InProcess
from shardengine.engine.adaptors.file import FileStore
from shardengine.engine.adaptors.journal import HEAD_BYTES, Journal
from shardengine.engine.storage.runmark import Boot, this_boot
from shardengine.ipc.errors import FULL
from shardengine.shards.digest import checksum
from tests.adaptors import KINDS, entries, judge, made
from tests.syncs import Syncs

CHUNKS = (3, 1, 9, 30, 2)


async def filled(path: Path, *, flush_after: int = 0, durability: Any = "process") -> list[int]:
    """A machine's file with a record for each of CHUNKS. Returns where they end, behind where the base does."""
    machine = FileStateMachine(path, durability=durability)
    machine.start()
    store = store_of(machine)
    ends = [store._journal.end]
    for number, count in enumerate(CHUNKS, 1):
        await machine.apply_chunk(entries(machine.last_applied().index + 1, count))
        ends.append(store._journal.end)
        if number == flush_after:
            machine.flush()
    machine.stop()
    return ends


def store_of(machine: FileStateMachine) -> Any:
    store = machine._store
    assert isinstance(store, FileStore)
    return store


async def read(path: Path) -> int:
    """Where the machine at `path` stands, which is a state of its log."""
    machine = FileStateMachine(path)
    machine.start()
    try:
        return await judge(machine, 0, sum(CHUNKS))
    finally:
        machine.stop()


def index_in(file: Path) -> int:
    """Where the log stands that a file holds, which is cut behind it."""
    found = Journal.found(file, FileIO(file, "r+"))
    try:
        (*_, last) = [chunk.place.index for chunk in found.chunks() if chunk.place is not None]
        assert file.stat().st_size == found.end
        return last
    finally:
        found.close()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, lambda descriptor: None)


def indices() -> list[int]:
    return [sum(CHUNKS[:number]) for number in range(len(CHUNKS) + 1)]


async def test_a_file_that_is_cut_anywhere_ends_with_the_last_whole_chunk(tmp_path: Path, quick: None) -> None:
    ends = await filled(tmp_path / "db")
    file = tmp_path / "db" / "state"
    whole = file.read_bytes()
    assert len(whole) == ends[-1]
    for size in range(ends[0], len(whole) + 1):
        file.write_bytes(whole[:size])
        expected = indices()[sum(end <= size for end in ends) - 1]
        assert index_in(file) == expected
        if size % 50 == 0:
            assert await read(tmp_path / "db") == expected
    for size in range(0, ends[0], 7):
        file.write_bytes(whole[:size])
        for _ in range(2):
            with pytest.raises((StoreDamagedError, FormatError)):
                await read(tmp_path / "db")
        assert file.read_bytes() == whole[:size]


@pytest.mark.parametrize("garbage", [b"\0" * 300, b"\xff" * 300, bytes(range(256))])
async def test_what_a_death_left_behind_the_end_is_cut_off_and_overwritten(
    tmp_path: Path, garbage: bytes, quick: None
) -> None:
    await filled(tmp_path / "db")
    with (tmp_path / "db" / "state").open("ab") as file:
        file.write(garbage)
    assert await read(tmp_path / "db") == sum(CHUNKS)


def places(size: int) -> Iterator[int]:
    yield from range(0, size, 9)


async def test_a_changed_byte_before_the_last_record_is_damage_and_refused_with_its_place(
    tmp_path: Path, quick: None
) -> None:
    ends = await filled(tmp_path / "db")
    file = tmp_path / "db" / "state"
    whole = file.read_bytes()
    for place in places(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 0x40
        file.write_bytes(changed)
        if place >= ends[-2]:
            assert await read(tmp_path / "db") == sum(CHUNKS[:-1]), "from one never written as a whole nobody tells it"
            continue
        offset = max((end for end in ends if end <= place), default=0)
        with pytest.raises((StoreDamagedError, FormatError), match=f"offset {offset}: " if offset else "state"):
            await read(tmp_path / "db")
        assert file.read_bytes() == changed


@pytest.mark.parametrize(("durability", "flush_after"), [("process", 0), ("process", 2), ("power", 0)])
async def test_after_another_boot_a_hole_is_damage_only_where_the_disk_had_it(
    tmp_path: Path, durability: str, flush_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power loss may leave later blocks of a file and not earlier ones, of what nobody had synced."""
    ends = await filled(tmp_path / "db", flush_after=flush_after, durability=durability)
    file, here = tmp_path / "db" / "state", this_boot()
    whole = file.read_bytes()
    monkeypatch.setattr(journal, "this_boot", lambda: Boot("another", here.time + 100))
    for number, (start, end) in enumerate(pairwise(ends)):
        file.write_bytes(whole[:start] + bytes(end - start) + whole[end:])
        synced = len(CHUNKS) - 1 if durability == "power" else flush_after
        if number < synced:
            with pytest.raises(StoreDamagedError, match=f"offset {start}: "):
                await read(tmp_path / "db")
        else:
            assert await read(tmp_path / "db") == indices()[number]


async def test_a_start_makes_what_it_found_durable_and_begins_the_file_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = await filled(tmp_path / "db")
    file = tmp_path / "db" / "state"
    before = file.stat().st_ino
    assert await read(tmp_path / "db") == sum(CHUNKS)
    after = file.stat()
    assert after.st_ino != before and after.st_size < ends[-1]
    assert await read(tmp_path / "db") == sum(CHUNKS)
    assert file.stat().st_ino == after.st_ino, "nothing was appended"
    here = this_boot()
    monkeypatch.setattr(journal, "this_boot", lambda: Boot("another", here.time + 100))
    assert await read(tmp_path / "db") == sum(CHUNKS)
    assert file.stat().st_ino != after.st_ino, "of another boot"


async def test_checkpoints_bound_the_file_and_one_that_does_not_fit_is_put_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    machine = FileStateMachine(tmp_path / "db", checkpoint_bytes=5_000)
    machine.start()
    file, inodes = tmp_path / "db" / "state", set[int]()
    for first in range(1, 2_000, 20):
        await machine.apply_chunk(entries(first, 20))
        inodes.add(file.stat().st_ino)
        assert file.stat().st_size < 20_000
    assert len(inodes) > 1
    begun = Journal.begun

    def refuse(path: Path, file: FileIO) -> Journal:
        raise OSError(min(FULL), "no room")

    monkeypatch.setattr(Journal, "begun", refuse)
    with caplog.at_level(logging.WARNING, logger="shardengine"):
        for first in range(2_001, 3_000, 20):
            await machine.apply_chunk(entries(first, 20))
    assert 1 < len([one for one in caplog.records if "put off" in one.message]) < 20
    assert file.stat().st_size > 20_000 and not (tmp_path / "db" / "state.new").exists()
    with pytest.raises(StoreFullError, match="cannot be written"):
        await machine.reset()
    monkeypatch.setattr(Journal, "begun", begun)
    await machine.apply_chunk(entries(3_001, 20))
    await machine.apply_chunk(entries(3_021, 20))
    await judge(machine, 3_040, 3_040)
    machine.stop()
    machine.start()
    await judge(machine, 3_040, 3_040)
    machine.stop()


async def test_a_sync_that_fails_ends_the_writing_until_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    syncs = Syncs(monkeypatch)
    machine = FileStateMachine(tmp_path / "db", durability="power")
    machine.start()
    await machine.apply_chunk(entries(1, 10))
    syncs.fails = lambda name: name.endswith("state")
    with pytest.raises(SyncFailedError, match="cannot be written"):
        await machine.apply_chunk(entries(11, 1))
    assert not machine.is_running()
    for call in (lambda: machine.apply_chunk(entries(11, 1)), machine.reset, machine.flush_async):
        with pytest.raises(SyncFailedError):
            await call()
    await judge(machine, 10, 10)
    assert machine.durable().index == 10
    machine.stop()
    machine.start()
    last = await judge(machine, 10, 11)
    await machine.apply_chunk(entries(last + 1, 5))
    machine.stop()


async def test_a_file_of_another_format_is_told_from_damage(tmp_path: Path) -> None:
    await filled(tmp_path / "db")
    file = tmp_path / "db" / "state"
    whole = file.read_bytes()
    head = whole[:16] + (9).to_bytes(4, "little") + whole[20 : HEAD_BYTES - 8]
    file.write_bytes(head + checksum(head).to_bytes(8, "little") + whole[HEAD_BYTES:])
    with pytest.raises(FormatError, match="is of format 9; this version reads 1"):
        await read(tmp_path / "db")


# ---- interrupts ------------------------------------------------------------------------------------------------------


class Interrupt:
    """Raises KeyboardInterrupt before the n-th line that is run in a file of engine/adaptors."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self, frame: FrameType, event: str, arg: Any) -> Any:
        if "engine/adaptors/" not in frame.f_code.co_filename:
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self


@pytest.fixture
def interrupted() -> Iterator[Callable[[InProcess, Awaitable[object], int], Awaitable[bool]]]:
    """Awaits something, and interrupts it before its n-th line. False: it has fewer."""
    trace = sys.gettrace()

    async def run(machine: InProcess, work: Awaitable[object], after: int) -> bool:
        tracer = Interrupt(after)
        sys.settrace(tracer)
        try:
            await work
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(trace)
        return tracer.left <= 0

    yield run
    sys.settrace(trace)


@pytest.mark.parametrize("kind", KINDS)
async def test_an_interrupt_anywhere_in_a_chunk_leaves_all_of_it_or_nothing(
    kind: str, tmp_path: Path, interrupted: Any
) -> None:
    options: dict[str, Any] = {"checkpoint_bytes": 300} if kind == "file" else {}
    machine, outcomes = made(kind, tmp_path / "db", **options), set[bool]()
    machine.start()
    for after in range(1, 2_000):
        before = machine.last_applied().index
        if not await interrupted(machine, machine.apply_chunk(entries(before + 1, 2)), after):
            break
        last = machine.last_applied().index
        assert last in (before, before + 2)
        outcomes.add(last > before)
        if after % 7 == 0:
            machine.stop()
            machine.start()
            assert machine.last_applied().index == last
        await judge(machine, last, last)
    assert outcomes == {True, False}
    last = machine.last_applied().index
    machine.stop()
    machine.start()
    await judge(machine, last, last)
    machine.stop()


@pytest.mark.parametrize("what", ["reset", "compact"])
@pytest.mark.parametrize("kind", KINDS)
async def test_an_interrupt_anywhere_in_a_replacement_leaves_the_old_state_or_the_new_one(
    kind: str, what: str, tmp_path: Path, interrupted: Any
) -> None:
    machine, outcomes = made(kind, tmp_path / "db"), set[int]()
    machine.start()
    for after in range(1, 2_000):
        before = machine.last_applied().index
        await machine.apply_chunk(entries(before + 1, 2))
        if not await interrupted(machine, getattr(machine, what)(), after):
            break
        last = machine.last_applied().index
        outcomes.add(last)
        assert last in ((before + 2,) if what == "compact" else (before + 2, 0))
        assert machine.durable() <= machine.last_applied()
        if after % 5 == 0:
            machine.stop()
            machine.start()
            assert machine.last_applied().index == last
        await judge(machine, last, last)
    assert len(outcomes) > 1
    machine.stop()
