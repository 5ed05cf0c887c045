"""A node's process that tells all that came of what it is asked: the program of `shardengine.engine.cluster.program`,
with two more verbs. And the stand-in for it, which records.

    python -m tests.told_node OPTIONS
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import pytest

from shardengine import ApplyResult, encode, run
from shardengine.conformance import History
from shardengine.engine.cluster import nodes, program
from shardengine.engine.cluster.nodes import NodeProcess
from tests.company import Station
from tests.killing import WATCHDOG_S


class Tells(program.Asked):
    async def write(self, datas: list[bytes]) -> list[ApplyResult]:
        return await self._node.propose_many(datas)

    async def read(self, keys: list[bytes]) -> tuple[list[bytes | None], int]:
        """Linearizable, and at which index."""
        return await self._node.get_multi(keys), self._node.last_applied().index


class ToldNode:
    """What is asked of such a process is recorded; when it is killed meanwhile, what came of it is not known."""

    def __init__(self, process: NodeProcess, history: History) -> None:
        self.process = process
        self._history = history

    def is_running(self) -> bool:
        return self.process.pid is not None

    async def propose(self, command: Any) -> ApplyResult:
        return (await self.propose_many([command]))[0]

    async def propose_many(self, commands: Iterable[Any]) -> Sequence[ApplyResult]:
        operation = self._history.begin_propose(map(encode, commands), session=self.process.name)
        try:
            told = await self.process.ask("write", operation.datas)
        except BaseException as error:
            operation.unknown(error)
            raise
        results = msgspec.convert(told, list[ApplyResult])
        operation.ok(results)
        return results

    async def get(self, key: bytes) -> bytes | None:
        return (await self.get_multi([key]))[0]

    async def get_multi(self, keys: Sequence[bytes]) -> list[bytes | None]:
        operation = self._history.begin_get(keys, session=self.process.name)
        try:
            values, revision = await self.process.ask("read", keys)
        except BaseException as error:
            operation.failed(error)
            raise
        operation.ok(values, revision)
        return list(values)


class FarStation(Station):
    """A station whose node is a process of its own."""

    async def start(self) -> None:
        options = program.Options(path=str(self.path), servers=self.wire.urls, stream=self._company.stream, shards=1)
        process = NodeProcess(self.name, options, self.path.with_suffix(".errors"))
        self.node = node = ToldNode(process, self._company.history)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(nodes, "_PROGRAM", "tests.told_node")
            async with asyncio.timeout(WATCHDOG_S):
                await process.start()
        self.used(node, node)

    async def kill(self) -> None:
        """It and its workers die, in the middle of whatever they do, and whoever uses it is told."""
        await self.node.process.kill()
        await self.told()
        await self.rest()
        self.node = None

    async def state(self) -> dict[str, Any]:
        """Where it stands, and its digest there."""
        found: dict[str, Any] = await self.node.process.ask("state")
        return found

    async def stop(self) -> None:
        await self.rest()
        node, self.node = self.node, None
        if node is not None:
            await node.process.close()


if __name__ == "__main__":
    program.Asked = Tells  # type: ignore[misc]
    given = msgspec.json.decode(sys.argv[1], type=program.Options)
    run(lambda: program.serve(given))
