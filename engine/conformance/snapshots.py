"""Snapshots: what is in one, what it comes to where it is installed, and which are refused."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

from shardengine import HardState, LogId, SnapshotMetadata
from shardengine.engine.conformance.base import (
    Hooks,
    MachineUnderTest,
    beside,
    broken,
    check,
    demand,
    expect,
    expect_records,
    refusal,
)

_ENTRIES = 60


class Taking(Hooks):
    """Checks of `generate_snapshot_data`, and of what is installed from it."""

    async def taken(self, machine: MachineUnderTest, directory: Path, label: LogId | None = None) -> SnapshotMetadata:
        """Write a snapshot into `directory`, which is made."""
        directory.mkdir()
        checksum = await machine.generate_snapshot_data(directory, label)
        metadata = machine.snapshot_metadata()
        if metadata is None:
            broken("snapshot_metadata() names the snapshot that was taken")
        expect(metadata.checksum, checksum, "snapshot_metadata() has the checksum that generate_snapshot_data gave")
        demand(any(checksum), f"a snapshot's checksum is one; it is {checksum!r}")
        if label is not None:
            expect(metadata.last_included, label, "a snapshot is of the entry that was asked for")
        return metadata

    @check("snapshots")
    async def test_a_snapshot_makes_another_machine_the_same(self, tmp_path: Path) -> None:
        log = self.log()
        with self.running(tmp_path / "one") as machine:
            await self.feed(machine, log, 1, _ENTRIES)
            metadata = await self.taken(machine, tmp_path / "snapshot")
            expect(metadata.last_included, log.name(_ENTRIES), "a snapshot of now is of the newest entry")
            self.expect_state(machine, log, _ENTRIES, "after a snapshot was taken")
        with self.running(tmp_path / "other") as machine:
            await machine.apply_snapshot_from_file(metadata, tmp_path / "snapshot")
            self.expect_state(machine, log, _ENTRIES, "after a snapshot was installed in a new machine")
            expect(machine.snapshot_metadata(), metadata, "snapshot_metadata() names the snapshot that was installed")
            await self.feed(machine, log, _ENTRIES + 1, 2 * _ENTRIES)
            self.expect_state(machine, log, 2 * _ENTRIES, "after the log went on behind a snapshot")
        if "reopen" in self.supports:
            with self.running(tmp_path / "other") as machine:
                self.expect_state(machine, log, 2 * _ENTRIES, "after an install, more of the log, and reopening")

    @check("snapshots")
    async def test_an_install_leaves_the_snapshot_as_it_is_and_needs_it_no_more(self, tmp_path: Path) -> None:
        """Nor does it touch the hard state, which is of the node, and not of the log."""
        log, place, hard = self.log(), tmp_path / "snapshot", HardState(9, "a")
        with self.running(tmp_path / "one") as machine:
            if "hard_state" in self.supports:
                machine.save_hard_state(HardState(8, "b"))
            await self.feed(machine, log, 1, _ENTRIES)
            metadata = await self.taken(machine, place)
        files = _files(place)
        with self.running(tmp_path / "other") as machine:
            if "hard_state" in self.supports:
                machine.save_hard_state(hard)
            await machine.apply_snapshot_from_file(metadata, place)
            demand(_files(place) == files, "the files of a snapshot that was installed are what they were")
            shutil.rmtree(place)
            self.expect_state(machine, log, _ENTRIES, "after an install, and the end of its snapshot")
            if "hard_state" in self.supports:
                expect(machine.hard_state(), hard, "hard_state() after an install")
        if "reopen" in self.supports:
            with self.running(tmp_path / "other") as machine:
                self.expect_state(machine, log, _ENTRIES, "after an install, the end of its snapshot, and reopening")
                if "hard_state" in self.supports:
                    expect(machine.hard_state(), hard, "hard_state() after an install, and reopening")

    @check("snapshots")
    async def test_what_is_installed_takes_the_place_of_all_that_was_there_at_once(self, tmp_path: Path) -> None:
        """Keys too that the snapshot does not have. Who reads meanwhile sees the old state or the new one."""
        log, older = self.log(seed=6), self.log(seed=7)
        with self.running(tmp_path / "one") as machine:
            await self.feed(machine, log, 1, 10)
            metadata = await self.taken(machine, tmp_path / "snapshot")
        with self.running(tmp_path / "other") as machine:
            await self.feed(machine, older, 1, 9)
            old = sorted(older.contents(9).keys() - log.contents(10).keys())
            assert old, "the logs have the same keys"
            async with beside(machine.apply_snapshot_from_file(metadata, tmp_path / "snapshot")) as install:
                while not install.done():
                    at = machine.last_applied().index
                    state = {9: older, 10: log}.get(at)
                    if state is None:
                        broken(f"an install goes from entry 9 to 10 at once; it is at {at}")
                    expect_records(self.found(machine), state.contents(at), f"beside an install, the state is of {at}")
                    await asyncio.sleep(0)
            self.expect_state(machine, log, 10, f"after an install over a state with {len(old)} keys of its own")

    @check("snapshots")
    async def test_a_snapshot_holds_the_state_that_its_label_names(self, tmp_path: Path) -> None:
        """Though chunks are applied while it is written."""
        log = self.log()
        with self.running(tmp_path / "one") as machine:
            await self.feed(machine, log, 1, _ENTRIES)
            async with beside(self.taken(machine, tmp_path / "labelled", log.name(_ENTRIES))) as labelled:
                await asyncio.sleep(0)  # it comes first: it may refuse a label that is past
                await self.feed(machine, log, _ENTRIES + 1, 2 * _ENTRIES, width=3)
            async with beside(self.taken(machine, tmp_path / "of now")) as now:
                await asyncio.sleep(0)
                await self.feed(machine, log, 2 * _ENTRIES + 1, 3 * _ENTRIES, width=3)
        with self.running(tmp_path / "other") as machine:
            for name, metadata in (("labelled", labelled.result()), ("of now", now.result())):
                index = metadata.last_included.index
                expect(metadata.last_included, log.name(index), "a snapshot's label is an entry of the log")
                await machine.apply_snapshot_from_file(metadata, tmp_path / name)
                self.expect_state(machine, log, index, f"after the install of a snapshot labelled {index}")

    @check("snapshots")
    async def test_a_label_that_would_be_a_lie_is_refused(self, tmp_path: Path) -> None:
        """The state at an entry that is past may be had of a machine that keeps it; no other's may be given for it."""
        log, directory = self.log(), tmp_path / "snapshot"
        directory.mkdir()
        past, none = log.name(_ENTRIES - 5), LogId(_ENTRIES, log.term(_ENTRIES) + 1)
        with self.running(tmp_path / "one") as machine:
            await self.feed(machine, log, 1, _ENTRIES)
            with refusal(f"generate_snapshot_data raises where {none} is asked for at {log.name(_ENTRIES)}"):
                await machine.generate_snapshot_data(directory, none)
            expect(list(directory.iterdir()), [], "no file is left of a snapshot that was refused")
            try:
                checksum = await machine.generate_snapshot_data(directory, past)
            except Exception:
                expect(list(directory.iterdir()), [], "no file is left of a snapshot that was refused")
                self.expect_state(machine, log, _ENTRIES, "after a snapshot was refused")
                return
        with self.running(tmp_path / "other") as machine:
            await machine.apply_snapshot_from_file(SnapshotMetadata(past, checksum), directory)
            self.expect_state(machine, log, past.index, f"after the install of a snapshot labelled {past.index}")

    @check("snapshots")
    async def test_the_last_snapshot_is_remembered(self, tmp_path: Path) -> None:
        log = self.log()
        with self.running(tmp_path / "machine") as machine:
            await self.feed(machine, log, 1, _ENTRIES)
            one = await self.taken(machine, tmp_path / "one")
            await self.feed(machine, log, _ENTRIES + 1, 2 * _ENTRIES)
            two = await self.taken(machine, tmp_path / "two")
            demand(one.checksum != two.checksum, f"another state has another checksum; both have {one.checksum!r}")
            other = SnapshotMetadata(log.name(20), one.checksum[::-1])
            machine.update_last_snapshot_metadata(other)
            expect(machine.snapshot_metadata(), other, "snapshot_metadata() after update_last_snapshot_metadata()")
            machine.persist_last_snapshot_metadata(other)
            expect(machine.snapshot_metadata(), other, "snapshot_metadata() after persist_last_snapshot_metadata()")
        if "reopen" in self.supports:
            with self.running(tmp_path / "machine") as machine:
                expect(machine.snapshot_metadata(), other, "snapshot_metadata() that was persisted, after reopening")


