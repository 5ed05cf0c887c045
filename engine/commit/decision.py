"""The decision record: the newest group that is decided, and all it takes to do it again.

    decision
    +----------------------+
    | slot 0      64 KiB   |    each is one of engine/slots.py, whose payload is a msgpack Record
    +----------------------+
    | slot 1      64 KiB   |
    +----------------------+

Records go into the two slots in turn, so the newest whole record survives a crash in the middle of a write. A
generation starts with a valid record; two unreadable slots are damage.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import msgspec

from shardengine.engine.commit.actions import Group
from shardengine.engine.errors import CommitRuleError, DamagedError
from shardengine.engine.intake.tail import can_be_runs
from shardengine.engine.slots import Slots
from shardengine.ipc.files import allocate, create_file, open_file, sync
from shardengine.ipc.ring import Extent
from shardengine.shards.types import LogId, Position, Standing

SLOT_BYTES = 64 * 1024
SOLO_RUNS_MAX = 64
"""So many term runs since the record may be left with a shard."""


class Record(msgspec.Struct, frozen=True, array_like=True):
    """A decided group.

    position: where the log stands behind it. term_runs: the first index of each term up to there, ascending, the newest
    TERM_RUNS_MAX of them. participants: for each shard with parts, the extent that holds them. Its size is bounded by
    that number and the shard count, and within a slot.
    """

    position: Position
    term_runs: list[LogId]
    participants: dict[int, Extent]
    machine_version: int


_NONE = Record(Position(), [], {}, 0)
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Record).decode
_decode_runs = msgspec.msgpack.Decoder(list[LogId]).decode


def encode_runs(runs: Sequence[LogId]) -> bytes:
    """As a solo takes them along, and `recover` finds them: b"" for none."""
    return _encode(runs) if runs else b""


def create_decision(path: Path, record: Record) -> None:
    """Make the file with its first record. The caller makes it durable with the directory."""
    descriptor = create_file(path)
    try:
        allocate(descriptor, 0, 2 * SLOT_BYTES)
    finally:
        os.close(descriptor)
    with closing(DecisionFile(path, fresh=True, synced=True)) as decision:
        decision.write(record)


class DecisionFile:
    """The open file. `record` is the newest one; `write` replaces it, and waits for the disk if `synced`."""

    def __init__(self, path: Path, *, fresh: bool = False, readonly: bool = False, synced: bool = False) -> None:
        """Raises DamagedError when neither slot is readable (unless `fresh`), FileRefusedError, OSError."""
        self._descriptor = open_file(path, os.O_RDONLY if readonly else os.O_RDWR)
        self._path = path
        self.synced = synced
        try:
            self._slots = Slots(self._descriptor, SLOT_BYTES, _decode)
        except OSError:
            self.close()
            raise
        if self._slots.newest is None and not fresh:
            self.close()
            raise DamagedError(
                f"{path}: neither slot holds a readable decision record",
                hint="restore a snapshot, or start over in another directory",
                path=str(path),
            )

    @property
    def record(self) -> Record:
        return self._slots.newest or _NONE

    def write(self, record: Record) -> None:
        """Write the next record; if `synced`, return when it is on the disk.

        Raises OSError when the disk refuses; the older record is whole then, and the group is decided or not: only a
        restart tells. The caller must not go on to commit. CommitRuleError: the record does not fit; nothing was
        written.
        """
        payload = _encode(record)
        if len(payload) > self._slots.payload_bytes_max:
            raise CommitRuleError(f"a decision record of {len(payload)} bytes passes its slot of {SLOT_BYTES}")
        self._slots.write(self._descriptor, payload)
        if self.synced:
            self.sync()
        self._slots.turn(record)

    def sync(self) -> None:
        """Return when the records are on the disk. Raises SyncError."""
        sync(self._descriptor, self._path, content_only=True)

    def close(self) -> None:
        os.close(self._descriptor)


class Recovery(NamedTuple):
    """Where a start finds the log, and what is left to do.

    position: of the whole engine once `redo` is done. term_runs: up to there. redo: the recorded group when some shard
    has not committed it; `committed` are its participants that have.
    """

    position: Position
    term_runs: list[LogId]
    redo: Group | None
    committed: frozenset[int]


def recover(record: Record, standings: Sequence[Standing]) -> Recovery:
    """Judge the newest record against where every shard itself stands. No I/O.

    A shard behind the record that took part in it must redo exactly that group. A shard ahead of it can only have
    committed a solo, which is sent to it alone with nothing else open: its position is then the newest, and it has all
    term runs since the record. Raises DamagedError for anything else.
    """
    group, positions = record.position.group, [standing.position for standing in standings]
    behind: set[int] = set()
    ahead: set[Position] = set()
    for shard, position in enumerate(positions):
        if not all(_in_order(position, other) for other in (record.position, *positions[:shard])):
            raise _contradiction(shard, position, record)
        if position.group > group:
            if position in ahead:  # two shards at one group: no solo, and not the recorded one
                raise _contradiction(shard, position, record)
            ahead.add(position)
        elif position.group == group and group > 0 and shard not in record.participants:
            raise _contradiction(shard, position, record)
        elif position.group < group and shard in record.participants:
            behind.add(shard)
    if ahead and behind:
        shard = min(behind)
        raise _contradiction(shard, positions[shard], record)
    if not record.participants.keys() <= set(range(len(positions))):
        raise _contradiction(len(positions), Position(), record)
    newest = max((*positions, record.position), key=lambda position: position.group)
    term_runs = record.term_runs
    if newest.group > group:
        shard = positions.index(newest)
        term_runs = _continued(record, shard, standings[shard])
    redo = Group(group, frozenset(record.participants)) if behind else None
    return Recovery(newest, term_runs, redo, frozenset(record.participants) - behind if behind else frozenset())


def _continued(record: Record, shard: int, standing: Standing) -> list[LogId]:
    """The term runs of the record, and behind them those that the newest solo has left with `shard`."""
    last = LogId(standing.position.index, standing.position.term)
    try:
        since = _decode_runs(standing.solo_runs) if standing.solo_runs else []
    except msgspec.MsgspecError:
        since = [LogId(0, 0)]  # goes on from nothing
    runs = [*record.term_runs, *since]
    if (since and since[0].index <= record.position.index) or not can_be_runs(runs, last):
        raise DamagedError(
            f"shard {shard} ends at {last}, and its term runs {since} do not go on from those of the decision record "
            f"{record.position}, {record.term_runs[-1:]}",
            hint="restore a snapshot, or start over in another directory",
            shard=shard,
        )
    return runs


def _in_order(one: Position, other: Position) -> bool:
    """A later group ends at a later index; the same group ends at the same place everywhere."""
    if one.group == other.group:
        return one == other
    return one.index != other.index and (one.group < other.group) == (one.index < other.index)


def _contradiction(shard: int, position: Position, record: Record) -> DamagedError:
    return DamagedError(
        f"shard {shard} stands at {position}, which the decision record {record.position} "
        f"over shards {sorted(record.participants)} contradicts",
        hint="restore a snapshot, or start over in another directory",
        shard=shard,
    )
