"""The contract of a state machine under a replicated log, and the small values it speaks in.

The methods, and whether each is sync or async, follow the table that the field's Rust reference publishes
(d-engine 0.1.4, `StateMachine`); `len` is `__len__` here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from operator import eq
from typing import Protocol, overload

import msgspec

from shardengine.shards.types import ApplyResult, Entry, LogId

Checksum = bytes
"""An XXH3-128, 16 bytes."""


class StateMachine(Protocol):
    """What a replicated log needs of the state it drives. Only the async methods wait without blocking."""

    def start(self) -> StartReport:
        """Open the state and get ready to apply. Blocks. Whatever is raised leaves nothing running."""

    def stop(self) -> None:
        """Finish what is in flight and make it durable. Blocks. Raises what kept it from that; it is stopped anyhow."""

    def is_running(self) -> bool:
        """True from `start` to `stop`, unless it failed between."""

    async def apply_chunk(self, entries: Sequence[Entry]) -> Sequence[ApplyResult]:
        """Apply consecutive committed entries, all or none; one result for each. Entries that were applied before
        change nothing. Raises when the chunk does not continue the log, or fails: then nothing of it is applied."""

    def get(self, key: bytes) -> bytes | None:
        """The value of `key` at `last_applied()`, or None. Does not block."""

    def __len__(self) -> int:
        """Live records at `last_applied()`."""

    def is_empty(self) -> bool:
        """True without live records."""

    def last_applied(self) -> LogId:
        """The newest entry that reads see; (0, 0): none."""

    def entry_term(self, index: int) -> int | None:
        """The term of an applied entry, always of `last_applied()`; None for one that is not applied, or not
        remembered."""

    def update_last_applied(self, last: LogId) -> None:
        """Stand at `last` from now on: the entries up to it that were not applied carry no command. At or below
        `last_applied()` nothing happens. Raises when `last` contradicts the log, or something is in flight, and changes
        nothing then."""

    def persist_last_applied(self, last: LogId) -> None:
        """As `update_last_applied`, and returns when that is on the disk. Blocks. Raises what the disk said, too."""

    def save_hard_state(self, state: HardState | None = None) -> None:
        """Return when `state` is on the disk; None: what was saved last, once more. Blocks. Raises when its term falls,
        or in one term a vote is given to another, or taken back; or what the disk said. The one before counts on
        then."""

    def hard_state(self) -> HardState | None:
        """What was saved last, before a restart too; None: nothing ever was. Nothing that becomes of the state changes
        it. Does not block."""

    async def lease_background_cleanup(self) -> list[bytes]:
        """Remove some of the records that have expired, a bounded number, and return their keys; an empty list: there
        is none. What can be read stays as it is."""

    def flush(self) -> None:
        """Return when all that can be read now survives power loss. Blocks. Raises what the disk said."""

    async def flush_async(self) -> None:
        """As `flush`, without blocking the loop."""

    async def reset(self) -> None:
        """Replace the whole state by an empty one at index 0, at once. When it raises, nothing has changed; a call that
        is cancelled may have replaced it already."""

    async def generate_snapshot_data(
        self, directory: str | os.PathLike[str], last_included: LogId | None = None
    ) -> Checksum:
        """Write a snapshot into an empty directory: the state at exactly `last_included`, or of now. Returns the
        checksum of its manifest. When it raises, no file is left."""

    async def apply_snapshot_from_file(self, metadata: SnapshotMetadata, path: str | os.PathLike[str]) -> None:
        """Replace the whole state by the snapshot at `path`, at once, if it is the one that `metadata` names, whole,
        and no older than the state. Raises otherwise, and changes nothing; a call that is cancelled may have replaced
        it already. What is at `path` stays as it is, and is not needed afterwards."""

    def snapshot_metadata(self) -> SnapshotMetadata | None:
        """The snapshot that was taken, installed or named last; None: none yet."""

    def update_last_snapshot_metadata(self, metadata: SnapshotMetadata) -> None:
        """Name the last snapshot. Raises when that is none."""

    def persist_last_snapshot_metadata(self, metadata: SnapshotMetadata) -> None:
        """As `update_last_snapshot_metadata`, and returns when that is on the disk. Blocks."""


class Results(Sequence[ApplyResult]):
    """What became of each entry of a chunk, in order. Only the results that say more than "succeeded" are kept; the
    others are made when somebody looks at them. Equal to any sequence of equal results."""

    __slots__ = ("_first", "_last", "_told")

    def __init__(self, first: int, last: int, told: dict[int, ApplyResult]) -> None:
        """Of the entries `first` to `last`; `told` are the kept ones, by index."""
        self._first = first
        self._last = last
        self._told = told

    def __len__(self) -> int:
        return self._last - self._first + 1

    @overload
    def __getitem__(self, place: int) -> ApplyResult: ...
    @overload
    def __getitem__(self, place: slice) -> list[ApplyResult]: ...
    def __getitem__(self, place: int | slice) -> ApplyResult | list[ApplyResult]:
        if isinstance(place, int) and 0 <= place <= self._last - self._first:
            return self._of(self._first + place)
        found = range(self._first, self._last + 1)[place]
        return self._of(found) if isinstance(found, int) else list(map(self._of, found))

    def __iter__(self) -> Iterator[ApplyResult]:
        return map(self._of, range(self._first, self._last + 1))

    def _of(self, index: int) -> ApplyResult:
        return self._told.get(index) or ApplyResult(index, True)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(map(eq, self, other))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(list(self))


class StartReport(msgspec.Struct, frozen=True):
    """What `start` found.

    outcome: "created" (there was nothing), "opened", "redone" (a decided group was not committed everywhere and is
    now), "restored" (the state could not be trusted after a power loss; the newest snapshot took its place), or
    "emptied" (there was none, and `after_power_loss="empty"`).
    last_applied: where the log goes on. discarded: the directory that untrusted state was set aside in, or None.
    """

    outcome: str
    last_applied: LogId
    discarded: str | None = None


class HardState(msgspec.Struct, frozen=True):
    """What a node of a replicated log must not forget: the term it is in, and the node it voted for there, None: no
    one."""

    term: int
    voted_for: str | None


class ScanResult(msgspec.Struct, frozen=True):
    """Records in key order, as of the log index `revision`; `more` tells whether `limit` cut them short."""

    entries: list[tuple[bytes, bytes]]
    revision: int
    more: bool


def scanned(found: Iterable[tuple[bytes, bytes]], limit: int | None, revision: int) -> ScanResult:
    """The first `limit` of the records `found`, all of them for None. Raises ValueError when it is no limit."""
    if limit is not None and limit < 0:
        raise ValueError(f"limit is {limit}; it counts records, 0 or more, or is None")
    if limit is None:
        return ScanResult(list(found), revision, more=False)
    records = list(islice(found, limit + 1))
    return ScanResult(records[:limit], revision, more=len(records) > limit)


class SnapshotMetadata(msgspec.Struct, frozen=True):
    """Which snapshot: the state at exactly `last_included`, and the checksum of its manifest."""

    last_included: LogId
    checksum: Checksum


class SnapshotInfo(msgspec.Struct, frozen=True):
    """A snapshot on the disk. bytes: of all parts together. entries: live records in it. checksum: its manifest's.
    lineage: of which log's history; indices of two say nothing about each other."""

    path: str
    last_included: LogId
    shards: int
    bytes: int
    entries: int
    checksum: Checksum
    lineage: str = ""
