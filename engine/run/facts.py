"""What `Engine.stats` says of a run."""

from __future__ import annotations

from typing import Any

from shardengine.engine.run.runtime import Runtime
from shardengine.shards.fast import COMPILED
from shardengine.shards.types import LogId


def facts(runtime: Runtime, durable: LogId, *, waiting: int, views: int) -> dict[str, Any]:
    """Plain values. `waiting`: calls that wait for room. Looks at the directory's files."""
    coordinator, applied, failure = runtime.coordinator, runtime.last_applied, runtime.failure
    return {
        "shards": runtime.shards,
        "durability": runtime.config.durability,
        "machine": runtime.fixed.machine,
        "puts": "compiled" if COMPILED else "python",
        "last_applied": {"index": applied.index, "term": applied.term},
        "time_ms": coordinator.applied.clock,
        "durable": {"index": durable.index, "term": durable.term},
        "entries": runtime.reads.count(),
        "filesystem": runtime.filesystem,
        "bytes_on_disk": runtime.opened.directory.bytes_on_disk(),
        "groups": coordinator.applied.group,
        "part_bytes_max": runtime.splitter.part_bytes_max,
        "in_flight_chunks": coordinator.in_flight.chunks,
        "in_flight_bytes": coordinator.in_flight.bytes,
        "waiting_calls": waiting,
        "views": views,
        "pinned_cuts": runtime.reads.pinned,
        "sync_failed": runtime.mark.failure,
        "failure": None if failure is None else str(failure),
        "workers": [_worker(runtime, shard) for shard in range(runtime.shards)],
    }


def _worker(runtime: Runtime, shard: int) -> dict[str, Any]:
    workers, problem = runtime.workers, runtime.coordinator.lives.stalled.get(shard)
    return {
        "shard": shard,
        "pid": workers.pid(shard),
        "restarts": workers.starts[shard] - 1,
        "stalled": None if problem is None else problem.message,
    }
