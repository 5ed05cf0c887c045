"""Small nodes that share a log in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from shardengine import EngineConfig, SnapshotPolicy
from shardengine.node import Node, NodePolicy, SharedMemoryLog
from tests.nodes import CONFIG

POLICY = NodePolicy(snapshots=SnapshotPolicy(), keep_entries=0, compare_entries=0, bootstrap_timeout_ms=60_000)


def sharer(
    path: Path, log: SharedMemoryLog, *, policy: NodePolicy = POLICY, config: EngineConfig = CONFIG
) -> Node:
    return Node(path, log=log, shards=1, config=config, policy=policy)


@asynccontextmanager
async def sharers(path: Path, count: int, policy: NodePolicy = POLICY) -> AsyncIterator[list[Node]]:
    first = SharedMemoryLog()
    logs = [first, *(SharedMemoryLog(first) for _ in range(count - 1))]
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(sharer(path / f"{i}", log, policy=policy)) for i, log in enumerate(logs)]
