"""State machines that each break the contract in one way: a `Toy` with one mistake."""

from __future__ import annotations

import asyncio
import os
import pickle
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from msgspec.structs import replace as replaced

from shardengine import ApplyResult, Entry, HardState, LogId, ScanResult, SnapshotMetadata, StartReport
from tests.toy import PART, State, Toy, perform, write

MOVE_TAG = 4
WINDOW_S = 0.004  # between two files that should have been written at once: wide, so that a few kills will do


class AppliesTwice(Toy):
    """Runs an entry again that comes again."""

    def applied(self, state: State, entry: Entry) -> ApplyResult:
        result = super().applied(state, entry)
        if result.already_applied:
            perform(state.records, entry.data)
        return result


class HalfAChunk(Toy):
    """Keeps the entries before the one that fails."""

    async def apply_chunk(self, entries: Sequence[Entry]) -> Sequence[ApplyResult]:
        results: list[ApplyResult] = []
        for entry in entries:
            results += await super().apply_chunk([entry])
        return results


class ResultsOutOfOrder(Toy):
    """Gives one half's results, then the other's."""

    async def apply_chunk(self, entries: Sequence[Entry]) -> Sequence[ApplyResult]:
        results = await super().apply_chunk(entries)
        return [*results[::2], *results[1::2]]


class TornGetMulti(Toy):
    """Reads one half of the keys in the state of a moment ago."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._before = State()

    def keep(self, state: State) -> None:
        self._before = self.now()
        super().keep(state)

    def get_multi(self, keys: Iterable[bytes]) -> list[bytes | None]:
        states = (self.now(), self._before)
        return [states[place % 2].records.get(key) for place, key in enumerate(keys)]


class TwoFiles(Toy):
    """Keeps index and records in two files, written one after the other."""

    order: ClassVar[tuple[str, str]]

    def load(self) -> State:
        index, records = self.directory / "index", self.directory / "records"
        state: State = pickle.loads(index.read_bytes()) if index.exists() else State()
        return replace(state, records=pickle.loads(records.read_bytes()) if records.exists() else {})

    def save(self, state: State) -> None:
        parts = {"index": pickle.dumps(replace(state, records={})), "records": pickle.dumps(state.records)}
        first, second = self.order
        write(self.directory / first, parts[first])
        time.sleep(WINDOW_S)
        write(self.directory / second, parts[second])


class IndexBehindTheData(TwoFiles):
    order = ("records", "index")


class IndexAheadOfTheData(TwoFiles):
    order = ("index", "records")


class SavesAtItsStop(Toy):
    """What its stop would write, SIGKILL loses."""

    def save(self, state: State) -> None:
        pass

    def stop(self) -> None:
        if self.state is not None:
            super().save(self.state)
        super().stop()


class TakesStaleSnapshots(Toy):
    def check_newer(self, last: LogId) -> None:
        pass


class TakesDamagedSnapshots(Toy):
    """As long as it can be read."""

    def check_whole(self, metadata: SnapshotMetadata, data: bytes) -> None:
        pass


class LabelOlderThanTheContent(Toy):
    """Writes its label down first, then whatever is there by the time it comes to it."""

    async def generate_snapshot_data(
        self, directory: str | os.PathLike[str], last_included: LogId | None = None
    ) -> bytes:
        label = self.now().last
        if last_included not in (None, label):
            raise ValueError(f"the state is that of {label}")
        await asyncio.sleep(0)
        return self.write_snapshot(Path(directory), label, self.now())


class KeepsOldKeys(Toy):
    """Writes a snapshot's records over those that are there."""

    def installed(self, records: dict[bytes, bytes]) -> dict[bytes, bytes]:
        return {**self.now().records, **records}


class ForgetsItsVote(Toy):
    """Does not write the hard state down."""

    def save(self, state: State) -> None:
        super().save(replace(state, hard=None))


class ForgetsTheTerm(Toy):
    """Writes down the index it stands at, and not its term."""

    def save(self, state: State) -> None:
        super().save(replace(state, last=LogId(state.last.index, 0)))


class StoppedAnswersAbsent(Toy):
    """Has nothing when it is stopped."""

    def get(self, key: bytes) -> bytes | None:
        return super().get(key) if self.is_running() else None


class LeavesFilesOpen(Toy):
    """Opens its directory at each start, and closes nothing."""

    opened: ClassVar[list[int]] = []

    def start(self) -> StartReport:
        self.opened.append(os.open(self.directory, os.O_RDONLY))
        return super().start()


# ---- one for every other check ---------------------------------------------------------------------------------------


class StartsTwice(Toy):
    def start(self) -> StartReport:
        self.state = None
        return super().start()


class BeginsInTermOne(Toy):
    def load(self) -> State:
        state = super().load()
        return state if state.last.index else replace(state, last=LogId(0, 1))


