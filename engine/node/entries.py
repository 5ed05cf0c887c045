"""A whole log as entries, as nodes feed them: for a look at it, or for a check of what came of it."""

from __future__ import annotations

from contextlib import aclosing

from shardengine.engine.node.frames import decode_frame, entries_in
from shardengine.engine.node.log import Log
from shardengine.shards.types import Entry


async def entries_of(log: Log) -> list[Entry]:
    """All entries of an open log, from index 1 to the last one that was acknowledged to anybody before the call.

    Raises LogTruncatedError when its beginning was cut off, FrameDamagedError, and what the log raises."""
    last, found = await log.last(), list[Entry]()
    if last:
        async with aclosing(log.read(0)) as frames:
            async for logged in frames:
                found += entries_in(decode_frame(logged.frame, logged.position), logged, len(found) + 1)
                if logged.position >= last:
                    break
    return found
