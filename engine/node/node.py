"""The class people use: a log, an engine, and what goes on between them."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import Any

import msgspec

from shardengine.engine.config import EngineConfig
from shardengine.engine.contract import ScanResult, SnapshotInfo, StartReport
from shardengine.engine.engine import Engine
from shardengine.engine.errors import EngineError, EngineStateError, FrameTooLargeError, NodeStoppedError, named
from shardengine.engine.node.appending import Appender
from shardengine.engine.node.barriers import Barriers
from shardengine.engine.node.feeding import Feeder
from shardengine.engine.node.frames import frame_bytes
from shardengine.engine.node.local.log import LocalLog
from shardengine.engine.node.log import Log, LogState
from shardengine.engine.node.place import find_place
from shardengine.engine.node.policy import NodePolicy
from shardengine.engine.node.proposals import Outcome, Proposals
from shardengine.engine.node.trimming import Marks, Trimmer
from shardengine.engine.read.view import View
from shardengine.engine.run.starting import settled
from shardengine.engine.storage.files import data_path
from shardengine.shards.kv import KeyValue
from shardengine.shards.machine import Machine, encode
from shardengine.shards.types import ApplyResult, LogId

LOG_NAME = "log"
"""What a local log in a node's own directory is called."""
_RUNS_BYTES = 256
"""More than a part takes for the term and the clock of a frame's entries."""
logger = logging.getLogger("shardengine")


class NodeStatus(msgspec.Struct, frozen=True):
    """Facts about one moment.

    applied: the newest entry that reads see; its term is its frame's position. position: up to which frames are
    applied, those without entries too. ready_at: the log's end as it was found at the start. durable: as
    `Engine.durable`. cut_before: frames before that position were given up in this run. proposed: entries without an
    outcome. waiting: calls that wait for room. stalled: why nothing is applied for now. failure: why nothing is any
    more.
    """

    log: str
    applied: LogId
    position: int
    ready_at: int
    durable: LogId
    cut_before: int
    proposed: int
    waiting: int
    stalled: str | None
    failure: str | None