class AppliesWhenStopped(Toy):
    async def apply_chunk(self, entries: Sequence[Entry]) -> Sequence[ApplyResult]:
        if not self.is_running():
            self.start()
        return await super().apply_chunk(entries)


class CleansUpWhatLives(Toy):
    async def lease_background_cleanup(self) -> list[bytes]:
        self.now().records.popitem()
        return []


class TakesGaps(Toy):
    async def apply_chunk(self, entries: Sequence[Entry]) -> Sequence[ApplyResult]:
        if entries and entries[0].index > self.now().last.index + 1:
            self.update_last_applied(LogId(entries[0].index - 1, entries[0].term))
        return await super().apply_chunk(entries)


class TakesFallingTerms(Toy):
    def applied(self, state: State, entry: Entry) -> ApplyResult:
        return super().applied(state, replaced(entry, term=max(entry.term, state.last.term)))


class OneTermForAll(Toy):
    def entry_term(self, index: int) -> int | None:
        return self.now().last.term if 0 < index <= self.now().last.index else None


class RefusesNothing(Toy):
    """An entry without data has a result of its own."""

    def applied(self, state: State, entry: Entry) -> ApplyResult:
        result = super().applied(state, entry)
        return result if entry.data else replaced(result, succeeded=False)


class SeesTheStateBeforeTheChunk(Toy):
    """Its entries do not see each other, so what they do depends on how they were cut into chunks."""

    def applied(self, state: State, entry: Entry) -> ApplyResult:
        alone = replace(state, records=dict(self.now().records))
        result = super().applied(alone, entry)
        for key in alone.records.keys() | self.now().records.keys():
            if alone.records.get(key) != self.now().records.get(key):
                state.records.pop(key, None)
                state.records.update({key: alone.records[key]} if key in alone.records else {})
        state.last = alone.last
        return result


class FirstWriteCounts(Toy):
    """Of one key, in one chunk."""

    def applied(self, state: State, entry: Entry) -> ApplyResult:
        before = dict(self.now().records)
        changed = {key: value for key, value in state.records.items() if before.get(key) != value}
        result = super().applied(state, entry)
        state.records.update(changed)
        return result


class SortsItsKeys(Toy):
    def get_multi(self, keys: Iterable[bytes]) -> list[bytes | None]:
        return super().get_multi(sorted(keys))


class NeverHasMore(Toy):
    def scan_prefix(
        self, prefix: bytes, limit: int | None = None, start_after: bytes | None = None, reverse: bool = False
    ) -> ScanResult:
        return replaced(super().scan_prefix(prefix, limit, start_after, reverse), more=False)


class CopiesWhatItIsToMove(Toy):
    def applied(self, state: State, entry: Entry) -> ApplyResult:
        before = dict(state.records)
        result = super().applied(state, entry)
        gone = before.keys() - state.records.keys()
        state.records.update({key: before[key] for key in gone if entry.data[1] == MOVE_TAG})
        return result


class ForgetsTermsInSnapshots(Toy):
    def write_snapshot(self, directory: Path, label: LogId, state: State) -> bytes:
        return super().write_snapshot(directory, label, replace(state, terms={}))


class LabelsAsItIsTold(Toy):
    async def generate_snapshot_data(
        self, directory: str | os.PathLike[str], last_included: LogId | None = None
    ) -> bytes:
        return self.write_snapshot(Path(directory), last_included or self.now().last, self.now())


class ForgetsItsSnapshots(Toy):
    def save(self, state: State) -> None:
        super().save(replace(state, named=None))


class BelievesEveryLabel(Toy):
    async def apply_snapshot_from_file(self, metadata: SnapshotMetadata, path: str | os.PathLike[str]) -> None:
        data = (Path(path) / PART).read_bytes()
        self.check_whole(metadata, data)
        _, records, terms = pickle.loads(data)
        self.check_newer(metadata.last_included)
        self.keep(State(metadata.last_included, records, terms, self.now().hard, metadata))


class ResetsItsVote(Toy):
    async def reset(self) -> None:
        self.keep(State())


class VotesTwice(Toy):
    def save_hard_state(self, state: HardState | None = None) -> None:
        if state is not None:
            self.keep(replace(self.now(), hard=state))


class PassesBackwards(Toy):
    def update_last_applied(self, last: LogId) -> None:
        self.keep(replace(self.now(), last=last))


class DropsWhatOverlaps(Toy):
    async def apply_chunk(self, entries: Sequence[Entry]) -> Sequence[ApplyResult]:
        if entries and entries[0].index <= self.now().last.index:
            entries = [entry for entry in entries if entry.index <= self.now().last.index]
        return await super().apply_chunk(entries)
