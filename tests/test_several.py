"""Several nodes on one log: one order, one state, and a log that is cut by what all of them need."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from shardengine import Put
from shardengine.node import SharedMemoryLog
from tests.nodes import soon
from tests.sharers import sharers


async def test_three_nodes_propose_apply_and_hold_the_same(tmp_path: Path) -> None:
    async with sharers(tmp_path, 3) as nodes:
        await asyncio.gather(*(node.propose(Put(b"%d-%d" % (i, j), b"")) for i, node in enumerate(nodes) for j in range(50)))
        for node in nodes:
            assert (await node.barrier()).index == 150
        assert len({await node.engine.digest() for node in nodes}) == 1
        await soon(lambda: all(node.status().members == 3 for node in nodes))
        assert {m.node for m in nodes[0].members()} == {node.status().node for node in nodes}
