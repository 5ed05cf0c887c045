"""The contract of a state machine under a replicated log, and the small values it speaks in.

The methods, and whether each is sync or async, follow the table that the field's Rust reference publishes
(d-engine 0.1.4, `StateMachine`); `len` is `__len__` here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import eq
from typing import Protocol, overload

import msgspec

from shardengine.shards.types import ApplyResult, Entry, LogId

Checksum = bytes
"""An XXH3-128, 16 bytes."""


class StateMachine(Protocol):
    """What a replicated log needs of the state it drives."""

    def start(self) -> StartReport: ...
    def stop(self) -> None: ...
    def is_running(self) -> bool: ...
    def get(self, key: bytes) -> bytes | None: ...
    def entry_term(self, index: int) -> int | None: ...
    async def apply_chunk(self, entries: Sequence[Entry]) -> Sequence[ApplyResult]: ...
    def __len__(self) -> int: ...
    def is_empty(self) -> bool: ...
    def last_applied(self) -> LogId: ...
    def flush(self) -> None: ...
    async def flush_async(self) -> None: ...


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


class ScanResult(msgspec.Struct, frozen=True):
    """Records in key order, as of the log index `revision`; `more` tells whether `limit` cut them short."""

    entries: list[tuple[bytes, bytes]]
    revision: int
    more: bool


class SnapshotMetadata(msgspec.Struct, frozen=True):
    """Which snapshot: the state at exactly `last_included`, and the checksum of its manifest."""

    last_included: LogId
    checksum: Checksum


class SnapshotInfo(msgspec.Struct, frozen=True):
    """A snapshot on the disk. bytes: of all parts together. entries: live records in it. checksum: its manifest's."""

    path: str
    last_included: LogId
    shards: int
    bytes: int
    entries: int
    checksum: Checksum