class Node:
    """An engine under a log: what is proposed goes into the log, and from there, in the log's order, into the engine.

    It belongs to one event loop from `start` to `aclose`. `async with Node("data") as node` is all it takes.

    Args:
        path: the data directory, as `Engine`'s.
        log: where proposals go. None: a `LocalLog` in `log/` inside of the directory.
        machine, shards, config: as `Engine`'s. After a power loss in mode "process" the state is the newest snapshot's,
            or empty, and the rest comes from the log: `config.after_power_loss` is not asked.
        policy: when snapshots are taken, and what is kept and bounded. None: `NodePolicy()`.

    Raises as `Engine`. Opens nothing.
    """

    def __init__(
        self,
        path: str | bytes | os.PathLike[str] | os.PathLike[bytes],
        *,
        log: Log | None = None,
        machine: type[Machine] = KeyValue,
        shards: int | None = None,
        config: EngineConfig | None = None,
        policy: NodePolicy | None = None,
    ) -> None:
        self._path = data_path(path)
        self._config = msgspec.structs.replace(settled(config, shards), after_power_loss="empty")
        self._engine = Engine(self._path, machine=machine, config=self._config)
        self._log: Log = LocalLog(self._path / LOG_NAME) if log is None else log
        self._policy = policy or NodePolicy()
        self._run: _Run | None = None
        self._closed = False

    @property
    def engine(self) -> Engine:
        """For local reads: they see what is applied here, without asking the log. Feed it nothing."""
        return self._engine

    # ---- life ----------------------------------------------------------------------------------------------------

    async def start(self) -> StartReport:
        """Start the engine, open the log, compare the two, and begin to apply what the log holds beyond.

        Returns when reads and proposals may begin; `wait_ready` waits for the rest of the log. Blocks the loop while
        the engine starts. Raises what `Engine.start` and `Log.open` raise; LogTruncatedError, LogRegressedError or
        LogReplacedError when the log does not continue what is applied. Nothing runs then.
        """
        if self._run is not None:
            raise EngineStateError("the node runs already")
        report = self._engine.start()
        try:
            state = await self._log.open()
            try:
                position = await find_place(self._path, self._engine, self._log, state)
            except BaseException:
                await self._log.aclose()
                raise
        except BaseException:
            self._engine.stop()
            raise
        self._engine.set_snapshot_policy(self._policy.snapshots)
        self._run = _Run(self._engine, self._log, self._policy, state, position)
        logger.info("%s: log %s, applied up to %d of %d", self._path, state.identity, position, state.last)
        return report

    async def aclose(self) -> None:
        """Take no proposal any more, finish those that were taken, up to `stop_timeout_ms`, and close engine and log.
        Closing twice does nothing. Raises as `Engine.aclose` and `Log.aclose`; it is closed all the same."""
        run, self._run, self._closed = self._run, None, True
        try:
            if run is not None:
                await run.close(self._config.stop_timeout_ms / 1000)
        finally:
            try:
                await self._log.aclose()
            finally:
                await self._engine.aclose()

    async def __aenter__(self) -> Node:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def is_running(self) -> bool:
        """True while proposals are taken: started, not closed, and not failed."""
        return self._run is not None and self._run.failure is None and self._engine.is_running()

    @property
    def failure(self) -> EngineError | None:
        """Why nothing is applied any more; None: it is, or the node does not run."""
        return None if self._run is None else self._run.failure

    async def wait_ready(self, timeout: float | None = None) -> None:
        """Wait until everything is applied that the log held when it was opened. Raises TimeoutError after `timeout`
        seconds, or what the node failed with."""
        run = self._running()
        async with _within(timeout, "the log is not applied yet"):
            await run.feeder.reached(run.ready_at)

    # ---- propose -------------------------------------------------------------------------------------------------

    async def propose(self, command: Any, *, timeout: float | None = None) -> ApplyResult:
        """Put a command, or its bytes, into the log, and wait until it is applied here; returns what came of it.

        What is proposed while the log is busy travels together, in one frame. Calls wait in order while too much is
        proposed and not applied.

        Raises:
            BadEntryError, FrameTooLargeError: it must not enter the log. Nothing of it did.
            LogFullError, NodeStoppedError, NotAppendedError: not accepted; it is not in the log, and may be proposed
                again.
            OutcomeUnknownError: the node ended before it could tell. It may be in the log, and be applied later.
            TimeoutError: after `timeout` seconds; no statement on what becomes of the proposal, which goes on.

        Refused by the machine, it is a result with `succeeded=False`. Cancelled while it waits for room, it is
        withdrawn; after that, only its result is lost.
        """
        results, start = await self._propose([_data_of(command)], timeout)
        return results[start]

    async def propose_many(self, commands: Iterable[Any], *, timeout: float | None = None) -> list[ApplyResult]:
        """As `propose`, for several commands: in the log they stand next to each other, all or none."""
        datas = [_data_of(command) for command in commands]
        if not datas:
            self._running()
            return []
        results, start = await self._propose(datas, timeout)
        return list(results[start : start + len(datas)])

    async def _propose(self, datas: list[bytes], timeout: float | None) -> Outcome:
        run = self._running()
        for data in datas:
            self._engine.check(data)
        if (size := frame_bytes(datas)) > run.frame_bytes_max:
            raise FrameTooLargeError(
                f"the {len(datas)} entries make a frame of {size} bytes, and {run.frame_bytes_max} is the most",
                hint="propose fewer together, or raise ring_bytes",
                size=size,
                limit=run.frame_bytes_max,
            )
        if timeout is None:
            return await run.proposals.put(datas, size)
        async with _within(timeout, "the proposal has no result yet, and goes on"):
            return await run.proposals.put(datas, size)

    # ---- read ----------------------------------------------------------------------------------------------------

    async def barrier(self, timeout: float | None = None) -> LogId:
        """Wait until everything is applied here that was acknowledged to anybody before this call; returns
        `last_applied()`. Raises TimeoutError after `timeout` seconds, what the log raises, or what the node failed
        with."""
        run = self._running()
        async with _within(timeout, "what was acknowledged is not applied here yet"):
            await run.feeder.reached(await run.barriers.last())
        return self._engine.last_applied()

    async def _reach(self, at_least: int | None, timeout: float | None) -> None:
        if at_least is None:
            await self.barrier(timeout)
        elif self._engine.last_applied().index < at_least:
            self._running()
            async with _within(timeout, f"entry {at_least} is not applied here yet"):
                await self._engine.wait_applied(at_least)

    async def get(self, key: bytes, *, at_least: int | None = None, timeout: float | None = None) -> bytes | None:
        """The value of `key`, or None, after a barrier: it sees all that was acknowledged before the call.

        With `at_least`, an index, it sees what was applied up to there, and asks nobody: read your own writes on any
        node by the index of their result. Raises as `barrier`, and as `Engine.get`.
        """
        await self._reach(at_least, timeout)
        return self._engine.get(key)

    async def get_multi(
        self, keys: Iterable[bytes], *, at_least: int | None = None, timeout: float | None = None
    ) -> list[bytes | None]:
        """As `get`, for several keys at one index."""
        await self._reach(at_least, timeout)
        return self._engine.get_multi(keys)

    async def scan_prefix(
        self,
        prefix: bytes,
        limit: int | None = None,
        start_after: bytes | None = None,
        reverse: bool = False,
        *,
        at_least: int | None = None,
        timeout: float | None = None,
    ) -> ScanResult:
        """As `Engine.scan_prefix`, after a barrier or at `at_least`, as `get`."""
        await self._reach(at_least, timeout)
        return self._engine.scan_prefix(prefix, limit, start_after, reverse)

    async def view(self, *, at_least: int | None = None, timeout: float | None = None) -> View:
        """As `Engine.view`, after a barrier or at `at_least`, as `get`."""
        await self._reach(at_least, timeout)
        return self._engine.view()

    def last_applied(self) -> LogId:
        """The newest entry that reads see; its term is the position of its frame in the log."""
        return self._engine.last_applied()

    # ---- snapshots and the log's end -----------------------------------------------------------------------------

    async def snapshot(self) -> SnapshotInfo:
        """Take a snapshot now, and cut the log behind it as the policy says. Raises as `Engine.create_snapshot`."""
        run = self._running()
        info = await self._engine.create_snapshot()
        await run.trimmer.trim()
        return info

    async def compact(self, keep_entries: int | None = None) -> int:
        """Cut the log behind what is durable without it, but for the newest `keep_entries` (None: the policy's).
        Returns the position that it was cut before, now or earlier in this run; 0: nowhere. Raises as
        `Log.truncate_before`."""
        return await self._running().trimmer.trim(keep_entries)

    def status(self) -> NodeStatus:
        """Facts about this moment."""
        run = self._running(failed=True)
        return NodeStatus(
            log=run.state.identity,
            applied=self._engine.last_applied(),
            position=run.feeder.position,
            ready_at=run.ready_at,
            durable=self._engine.durable(),
            cut_before=run.trimmer.cut,
            proposed=run.proposals.entries,
            waiting=run.proposals.waiting,
            stalled=None if run.feeder.stalled is None else str(run.feeder.stalled),
            failure=None if run.failure is None else str(run.failure),
        )

    def _running(self, *, failed: bool = False) -> _Run:
        if self._run is None and self._closed:
            raise NodeStoppedError("the node does not run: it was closed", hint="start() it again")
        if self._run is None:
            raise EngineStateError("the node does not run", hint="start() it, or enter `async with`")
        if self._run.failure is not None and not failed:
            raise self._run.failure.again()
        return self._run


