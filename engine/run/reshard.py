"""Convert a stopped directory to another number of shards."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import msgspec

from shardengine.engine.config import EngineConfig
from shardengine.engine.errors import disk_error
from shardengine.engine.run.opening import Opened, half_bytes, open_directory
from shardengine.engine.run.runtime import Runtime
from shardengine.engine.snapshot.build import Origin, Progress, Target, build
from shardengine.shards.machine import Machine
from shardengine.shards.types import Position


def reshard(
    path: Path, shards: int, machine: type[Machine], config: EngineConfig, progress: Progress | None = None
) -> int:
    """As `convert`. Returns how many shards the directory had."""
    found = convert(path, shards, machine, config, progress)
    return shards if found is None else found.generation.shards


def convert(
    path: Path, shards: int, machine: type[Machine], config: EngineConfig, progress: Progress | None = None
) -> Opened | None:
    """Give the directory at `path` `shards` shards. Blocks as long as it takes to read and write all of it.

    What was decided is redone first, so that every shard stands at one index. The new generation is built beside the
    old one and changes places with it at once: a crash leaves one or the other, whole.

    Returns what was found, with the generation of before; nothing happens when that has `shards` shards already, or
    when there is no directory yet (None). Raises as `Engine.start`, and StoreFullError when the disk has no room for
    both.
    """
    if not (path / "config").is_file():
        return None
    config = msgspec.structs.replace(config, shards=None)
    opened = open_directory(path, machine, config)
    try:
        before = opened.generation.shards
        if before != shards:
            opened, origin = _settled(opened, machine, config)
            target = Target(shards, machine, half_bytes(config), config.map_bytes, progress=progress)
            built = build(opened.directory, opened.directory.begin(shards, origin.config), origin, target)
            if (problem := opened.directory.make_current(built)) is not None:
                raise disk_error(f"{path} is converted, but that may not be on the disk", problem)
            opened.generation.remove()
        return opened
    finally:
        opened.lock.close()


def _settled(opened: Opened, machine: type[Machine], config: EngineConfig) -> tuple[Opened, Origin]:
    """Redo what was decided. Returns how that was found, and what there is to build from."""
    runtime = Runtime(opened, machine, config)
    runtime.start()
    try:
        entries = runtime.reads.cut.count()
        position, term_runs = runtime.coordinator.applied, runtime.term_runs()
        runtime.stop()
    finally:
        runtime.abandon()
        runtime.reads.close()
    generation = opened.generation
    origin = Origin(
        [generation.shard(shard) / "data.mdb" for shard in range(generation.shards)],
        entries,
        Position(0, position.index, position.term, position.clock),
        term_runs,
        generation.info.config,
    )
    return dataclasses.replace(opened, outcome=runtime.outcome), origin
