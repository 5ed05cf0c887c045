"""The class people use: a log, an engine, and what goes on between them."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterable
from types import TracebackType
from typing import Any

import msgspec

from shardengine.engine.config import EngineConfig
from shardengine.engine.contract import ScanResult, SnapshotInfo, StartReport
from shardengine.engine.engine import Engine
from shardengine.engine.errors import (
    ConfigError,
    EngineError,
    EngineStateError,
    FrameTooLargeError,
    NodeStoppedError,
)
from shardengine.engine.node.frames import frame_bytes
from shardengine.engine.node.local.log import LocalLog
from shardengine.engine.node.log import Log, LogState
from shardengine.engine.node.peers import Peers
from shardengine.engine.node.place import name_of
from shardengine.engine.node.placing import placed
from shardengine.engine.node.policy import NodePolicy
from shardengine.engine.node.proposals import Outcome
from shardengine.engine.node.run import Run, within
from shardengine.engine.node.shared import Member, SharedLog
from shardengine.engine.node.shelf import Shelf
from shardengine.engine.node.status import NodeStatus, status_of
from shardengine.engine.read.view import View
from shardengine.engine.run.starting import settled
from shardengine.engine.storage.files import data_path
from shardengine.shards.kv import KeyValue
from shardengine.shards.machine import Machine, encode
from shardengine.shards.types import ApplyResult, LogId

LOG_NAME = "log"
"""What a local log in a node's own directory is called."""
logger = logging.getLogger("shardengine")


