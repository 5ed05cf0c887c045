"""Nodes on one log of real servers, who uses them all the time, and what all of these saw: one history."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from shardengine import CompareAndSwap, EngineError, Entry, LogFailedError, Put, SnapshotPolicy
from shardengine.conformance import History
from shardengine.engine.cluster.servers import Servers
from shardengine.engine.node.frames import decode_frame, entries_in
from shardengine.engine.node.jetstream import connection, link, session, stream
from shardengine.node import JetStreamLog, Node, NodePolicy, SharedLog, entries_of
from tests.jetstream import opened
from tests.killing import WATCHDOG_S
from tests.nodes import CONFIG
from tests.proxy import Proxy
from tests.sharers import hurry, like

KEYS = [b"a", b"b", b"c"]
CALLERS = 2
PAUSE_S = 0.01
"""So long a caller thinks before it calls again."""
POLICY = NodePolicy(snapshots=SnapshotPolicy(), keep_entries=0, compare_entries=40, bootstrap_timeout_ms=60_000)

MakeLog = Callable[[list[str], str], SharedLog]


def impatient(patch: pytest.MonkeyPatch) -> None:
    """What does not answer is given up sooner, and looked for more often."""
    hurry(patch)
    patch.setattr(connection, "ANSWER_S", 1.0)
    patch.setattr(stream, "ANSWER_S", 1.0)
    patch.setattr(link, "PING_S", 0.2)
    patch.setattr(link, "PONG_S", 1.0)
    patch.setattr(session, "CLOSE_S", 0.5)


class Wire:
    """What lies between one node and each of the servers."""

    def __init__(self, servers: Servers) -> None:
        self.proxies = [Proxy(server.port) for server in servers.all]

    @property
    def urls(self) -> list[str]:
        return [proxy.url for proxy in self.proxies]

    def leave(self, numbers: Collection[int]) -> None:
        """From now on only these servers are reached; what is said to others over connections that there are, too, is
        lost."""
        for number, proxy in enumerate(self.proxies):
            proxy.shut = number not in numbers
            if proxy.shut:
                proxy.cut()

    def mend(self) -> None:
        for proxy in self.proxies:
            proxy.shut = False
            proxy.release()

    async def __aenter__(self) -> Wire:
        self._stack = AsyncExitStack()
        for proxy in self.proxies:
            await self._stack.enter_async_context(proxy)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()


class Station:
    """A directory with a name, the wire of its node, and who uses that: from `start` to `stop`.

    `node` is what runs there, or a stand-in for it; `seen`, what is recorded of it.
    """

    def __init__(self, company: Company, name: str, wire: Wire) -> None:
        self.name = name
        self.path = company.directory / name
        self.wire = wire
        self.done = 0
        self.node: Any = None
        self.seen: Any = None
        self._company = company
        self._callers: list[asyncio.Task[None]] = []

    def new_node(self) -> Node:
        log = self._company.make_log(self.wire.urls, self._company.stream)
        return Node(self.path, log=log, shards=1, config=self._company.config, policy=self._company.policy)

    async def start(self) -> None:
        """A node runs, and is used. Raises what it refuses to start with."""
        node = self.new_node()
        async with asyncio.timeout(WATCHDOG_S):
            await node.start()
            self.node = node
            await node.wait_ready()
        self.used(node, self._company.history.node(node, self.name))

    def used(self, node: Any, seen: Any) -> None:
        self.node, self.seen = node, seen
        self._callers = [asyncio.create_task(self._use(seen, who)) for who in range(CALLERS)]

    async def rest(self) -> None:
        """Nobody uses it any more. Raises what no caller should have met."""
        callers, self._callers = self._callers, []
        for caller in callers:
            caller.cancel()
        for met in await asyncio.gather(*callers, return_exceptions=True):
            if met is not None and not isinstance(met, asyncio.CancelledError):
                raise met

    async def told(self) -> None:
        """Return when whoever uses it was told that it has failed."""
        await asyncio.wait(self._callers)

    async def stop(self) -> None:
        await self.rest()
        node, self.node = self.node, None
        if node is not None:
            async with asyncio.timeout(WATCHDOG_S):
                await node.aclose()

    async def _use(self, seen: Any, who: int) -> None:
        rng = random.Random(f"{self._company.seed} {self.name} {who} {self.done}")
        for number in count(self.done):
            try:
                await call(seen, rng, b"%s %d %d" % (self.name.encode(), who, number))
                self.done += 1
                self._company.told.set()
            except EngineError as error:
                self._company.refused[type(error)] += 1
                self._company.told.set()
                if not seen.is_running():
                    return
            await asyncio.sleep(PAUSE_S)


async def call(node: Any, rng: random.Random, value: bytes) -> None:
    """One call, or two: half of the commands depend on what is there."""
    key = rng.choice(KEYS)
    match rng.randrange(6):
        case 0:
            await node.get(key)
        case 1:
            await node.get_multi(KEYS)
        case 2:
            await node.propose_many([Put(one, value) for one in KEYS[1:]])
        case 3:
            await node.propose(Put(key, value))
        case _:
            await node.propose(CompareAndSwap(key, await node.get(key), value))


class Scribe:
    """Takes down all that a log ever held, which may be cut behind it: behind `position`."""

    def __init__(self, log: JetStreamLog) -> None:
        self.log = log
        self._entries: list[Entry] = []
        self.position = 0
        self._written = asyncio.Event()
        self._task = asyncio.create_task(self._write())

    async def _write(self) -> None:
        async with aclosing(self.log.read(0)) as frames:
            async for logged in frames:
                frame = decode_frame(logged.frame, logged.position)
                self._entries += entries_in(frame, logged, len(self._entries) + 1)
                self.position = logged.position
                self._written.set()

    async def up_to(self, last: int) -> list[Entry]:
        """All up to that position, and perhaps more."""
        async with asyncio.timeout(WATCHDOG_S):
            while self.position < last:
                assert not self._task.done(), self._task
                self._written.clear()
                await self._written.wait()
        return list(self._entries)

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])


class Company:
    """Several stations on one log. `refused`: what callers met instead of an answer. `told`: is set whenever one
    of them was told something. Its other attributes are what it was given, and what was recorded."""

    def __init__(
        self, directory: Path, servers: Servers, stream: str, make_log: MakeLog = JetStreamLog, seed: int = 1
    ) -> None:
        self.directory = directory
        self.servers = servers
        self.stream = stream
        self.make_log = make_log
        self.seed = seed
        self.policy = POLICY
        self.config = like(CONFIG, stop_timeout_ms=2_000)
        self.history = History()
        self.refused: Counter[type[EngineError]] = Counter()
        self.told = asyncio.Event()
        self.stations: list[Station] = []
        self.scribe: Scribe | None = None

    @property
    def nodes(self) -> list[Node]:
        """Those that run in this process."""
        return [station.node for station in self.stations if isinstance(station.node, Node)]

    async def more(self, count: int = 3, but: Collection[Station] = ()) -> None:
        """Wait until the callers of each node that runs, `but` for these, got so many more answers."""
        waiting = [(one, one.done + count) for one in self.stations if one.node is not None and one not in but]
        async with asyncio.timeout(2 * WATCHDOG_S):
            while any(one.done < goal for one, goal in waiting):
                self.told.clear()
                await self.told.wait()

    async def refusals(self, kind: type[EngineError], count: int) -> None:
        """Wait until callers met that so often."""
        async with asyncio.timeout(WATCHDOG_S):
            while self.refused[kind] < count:
                self.told.clear()
                await self.told.wait()

    async def rest(self) -> None:
        for station in self.stations:
            await station.rest()

    async def entries(self) -> list[Entry]:
        if self.scribe is not None:
            return await self.scribe.up_to(await self.scribe.log.last())
        async with opened(self.servers.urls, self.stream) as log:
            return await entries_of(log)

    def go_on(self) -> None:
        """All that run are used again."""
        for station in self.stations:
            if station.node is not None:
                station.used(station.node, station.seen)

    async def agree(self) -> None:
        """Nobody uses them any more, and all of them hold the same."""
        await self.rest()
        digests = set()
        async with asyncio.timeout(2 * WATCHDOG_S):
            for node in self.nodes:
                await node.barrier()
            for node in self.nodes:
                assert node.failure is None and node.status().stalled is None
                digests.add(await node.engine.digest())
        assert len({node.last_applied() for node in self.nodes}) == len(digests) == 1

    async def judged(self) -> None:
        """All hold the same, and what was recorded is true of the log."""
        await self.agree()
        for station in self.stations:
            if isinstance(station.node, Node):
                await station.seen.scan_prefix(b"")
        verdict = self.history.check(await self.entries())
        assert verdict.valid, verdict
        assert verdict.operations == len(self.history.operations) > verdict.entries // 4 > 0
        assert LogFailedError not in self.refused


@asynccontextmanager
async def company(
    directory: Path, servers: Servers, stream: str, nodes: int = 3, scribe: bool = False, **how: Any
) -> AsyncIterator[Company]:
    """Nodes that run and are used until the block ends, or `judged` is asked. `scribe`: the log will be cut."""
    async with AsyncExitStack() as stack:
        found = Company(directory, servers, stream, **how)
        if scribe:
            found.scribe = Scribe(await stack.enter_async_context(opened(servers.urls, stream)))
            stack.push_async_callback(found.scribe.close)
        for number in range(1, nodes + 1):
            wire = await stack.enter_async_context(Wire(servers))
            station = Station(found, f"node{number}", wire)
            stack.push_async_callback(station.stop)
            found.stations.append(station)
            await station.start()
        yield found
