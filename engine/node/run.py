"""One run of a node: what it is made of, from a start to its end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

from shardengine.engine.config import EngineConfig
from shardengine.engine.engine import Engine
from shardengine.engine.errors import EngineError, NodeStoppedError, SnapshotError, WrongLoopError, named
from shardengine.engine.node.appending import Appender
from shardengine.engine.node.barriers import Barriers
from shardengine.engine.node.feeding import Feeder
from shardengine.engine.node.log import Log, LogState
from shardengine.engine.node.peers import Peers
from shardengine.engine.node.policy import NodePolicy
from shardengine.engine.node.proposals import Proposals
from shardengine.engine.node.trimming import Marks, Trimmer

_RUNS_BYTES = 256
"""More than a part takes for the term and the clock of a frame's entries."""
logger = logging.getLogger("shardengine")


class Run:
    """One run of a node, from a start to its end: three tasks, and what they share.

    Its attributes are these, what they work on, and how they ended.
    """

    def __init__(
        self,
        engine: Engine,
        log: Log,
        policy: NodePolicy,
        config: EngineConfig,
        state: LogState,
        position: int,
        peers: Peers | None = None,
    ) -> None:
        marks = Marks()
        self.loop = asyncio.get_running_loop()
        self.state = state
        self.peers = peers
        self.failure: EngineError | None = None
        self.frame_bytes_max = min(state.frame_bytes_max, engine.stats()["part_bytes_max"] - _RUNS_BYTES)
        self.proposals = Proposals(policy, self.frame_bytes_max)
        comparing, refill = (None, None) if peers is None else (peers.comparing, peers.bootstrap.install)
        self.feeder = Feeder(engine, log, self.proposals, marks, position, comparing=comparing, refill=refill)
        self.barriers = Barriers(log)
        by_snapshots = config.durability == "process"
        others = None if peers is None else peers.members.lately
        keep = policy.keep_entries
        self.trimmer = Trimmer(engine, log, marks, keep, by_snapshots=by_snapshots, others=others)
        self.appender = Appender(log, self.proposals, self.feeder, policy.linger_ms)
        self._stopping = False
        self._tasks: Sequence[asyncio.Task[None]] = [
            self.loop.create_task(work) for work in (self.feeder.run(), self.appender.run(), self.trimmer.run())
        ]
        if peers is not None:
            peers.members.needs = self._needs
            self._tasks = [*self._tasks, peers.task]
        for task in self._tasks:
            task.add_done_callback(self._ended)

    @property
    def ready_at(self) -> int:
        return self.state.last

    @property
    def stalled(self) -> str | None:
        """Why nothing is applied, or appended, for now."""
        waits = None if self.peers is None else self.peers.bootstrap.stalled
        return waits or self.feeder.stalled or self.appender.stalled

    def _needs(self) -> int:
        with suppress(SnapshotError):  # then it is what it was
            self.trimmer.look()
        return max(1, self.trimmer.needs)

    def check_loop(self) -> None:
        """Raises WrongLoopError in any other loop; none is none."""
        if asyncio._get_running_loop() not in (None, self.loop):
            raise WrongLoopError(
                "the node lives in the event loop that started it, until aclose()",
                hint="do everything in one run, with `async with Node(...)` inside it; or use SyncNode",
            )

    def _ended(self, task: asyncio.Task[None]) -> None:
        """One of the tasks cannot go on: nothing can."""
        if self._stopping or self.failure is not None:
            return
        error = NodeStoppedError("a task of the node was cancelled") if task.cancelled() else task.exception()
        self.failure = named(error) if isinstance(error, Exception) else NodeStoppedError(f"the node ended: {error!r}")
        logger.error("the node applies nothing any more: %s", self.failure)
        self._stop(self.failure)

    def _stop(self, error: EngineError) -> None:
        self._stopping = True
        self.proposals.close(NodeStoppedError(f"the node takes nothing any more: {error.message}", hint=error.hint))
        self.feeder.close(error)
        self.barriers.close(error)
        if not self.loop.is_closed():
            for task in self._tasks:
                task.cancel()
            if self.peers is not None:
                self.peers.stop()

    async def close(self, patience_s: float) -> None:
        """Let what was taken end, for a while; then end it. Where its loop is gone, so are its callers."""
        stopped = NodeStoppedError("the node stops")
        self.proposals.refuse_new(stopped)
        if self.failure is None and not self.loop.is_closed():
            with suppress(TimeoutError):
                async with asyncio.timeout(patience_s):
                    await self.proposals.quiet()
        self._stop(stopped)
        if not self.loop.is_closed():
            if self.peers is not None:
                await self.peers.close()
            await asyncio.wait(self._tasks)


@asynccontextmanager
async def within(timeout: float | None, what: str) -> AsyncIterator[None]:
    """Raise TimeoutError, which says `what`, when the block takes longer than `timeout` seconds."""
    if timeout is None:
        yield
        return
    scope = asyncio.timeout(timeout)
    try:
        async with scope:
            yield
    except TimeoutError as error:
        if not scope.expired():
            raise
        raise TimeoutError(f"{what} after {timeout} s") from error
