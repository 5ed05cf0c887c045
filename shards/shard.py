"""A worker's duties, without its process: orders in, answers out.

At most one part is applied and not committed (`current`); later ones queue, unread, behind it. A part that is marked
decided is committed as soon as it is applied. When that, or a commit, fails, the shard is *stalled*: the group is
decided and there is no "no" any more, so `retry` applies it again from the ring until it succeeds. That is so only for
want of room: after any other failure of a commit nobody here knows what is committed, so it is raised, and ends the
worker.

A part that pauses has run its commands and written nothing (`paused`): it answers questions out of its transaction
until it is given what the coordinator's commands wrote, and votes then. Everything else is handled meanwhile.
"""

from __future__ import annotations

import enum
import logging
from collections import deque
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, TypeVar

import msgspec

from shardengine.ipc.errors import EngineError, RingError
from shardengine.ipc.ring import Extent
from shardengine.shards import part as layout
from shardengine.shards import wire
from shardengine.shards.errors import ChunkFailedError, ChunkTooLargeError, StoreFullError
from shardengine.shards.fast import sorted_puts
from shardengine.shards.kv import plain_put_of
from shardengine.shards.machine import Machine
from shardengine.shards.running import PURE, ApplyError, Runner, problem_of, text_of
from shardengine.shards.transaction import Record, Tx
from shardengine.shards.types import Limits, Position


class TransactionalStore(Protocol):
    """What a shard needs of a store; `shards.store.Store` is one."""

    def begin(self) -> None: ...
    def get(self, key: bytes) -> bytes | None: ...
    def scan(self, prefix: bytes, partitions: Set[bytes], limit: int | None, reverse: bool) -> Iterator[Record]: ...
    def write(self, writes: dict[bytes, bytes | None]) -> None: ...
    def put_sorted(self, pairs: list[tuple[bytes, bytes]], longest: int) -> None: ...
    def commit(self, position: Position, solo_results: bytes | None = None, solo_runs: bytes = b"") -> None: ...
    def abort(self) -> None: ...
    def sync(self) -> None: ...


_ITEM_BYTES = 8  # of what surrounds a key or a value in an answer, at most
log = logging.getLogger("shardengine")
B = TypeVar("B", bytes, "bytes | None")


class Fork(enum.Enum):
    """What a fork made of this process."""

    NONE = "it did not fork"
    PARENT = "it has a child"
    CHILD = "it is the child of a worker"


class OrphanError(BaseException):
    """`apply` forked, and this is the child, which has come back from it: it must end and touch nothing."""


class _Done(NamedTuple):
    """A group whose commands are done, and whose writes the store does not have yet."""

    transaction: Tx
    results: wire.PartResults


