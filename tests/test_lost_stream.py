"""The servers are lost with the stream, and the nodes go on from what they hold."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from shardengine import ConfigError, Engine, EngineConfig, LogRegressedError, Put
from shardengine.engine.cluster.servers import Servers
from shardengine.node import JetStreamLog, Node
from tests.jetstream import new_name
from tests.killing import WATCHDOG_S

CONFIG = EngineConfig(map_bytes=16 << 20, ring_bytes=1 << 20, value_bytes_max=16 << 10)


async def test_nodes_go_on_from_a_snapshot_over_a_new_stream_that_begins_behind_it(
    servers: Servers, tmp_path: Path
) -> None:
    def node(name: str, stream: str, first_position: int = 1) -> Node:
        log = JetStreamLog(servers.urls, stream, replicas=1, first_position=first_position)
        return Node(tmp_path / name, log=log, shards=1, config=CONFIG)

    async with asyncio.timeout(WATCHDOG_S):
        async with node("old", new_name()) as before:
            await asyncio.gather(*(before.propose(Put(b"%d" % number, b"v")) for number in range(20)))
            info = await before.snapshot()
            digest = await before.engine.digest()
        async with Engine(tmp_path / "new", shards=1, config=CONFIG) as db:
            await db.restore(info.path)
        with pytest.raises(LogRegressedError):
            await node("new", new_name()).start()
        stream, first = new_name(), info.last_included.term + 1
        async with node("new", stream, first) as after, node("empty", stream) as other:
            assert await after.engine.digest() == digest
            assert (await after.propose(Put(b"more", b"v"))).index == info.last_included.index + 1
            assert await other.get(b"0") == await other.get(b"more") == b"v"
            assert await other.engine.digest() == await after.engine.digest()


@pytest.mark.parametrize("first_position", [0, -1, 1.5, True, 1 << 63])
def test_a_first_position_that_is_none_is_refused(first_position: int) -> None:
    with pytest.raises(ConfigError, match="first_position"):
        JetStreamLog("nats://a", "orders", first_position=first_position)
