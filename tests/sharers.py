"""Small nodes that share a log in this process, and ends of that log that do what they are told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest

from shardengine import EngineConfig, Entry, Machine, PeerError, Put, SnapshotPolicy
from shardengine.engine.conformance.recorded import RecordedNode
from shardengine.engine.node import fetching, giving, members, sharing, trimming
from shardengine.engine.node.frames import decode_frame, entries_in
from shardengine.node import Logged, Member, Node, NodePolicy, SharedMemoryLog
from shardengine.shards.kv import KeyValue
from tests.nodes import CONFIG

S = TypeVar("S", bound=msgspec.Struct)
POLICY = NodePolicy(snapshots=SnapshotPolicy(), keep_entries=0, compare_entries=0, bootstrap_timeout_ms=60_000)


class ToldEnd(SharedMemoryLog):
    """An end whose questions, readings and appends go as a test says."""

    def __init__(self, other: SharedMemoryLog | None = None) -> None:
        super().__init__(other)
        self.asked: list[tuple[str, bytes]] = []
        self.under_way = self.most_under_way = 0
        self.on_answer: Callable[[int, bytes], bytes] = lambda number, answer: answer
        """What becomes of an answer, the first of which is number 1; what it raises, the question raises."""
        self.hangs: Callable[[int], bool] = lambda number: False
        """Whether that question never comes back."""
        self.reading = asyncio.Event()
        self.reading.set()
        self.after: list[Callable[[], None]] = []
        """Called one an append, when the frames are in the log; what one raises, the append raises."""
        self.gone: list[Logged] = other.gone if isinstance(other, ToldEnd) else []
        """What was cut away, by whichever end."""
        self.deaf = False

    def go_away(self) -> None:
        """At once, as when its process dies: nobody is answered, nor can anything be read or appended."""
        arrivals, self._arrivals = self._arrivals, None
        assert arrivals is not None
        self._held.readers.discard(arrivals)
        arrivals.close()

    async def meet(self, me: Member) -> Sequence[Member]:
        if self.deaf:
            raise PeerError("nobody can be heard")
        return await super().meet(me)

    async def ask(self, node: str, request: bytes) -> bytes:
        self.asked.append((node, request))
        number = len(self.asked)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            if self.hangs(number):
                await asyncio.Event().wait()
            return self.on_answer(number, await super().ask(node, request))
        finally:
            self.under_way -= 1

    async def read(self, after: int) -> AsyncGenerator[Logged, None]:
        await self.reading.wait()
        async for logged in super().read(after):
            yield logged
            await self.reading.wait()

    async def truncate_before(self, position: int) -> None:
        self.gone += [logged for logged in self._held.kept if logged.position < position]
        await super().truncate_before(position)

    def entries(self) -> list[Entry]:
        """All that were ever in the log."""
        found: list[Entry] = []
        for logged in [*self.gone, *self._held.kept]:
            found += entries_in(decode_frame(logged.frame, logged.position), logged, len(found) + 1)
        return found

    async def append(self, frames: Sequence[bytes]) -> list[int]:
        positions = await super().append(frames)
        if self.after:
            self.after.pop(0)()
        return positions


def hurry(patch: pytest.MonkeyPatch) -> None:
    """Looks, pieces and pauses are of a test's size; nobody is forgotten, however slow the machine is."""
    for room in (members, trimming):
        patch.setattr(room, "LOOK_S", 0.02)
    patch.setattr(fetching, "PAUSE_S", 0.0)
    patch.setattr(sharing, "LATELY_S", 600.0)
    patch.setattr(giving, "GIVEN_BYTES", 4 << 10)


def sharer(
    path: Path,
    log: SharedMemoryLog,
    *,
    policy: NodePolicy = POLICY,
    config: EngineConfig = CONFIG,
    machine: type[Machine] = KeyValue,
    shared_snapshots: Path | None = None,
) -> Node:
    return Node(
        path, log=log, shards=1, machine=machine, config=config, policy=policy, shared_snapshots=shared_snapshots
    )


@asynccontextmanager
async def sharers(path: Path, count: int, **how: Any) -> AsyncIterator[tuple[list[Node], list[ToldEnd]]]:
    """Nodes in directories of `path` that are called by their numbers, and their ends of one log."""
    ends = [ToldEnd()]
    ends += [ToldEnd(ends[0]) for _ in range(count - 1)]
    async with AsyncExitStack() as stack:
        nodes = [sharer(path / f"{i}", end, **how) for i, end in enumerate(ends)]
        for node in nodes:
            await stack.enter_async_context(node)
        yield nodes, ends


async def fill(node: Node | RecordedNode, count: int, tag: bytes = b"k") -> None:
    """Propose so many values of a kilobyte, in frames of one entry each."""
    for i in range(count):
        await node.propose(Put(tag + b"%d" % i, tag * 500))


async def cut_by(nodes: Sequence[Node | RecordedNode], rounds: int = 2) -> None:
    """Have the log cut: every node takes snapshots, with something proposed before each."""
    for number in range(rounds):
        await fill(nodes[0], 3, b"cut%d-" % number)
        for node in nodes:
            await node.barrier()
            await node.snapshot()


def like(value: S, **changes: object) -> S:
    return msgspec.structs.replace(value, **changes)
