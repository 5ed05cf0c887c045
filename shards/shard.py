"""A worker's duties, without its process: orders in, answers out.

At most one part is applied and not committed (`current`); later ones queue, unread, behind it. A part that is marked
decided is committed as soon as it is applied. When that, or a commit, fails, the shard is *stalled*: the group is
decided and there is no "no" any more, so `retry` applies it again from the ring until it succeeds. That is so only for
want of room: after any other failure of a commit nobody here knows what is committed, so it is raised, and ends the
worker.
"""

from __future__ import annotations

import enum
import logging
import traceback
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Any, NamedTuple, Protocol

import msgspec

from shardengine.ipc.errors import EngineError, RingError
from shardengine.ipc.ring import Extent
from shardengine.shards import part as layout
from shardengine.shards import wire
from shardengine.shards.errors import ChunkFailedError, StoreFullError
from shardengine.shards.fast import sorted_puts
from shardengine.shards.kv import plain_put_of
from shardengine.shards.machine import Context, Machine, Rejected, Tx
from shardengine.shards.types import Limits, Position


class TransactionalStore(Protocol):
    """What a shard needs of a store; `shards.store.Store` is one."""

    def begin(self) -> None: ...
    def get(self, key: bytes) -> bytes | None: ...
    def write(self, writes: dict[bytes, bytes | None]) -> None: ...
    def put_sorted(self, pairs: list[tuple[bytes, bytes]], longest: int) -> None: ...
    def commit(self, position: Position, solo_results: bytes | None = None) -> None: ...
    def abort(self) -> None: ...
    def sync(self) -> None: ...


_TRACEBACK_CHARS = 8000
_COMMAND_CHARS = 1000
_KEYS_MAX = 16
log = logging.getLogger("shardengine")


class Fork(enum.Enum):
    """What a fork made of this process."""

    NONE = "it did not fork"
    PARENT = "it has a child"
    CHILD = "it is the child of a worker"


class OrphanError(BaseException):
    """`apply` forked, and this is the child, which has come back from it: it must end and touch nothing."""


class _ApplyError(Exception):
    """`apply`, or the decoding, of the entry at `index` failed. `problem` is what travels."""

    def __init__(self, index: int | None, problem: wire.Problem) -> None:
        super().__init__(problem.message)
        self.index = index
        self.problem = problem


class _Done(NamedTuple):
    """A group whose commands are done, and whose writes the store does not have yet."""

    transaction: Tx
    results: wire.PartResults


