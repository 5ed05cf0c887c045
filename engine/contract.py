"""The contract of a state machine under a replicated log, and the small values it speaks in.

The methods, and whether each is sync or async, follow the table that the field's Rust reference publishes
(d-engine 0.1.4, `StateMachine`); `len` is `__len__` here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from shards.types import ApplyResult, Entry, LogId

Checksum = bytes
"""An XXH3-128, 16 bytes."""


class StateMachine(Protocol):
    """What a replicated log needs of the state it drives."""

    def start(self) -> StartReport: ...
    def stop(self) -> None: ...
    def is_running(self) -> bool: ...
    def get(self, key: bytes) -> bytes | None: ...
    def entry_term(self, index: int) -> int | None: ...
    async def apply_chunk(self, entries: Sequence[Entry]) -> list[ApplyResult]: ...
    def __len__(self) -> int: ...
    def is_empty(self) -> bool: ...
    def last_applied(self) -> LogId: ...
    def flush(self) -> None: ...
    async def flush_async(self) -> None: ...


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
