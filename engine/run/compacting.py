"""A generation with the state of the live one, and without the pages that it no longer needs.

Each environment is copied page by page from a read transaction, in key order and without gaps, so that files, and maps,
are as large as what lives in them. That takes disk for the copy, and nothing of the old map, however full that is.
"""

from __future__ import annotations

import os

from shardengine.engine.beside import each
from shardengine.engine.commit.decision import Record
from shardengine.engine.read.cut import Reads
from shardengine.engine.snapshot.build import Target, building
from shardengine.engine.storage.generations import Directory, DirectoryConfig, Generation
from shardengine.ipc.files import open_file
from shardengine.shards.store import Loader
from shardengine.shards.types import LogId, Position


def compacted(
    directory: Directory, reads: Reads, term_runs: list[LogId], config: DirectoryConfig, target: Target
) -> Generation:
    """Build it. No group is open meanwhile. Blocks; any thread. Raises StoreFullError; nothing is left of it then."""
    generation = directory.begin(target.shards, config)
    with building(generation):
        now = reads.cut.position
        position = Position(0, now.index, now.term, now.clock)
        each(lambda shard: _copy(reads, shard, generation, position, target), range(target.shards))
        record = Record(position, term_runs, {}, config.machine_version)
        directory.complete(generation, record, target.half_bytes)
    return generation


def _copy(reads: Reads, shard: int, generation: Generation, position: Position, target: Target) -> None:
    path = generation.shard(shard)
    descriptor = open_file(path / "data.mdb", os.O_RDWR)
    try:
        reads.copy(shard, descriptor)
    finally:
        os.close(descriptor)
    loader = Loader(path, target.map_bytes)
    try:
        loader.finish(generation.identity(shard), position)
    finally:
        loader.close()
