"""Runs a log again and again, in every way that an engine may, and finds the first command that depends on the way."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from shardengine.engine.adaptors.commands import Commands
from shardengine.engine.adaptors.elsewhere import Task, traced_elsewhere
from shardengine.engine.adaptors.tracing import Step, Trace, Tracer, in_order
from shardengine.engine.errors import ConfigError, RehearsalError
from shardengine.engine.intake.tail import normalised
from shardengine.engine.run.launch import machine_name
from shardengine.engine.run.starting import refuse_worker
from shardengine.engine.storage.placing import made
from shardengine.shards.machine import Machine, encode
from shardengine.shards.placement import SHARDS_MAX
from shardengine.shards.running import text_of
from shardengine.shards.types import Entry, Limits

LOG_ORDER = "in log order"
_COMMAND_CHARS = 1000
_HINT = (
    "what apply, keys, partition_key and check do may depend on their arguments only: on no clock, no randomness, no "
    "order of a set, and on nothing that is kept on the machine, its class or its module from one command to the next"
)
_HINTS = {"order": "partition_key does not place a key alike for every shard: it may depend on its argument only"}
_WORDS = {"order": "place among the writes"}


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
    coordinator run a chunk; then in other processes, where sets have another order, and what `time` and `datetime` tell
    is years ahead and of another time zone. Every run checks each entry anew, with a machine of its own. So clocks,
    randomness, the order of sets, and state that is kept on the machine, its class or its module are found before
    replicas differ. What no run touches is not found: rehearse a log that holds every command. Nor is a clock that is
    read otherwise, by an extension in C, from a file's times, by another program, and seems to stand meanwhile.

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
            "check", why it must not enter a log; "result", "state" with its `key`, "keys", "partitions" or "error";
            "order", the entries that wrote a `key`, from the first that another was before), both values (`first`,
            `other`) and the run (`run`). Or a process did not end well.
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
    rejected = _rejected(log, judge)
    steps = _steps_of(log)
    rehearsed = _Rehearsed(steps, judge)
    tracer = Tracer(lambda: made(machine), limits)
    rehearsed.first(tracer, rejected)
    for count in shards:
        for chunk in chunks:
            run, other = f"over {count} shards, in chunks of {chunk}", Tracer(lambda: made(machine), limits, count)
            rehearsed.compare(run, other.by_shards(steps, chunk))
            rehearsed.check_order(run, other.writers)
    for seed in hash_seeds if steps else ():
        found = traced_elsewhere(Task(name, limits, steps), seed, timeout_s)
        rehearsed.compare(f"in another process, with PYTHONHASHSEED={seed}", found)
    return Rehearsal(len(log), rehearsed.rejected, tracer.digest(), rehearsed.runs)


def _check_ways(shards: Sequence[int], chunks: Sequence[int]) -> None:
    for name, numbers, limit in (("shards", shards, SHARDS_MAX), ("chunks", chunks, 1 << 32)):
        for number in numbers:
            if type(number) is not int or not 1 <= number <= limit:
                raise ConfigError(
                    f"{name} holds {number!r}", hint=f"name numbers from 1 to {limit}", key=name, value=number
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


def _rejected(log: list[Entry], judge: Commands) -> dict[int, str]:
    """The entries of a log that are no good commands, by index, and why. Raises what an engine does over them, and over
    what is no log."""
    if not log:
        return {}
    form = normalised(log, 0)
    return {form.first + place: why for place, why in judge.split(form).rejected.items()}


def _steps_of(log: list[Entry]) -> list[Step]:
    """What is to be run, or judged."""
    steps, clock = [], 0
    for entry in log:
        clock = max(clock, entry.time_ms)
        if entry.data:
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
        return sum(trace.reason is not None or trace.bad is not None for trace in self._traces.values())

    def first(self, tracer: Tracer, rejected: Mapping[int, str]) -> None:
        """Run it in log order, every command twice."""
        for step, (trace, again) in zip(self._steps, tracer.in_log_order(self._steps, rejected), strict=True):
            self._traces[step.index] = trace
            self._check(step, again, "when it was run a second time, from its start")
        self.runs.append(f"{LOG_ORDER}, each command twice")

    def compare(self, run: str, traces: dict[int, Trace]) -> None:
        """Raise RehearsalError for the first command that did something else in `run`."""
        for step, trace in in_order(self._steps, traces):
            self._check(step, trace, run)
        self.runs.append(run)

    def check_order(self, run: str, writers: Mapping[bytes, list[int]]) -> None:
        """Every command wrote the same in `run`. Raise RehearsalError for the first that another, behind it in the log,
        was before in writing a key: commands of one partition were run in another order."""
        late: dict[int, _Difference] = {}
        for key, found in writers.items():
            ordered = sorted(found)
            at = next((at for at, one in enumerate(found) if one != ordered[at]), None)
            if at is not None:
                late[ordered[at]] = _Difference("order", ordered[at:], found[at:], key)
        for step in self._steps:
            if step.index in late:
                raise self._error(step, late[step.index], run)

    def _check(self, step: Step, other: Trace, run: str) -> None:
        for difference in _differences(self._traces[step.index], other):
            raise self._error(step, difference, run)

    def _error(self, step: Step, difference: _Difference, run: str) -> RehearsalError:
        what, first, found, key = difference
        command = self._told(step)
        of = _WORDS.get(what, what) + ("" if key is None else f" of the key {reprlib.repr(key)}")
        return RehearsalError(
            f"entry {step.index}, {command}: its {of} was {_shown(first)} {LOG_ORDER}, and {_shown(found)} {run}",
            hint=_HINTS.get(what, _HINT),
            index=step.index,
            command=command,
            differs=what,
            run=run,
            first=first,
            other=found,
            **({} if key is None else {"key": key}),
        )

    def _told(self, step: Step) -> str:
        """A command, or the data that is none."""
        try:
            command = self._commands.decode(step.data)
        except Exception:
            command = step.data
        return text_of(command)[:_COMMAND_CHARS]


def _differences(first: Trace, other: Trace) -> Iterator[_Difference]:
    """What two runs of one command differ in, the cause before its consequences."""
    if first.bad != other.bad:
        yield _Difference("check", first.bad, other.bad)
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
