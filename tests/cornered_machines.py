"""As `broken_machines.py`, each with its mistake in a corner."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from msgspec.structs import replace as replaced

from shardengine import ApplyResult, Entry, HardState, LogId, ScanResult, SnapshotMetadata
from tests.broken_machines import WINDOW_S
from tests.toy import PART, State, Toy, perform


class EmptyIsAbsent(Toy):
    def get(self, key: bytes) -> bytes | None:
        return super().get(key) or None


class CutsAtNul(Toy):
    """As one whose keys are strings of C."""

    def get(self, key: bytes) -> bytes | None:
        return super().get(key.split(b"\0")[0])


class BeginsAnewBehindAnAbsentKey(Toy):
    def scan_prefix(
        self, prefix: bytes, limit: int | None = None, start_after: bytes | None = None, reverse: bool = False
    ) -> ScanResult:
        known = start_after if start_after in self.now().records else None
        return super().scan_prefix(prefix, limit, known, reverse)


class EmptiesItsInput(Toy):
    async def apply_chunk(self, entries: Sequence[Entry]) -> Sequence[ApplyResult]:
        results = await super().apply_chunk(entries)
        if isinstance(entries, list):
            entries.clear()
        return results


class UndoesWhatComesAtOnce(Toy):
    """Goes on from the records of when it was asked."""

    async def apply_chunk(self, entries: Sequence[Entry]) -> Sequence[ApplyResult]:
        records = dict(self.now().records)
        await asyncio.sleep(0)
        results = await super().apply_chunk(entries)
        for entry in entries:
            perform(records, entry.data)
        self.keep(replace(self.now(), records=records))
        return results


class TrustsTheTermsOfAnOverlap(Toy):
    async def apply_chunk(self, entries: Sequence[Entry]) -> Sequence[ApplyResult]:
        if entries and entries[-1].index > self.now().last.index:
            terms = self.now().terms
            entries = [replaced(entry, term=terms.get(entry.index, entry.term)) for entry in entries]
        return await super().apply_chunk(entries)


class ResetsItsMemoryOnly(Toy):
    async def reset(self) -> None:
        self.state = State(hard=self.now().hard)


class ForgetsItsVoteAtAnInstall(Toy):
    async def apply_snapshot_from_file(self, metadata: SnapshotMetadata, path: str | os.PathLike[str]) -> None:
        await super().apply_snapshot_from_file(metadata, path)
        self.keep(replace(self.now(), hard=None))


class UsesASnapshotUp(Toy):
    async def apply_snapshot_from_file(self, metadata: SnapshotMetadata, path: str | os.PathLike[str]) -> None:
        await super().apply_snapshot_from_file(metadata, path)
        Path(path, PART).unlink()


class OneTermForAllThatIsInstalled(Toy):
    async def apply_snapshot_from_file(self, metadata: SnapshotMetadata, path: str | os.PathLike[str]) -> None:
        await super().apply_snapshot_from_file(metadata, path)
        self.keep(replace(self.now(), terms=dict.fromkeys(self.now().terms, metadata.last_included.term)))


class NamesWhatItRefuses(Toy):
    def check_whole(self, metadata: SnapshotMetadata, data: bytes) -> None:
        self.update_last_snapshot_metadata(metadata)
        super().check_whole(metadata, data)


class PersistsBackwards(Toy):
    def persist_last_applied(self, last: LogId) -> None:
        self.keep(replace(self.now(), last=last))


class TakesItsVoteBack(Toy):
    def save_hard_state(self, state: HardState | None = None) -> None:
        if state is None or state != replaced(self.now().hard or state, voted_for=None):
            super().save_hard_state(state)
        else:
            self.keep(replace(self.now(), hard=state))


class InstallsInTwoSteps(Toy):
    """Throws the old state away, then writes the new one."""

    def installed(self, records: dict[bytes, bytes]) -> dict[bytes, bytes]:
        (self.directory / "state").unlink()
        time.sleep(WINDOW_S)
        return records
