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

from shardengine import ApplyResult, Entry, LogId, SnapshotMetadata, StartReport
from tests.toy import State, Toy, perform, write

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
