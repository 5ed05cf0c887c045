"""What a node decides by itself: how much travels together, how much may wait, and when the log is cut."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from shardengine.engine.config import GIB, MIB
from shardengine.engine.errors import ConfigError
from shardengine.engine.snapshot.policy import SnapshotPolicy

_Count = Annotated[int, msgspec.Meta(ge=1, le=1 << 24)]
_Bytes = Annotated[int, msgspec.Meta(ge=1, le=1 << 30)]
_Entries = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
_Milliseconds = Annotated[int, msgspec.Meta(ge=0, le=1 << 31)]
_Linger = Annotated[float, msgspec.Meta(ge=0, le=10_000)]


class NodePolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All choices of one node: immutable, and checked when made.

    Raises:
        ConfigError: a value has the wrong type, or lies out of range.
    """

    snapshots: SnapshotPolicy = SnapshotPolicy(
        entries=1_000_000, bytes=1 * GIB, interval_ms=3_600_000, cooldown_ms=10_000
    )
    """When snapshots are taken: each lets the log be cut, and is what is left to start from after a power loss."""

    keep_entries: _Entries = 10_000
    """So many of the newest entries stay in the log, though a snapshot holds them: who lags by less reads on."""

    linger_ms: _Linger = 0
    """How long the first proposal of a frame waits for others to travel with, milliseconds. 0: while one append is
    under way the next frame collects, and that is all."""

    frame_entries_max: _Count = 4096
    """Entries of different callers in one frame, at most."""

    frame_bytes_max: _Bytes = 1 * MIB
    """Bytes of a frame with entries of different callers, at most. One call's may be longer."""

    proposals_max: _Count = 65_536
    """Proposed entries that have no result yet, at most; then callers wait in order."""

    proposals_bytes_max: _Bytes = 64 * MIB
    """Bytes of them, at most. A larger one goes alone."""

    bootstrap_timeout_ms: _Milliseconds = 30_000
    """Where the log does not hold what a node needs next: how long its start waits for another node that gives it a
    snapshot, milliseconds. One that runs waits for as long as it takes."""

    compare_entries: _Entries = 100_000
    """After so many entries all nodes of a log compare what they hold: each reads its whole state once, beside
    everything else. 0: never."""

    def __post_init__(self) -> None:
        for field in msgspec.structs.fields(type(self)):
            _check(field, getattr(self, field.name))


def _check(field: msgspec.structs.FieldInfo, value: Any) -> None:
    try:
        msgspec.convert(value, field.type, strict=True)
    except msgspec.ValidationError as error:
        expected = str(error).removeprefix("Expected ").split(", got")[0].replace("`", "")
        raise ConfigError(
            f"{field.name} = {value!r} (node policy): expected {expected}",
            hint=f"leave {field.name} out for its default, {field.default!r}",
            key=field.name,
            value=value,
        ) from None
