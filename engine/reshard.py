"""Convert a stopped directory to another number of shards."""

from __future__ import annotations

from pathlib import Path

import msgspec

from engine.config import EngineConfig
from engine.install import Origin, Progress, Target, build
from engine.opening import half_bytes, open_directory
from engine.runtime import Runtime
from shards.machine import Machine
from shards.types import Position


def reshard(
    path: Path, shards: int, machine: type[Machine], config: EngineConfig, progress: Progress | None = None
) -> int:
    """Give the directory at `path` `shards` shards. Blocks as long as it takes to read and write all of it.

    What was decided is redone first, so that every shard stands at one index. The new generation is built beside the
    old one and changes places with it at once: a crash leaves one or the other, whole.

    Returns how many shards it had; nothing happens when that is `shards`, or when there is no directory yet. Raises
    as `Engine.start`, and StoreFullError when the disk has no room for both.
    """
    if not (path / "config").is_file():
        return shards
    config = msgspec.structs.replace(config, shards=None)
    opened = open_directory(path, machine, config)
    try:
        before = opened.generation.shards
        if before != shards:
            runtime = Runtime(opened, machine, config)
            runtime.start()
            entries = runtime.reads.cut.count()
            runtime.reads.close()
            position, term_runs = runtime.coordinator.applied, list(runtime.coordinator.tail.term_runs)
            runtime.stop()
            generation = opened.generation
            origin = Origin(
                [generation.shard(shard) / "data.mdb" for shard in range(before)],
                entries,
                Position(0, position.index, position.term, position.clock),
                term_runs,
                generation.info.config,
            )
            target = Target(shards, machine, half_bytes(config), config.map_bytes, progress)
            opened.directory.make_current(build(opened.directory, origin, target))
            generation.remove()
        return before
    finally:
        opened.lock.close()
