"""`SyncNode`: a node for code that has no event loop, and for any number of threads."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar

from shardengine.engine.config import EngineConfig
from shardengine.engine.contract import ScanResult, SnapshotInfo, StartReport
from shardengine.engine.errors import EngineError
from shardengine.engine.node.log import Log
from shardengine.engine.node.node import Node
from shardengine.engine.node.policy import NodePolicy
from shardengine.engine.node.shared import Member
from shardengine.engine.node.status import NodeStatus
from shardengine.engine.read.view import View
from shardengine.engine.sync.crossing import Crossing
from shardengine.engine.sync.reads import SyncReads, as_in
from shardengine.shards.kv import KeyValue
from shardengine.shards.machine import Machine
from shardengine.shards.types import ApplyResult, LogId

P = ParamSpec("P")
T = TypeVar("T")


class SyncNode:
    """A `Node` whose methods block, and may be called by any thread, by many at once. `with SyncNode("data") as node`
    is all it takes.

    From `start` to `close` it has a thread with an event loop, in which engine and log live. A barrier is waited for
    there; the read that follows is made in the thread that asks, as are all reads of `engine`, and such with an
    `at_least` that is applied already: they cost about as much as an engine's own.

    It is closed as the interpreter ends, and behaves then, in forked children, and at a Ctrl-C as `SyncEngine` does.
    `close` is the node's `aclose`; arguments, results and errors are those of `Node`.
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
        self._node = Node(
            path,
            log=log,
            machine=machine,
            shards=shards,
            config=config,
            policy=policy,
            shared_snapshots=shared_snapshots,
        )
        self._local = SyncReads(self._node.engine)
        self._crossing = Crossing(self._node.engine, self._node._config, self._node.aclose)

    @property
    def engine(self) -> SyncReads:
        """For local reads: they see what is applied here, without asking the log."""
        return self._local

    # ---- life ----------------------------------------------------------------------------------------------------

    @as_in(Node.start)
    def start(self) -> StartReport:
        report: StartReport = self._crossing.begin(self._node.start)
        return report

    @as_in(Node.aclose)
    def close(self) -> None:
        self._crossing.end(self._node.aclose)

    def __enter__(self) -> SyncNode:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._crossing.forked:
            self.close()

    @as_in(Node.is_running)
    def is_running(self) -> bool:
        self._local._check_process()
        run = self._node._run  # of which another thread may let go
        return run is not None and run.failure is None and self._node.engine.is_running()

    @property
    def failure(self) -> EngineError | None:
        """Why nothing is applied any more; None: it is, or the node does not run."""
        run = self._node._run
        return None if run is None else run.failure

    @as_in(Node.wait_ready)
    def wait_ready(self, timeout: float | None = None) -> None:
        self._wait(Node.wait_ready, timeout)

    # ---- propose -------------------------------------------------------------------------------------------------

    @as_in(Node.propose)
    def propose(self, command: Any, *, timeout: float | None = None) -> ApplyResult:
        return self._wait(Node.propose, command, timeout=timeout)

    @as_in(Node.propose_many)
    def propose_many(self, commands: Iterable[Any], *, timeout: float | None = None) -> list[ApplyResult]:
        return self._wait(Node.propose_many, list(commands), timeout=timeout)

    # ---- read ----------------------------------------------------------------------------------------------------

    @as_in(Node.barrier)
    def barrier(self, timeout: float | None = None) -> LogId:
        return self._wait(Node.barrier, timeout)

    @as_in(Node.get)
    def get(self, key: bytes, *, at_least: int | None = None, timeout: float | None = None) -> bytes | None:
        self._reach(at_least, timeout)
        return self._local.get(key)

    @as_in(Node.get_multi)
    def get_multi(
        self, keys: Iterable[bytes], *, at_least: int | None = None, timeout: float | None = None
    ) -> list[bytes | None]:
        self._reach(at_least, timeout)
        return self._local.get_multi(keys)

    @as_in(Node.scan_prefix)
    def scan_prefix(
        self,
        prefix: bytes,
        limit: int | None = None,
        start_after: bytes | None = None,
        reverse: bool = False,
        *,
        at_least: int | None = None,
        timeout: float | None = None,
    ) -> ScanResult:
        self._reach(at_least, timeout)
        return self._local.scan_prefix(prefix, limit, start_after, reverse)

    @as_in(Node.view)
    def view(self, *, at_least: int | None = None, timeout: float | None = None) -> View:
        self._reach(at_least, timeout)
        return self._local.view()

    @as_in(Node.last_applied)
    def last_applied(self) -> LogId:
        return self._local.last_applied()

    def _reach(self, at_least: int | None, timeout: float | None) -> None:
        if at_least is None or self._local.last_applied().index < at_least:
            self._wait(Node._reach, at_least, timeout)

    # ---- snapshots and the log's end -----------------------------------------------------------------------------

    @as_in(Node.snapshot)
    def snapshot(self) -> SnapshotInfo:
        return self._wait(Node.snapshot)

    @as_in(Node.compact)
    def compact(self, keep_entries: int | None = None) -> int:
        return self._wait(Node.compact, keep_entries)

    @as_in(Node.members)
    def members(self) -> list[Member]:
        members: list[Member] = self._crossing.ask(self._node.members)
        return members

    @as_in(Node.status)
    def status(self) -> NodeStatus:
        status: NodeStatus = self._crossing.ask(self._node.status)
        return status

    def _wait(self, method: Callable[Concatenate[Node, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """None of the coroutines does anything while nothing runs."""
        outcome: T = self._crossing.ask(partial(method, self._node, *args, **kwargs), self._node._running)
        return outcome
