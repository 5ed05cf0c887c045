"""Runs commands of a machine, wherever that is done, and makes of what comes of them what travels."""

from __future__ import annotations

import os
import threading
import traceback
from itertools import islice
from typing import Any, NamedTuple

import msgspec

from shardengine.ipc.errors import EngineError
from shardengine.shards import wire
from shardengine.shards.errors import ChunkFailedError
from shardengine.shards.machine import Context, Machine, Rejected, partition_of
from shardengine.shards.part import Run
from shardengine.shards.transaction import Base, MissingError, Tx
from shardengine.shards.types import Limits

_TRACEBACK_CHARS = 8000
_COMMAND_CHARS = 1000
_KEYS_MAX = 16
PURE = "apply does nothing but read and write tx"
_RESULTS = (
    "a result is what msgpack carries: None, bool, int of 64 bits, float, str, bytes, lists, dicts, structs of these"
)


class ApplyError(Exception):
    """`apply`, or the decoding, of the entry at `index` failed. `problem` is what travels."""

    def __init__(self, index: int | None, problem: wire.Problem) -> None:
        super().__init__(problem.message)
        self.index = index
        self.problem = problem


class Outcome(NamedTuple):
    """What a command came to: its value as it travels, or why it was rejected; with neither it succeeded."""

    value: msgspec.Raw | None = None
    reason: str | None = None


_SUCCEEDED = Outcome()
_NONE, _PARENT, _CHILD = "none", "parent", "child"
_forks: dict[int, str] = {}
"""What a fork made of this process, by the thread that runs a command in it."""


def _note_fork(made: str) -> None:
    thread = threading.get_ident()
    if thread in _forks and _forks[thread] is not _CHILD:
        _forks[thread] = made


os.register_at_fork(after_in_parent=lambda: _note_fork(_PARENT), after_in_child=lambda: _note_fork(_CHILD))


class Runner:
    """Runs one command after the other. Its transaction is the caller's: to settle, or to drop, after each."""

    def __init__(self, machine: Machine, limits: Limits) -> None:
        self._machine = machine
        self._limits = limits
        self._partition_of = partition_of(machine)
        self._context = Context()

    def transaction(self, base: Base) -> Tx:
        """One for a group's commands, over `base`."""
        return Tx(base, self._limits, self._partition_of)

    def run(self, transaction: Tx, command: Any, index: int, run: Run) -> Outcome:
        """Run `command`, of the entry `index`, which stands in `run`. Raises ApplyError when it fails, MissingError
        when what its transaction lies on has to be told something first."""
        context = self._context
        context.index, context.term, context.time_ms = index, run.term, run.clock
        try:
            transaction.declare(self._machine.keys(command))
            value = self._machine.apply(transaction, command, context)
            if transaction.refusal is not None:
                raise transaction.refusal  # whatever `apply` made of it
            return _SUCCEEDED if value is None else Outcome(_result(value))
        except Rejected as rejection:
            if transaction.refusal is not None:
                raise ApplyError(index, self.problem(transaction.refusal, command)) from rejection
            return Outcome(reason=_reason(rejection))
        except MissingError:
            raise
        except BaseException as error:
            raise ApplyError(index, self.problem(error, command)) from error
        finally:
            transaction.refusal = None

    def run_in_host(self, transaction: Tx, command: Any, index: int, run: Run) -> Outcome:
        """As `run`, in a process that is no worker's. A command that forks fails, and the child ends with it: it would
        go on with everything that the host has open."""
        thread = threading.get_ident()
        _forks[thread] = _NONE
        try:
            return self.run(transaction, command, index, run)
        finally:
            forked = _forks.pop(thread)
            if forked is _CHILD:
                os._exit(1)
            if forked is not _NONE:
                error = ChunkFailedError("apply forked the engine's own process", hint=PURE)
                raise ApplyError(index, self.problem(error, command))

    def problem(self, error: BaseException, command: Any) -> wire.Problem:
        """What `error` of a command's `apply` becomes: with the command, its keys, and where it happened."""
        problem = problem_of(error)
        told = {
            "reason": problem.message,
            "traceback": text_of("".join(traceback.format_exception(error)))[-_TRACEBACK_CHARS:],
            "command": _shown(command)[:_COMMAND_CHARS],
            "keys": _first_keys(self._machine, command),
        }
        return msgspec.structs.replace(problem, facts=told | problem.facts)


def _first_keys(machine: Machine, command: Any) -> list[bytes]:
    """As far as its machine tells."""
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


def portable(value: Any) -> msgspec.Raw:
    """A result as it travels. Raises when msgpack does not carry it there and back."""
    encoded = wire.encode(value)
    msgspec.msgpack.decode(encoded)
    return msgspec.Raw(encoded)


def _result(value: Any) -> msgspec.Raw:
    """A result as it travels. Raises ChunkFailedError for one that does not."""
    try:
        return portable(value)
    except (msgspec.MsgspecError, OverflowError, RecursionError, TypeError, UnicodeError, ValueError) as error:
        what = f"apply returned {_article(type(value).__name__)} that does not travel: {error}"
        raise ChunkFailedError(what, hint=_RESULTS) from error


def _article(name: str) -> str:
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def _travels(value: object) -> bool:
    try:
        portable(value)
    except (msgspec.MsgspecError, OverflowError, TypeError, UnicodeError):
        return False
    return isinstance(value, (int, str, bytes)) or (isinstance(value, list) and all(map(_travels, value)))


def text_of(value: object) -> str:
    """What `value` says, without what UTF-8 does not carry."""
    try:
        return str(value).encode("utf-8", "backslashreplace").decode()
    except BaseException as error:
        return f"an error that cannot be printed: {type(error).__name__}"