class Refusing(Taking):
    """Checks of the snapshots that `apply_snapshot_from_file` must not take."""

    @check("snapshots")
    async def test_a_snapshot_that_is_stale_is_refused(self, tmp_path: Path) -> None:
        log = self.log()
        with self.running(tmp_path / "machine") as machine:
            await self.feed(machine, log, 1, 20)
            metadata = await self.taken(machine, tmp_path / "snapshot")
            await self.feed(machine, log, 21, 30)
            with refusal("apply_snapshot_from_file raises where a snapshot of entry 20 comes to a state at 30"):
                await machine.apply_snapshot_from_file(metadata, tmp_path / "snapshot")
            self.expect_state(machine, log, 30, "after a snapshot of entry 20 was refused")
            await self.feed(machine, log, 31, 40)

    @check("snapshots")
    async def test_a_snapshot_that_is_mislabelled_is_refused(self, tmp_path: Path) -> None:
        log = self.log()
        with self.running(tmp_path / "one") as machine:
            await self.feed(machine, log, 1, _ENTRIES)
            checksum = (await self.taken(machine, tmp_path / "snapshot")).checksum
        with self.running(tmp_path / "other") as machine:
            await self.feed(machine, log, 1, 10)
            index, term = _ENTRIES, log.term(_ENTRIES)
            for wrong in (
                SnapshotMetadata(LogId(index + 1, term), checksum),
                SnapshotMetadata(LogId(index - 1, term), checksum),
                SnapshotMetadata(LogId(index, term + 1), checksum),
                SnapshotMetadata(LogId(index, term), bytes(len(checksum))),
                SnapshotMetadata(LogId(index, term), bytes([checksum[0] ^ 1]) + checksum[1:]),
            ):
                with refusal(f"apply_snapshot_from_file raises where {wrong} names a snapshot of {log.name(index)}"):
                    await machine.apply_snapshot_from_file(wrong, tmp_path / "snapshot")
                self.expect_state(machine, log, 10, f"after a snapshot was refused that {wrong} does not name")
                expect(machine.snapshot_metadata(), None, f"snapshot_metadata() after {wrong} was refused")

    @check("snapshots")
    async def test_a_snapshot_that_is_damaged_is_refused(self, tmp_path: Path) -> None:
        """Every file with a byte turned, the first, the last, some between; cut off, emptied, a byte longer, gone."""
        log = self.log()
        with self.running(tmp_path / "one") as machine:
            await self.feed(machine, log, 1, _ENTRIES)
            metadata = await self.taken(machine, tmp_path / "snapshot")
        with self.running(tmp_path / "other") as machine:
            await self.feed(machine, log, 1, 10)
            with refusal("apply_snapshot_from_file raises where there is no directory"):
                await machine.apply_snapshot_from_file(metadata, tmp_path / "nowhere")
            for what in _damages(tmp_path / "snapshot"):
                with refusal(f"apply_snapshot_from_file raises where {what}"):
                    await machine.apply_snapshot_from_file(metadata, tmp_path / "snapshot")
                self.expect_state(machine, log, 10, f"after a snapshot was refused because {what}")
            await machine.apply_snapshot_from_file(metadata, tmp_path / "snapshot")
            self.expect_state(machine, log, _ENTRIES, "after the install of a snapshot that was mended again")


def _files(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def _damages(directory: Path) -> Iterator[str]:
    """Do one damage after the other to the files of a snapshot, and mend it. Yields what is wrong."""
    draw = random.Random(str(len(list(directory.rglob("*")))))
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        whole, name = path.read_bytes(), path.relative_to(directory)
        if whole:
            for place in sorted({0, len(whole) - 1, *(draw.randrange(len(whole)) for _ in range(2))}):
                path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x20]) + whole[place + 1 :])
                yield f"byte {place} of {len(whole)} of {name} is another"
            path.write_bytes(whole[: len(whole) // 2])
            yield f"{name} ends at byte {len(whole) // 2} of {len(whole)}"
            path.write_bytes(b"")
            yield f"{name} is empty"
        path.write_bytes(whole + b"\0")
        yield f"{name} has a byte more than {len(whole)}"
        path.unlink()
        yield f"{name} is missing"
        path.write_bytes(whole)
