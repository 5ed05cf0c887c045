"""What tests of nodes share: small engines, and a log that does what it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from pathlib import Path

from shardengine import EngineConfig, Machine
from shardengine.node import Logged, LogState, MemoryLog, Node, NodePolicy
from shardengine.shards.kv import KeyValue

CONFIG = EngineConfig(map_bytes=16 << 20, ring_bytes=1 << 20, value_bytes_max=64 << 10)
WAIT_S = 60.0
TURNS, LATER_S = 100, 0.002


class ToldLog:
    """A `MemoryLog` whose next appends go as a test says, and which can be held up, as it is opened too."""

    def __init__(self) -> None:
        self.inner = MemoryLog()
        self.appends: list[int] = []
        """How many frames each call had."""
        self.before: list[Callable[[], None]] = []
        """Called one an append, before it is done; what one raises, the append raises."""
        self.after: list[Callable[[], None]] = []
        """As `before`, when the frames are in the log."""
        self.gate = asyncio.Event()
        self.gate.set()
        self.opening = asyncio.Event()
        self.opening.set()
        self.asked = 0
        self.cut = 0

    async def open(self) -> LogState:
        await self.opening.wait()
        return await self.inner.open()

    async def append(self, frames: Sequence[bytes]) -> list[int]:
        self.appends.append(len(frames))
        await self.gate.wait()
        if self.before:
            self.before.pop(0)()
        positions = await self.inner.append(frames)
        if self.after:
            self.after.pop(0)()
        return positions

    def read(self, after: int) -> AsyncGenerator[Logged, None]:
        return self.inner.read(after)

    async def last(self) -> int:
        self.asked += 1
        return await self.inner.last()

    async def truncate_before(self, position: int) -> None:
        self.cut = position
        await self.inner.truncate_before(position)

    async def aclose(self) -> None:
        await self.inner.aclose()


class SecondEnd(ToldLog):
    """The log of another node, which has it open, for one more node of this process."""

    def __init__(self, other: ToldLog) -> None:
        super().__init__()
        self.inner = other.inner

    async def open(self) -> LogState:
        held = self.inner._held
        return LogState(held.identity, held.first, held.last, 64 << 20)

    async def aclose(self) -> None:
        """It is the other one's to close."""


async def frames_of(log: ToldLog | MemoryLog, first: int = 1) -> list[Logged]:
    """All that it holds now from position `first` on."""
    found: list[Logged] = []
    last = await log.last()
    async with aclosing(log.read(first - 1)) as frames:
        while len(found) < last - first + 1:
            found.append(await anext(frames))
    return found


def raising(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


def node_at(
    path: Path,
    log: ToldLog | MemoryLog,
    *,
    shards: int | None = 2,
    machine: type[Machine] = KeyValue,
    policy: NodePolicy | None = None,
    config: EngineConfig = CONFIG,
) -> Node:
    return Node(path / "data", log=log, shards=shards, machine=machine, config=config, policy=policy)


async def soon(condition: Callable[[], bool]) -> None:
    """Let the loop go on until `condition` holds; the watchdog is `WAIT_S`. It is looked at in every turn of the loop,
    and later not so often: what takes that long is done by processes that want the core."""
    turns = 0
    async with asyncio.timeout(WAIT_S):
        while not condition():
            turns += 1
            await asyncio.sleep(LATER_S if turns > TURNS else 0)
