"""A node as a process of its own: what it is asked comes on standard input, what it answers goes to standard output.

    python -m shardengine.engine.cluster.program OPTIONS      JSON of `Options`

Both streams carry messages of msgpack, each behind its length, 4 bytes, little-endian. The first message says that the
node is ready, or why it is not. What is asked is done at once, several things at a time, and answered in any order.
The end of standard input is the end of the node: no node outlives who started it.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from shardengine import EngineConfig, EngineError, SnapshotPolicy, run
from shardengine.node import JetStreamLog, Node, NodePolicy

LENGTH_BYTES = 4
READY = 0
"""The number of the first message."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """path: the node's directory. servers, stream, replicas, member_timeout: of its log. The rest: of the engine, and
    of the policy; no snapshots but those that are asked for."""

    path: str
    servers: list[str]
    stream: str
    replicas: int = 3
    member_timeout: float = 30.0
    shards: int = 2
    keep_entries: int = 10_000


class Request(msgspec.Struct, frozen=True, array_like=True):
    """number: of its answer. verb: one of `Asked`'s. datas: what it works on."""

    number: int
    verb: str
    datas: list[bytes]


class Reply(msgspec.Struct, frozen=True, array_like=True):
    """number: of the request. error: why there is no value."""

    number: int
    error: str | None
    value: Any


def message(body: Request | Reply) -> bytes:
    encoded = msgspec.msgpack.encode(body)
    return len(encoded).to_bytes(LENGTH_BYTES, "little") + encoded


async def next_message(stream: asyncio.StreamReader) -> bytes:
    """Raises IncompleteReadError at the end."""
    return await stream.readexactly(int.from_bytes(await stream.readexactly(LENGTH_BYTES), "little"))


class Asked:
    """What a node is asked for; each verb is a method."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def propose(self, datas: list[bytes]) -> int:
        """Commands, next to each other in the log; returns how many of them were refused."""
        return sum(not result.succeeded for result in await self._node.propose_many(datas))

    async def get(self, keys: list[bytes]) -> list[bytes | None]:
        """What the keys hold here."""
        return self._node.engine.get_multi(keys)

    async def state(self, _: list[bytes]) -> dict[str, Any]:
        """Where the node stands once all that was acknowledged is applied, and the digest there."""
        await self._node.barrier()
        digest = await self._node.engine.digest()
        return {"entries": len(self._node.engine), "digest": digest, **await self.status([])}

    async def snapshot(self, _: list[bytes]) -> int:
        """The index of the last entry in it."""
        return (await self._node.snapshot()).last_included.index

    async def status(self, _: list[bytes]) -> dict[str, Any]:
        found: dict[str, Any] = msgspec.to_builtins(self._node.status())
        return found


async def serve(options: Options) -> None:
    stream = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stream), sys.stdin)
    log = JetStreamLog(
        options.servers, options.stream, replicas=options.replicas, member_timeout=options.member_timeout
    )
    policy = NodePolicy(snapshots=SnapshotPolicy(), keep_entries=options.keep_entries)
    try:
        async with Node(options.path, log=log, shards=options.shards, config=EngineConfig(), policy=policy) as node:
            await node.wait_ready()
            _say(Reply(READY, None, await Asked(node).status([])))
            await _answer(stream, node)
    except EngineError as error:
        _say(Reply(READY, str(error), None))


async def _answer(stream: asyncio.StreamReader, node: Node) -> None:
    """Until standard input ends."""
    asked, decode = Asked(node), msgspec.msgpack.Decoder(Request).decode
    async with asyncio.TaskGroup() as tasks:
        while True:
            try:
                request = decode(await next_message(stream))
            except asyncio.IncompleteReadError:
                return
            tasks.create_task(_one(request, getattr(asked, request.verb)))


async def _one(request: Request, work: Callable[[list[bytes]], Awaitable[Any]]) -> None:
    try:
        _say(Reply(request.number, None, await work(request.datas)))
    except EngineError as error:
        _say(Reply(request.number, str(error), None))


def _say(reply: Reply) -> None:
    left = memoryview(message(reply))
    while left:
        left = left[os.write(1, left) :]


if __name__ == "__main__":
    given = msgspec.json.decode(sys.argv[1], type=Options)
    run(lambda: serve(given))