class Node:
    """An engine under a log: what is proposed goes into the log, and from there, in the log's order, into the engine.

    It belongs to one event loop from `start` to `aclose`. `async with Node("data") as node` is all it takes.

    Args:
        path: the data directory, as `Engine`'s.
        log: where proposals go. None: a `LocalLog` in `log/` inside of the directory.
        machine, shards, config: as `Engine`'s. After a power loss in mode "process" the state is the newest snapshot's,
            or empty, and the rest comes from the log: `config.after_power_loss` is not asked.
        policy: when snapshots are taken, and what is kept and bounded. None: `NodePolicy()`.
        shared_snapshots: of a `SharedLog`: a directory where its nodes lay their newest snapshots for each other, and
            from which one bootstraps when no other node gives it one. None: there is none.

    Where `log` is a `SharedLog`, the node is one of several, each with a directory, and an end of the log, of its own.
    About once a second they tell each other where they stand (`members()`), and what they agree on is what all need:
    the log is cut below the least of it, and only where another can have a snapshot. A node whose next frame is cut
    away goes on from another's snapshot, as it starts and while it runs; views end then, and proposals whose frames it
    holds, and which are so never read, with OutcomeUnknownError. Now and then all take the digest of one same state:
    the odd one fails with StateDivergedError. One whose name another live node has, since a directory was copied, fails
    with NameTakenError.

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
        shared_snapshots: str | bytes | os.PathLike[str] | os.PathLike[bytes] | None = None,
    ) -> None:
        self._path = data_path(path)
        self._config = msgspec.structs.replace(settled(config, shards), after_power_loss="empty")
        if self._config.snapshots_keep < 2 and self._config.durability == "process":
            raise ConfigError(
                f"snapshots_keep = {self._config.snapshots_keep}: a node cuts its log behind what two snapshots hold",
                hint='set snapshots_keep to 2 or more, or durability="power"',
                key="snapshots_keep",
                value=self._config.snapshots_keep,
            )
        self._engine = Engine(self._path, machine=machine, config=self._config)
        self._log: Log = LocalLog(self._path / LOG_NAME) if log is None else log
        self._policy = policy or NodePolicy()
        self._shelves = None if shared_snapshots is None else data_path(shared_snapshots)
        if self._shelves is not None and not isinstance(self._log, SharedLog):
            raise ConfigError(
                f"shared_snapshots = {self._shelves}: nobody shares this log",
                hint="leave it out, or pass a log of several nodes",
                key="shared_snapshots",
                value=str(self._shelves),
            )
        self._run: Run | None = None
        self._closing: asyncio.Task[None] | None = None
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
        LogReplacedError when the log does not continue what is applied; NodeStoppedError when it is closed meanwhile.
        Nothing runs then. Where the log has lost what no snapshot holds, one is taken first, if it can be.
        """
        if self._run is not None:
            failed = self._run.failure is not None
            raise EngineStateError("the node has failed; aclose() it first" if failed else "the node runs already")
        report = self._engine.start()
        self._closed = False
        try:
            self._run = await self._begin()
        except BaseException:
            try:
                await self._log.aclose()
            finally:
                self._engine.stop()
            raise
        return report

    async def _begin(self) -> Run:
        state = await self._log.open()
        peers = None
        if isinstance(self._log, SharedLog):
            name, compare = name_of(self._path), self._policy.compare_entries
            shelf = None if self._shelves is None else Shelf(self._shelves, state.identity)
            peers = Peers(self._log, self._engine, self._path, name, compare, shelf)
        try:
            state, position = await placed(self._path, self._engine, self._log, self._policy, state, peers)
            return self._run_from(state, position, peers)
        except BaseException as error:
            if peers is not None:
                await peers.close()
            if self._closed and isinstance(error, EngineError):
                raise _closed_early() from error
            raise

    def _run_from(self, state: LogState, position: int, peers: Peers | None) -> Run:
        if self._closed:
            raise _closed_early()
        self._engine.set_snapshot_policy(self._policy.snapshots)
        logger.info("%s: log %s, applied up to %d of %d", self._path, state.identity, position, state.last)
        return Run(self._engine, self._log, self._policy, self._config, state, position, peers)

    async def aclose(self) -> None:
        """Take no proposal any more, finish those that were taken, up to `stop_timeout_ms`, and close engine and log.

        Who calls it while it goes on waits for the same; cancelled, it goes on. Closing twice does nothing. Raises as
        `Engine.aclose` and `Log.aclose`; it is closed all the same. WrongLoopError: it lives in another loop.
        """
        self._engine._owner.check()
        loop = asyncio.get_running_loop()
        if self._run is not None and not self._run.loop.is_closed():
            self._run.check_loop()
        if self._closing is None or self._closing.get_loop() is not loop:
            run, self._run, self._closed = self._run, None, True
            self._closing = loop.create_task(self._close(run))
        closing = self._closing
        try:
            await asyncio.shield(closing)
        finally:
            if closing.done() and self._closing is closing:
                self._closing = None

    async def _close(self, run: Run | None) -> None:
        lost = run is not None and run.loop.is_closed()
        try:
            if run is not None:
                await run.close(self._config.stop_timeout_ms / 1000)
        finally:
            try:
                await self._log.aclose()
            finally:
                self._engine.stop() if lost else await self._engine.aclose()

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
        async with within(timeout, "the log is not applied yet"):
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
            OutcomeUnknownError: the node ended, or went on from a snapshot, before it could tell. It may be in the log,
                and be applied later.
            TimeoutError: after `timeout` seconds. While it waited for room it is withdrawn; after that it goes on, and
                nothing is said of what becomes of it.

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
        run = self._current()
        if run.proposals.refusal is not None:
            raise run.proposals.refusal.again()
        self._engine.check(*datas)
        if (size := frame_bytes(datas)) > run.frame_bytes_max:
            raise FrameTooLargeError(
                f"the {len(datas)} entries make a frame of {size} bytes, and {run.frame_bytes_max} is the most",
                hint="propose fewer together, or raise ring_bytes",
                size=size,
                limit=run.frame_bytes_max,
            )
        if timeout is None:
            return await run.proposals.put(datas, size)
        async with within(timeout, "the proposal has no result yet, and goes on if it did not still wait for room,"):
            return await run.proposals.put(datas, size)

    # ---- read ----------------------------------------------------------------------------------------------------

    async def barrier(self, timeout: float | None = None) -> LogId:
        """Wait until everything is applied here that was acknowledged to anybody before this call; returns
        `last_applied()`. Raises TimeoutError after `timeout` seconds, what the log raises, or what the node failed
        with."""
        run = self._running()
        async with within(timeout, "what was acknowledged is not applied here yet"):
            await run.feeder.reached(await run.barriers.last())
        run.feeder.check_state()
        return self._engine.last_applied()

    async def _reach(self, at_least: int | None, timeout: float | None) -> None:
        if at_least is None:
            await self.barrier(timeout)
        elif self._engine.last_applied().index < at_least:
            run = self._running()
            async with within(timeout, f"entry {at_least} is not applied here yet"):
                await run.feeder.applied(at_least)

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
        if run.peers is not None:
            run.peers.members.say_soon()
        await run.trimmer.trim()
        return info

    async def compact(self, keep_entries: int | None = None) -> int:
        """Cut the log behind what is durable without it, but for the newest `keep_entries` (None: the policy's). Where
        several nodes share it, that is cut which all were asked to, or need no more, once they have told each other.
        Returns the position that it was cut before, now or earlier in this run; 0: nowhere. Raises as
        `Log.truncate_before`."""
        run = self._running()
        keep = self._policy.keep_entries if keep_entries is None else keep_entries
        if keep < 0:
            raise ConfigError(f"keep_entries = {keep}: expected 0 or more", key="keep_entries", value=keep)
        await run.trimmer.cut_behind(self._engine.durable(), keep)
        if run.peers is not None:
            run.peers.members.say_soon()
        return run.trimmer.cut

    def members(self) -> list[Member]:
        """The nodes of a shared log, this one too, as they were heard last; none where the log is not shared."""
        peers = self._current().peers
        return [] if peers is None else peers.members.now()

    def status(self) -> NodeStatus:
        """Facts about this moment."""
        return status_of(self._current(), self._engine)

    def _current(self) -> Run:
        """Raises EngineStateError when nothing runs (NodeStoppedError: not any more), WrongLoopError."""
        if self._run is None and self._closed:
            raise NodeStoppedError("the node does not run: it was closed", hint="start() it again")
        if self._run is None:
            raise EngineStateError("the node does not run", hint="start() it, or enter `async with`")
        self._run.check_loop()
        return self._run

    def _running(self) -> Run:
        """As `_current`; raises what it failed with, too."""
        run = self._current()
        if run.failure is not None:
            raise run.failure.again()
        return run


def _closed_early() -> NodeStoppedError:
    return NodeStoppedError("the node was closed while it started")


def _data_of(command: Any) -> bytes:
    return command if type(command) is bytes else encode(command)
