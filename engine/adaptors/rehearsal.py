"""Runs a log again and again, in every way that an engine may, and finds the first command that depends on the way."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from shardengine.engine.adaptors.commands import Commands
from shardengine.engine.adaptors.elsewhere import Task, traced_elsewhere
from shardengine.engine.adaptors.tracing import Step, Trace, Tracer, in_order
from shardengine.engine.errors import ConfigError, RehearsalError
from shardengine.engine.intake.tail import normalised
from shardengine.engine.run.launch import machine_name, made
from shardengine.engine.run.starting import refuse_worker
from shardengine.shards.machine import Machine, encode
from shardengine.shards.placement import SHARDS_MAX
from shardengine.shards.running import text_of
from shardengine.shards.types import Entry, Limits

LOG_ORDER = "in log order"
_COMMAND_CHARS = 1000
_HINT = (
    "what apply and keys do may depend on their arguments only: on no clock, no randomness, no order of a set, and on "
    "nothing that is kept on the machine, its class or its module from one command to the next"
)


class Rehearsal(msgspec.Struct, frozen=True):
    """What a rehearsal that found nothing did.

    entries: of the log. rejected: so many were refused by the machine, or were no commands. digest: of the state behind
    the last one, as an engine has it. runs: in words, each way in which the log was run.
    """

    entries: int
    rejected: int
    digest: bytes
    runs: list[str]


class _Difference(NamedTuple):
    what: str
    first: object
    other: object
    key: bytes | None = None


def rehearse(
    machine: type[Machine],
    commands: Iterable[Any],
    *,
    limits: Limits | None = None,
    bad_entry: Literal["fail", "reject"] = "fail",
    shards: Sequence[int] = (2, 3, 8),
    chunks: Sequence[int] = (16, 1024),
    hash_seeds: Sequence[int] = (1, 2),
    timeout_s: float = 60.0,
) -> Rehearsal:
    """Run a log in every way that an engine may, and compare what each command named, answered and wrote.

    The log is run in log order, every command twice from its start, as engines run those again that span shards; then,
    for each number of shards and each chunk size, with a machine for every shard, in the order in which shards and
    coordinator run a chunk; then in other processes, where sets have another order, the clock is years ahead and the
    date is another. So clocks, randomness, the order of sets, and state that is kept on the machine, its class or its
    module are found before replicas differ. What no run touches is not found: rehearse a log that holds every command.

    Blocks: about ten times as long as `apply` takes for all of them, and a second for other processes. Nothing is left
    of it. An `apply` that never ends is ended in other processes only.

    Args:
        machine: a class that worker processes can import.
        commands: in log order: command objects, or encoded ones, or entries, whose indices rise one by one.
        limits: what keys and values may measure, bytes. None: `Limits()`.
        bad_entry: "reject": what is no command is consumed, as with an engine's setting.
        shards: shard counts to run it for, 1 to 256.
        chunks: numbers of entries in a chunk to run it with.
        hash_seeds: a process is started for each; none: no process is started.
        timeout_s: how long each of those may take, seconds.

    Raises:
        RehearsalError: two runs differ. It names the first command (`index`, `command`), what differs (`differs`:
            "result", "state" with its `key`, "keys", "partitions" or "error"), both values (`first`, `other`) and the
            run (`run`). Or a process did not end well.
        BadEntryError, UndeclaredKeyError, ChunkFailedError: what an engine would raise for that entry (`index`).
        LogGapError, LogOrderError: `commands` holds entries that are no log.
        MachineImportError: workers could not import or make the machine.
        ConfigError: a shard count, or a chunk size, that cannot be. EngineStateError: in a worker process.
    """
    name = machine_name(machine)
    refuse_worker()
    _check_ways(shards, chunks)
    limits = limits or Limits()
    log = _log_of(commands)
    judge = Commands(made(machine), limits, reject_bad=bad_entry == "reject")
    steps = _steps_of(log, judge)
    rehearsed = _Rehearsed(steps, judge)
    tracer = Tracer(lambda: made(machine), limits)
    rehearsed.first(tracer)
    for count in shards:
        for chunk in chunks:
            run, other = f"over {count} shards, in chunks of {chunk}", Tracer(lambda: made(machine), limits, count)
            rehearsed.compare(run, other.by_shards(steps, chunk))
            _check_digest(run, tracer.digest(), other.digest())
    for seed in hash_seeds if steps else ():
        found = traced_elsewhere(Task(name, limits, steps), seed, timeout_s)
        rehearsed.compare(f"in another process, with PYTHONHASHSEED={seed}", found)
    rejected = len([entry for entry in log if entry.data]) - len(steps) + rehearsed.rejected
    return Rehearsal(len(log), rejected, tracer.digest(), rehearsed.runs)


def _check_ways(shards: Sequence[int], chunks: Sequence[int]) -> None:
    for name, numbers, limit in (("shards", shards, SHARDS_MAX), ("chunks", chunks, 1 << 32)):
        for number in numbers:
            if type(number) is not int or not 1 <= number <= limit:
                raise ConfigError(
                    f"{name} holds {number!r}", hint=f"name numbers from 1 to {limit}", key=name, value=number
                )


def _check_digest(run: str, first: bytes, other: bytes) -> None:
    """All commands did the same: the states differ when those of one partition were run in another order."""
    if first != other:
        raise RehearsalError(
            f"the state behind the log has the digest {first.hex()} {LOG_ORDER}, and {other.hex()} {run}",
            hint="partition_key does not place a key alike for every shard: it may depend on its argument only",
            differs="state",
            run=run,
            first=first,
            other=other,
        )


def _log_of(commands: Iterable[Any]) -> list[Entry]:
    """Each as an entry: one that is none follows the one before it."""
    log: list[Entry] = []
    before = Entry(0, 1, b"")
    for command in commands:
        if not isinstance(command, Entry):
            data = command if isinstance(command, bytes) else encode(command)
            command = Entry(before.index + 1, before.term, data)
        log.append(command)
        before = command
    return log


def _steps_of(log: list[Entry], judge: Commands) -> list[Step]:
    """The good commands of a log. Raises what an engine does over the others, and over what is no log."""
    if not log:
        return []
    rejected = judge.judged(normalised(log, 0))
    steps, clock = [], 0
    for at, entry in enumerate(log):
        clock = max(clock, entry.time_ms)
        if entry.data and at not in rejected:
            steps.append(Step(entry.index, entry.term, clock, entry.data))
    return steps


class _Rehearsed:
    """A log, and what its commands did the first time."""

    def __init__(self, steps: list[Step], commands: Commands) -> None:
        self._steps = steps
        self._commands = commands
        self._traces: dict[int, Trace] = {}
        self.runs: list[str] = []

    @property
    def rejected(self) -> int:
        return sum(trace.reason is not None for trace in self._traces.values())

    def first(self, tracer: Tracer) -> None:
        """Run it in log order, every command twice."""
        for step, (trace, again) in zip(self._steps, tracer.in_log_order(self._steps), strict=True):
            self._traces[step.index] = trace
            self._check(step, again, "when it was run a second time, from its start")
        self.runs.append(f"{LOG_ORDER}, each command twice")

    def compare(self, run: str, traces: dict[int, Trace]) -> None:
        """Raise RehearsalError for the first command that did something else in `run`."""
        for step, trace in in_order(self._steps, traces):
            self._check(step, trace, run)
        self.runs.append(run)

    def _check(self, step: Step, other: Trace, run: str) -> None:
        for what, first, found, key in _differences(self._traces[step.index], other):
            command = text_of(self._commands.decode(step.data))[:_COMMAND_CHARS]
            of = what if key is None else f"{what} of the key {reprlib.repr(key)}"
            raise RehearsalError(
                f"entry {step.index}, {command}: its {of} was {_shown(first)} {LOG_ORDER}, and {_shown(found)} {run}",
                hint=_HINT,
                index=step.index,
                command=command,
                differs=what,
                run=run,
                first=first,
                other=found,
                **({} if key is None else {"key": key}),
            )


def _differences(first: Trace, other: Trace) -> Iterator[_Difference]:
    """What two runs of one command differ in, the cause before its consequences."""
    if first.error != other.error:
        yield _Difference("error", first.error, other.error)
    if first.keys != other.keys:
        yield _Difference("keys", first.keys, other.keys)
    if first.partitions != other.partitions:
        yield _Difference("partitions", first.partitions, other.partitions)
    if (first.reason, first.result) != (other.reason, other.result):
        yield _Difference("result", _result_of(first), _result_of(other))
    writes, others = dict(first.writes), dict(other.writes)
    for key in sorted(writes.keys() | others.keys()):
        if key not in writes or key not in others or writes[key] != others[key]:
            yield _Difference("state", _write(writes, key), _write(others, key), key)


def _result_of(trace: Trace) -> object:
    if trace.reason is not None:
        return f"Rejected: {trace.reason}"
    return None if trace.result is None else msgspec.msgpack.decode(trace.result)


def _write(writes: dict[bytes, bytes | None], key: bytes) -> object:
    """What was written: a value, None for a deletion, or that nothing was."""
    return writes.get(key, "not written")


def _shown(value: object) -> str:
    return text_of(reprlib.repr(value))
