"""Judge a stopped directory: every page of every shard, every position against the decision record. Changes nothing."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from engine.decision import DecisionFile, recover
from engine.errors import EngineError, FormatError
from engine.files import Lock
from engine.generations import Directory, Generation
from engine.opening import data_path
from ipc.ring import RingReader
from shards.digest import checksum
from shards.store import ReadStore, damage_in
from shards.types import Position

PREDECESSORS_MS = 30_000
"""How long workers whose coordinator was killed may take to end, milliseconds."""


class Finding(msgspec.Struct, frozen=True):
    """Something that is wrong. `shard` is None when it concerns all of them."""

    shard: int | None
    problem: str


def verify_directory(path: str | Path) -> list[Finding]:
    """Everything wrong with the live generation; empty when all is well. Reads every page; blocks that long.

    Raises EngineLockedError while an engine runs on it, FormatError when there is nothing to judge.
    """
    directory = Directory(data_path(path))
    if not os.path.lexists(directory.path / "config"):
        raise FormatError(f"{path} is no data directory", hint="name the directory an engine was opened with")
    if os.statvfs(directory.path).f_flag & os.ST_RDONLY:
        return _verify(directory)  # nobody can write there, nor take a lock
    lock = Lock(directory.path / "LOCK")
    try:
        lock.take()
        directory.check_ours()
        directory.await_predecessors(PREDECESSORS_MS)
        return _verify(directory)
    finally:
        lock.close()


def _verify(directory: Directory) -> list[Finding]:
    try:
        directory.load()
        generation = directory.current()
    except (EngineError, OSError) as error:
        return [Finding(None, str(error))]
    if generation is None:
        return [Finding(None, "there is no live generation: it was never finished, or it was set aside")]

    def has(shard: int, name: str) -> bool:
        return (generation.shard(shard) / name).is_file()

    findings: list[Finding] = []
    positions: list[Position] = []
    for shard in range(generation.shards):
        findings += [Finding(shard, problem) for problem in damage_in(generation.shard(shard))]
        try:
            positions.append(_position(generation, shard))
        except (EngineError, OSError) as error:
            findings.append(Finding(shard, str(error)))
        findings += [Finding(shard, f"its {name} is missing") for name in ("ring", "owner") if not has(shard, name)]
    if len(positions) == generation.shards:
        findings += _judge(generation, positions)
    return findings


def _position(generation: Generation, shard: int) -> Position:
    path = generation.shard(shard)
    size = (path / "data.mdb").stat().st_size
    store = ReadStore(path, generation.identity(shard), map_bytes=max(size, 1 << 20), readers_max=4)
    try:
        transaction = store.begin()
        position = transaction.position()
        transaction.close()
        return position
    finally:
        store.close()


def _judge(generation: Generation, positions: list[Position]) -> list[Finding]:
    """Positions against the record, and the parts of a group that is still to be redone against their checksums."""
    try:
        decision = DecisionFile(generation.decision, readonly=True)
    except (EngineError, OSError) as error:
        return [Finding(None, str(error))]
    decision.close()
    try:
        recovery = recover(decision.record, positions)
    except EngineError as error:
        return [Finding(None, str(error))]
    findings: list[Finding] = []
    redo = (recovery.redo.participants if recovery.redo else frozenset()) - recovery.committed
    for shard in sorted(redo):
        ring = RingReader(generation.shard(shard) / "ring")
        extent = decision.record.participants[shard]
        if checksum(ring.view(extent.offset, extent.length)) != extent.checksum:
            findings.append(Finding(shard, f"the decided part at {extent.offset} in its ring fails its checksum"))
        ring.close()
    return findings
