"""Stand-ins for engines and nodes: the same calls, with the same outcomes, which are recorded.

What is not recorded is passed on to what they stand for.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, TypeVar

from shardengine.engine.conformance.operations import Operation, Read, Recorder, Scan, Write
from shardengine.engine.contract import ScanResult
from shardengine.engine.errors import (
    BadEntryError,
    ChunkAbortedError,
    ChunkFailedError,
    ChunkTooLargeError,
    FrameTooLargeError,
    LogConflictError,
    LogFullError,
    LogGapError,
    LogOrderError,
    NodeStoppedError,
    NotAppendedError,
    StoreFullError,
)
from shardengine.shards.machine import encode
from shardengine.shards.types import ApplyResult, Entry, LogId

T = TypeVar("T")
_NOT_PROPOSED = (BadEntryError, FrameTooLargeError, LogFullError, NodeStoppedError, NotAppendedError)
_NOT_APPLIED = (
    *(LogGapError, LogOrderError, LogConflictError, BadEntryError),
    *(ChunkFailedError, ChunkAbortedError, ChunkTooLargeError, StoreFullError),
)


class _StandIn:
    def __init__(self, recorder: Recorder, of: Any, session: str) -> None:
        self._recorder = recorder
        self._of = of
        self._session = session

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._of, name)

    def __bool__(self) -> bool:
        return True

    # ---- what all of them begin ----------------------------------------------------------------------------------

    def _get(self, keys: Iterable[bytes], **how: Any) -> Read:
        return self._recorder.begin_get(keys, session=self._session, **how)

    def _scan(self, *asked: Any, **how: Any) -> Scan:
        return self._recorder.begin_scan(*asked, session=self._session, **how)

    def _propose(self, commands: Iterable[Any]) -> Write:
        datas = [command if type(command) is bytes else encode(command) for command in commands]
        return self._recorder.begin_propose(datas, session=self._session)

    def _revision(self) -> int:
        """At which index the read was answered that has just come back, in a loop that nothing else had meanwhile."""
        index: int = self._of.last_applied().index
        return index


class RecordedView(_StandIn):
    """A view. It is closed as what it stands for is, by `with` too."""

    def __init__(self, recorder: Recorder, of: Any, session: str) -> None:
        super().__init__(recorder, of, session)
        self.revision: int = of.revision

    def get(self, key: bytes) -> bytes | None:
        operation = self._get([key], of_view=self.revision)
        value: bytes | None = _done(operation, lambda: self._of.get(key))
        operation.ok([value])
        return value

    def get_multi(self, keys: Iterable[bytes]) -> list[bytes | None]:
        if not (wanted := list(keys)):
            return []
        operation = self._get(wanted, of_view=self.revision)
        values: list[bytes | None] = _done(operation, lambda: self._of.get_multi(wanted))
        operation.ok(values)
        return values

    def scan_prefix(
        self, prefix: bytes, limit: int | None = None, start_after: bytes | None = None, reverse: bool = False
    ) -> ScanResult:
        operation = self._scan(prefix, limit, start_after, reverse, of_view=self.revision)
        result: ScanResult = _done(operation, lambda: self._of.scan_prefix(prefix, limit, start_after, reverse))
        operation.ok(result)
        return result

    def __len__(self) -> int:
        return len(self._of)

    def __enter__(self) -> RecordedView:
        return self

    def __exit__(self, *error: object) -> None:
        self._of.close()


class RecordedReads(_StandIn):
    """Local reads of an engine. `exact`: they are made in its own thread."""

    def __init__(self, recorder: Recorder, of: Any, session: str, *, exact: bool) -> None:
        super().__init__(recorder, of, session)
        self._exact = exact

    def get(self, key: bytes) -> bytes | None:
        operation = self._get([key], linearizable=False)
        value: bytes | None = _done(operation, lambda: self._of.get(key))
        operation.ok([value], self._at())
        return value

    def get_multi(self, keys: Iterable[bytes]) -> list[bytes | None]:
        if not (wanted := list(keys)):
            return []
        operation = self._get(wanted, linearizable=False)
        values: list[bytes | None] = _done(operation, lambda: self._of.get_multi(wanted))
        operation.ok(values, self._at())
        return values

    def scan_prefix(
        self, prefix: bytes, limit: int | None = None, start_after: bytes | None = None, reverse: bool = False
    ) -> ScanResult:
        operation = self._scan(prefix, limit, start_after, reverse, linearizable=False)
        result: ScanResult = _done(operation, lambda: self._of.scan_prefix(prefix, limit, start_after, reverse))
        operation.ok(result)
        return result

    def view(self) -> RecordedView:
        operation = self._get([], linearizable=False)
        view = _done(operation, self._of.view)
        operation.ok([], view.revision)
        return RecordedView(self._recorder, view, self._session)

    def __len__(self) -> int:
        return len(self._of)

    def _at(self) -> int | None:
        return self._revision() if self._exact else None


class RecordedEngine(RecordedReads):
    """An engine, or any `StateMachine`."""

    async def apply_chunk(self, entries: Sequence[Entry]) -> Sequence[ApplyResult]:
        if not entries:
            return []
        operation = self._recorder.begin_apply(entries, session=self._session)
        results: Sequence[ApplyResult] = await _awaited(operation, self._of.apply_chunk(entries), _NOT_APPLIED)
        operation.ok(results)
        return results


class RecordedNode(_StandIn):
    """A node."""

    @property
    def engine(self) -> RecordedReads:
        return RecordedReads(self._recorder, self._of.engine, self._session, exact=True)

    async def propose(self, command: Any, *, timeout: float | None = None) -> ApplyResult:
        operation = self._propose([command])
        result: ApplyResult = await _awaited(operation, self._of.propose(operation.datas[0], timeout=timeout))
        operation.ok([result])
        return result

    async def propose_many(self, commands: Iterable[Any], *, timeout: float | None = None) -> list[ApplyResult]:
        if not (wanted := list(commands)):
            return []
        operation = self._propose(wanted)
        results: list[ApplyResult] = await _awaited(operation, self._of.propose_many(operation.datas, timeout=timeout))
        operation.ok(results)
        return results

    async def get(self, key: bytes, *, at_least: int | None = None, timeout: float | None = None) -> bytes | None:
        operation = self._get([key], **_level(at_least))
        how = {"at_least": at_least, "timeout": timeout}
        value: bytes | None = await _awaited(operation, self._of.get(key, **how))
        operation.ok([value], self._revision())
        return value

    async def get_multi(
        self, keys: Iterable[bytes], *, at_least: int | None = None, timeout: float | None = None
    ) -> list[bytes | None]:
        if not (wanted := list(keys)):
            return []
        operation = self._get(wanted, **_level(at_least))
        how = {"at_least": at_least, "timeout": timeout}
        values: list[bytes | None] = await _awaited(operation, self._of.get_multi(wanted, **how))
        operation.ok(values, self._revision())
        return values

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
        asked = (prefix, limit, start_after, reverse)
        operation = self._scan(*asked, **_level(at_least))
        how = {"at_least": at_least, "timeout": timeout}
        result: ScanResult = await _awaited(operation, self._of.scan_prefix(*asked, **how))
        operation.ok(result)
        return result

    async def view(self, *, at_least: int | None = None, timeout: float | None = None) -> RecordedView:
        operation = self._get([], **_level(at_least))
        view = await _awaited(operation, self._of.view(at_least=at_least, timeout=timeout))
        operation.ok([], view.revision)
        return RecordedView(self._recorder, view, self._session)

    async def barrier(self, timeout: float | None = None) -> LogId:
        operation = self._get([])
        last: LogId = await _awaited(operation, self._of.barrier(timeout))
        operation.ok([], last.index)
        return last


class RecordedSyncNode(_StandIn):
    """A `SyncNode`. Other threads may apply between a read and its end: it does not know its revision."""

    @property
    def engine(self) -> RecordedReads:
        return RecordedReads(self._recorder, self._of.engine, self._session, exact=False)

    def propose(self, command: Any, *, timeout: float | None = None) -> ApplyResult:
        operation = self._propose([command])
        result: ApplyResult = _done(operation, lambda: self._of.propose(operation.datas[0], timeout=timeout))
        operation.ok([result])
        return result

    def propose_many(self, commands: Iterable[Any], *, timeout: float | None = None) -> list[ApplyResult]:
        if not (wanted := list(commands)):
            return []
        operation = self._propose(wanted)
        results: list[ApplyResult]
        results = _done(operation, lambda: self._of.propose_many(operation.datas, timeout=timeout))
        operation.ok(results)
        return results

    def get(self, key: bytes, *, at_least: int | None = None, timeout: float | None = None) -> bytes | None:
        operation = self._get([key], **_level(at_least))
        value: bytes | None = _done(operation, lambda: self._of.get(key, at_least=at_least, timeout=timeout))
        operation.ok([value])
        return value

    def get_multi(
        self, keys: Iterable[bytes], *, at_least: int | None = None, timeout: float | None = None
    ) -> list[bytes | None]:
        if not (wanted := list(keys)):
            return []
        operation = self._get(wanted, **_level(at_least))
        values: list[bytes | None]
        values = _done(operation, lambda: self._of.get_multi(wanted, at_least=at_least, timeout=timeout))
        operation.ok(values)
        return values

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
        asked = (prefix, limit, start_after, reverse)
        operation = self._scan(*asked, **_level(at_least))
        result: ScanResult
        result = _done(operation, lambda: self._of.scan_prefix(*asked, at_least=at_least, timeout=timeout))
        operation.ok(result)
        return result

    def view(self, *, at_least: int | None = None, timeout: float | None = None) -> RecordedView:
        operation = self._get([], **_level(at_least))
        view = _done(operation, lambda: self._of.view(at_least=at_least, timeout=timeout))
        operation.ok([], view.revision)
        return RecordedView(self._recorder, view, self._session)

    def barrier(self, timeout: float | None = None) -> LogId:
        operation = self._get([])
        last: LogId = _done(operation, lambda: self._of.barrier(timeout))
        operation.ok([], last.index)
        return last


def _level(at_least: int | None) -> dict[str, Any]:
    return {"linearizable": at_least is None, "at_least": at_least or 0}


def _done(operation: Operation, work: Callable[[], T]) -> T:
    try:
        return work()
    except BaseException as error:
        _fail(operation, error, _NOT_PROPOSED)
        raise


async def _awaited(operation: Operation, work: Awaitable[T], nothing: tuple[type[Exception], ...] = _NOT_PROPOSED) -> T:
    try:
        return await work
    except BaseException as error:
        _fail(operation, error, nothing)
        raise


def _fail(operation: Operation, error: BaseException, nothing: tuple[type[Exception], ...]) -> None:
    """A read has no effect in any case."""
    if isinstance(operation, Write) and not isinstance(error, nothing):
        operation.unknown(error)
    else:
        operation.failed(error)