class Shard:
    """Applies parts to one store, in the order they come.

    Invariant: `current` is set exactly while the store holds its open transaction, or while its vote was no, or while
    it is stalled; `paused` while that transaction waits for the coordinator's writes; what `queue` begins with has to
    wait for a commit.
    """

    def __init__(
        self,
        store: TransactionalStore,
        machine: Machine,
        limits: Limits,
        view: Callable[[int, int], memoryview],
        answer_bytes_max: int,
    ) -> None:
        self._store = store
        self._view = view
        self._answer_bytes_max = answer_bytes_max
        self._decode = msgspec.msgpack.Decoder(list[machine.command]).decode  # type: ignore[name-defined]
        self._runner = Runner(machine, limits)
        self._plain_put = plain_put_of(machine)
        self._current: wire.Part | None = None
        self._paused: _Done | None = None
        self._queue: deque[wire.Part | wire.Ask | wire.Writes] = deque()
        self.stalled = False
        self.fork = Fork.NONE
        """For the process around it to set, in either one, when it has forked."""

    def handle(
        self, order: wire.Part | wire.Ask | wire.Writes | wire.Solo | wire.Commit | wire.Abort | wire.Flush
    ) -> Iterator[wire.Answer]:
        """Carry out one order. Yields the answers it gives rise to, in the order they must be sent, each before the
        next work begins: what a commit answers does not wait for the part behind it. To be exhausted."""
        if isinstance(order, (wire.Part, wire.Ask, wire.Writes)):
            if not isinstance(order, wire.Part) and self._current and self._current.position.group == order.group:
                yield from self._go_on(self._current, order)
            else:
                self._queue.append(order)
        elif isinstance(order, wire.Solo):
            assert self._current is None and not self._queue
            yield self._solo(order)
        elif isinstance(order, wire.Commit):
            assert self._current is not None and self._current.position.group == order.group
            yield from self._commit(self._current)
        elif isinstance(order, wire.Abort):
            self._abort(order.group)
        else:
            yield self._flush(order.token)
        yield from self._advance()

    def retry(self) -> Iterator[wire.Answer]:
        """Try again to commit the decided group that stalled. As `handle`."""
        assert self.stalled and self._current is not None
        self.stalled = False
        yield from self._redo(self._current)
        yield from self._advance()

    def _abort(self, group: int) -> None:
        if self._current is not None and self._current.position.group >= group:
            self._store.abort()
            self._current = self._paused = None
        self._queue = deque(order for order in self._queue if _group_of(order) < group)

    def _advance(self) -> Iterator[wire.Answer]:
        while self._queue:
            order = self._queue[0]
            if isinstance(order, wire.Part):
                if self._current is not None:
                    return
                self._current = order
                self._queue.popleft()
                yield from self._redo(order) if order.decided else self._begin(order)
            elif self._current is not None and self._current.position.group == order.group:
                self._queue.popleft()
                yield from self._go_on(self._current, order)
            else:
                return

    # ---- a part that is voted on ---------------------------------------------------------------------------------

    def _begin(self, part: wire.Part) -> list[wire.Answer]:
        try:
            if not part.pause:
                return [self._yes(part, self._apply(part.extent))]
            self._store.begin()
            with self._undone_on_error():
                self._paused = self._run(self._parts(part.extent))
        except ApplyError as error:
            return [self._no(part, error)]
        return [] if part.question is None else self._answer(part, self._paused, part.question)

    def _go_on(self, part: wire.Part, order: wire.Ask | wire.Writes) -> list[wire.Answer]:
        paused = self._paused
        if paused is None:
            return []  # its vote was no
        if isinstance(order, wire.Ask):
            return self._answer(part, paused, order.question)
        self._paused = None
        self._current = msgspec.structs.replace(part, extent=order.extent, pause=False)
        try:
            with self._undone_on_error():
                return [self._yes(part, self._finish(paused, order.extent))]
        except ApplyError as error:
            return [self._no(part, error)]

    def _answer(self, part: wire.Part, paused: _Done, question: wire.Question) -> list[wire.Answer]:
        try:
            with self._undone_on_error():
                return [self._look_up(part.position.group, paused.transaction, question)]
        except ApplyError as error:
            self._paused = None
            return [self._no(part, error)]

    def _look_up(self, group: int, transaction: Tx, question: wire.Question) -> wire.Values:
        budget = _Budget(self._answer_bytes_max)
        values = [budget.spend(transaction.current(key)) for key in question.keys]
        ranges = []
        for asked in question.ranges:
            found = transaction.within(frozenset(asked.partitions), asked.prefix, asked.limit, asked.reverse)
            records = [(budget.spend(key), budget.spend(value)) for key, value in found]
            ranges.append(wire.Found(records, asked.limit is None or len(records) < asked.limit))
        return wire.Values(group, question.number, values, ranges)

    def _finish(self, paused: _Done, extent: Extent) -> wire.PartResults:
        for part in self._parts(extent):
            writes = part.writes()
            if writes is not None:
                paused.transaction.write_all(writes)
        return self._write(paused)

    def _yes(self, part: wire.Part, results: wire.PartResults) -> wire.Vote:
        return wire.Vote(part.position.group, results, None, None)

    def _no(self, part: wire.Part, error: ApplyError) -> wire.Vote:
        self._tell(error)
        return wire.Vote(part.position.group, None, error.problem, error.index)

    # ---- what is decided -----------------------------------------------------------------------------------------

    def _commit(self, part: wire.Part) -> list[wire.Answer]:
        try:
            self._store.commit(part.position)
        except StoreFullError as error:
            self.stalled = True
            return [wire.Stalled(part.position.group, problem_of(error))]
        self._current = None
        return [wire.Committed(part.position.group)]

    def _redo(self, part: wire.Part) -> list[wire.Answer]:
        try:
            self._apply(part.extent)
        except ApplyError as error:
            self.stalled = True
            return [wire.Stalled(part.position.group, error.problem)]
        return self._commit(part)

    def _solo(self, order: wire.Solo) -> wire.SoloDone:
        group = order.position.group
        try:
            results = self._apply(order.extent)
            told = wire.encode(results) if results.values or results.rejected else b""
            self._store.commit(order.position, told, order.runs)
        except ApplyError as error:
            self._tell(error)
            return wire.SoloDone(group, None, error.problem, error.index)
        except StoreFullError as error:
            return wire.SoloDone(group, None, problem_of(error), None)
        return wire.SoloDone(group, results, None, None)

    def _flush(self, token: int) -> wire.Flushed:
        try:
            self._store.sync()
        except EngineError as error:
            return wire.Flushed(token, problem_of(error))
        return wire.Flushed(token, None)

    # ---- a group's commands --------------------------------------------------------------------------------------

    def _apply(self, extent: Extent) -> wire.PartResults:
        """Apply a group's parts inside a new transaction: begin, run the commands, write. On ApplyError there is none
        any more."""
        self._store.begin()
        with self._undone_on_error():
            parts = self._parts(extent)
            puts = self._plain(parts[0]) if len(parts) == 1 else None
            if puts is not None:
                self._store.put_sorted(*puts)
                return wire.PartResults({}, {})
            return self._write(self._run(parts))

    @contextmanager
    def _undone_on_error(self) -> Iterator[None]:
        """Work within the open transaction, which is aborted when that raises. Raises ApplyError."""
        try:
            yield
        except EngineError as error:
            self._store.abort()
            raise ApplyError(None, problem_of(error)) from error
        except ApplyError:
            self._store.abort()
            raise

    def _parts(self, extent: Extent) -> list[layout.Unpacked]:
        return list(layout.unpack(self._view(extent.offset, extent.length))) if extent.length else []

    def _run(self, parts: list[layout.Unpacked]) -> _Done:
        """Run the commands of a group. Nothing is written yet."""
        done = _Done(self._runner.transaction(self._store), wire.PartResults({}, {}))
        for part in parts:
            self._apply_part(part, done.transaction, done.results)
        return done

    def _write(self, done: _Done) -> wire.PartResults:
        """Give the store what the commands of a group have written."""
        self._store.write(done.transaction.writes)
        return done.results

    def _plain(self, part: layout.Unpacked) -> tuple[list[tuple[bytes, bytes]], int] | None:
        """The writes of a part of nothing but plain puts, and their longest value; None for any other part."""
        if self._plain_put is None or int.from_bytes(part.commands[1:5], "big") != part.entries:
            return None
        return sorted_puts(part.commands, self._plain_put)

    def _apply_part(self, part: layout.Unpacked, transaction: Tx, results: wire.PartResults) -> None:
        pairs = part.writes()
        puts = None if pairs is not None else self._plain(part)
        if pairs is not None or puts is not None:
            transaction.write_all(puts[0] if puts is not None else pairs or ())
            return
        try:
            commands = self._decode(part.commands)
        except Exception as error:
            raise RingError(f"a part does not decode: {text_of(error)}") from error
        if len(commands) != part.entries:
            raise RingError(f"a part of {part.entries} entries holds {len(commands)} commands")
        self._apply_each(commands, part, transaction, results)

    def _apply_each(
        self, commands: list[Any], unpacked: layout.Unpacked, transaction: Tx, results: wire.PartResults
    ) -> None:
        runs = iter([*unpacked.runs(), layout.Run(1 << 64, 0, 0)])
        run, upcoming = next(runs), next(runs)
        for index, command in zip(unpacked.indices(), commands, strict=True):
            while index >= upcoming.first:
                run, upcoming = upcoming, next(runs)
            try:
                value, reason = self._runner.run(transaction, command, index, run)
            except ApplyError as error:
                if self.fork is Fork.CHILD:
                    raise OrphanError from error
                raise
            if reason is not None:
                transaction.drop()
                results.rejected[index] = reason
            else:
                transaction.settle()
                if value is not None:
                    results.values[index] = value
            if self.fork is not Fork.NONE:
                self._refuse_fork(index, command)

    def _refuse_fork(self, index: int, command: Any) -> None:
        if self.fork is Fork.CHILD:
            raise OrphanError
        self.fork = Fork.NONE
        error = ChunkFailedError("apply forked the worker's process", hint=PURE)
        raise ApplyError(index, self._runner.problem(error, command))

    def _tell(self, error: ApplyError) -> None:
        """Leave in the log what `apply` said."""
        if error.index is not None:
            facts = error.problem.facts
            text = "entry %d failed its chunk: command %s, keys %s\n%s"
            log.error(text, error.index, facts["command"], facts["keys"], facts["traceback"])


class _Budget:
    """The bytes that one answer may have."""

    def __init__(self, limit: int) -> None:
        self._limit = self._left = limit

    def spend(self, found: B) -> B:
        self._left -= _ITEM_BYTES if found is None else _ITEM_BYTES + len(found)
        if self._left < 0:
            raise ChunkTooLargeError(
                f"commands over several shards ask for more than {self._limit} bytes of one shard at once",
                hint="send smaller chunks, scan with a limit, or raise ring_bytes (an answer may have half of it)",
                limit=self._limit,
            )
        return found


def _group_of(order: wire.Part | wire.Ask | wire.Writes) -> int:
    return order.position.group if isinstance(order, wire.Part) else order.group
