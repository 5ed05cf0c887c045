"""Values that travel through every layer. All frozen; equality is by value."""

from __future__ import annotations

from typing import Any

import msgspec

U64_MAX = (1 << 64) - 1


class LogId(msgspec.Struct, frozen=True, array_like=True, order=True):
    """A place in the log: the entry at `index`, which was proposed in `term`. (0, 0) is the place before the first."""

    index: int
    term: int


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One committed log record.

    `data` is an encoded command (`encode`), or empty: a no-op that only moves the index. `time_ms` is the proposer's
    clock in milliseconds since the epoch, 0 when it has none; only the running maximum of it ever matters.
    """

    index: int
    term: int
    data: bytes
    time_ms: int = 0


class ApplyResult(msgspec.Struct, frozen=True):
    """What became of one entry.

    `succeeded` is False for an entry that was consumed without effect (rejected by the machine, or bad data under
    `bad_entry="reject"`); `reason` then says why. `already_applied` marks an entry that an earlier delivery has
    applied: its outcome of then is not kept, so `value` is None.
    """

    index: int
    succeeded: bool
    value: Any = None
    reason: str | None = None
    already_applied: bool = False


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a key and a value may measure, in bytes. Part of the state machine: every replica must agree on them."""

    key_bytes_max: int = 480
    value_bytes_max: int = 1 << 20


class Position(msgspec.Struct, frozen=True, array_like=True):
    """Where a shard, or the whole engine, stands: last group committed, the log place it ends at, the log clock."""

    group: int = 0
    index: int = 0
    term: int = 0
    clock: int = 0


class Standing(msgspec.Struct, frozen=True):
    """Where a shard at rest stands, and the `solo_runs` that came with its last commit, if that was a Solo."""

    position: Position
    solo_runs: bytes = b""
