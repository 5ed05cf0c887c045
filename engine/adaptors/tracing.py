"""One run of a log: what each command named, answered and wrote, in log order or in the order of an engine's shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from shardengine.engine.adaptors.commands import Commands, failure_of
from shardengine.engine.adaptors.records import Records
from shardengine.engine.intake.split import Split
from shardengine.engine.intake.tail import normalised
from shardengine.shards.digest import records_digest
from shardengine.shards.fast import Normal
from shardengine.shards.machine import Machine
from shardengine.shards.part import Run
from shardengine.shards.running import ApplyError, Outcome
from shardengine.shards.transaction import Tx
from shardengine.shards.types import Entry, Limits


class Step(msgspec.Struct, frozen=True, array_like=True):
    """An entry of the log that has data, and the log clock there."""

    index: int
    term: int
    clock: int
    data: bytes


class Trace(msgspec.Struct, frozen=True, array_like=True):
    """What a command did: keys that it names and their partitions, in order; its result as it travels, or why it was
    rejected; the last write of each key, in order. `error`: what `apply` raised, `bad`: why it must not enter a log;
    then the rest says nothing."""

    keys: list[bytes] = []
    partitions: list[bytes] = []
    result: bytes | None = None
    reason: str | None = None
    writes: list[tuple[bytes, bytes | None]] = []
    error: str | None = None
    bad: str | None = None


class Tracer:
    """Runs a log over records of its own, with a new machine for each shard and one for the coordinator.

    Every command runs in a transaction of its own: what it writes is there for the next one, wherever that runs.
    """

    def __init__(self, make: Callable[[], Machine], limits: Limits, shards: int = 1) -> None:
        self._shards = [Commands(make(), limits, reject_bad=True) for _ in range(shards)]
        self._coordinator = Commands(make(), limits, reject_bad=True, shards=shards)
        self._records = Records()
        self.writers: dict[bytes, list[int]] = {}
        """The entries that wrote a key, in the order in which they did."""

    def digest(self) -> bytes:
        return records_digest(self._records.under(b"")).to_bytes(16, "big")

    def in_log_order(self, steps: Sequence[Step], rejected: Mapping[int, str]) -> Iterator[tuple[Trace, Trace]]:
        """Run every command twice from its start, with one machine, as an engine may; what it wrote the first time is
        kept. `rejected` are those that must not enter a log, by index, and why: they are judged again.

        Yields what it did each time. Raises, as an engine does, what fails the first time."""
        for step in steps:
            why = rejected.get(step.index)
            first, again = self._twice(step) if why is None else (Trace(bad=why), Trace(bad=self._judged(step, why)))
            yield first, again
            self._keep(step, first)

    def _twice(self, step: Step) -> tuple[Trace, Trace]:
        lane = self._shards[0]
        try:
            command = _decoded(lane, step)
            first = _outcome(lane, self._records, step, command)
        except ApplyError as error:
            raise failure_of(error) from error.__cause__
        bad = self._judged(step, None)
        return first, _attempt(lane, self._records, step, command) if bad is None else Trace(bad=bad)

    def _judged(self, step: Step, before: str | None) -> str | None:
        """Judge it twice, with one machine. Returns what was not said `before`, if anything is."""
        said = [self._shards[0].fault(step.data) for _ in range(2)]
        return said[0] if said[0] != before else said[1]

    def _keep(self, step: Step, trace: Trace) -> None:
        self._records.write(dict(trace.writes))
        for key, _ in trace.writes:
            self.writers.setdefault(key, []).append(step.index)

    def by_shards(self, steps: Sequence[Step], chunk: int) -> dict[int, Trace]:
        """Run the log in chunks, each in the order of an engine's shards: their own commands, one shard after the
        other, then the coordinator's. Returns what each did, by index, up to the first chunk in which one fails."""
        traces: dict[int, Trace] = {}
        for at in range(0, len(steps), chunk):
            group = steps[at : at + chunk]
            split = self._coordinator.split(_form_of(group))
            traces |= {group[place].index: Trace(bad=why) for place, why in split.rejected.items()}
            for lane, places in zip([*self._shards, self._coordinator], lanes(split, len(self._shards)), strict=True):
                for step in [group[place] for place in places]:
                    trace = traces[step.index] = _attempt(lane, self._records, step)
                    if trace.error is not None:
                        return traces
                    self._keep(step, trace)
        return traces


def _form_of(steps: Sequence[Step]) -> Normal:
    """As a chunk that begins at entry 1: what is no command is not among them."""
    return normalised([Entry(place, step.term, step.data, step.clock) for place, step in enumerate(steps, 1)], 0)


def lanes(split: Split, shards: int) -> list[list[int]]:
    """Which commands each shard runs of a chunk that begins at entry 1, and, last, which the coordinator runs: by their
    places in the chunk."""
    found: list[list[int]] = [[] for _ in range(shards)]
    spanning = [command.entry - 1 for command in split.spanning]
    nobodys = {*spanning, *split.rejected}
    for place, owner in enumerate(split.owners):
        if place not in nobodys:
            found[owner].append(place)
    return [*found, spanning]


def _attempt(lane: Commands, records: Records, step: Step, command: Any = None) -> Trace:
    """Run a command once, and keep nothing of it; None: what the step says. What it raises is in the trace,
    KeyboardInterrupt is not."""
    try:
        return _outcome(lane, records, step, _decoded(lane, step) if command is None else command)
    except ApplyError as error:
        return Trace(error=failure_of(error).message)


def _decoded(lane: Commands, step: Step) -> Any:
    try:
        return lane.decode(step.data)
    except Exception as error:
        raise ApplyError(step.index, lane.runner.problem(error, None)) from error


def _outcome(lane: Commands, records: Records, step: Step, command: Any) -> Trace:
    transaction = lane.runner.transaction(records)
    outcome = lane.runner.run_in_host(transaction, command, step.index, Run(step.index, step.term, step.clock))
    if outcome.reason is None:
        transaction.settle()
    return _trace(lane, step, command, outcome, transaction)


def _trace(lane: Commands, step: Step, command: Any, outcome: Outcome, transaction: Tx) -> Trace:
    try:
        keys = sorted(set(lane.machine.keys(command)))
        partitions = sorted(set(map(lane.machine.partition_key, keys)))
    except Exception as error:
        raise ApplyError(step.index, lane.runner.problem(error, command)) from error
    value = None if outcome.value is None else bytes(outcome.value)
    return Trace(keys, partitions, value, outcome.reason, sorted(transaction.writes.items(), key=_key_of))


def _key_of(write: tuple[bytes, bytes | None]) -> bytes:
    return write[0]


def in_order(steps: Sequence[Step], traces: dict[int, Trace]) -> Iterator[tuple[Step, Trace]]:
    """The traces there are, in log order."""
    return ((step, traces[step.index]) for step in steps if step.index in traces)