class _Run:
    """One run of a node, from a start to its end: three tasks, and what they share."""

    def __init__(self, engine: Engine, log: Log, policy: NodePolicy, state: LogState, position: int) -> None:
        marks = Marks()
        self.state = state
        self.failure: EngineError | None = None
        self.proposals = Proposals(policy)
        self.feeder = Feeder(engine, log, self.proposals, marks, position)
        self.barriers = Barriers(log)
        self.trimmer = Trimmer(engine, log, marks, policy.keep_entries)
        self.frame_bytes_max = min(state.frame_bytes_max, engine.stats()["part_bytes_max"] - _RUNS_BYTES)
        appender = Appender(log, self.proposals, self.feeder, policy.linger_ms)
        self._tasks: Sequence[asyncio.Task[None]] = [
            asyncio.ensure_future(work) for work in (self.feeder.run(), appender.run(), self.trimmer.run())
        ]
        for task in self._tasks:
            task.add_done_callback(self._ended)

    @property
    def ready_at(self) -> int:
        return self.state.last

    def _ended(self, task: asyncio.Task[None]) -> None:
        """One of the tasks cannot go on: nothing can."""
        if task.cancelled() or self.failure is not None:
            return
        error = task.exception()
        self.failure = named(error) if isinstance(error, Exception) else NodeStoppedError(f"the node ended: {error!r}")
        logger.error("the node applies nothing any more: %s", self.failure)
        self._stop(self.failure)

    def _stop(self, error: EngineError) -> None:
        self.proposals.close(NodeStoppedError(f"the node takes nothing any more: {error.message}", hint=error.hint))
        self.feeder.close(error)
        for task in self._tasks:
            task.cancel()
        self.barriers.close(error)

    async def close(self, patience_s: float) -> None:
        """Let what was taken end, for a while; then end it."""
        stopped = NodeStoppedError("the node stops")
        self.proposals.refuse_new(stopped)
        if self.failure is None:
            with suppress(TimeoutError):
                async with asyncio.timeout(patience_s):
                    await self.proposals.quiet()
        self._stop(stopped)
        await asyncio.wait(self._tasks)


@asynccontextmanager
async def _within(timeout: float | None, what: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(timeout):
            yield
    except TimeoutError as error:
        raise TimeoutError(f"{what} after {timeout} s") from error


def _data_of(command: Any) -> bytes:
    return command if type(command) is bytes else encode(command)