class Shard:
    """Applies parts to one store, in the order they come.

    Invariant: `current` is set exactly while the store holds its open transaction, or while its vote was no, or while
    it is stalled; `queue` is empty whenever `current` is None.
    """

    def __init__(
        self, store: TransactionalStore, machine: Machine, limits: Limits, view: Callable[[int, int], memoryview]
    ) -> None:
        self._store = store
        self._machine = machine
        self._limits = limits
        self._view = view
        self._decode = msgspec.msgpack.Decoder(list[machine.command]).decode  # type: ignore[name-defined]
        self._context = Context()
        self._plain_put = plain_put_of(machine)
        self._current: wire.Part | None = None
        self._queue: deque[wire.Part] = deque()
        self.stalled = False
        self.fork = Fork.NONE
        """For the process around it to set, in either one, when it has forked."""

    def handle(self, order: wire.Part | wire.Solo | wire.Commit | wire.Abort | wire.Flush) -> list[wire.Answer]:
        """Carry out one order. Returns the answers it gives rise to, in the order they must be sent."""
        if isinstance(order, wire.Solo):
            assert self._current is None and not self._queue
            return [self._solo(order)]
        if isinstance(order, wire.Part):
            self._queue.append(order)
            return self._advance()
        if isinstance(order, wire.Commit):
            assert self._current is not None and self._current.position.group == order.group
            return self._commit(self._current) + self._advance()
        if isinstance(order, wire.Abort):
            return self._abort(order.group)
        return [self._flush(order.token)]

    def retry(self) -> list[wire.Answer]:
        """Try again to commit the decided group that stalled."""
        assert self.stalled and self._current is not None
        self.stalled = False
        return self._redo(self._current) + self._advance()

    def _abort(self, group: int) -> list[wire.Answer]:
        if self._current is not None and self._current.position.group >= group:
            self._store.abort()
            self._current = None
        self._queue = deque(part for part in self._queue if part.position.group < group)
        return self._advance()

    def _advance(self) -> list[wire.Answer]:
        answers: list[wire.Answer] = []
        while self._current is None and self._queue:
            part = self._current = self._queue.popleft()
            answers += self._redo(part) if part.decided else [self._vote(part)]
        return answers

    def _vote(self, part: wire.Part) -> wire.Vote:
        try:
            return wire.Vote(part.position.group, self._apply(part.extent), None, None)
        except _ApplyError as error:
            self._tell(error)
            return wire.Vote(part.position.group, None, error.problem, error.index)

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
        except _ApplyError as error:
            self.stalled = True
            return [wire.Stalled(part.position.group, error.problem)]
        return self._commit(part)

    def _solo(self, order: wire.Solo) -> wire.SoloDone:
        group = order.position.group
        try:
            results = self._apply(order.extent)
            self._store.commit(order.position, wire.encode(results) if results.values or results.rejected else b"")
        except _ApplyError as error:
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

    def _apply(self, extent: Extent) -> wire.PartResults:
        """Apply a group's parts inside a new transaction: begin, run the commands, write. On _ApplyError there is none
        any more."""
        self._store.begin()
        try:
            parts = list(layout.unpack(self._view(extent.offset, extent.length)))
            puts = self._plain(parts[0]) if len(parts) == 1 else None
            if puts is not None:
                self._store.put_sorted(*puts)
                return wire.PartResults({}, {})
            return self._write(self._run(parts))
        except EngineError as error:
            self._store.abort()
            raise _ApplyError(None, problem_of(error)) from error
        except _ApplyError:
            self._store.abort()
            raise

    def _run(self, parts: list[layout.Unpacked]) -> _Done:
        """Run the commands of a group. Nothing is written yet."""
        done = _Done(Tx(self._store.get, self._limits), wire.PartResults({}, {}))
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
        puts = self._plain(part)
        if puts is not None:
            transaction.write_all(puts[0])
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
        machine, context = self._machine, self._context
        runs = iter([*unpacked.runs(), layout.Run(1 << 64, 0, 0)])
        run, upcoming = next(runs), next(runs)
        for index, command in zip(unpacked.indices(), commands, strict=True):
            while index >= upcoming.first:
                run, upcoming = upcoming, next(runs)
            context.index, context.term, context.time_ms = index, run.term, run.clock
            try:
                transaction.declare(machine.keys(command))
                value = machine.apply(transaction, command, context)
                if value is not None:
                    results.values[index] = _portable(value)
            except Rejected as rejection:
                transaction.drop()
                results.rejected[index] = _reason(rejection)
            except BaseException as error:
                if self.fork is Fork.CHILD:
                    raise OrphanError from error
                raise _ApplyError(index, self._problem(error, command)) from error
            else:
                transaction.settle()
            if self.fork is not Fork.NONE:
                self._refuse_fork(index, command)

    def _refuse_fork(self, index: int, command: Any) -> None:
        if self.fork is Fork.CHILD:
            raise OrphanError
        self.fork = Fork.NONE
        error = ChunkFailedError("apply forked the worker's process", hint="apply does nothing but read and write tx")
        raise _ApplyError(index, self._problem(error, command))

    def _problem(self, error: BaseException, command: Any) -> wire.Problem:
        """What `error` of a command's `apply` becomes: with the command, its keys, and where it happened."""
        problem = problem_of(error)
        told = {
            "reason": problem.message,
            "traceback": text_of("".join(traceback.format_exception(error)))[-_TRACEBACK_CHARS:],
            "command": _shown(command)[:_COMMAND_CHARS],
            "keys": _keys(self._machine, command),
        }
        return msgspec.structs.replace(problem, facts=told | problem.facts)

    def _tell(self, error: _ApplyError) -> None:
        """Leave in the log what `apply` said."""
        if error.index is not None:
            facts = error.problem.facts
            text = "entry %d failed its chunk: command %s, keys %s\n%s"
            log.error(text, error.index, facts["command"], facts["keys"], facts["traceback"])


def _keys(machine: Machine, command: Any) -> list[bytes]:
    """The first keys of a command, as far as its machine tells."""
    try:
        return [bytes(key) for key in islice(machine.keys(command), _KEYS_MAX)]
    except BaseException:
        return []


def _reason(rejection: Rejected) -> str:
    try:
        return text_of(rejection.reason)
    except BaseException as error:
        return f"a reason that cannot be told: {type(error).__name__}"


def _shown(value: object) -> str:
    try:
        return text_of(repr(value))
    except BaseException as error:
        return f"a {type(value).__name__} that cannot be printed: {type(error).__name__}"


def problem_of(error: BaseException) -> wire.Problem:
    """An error as it travels. Its numbers go along where msgpack carries them."""
    if isinstance(error, EngineError):
        facts = {name: value for name, value in error.facts.items() if _travels(value)}
        return wire.Problem(type(error).__name__, text_of(error.message), text_of(error.hint), facts)
    return wire.Problem(text_of(type(error).__name__), text_of(error) or text_of(type(error).__name__), "", {})


def _portable(value: Any) -> msgspec.Raw:
    """A result as it travels. Raises when msgpack does not carry it there and back."""
    encoded = wire.encode(value)
    msgspec.msgpack.decode(encoded)
    return msgspec.Raw(encoded)


def _travels(value: object) -> bool:
    try:
        _portable(value)
    except (msgspec.MsgspecError, OverflowError, TypeError, UnicodeError):
        return False
    return isinstance(value, (int, str, bytes))


def text_of(value: object) -> str:
    """What `value` says, without what UTF-8 does not carry."""
    try:
        return str(value).encode("utf-8", "backslashreplace").decode()
    except BaseException as error:
        return f"an error that cannot be printed: {type(error).__name__}"
