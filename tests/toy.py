"""A state machine that keeps the contract in as few lines as it takes: a dict, and a file that every chunk rewrites.

It uses nothing of an engine but the contract's values and the commands. It survives SIGKILL, no power loss.
"""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path

import msgspec

from shardengine import (
    ApplyResult,
    CompareAndSwap,
    Delete,
    Entry,
    HardState,
    LogId,
    Put,
    ScanResult,
    SnapshotMetadata,
    StartReport,
)
from tests.moving import Explode, Relocate

PART = "records"
NOWHERE = LogId(0, 0)


@dataclass
class State:
    """All there is."""

    last: LogId = NOWHERE
    records: dict[bytes, bytes] = field(default_factory=dict)
    terms: dict[int, int] = field(default_factory=dict)
    hard: HardState | None = None
    named: SnapshotMetadata | None = None


class Toy:
    """Over one file in `directory`. All its methods but for reads block until that is written."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.state: State | None = None

    # ---- life ----------------------------------------------------------------------------------------------------

    def start(self) -> StartReport:
        if self.state is not None:
            raise RuntimeError("it runs already")
        self.state = self.load()
        return StartReport("opened" if self.state.last.index else "created", self.state.last)

    def stop(self) -> None:
        self.state = None

    def is_running(self) -> bool:
        return self.state is not None

    def now(self) -> State:
        if self.state is None:
            raise RuntimeError("it does not run")
        return self.state

    def load(self) -> State:
        file = self.directory / "state"
        found = pickle.loads(file.read_bytes()) if file.exists() else State()
        assert isinstance(found, State)
        return found

    def save(self, state: State) -> None:
        write(self.directory / "state", pickle.dumps(state))

    def keep(self, state: State) -> None:
        self.save(state)
        self.state = state

    # ---- apply ---------------------------------------------------------------------------------------------------

    async def apply_chunk(self, entries: Sequence[Entry]) -> Sequence[ApplyResult]:
        after = copy.deepcopy(self.now())
        if [entry.index for entry in entries] != [entries[0].index + place for place in range(len(entries))]:
            raise ValueError("the chunk has a gap in it")
        results = [self.applied(after, entry) for entry in entries]
        self.keep(after)
        return results

    def applied(self, state: State, entry: Entry) -> ApplyResult:
        if entry.index <= state.last.index:
            if state.terms.get(entry.index, entry.term) != entry.term:
                raise ValueError(f"entry {entry.index} is another")
            return ApplyResult(entry.index, True, already_applied=True)
        if entry.index > state.last.index + 1 or entry.term < state.last.term:
            raise ValueError(f"entry {entry.index} does not follow {state.last}")
        succeeded = perform(state.records, entry.data)
        state.last = LogId(entry.index, entry.term)
        state.terms[entry.index] = entry.term
        return ApplyResult(entry.index, succeeded)

    # ---- read ----------------------------------------------------------------------------------------------------

    def get(self, key: bytes) -> bytes | None:
        return self.now().records.get(key)

    def get_multi(self, keys: Iterable[bytes]) -> list[bytes | None]:
        return [self.now().records.get(key) for key in keys]

    def scan_prefix(
        self, prefix: bytes, limit: int | None = None, start_after: bytes | None = None, reverse: bool = False
    ) -> ScanResult:
        if limit is not None and limit < 0:
            raise ValueError("no limit")
        found = [item for item in sorted(self.now().records.items(), reverse=reverse) if item[0].startswith(prefix)]
        if start_after is not None:
            found = [item for item in found if (item[0] < start_after if reverse else item[0] > start_after)]
        return ScanResult(found[:limit], self.now().last.index, limit is not None and len(found) > limit)

    def __len__(self) -> int:
        return len(self.now().records)

    def is_empty(self) -> bool:
        return not len(self)

    def last_applied(self) -> LogId:
        return self.now().last

    def entry_term(self, index: int) -> int | None:
        return self.now().terms.get(index)

    # ---- what is beside the records ------------------------------------------------------------------------------

    def update_last_applied(self, last: LogId) -> None:
        state = copy.deepcopy(self.now())
        if last.index > state.last.index and last.term < state.last.term:
            raise ValueError(f"{last} does not follow {state.last}")
        if state.terms.get(last.index, last.term) != last.term:
            raise ValueError(f"{last} is another entry")
        if last.index > state.last.index:
            state.last, state.terms[last.index] = last, last.term
            self.keep(state)

    def persist_last_applied(self, last: LogId) -> None:
        self.update_last_applied(last)

    def save_hard_state(self, state: HardState | None = None) -> None:
        saved = self.now().hard
        if state is None:
            return
        if saved is not None and state.term < saved.term:
            raise ValueError(f"the term falls from {saved.term}")
        if saved is not None and state.term == saved.term and saved.voted_for not in (None, state.voted_for):
            raise ValueError(f"{saved.voted_for} has the vote")
        self.keep(replace(self.now(), hard=state))

    def hard_state(self) -> HardState | None:
        return self.now().hard

    async def lease_background_cleanup(self) -> list[bytes]:
        return []

    def flush(self) -> None:
        self.now()

    async def flush_async(self) -> None:
        self.flush()

    async def reset(self) -> None:
        self.keep(State(hard=self.now().hard))

    # ---- snapshots -----------------------------------------------------------------------------------------------

    async def generate_snapshot_data(
        self, directory: str | os.PathLike[str], last_included: LogId | None = None
    ) -> bytes:
        state = self.now()
        if last_included not in (None, state.last):
            raise ValueError(f"the state is that of {state.last}")
        return self.write_snapshot(Path(directory), state.last, state)

    def write_snapshot(self, directory: Path, label: LogId, state: State) -> bytes:
        data = pickle.dumps((label, state.records, state.terms))
        write(directory / PART, data)
        self.update_last_snapshot_metadata(SnapshotMetadata(label, checksum(data)))
        return checksum(data)

    async def apply_snapshot_from_file(self, metadata: SnapshotMetadata, path: str | os.PathLike[str]) -> None:
        data = (Path(path) / PART).read_bytes()
        self.check_whole(metadata, data)
        last, records, terms = pickle.loads(data)
        if last != metadata.last_included:
            raise ValueError(f"this is a snapshot of {last}")
        self.check_newer(last)
        self.keep(State(last, self.installed(records), terms, self.now().hard, metadata))

    def check_whole(self, metadata: SnapshotMetadata, data: bytes) -> None:
        if checksum(data) != metadata.checksum:
            raise ValueError("this is not the snapshot that was asked for")

    def check_newer(self, last: LogId) -> None:
        if last.index < self.now().last.index:
            raise ValueError(f"the state is newer: {self.now().last}")

    def installed(self, records: dict[bytes, bytes]) -> dict[bytes, bytes]:
        return records

    def snapshot_metadata(self) -> SnapshotMetadata | None:
        return self.now().named

    def update_last_snapshot_metadata(self, metadata: SnapshotMetadata) -> None:
        self.keep(replace(self.now(), named=metadata))

    def persist_last_snapshot_metadata(self, metadata: SnapshotMetadata) -> None:
        self.update_last_snapshot_metadata(metadata)


def perform(records: dict[bytes, bytes], data: bytes) -> bool:
    """Run one command. Returns whether it is not refused."""
    match msgspec.msgpack.decode(data, type=Put | Delete | CompareAndSwap | Relocate | Explode) if data else None:
        case Put(key, value):
            records[key] = value
        case Delete(key):
            records.pop(key, None)
        case CompareAndSwap(key, expected, value):
            if records.get(key) != expected:
                return False
            records[key] = value
        case Relocate(source, target):
            if source not in records:
                return False
            records[target] = records.pop(source)
        case Explode():
            raise RuntimeError("a command that fails")
    return True


def checksum(data: bytes) -> bytes:
    return blake2b(data, digest_size=16).digest()


def write(file: Path, data: bytes) -> None:
    """Whole or not at all."""
    new = file.with_suffix(".new")
    new.write_bytes(data)
    new.replace(file)
