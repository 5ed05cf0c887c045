"""One run of a log: what each command named, answered and wrote, in log order or in the order of an engine's shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from shardengine.engine.adaptors.commands import Commands, failure_of
from shardengine.engine.adaptors.records import Records
from shardengine.shards.digest import records_digest
from shardengine.shards.machine import Machine
from shardengine.shards.part import Run
from shardengine.shards.placement import shard_table, slot_of
from shardengine.shards.running import ApplyError, Outcome
from shardengine.shards.transaction import Tx
from shardengine.shards.types import Limits


class Step(msgspec.Struct, frozen=True, array_like=True):
    """A good command of the log, and the log clock there."""

    index: int
    term: int
    clock: int
    data: bytes


class Trace(msgspec.Struct, frozen=True, array_like=True):
    """What a command did: keys that it names and their partitions, in order; its result as it travels, or why it was
    rejected; the last write of each key, in order. `error`: what `apply` raised; then the rest says nothing."""

    keys: list[bytes] = []
    partitions: list[bytes] = []
    result: bytes | None = None
    reason: str | None = None
    writes: list[tuple[bytes, bytes | None]] = []
    error: str | None = None


class Tracer:
    """Runs a log over records of its own, with a new machine for each shard and one for the coordinator.

    Every command runs in a transaction of its own: what it writes is there for the next one, wherever that runs.
    """

    def __init__(self, make: Callable[[], Machine], limits: Limits, shards: int = 1) -> None:
        self._lanes = [Commands(make(), limits, reject_bad=False) for _ in range(shards + 1)]
        self._coordinator = self._lanes[-1]
        self._table = shard_table(shards)
        self._records = Records()

    def digest(self) -> bytes:
        return records_digest(self._records.under(b"")).to_bytes(16, "big")

    def in_log_order(self, steps: Sequence[Step]) -> Iterator[tuple[Trace, Trace]]:
        """Run every command twice from its start, with one machine, as an engine may; what it wrote the first time is
        kept. Yields what it did each time. Raises, as an engine does, what fails the first time."""
        lane = self._lanes[0]
        for step in steps:
            command = lane.decode(step.data)
            try:
                first = _outcome(lane, self._records, step, command)
            except ApplyError as error:
                raise failure_of(error) from error.__cause__
            yield first, _attempt(lane, self._records, step, command)
            self._records.write(dict(first.writes))

    def by_shards(self, steps: Sequence[Step], chunk: int) -> dict[int, Trace]:
        """Run the log in chunks, each in the order of an engine's shards: their own commands, one shard after the
        other, then the coordinator's. Returns what each did, by index, up to the first chunk in which one fails."""
        traces: dict[int, Trace] = {}
        for at in range(0, len(steps), chunk):
            for lane, step, command in self._ordered(steps[at : at + chunk]):
                trace = traces[step.index] = _attempt(lane, self._records, step, command)
                if trace.error is not None:
                    return traces
                self._records.write(dict(trace.writes))
        return traces

    def _ordered(self, steps: Sequence[Step]) -> Iterator[tuple[Commands, Step, Any]]:
        machine, decode = self._coordinator.machine, self._coordinator.decode
        commands = [decode(step.data) for step in steps]
        partitions = [set(map(machine.partition_key, machine.keys(command))) for command in commands]
        for lane, places in zip(self._lanes, lanes(partitions, self._table, len(self._lanes) - 1), strict=True):
            for place in places:
                yield lane, steps[place], commands[place]


def lanes(partitions: Sequence[set[bytes]], table: bytes, shards: int) -> list[list[int]]:
    """Which commands of a group each shard runs, and, last, which the coordinator runs: those that span shards or touch
    a partition that one before them has taken. `partitions` are those of each command, in log order; the answer names
    places in it. `table` is the shard of each slot."""
    found: list[list[int]] = [[] for _ in range(shards + 1)]
    taken: set[bytes] = set()
    for place, touched in enumerate(partitions):
        owners = {table[slot_of(partition)] for partition in touched}
        if len(owners) > 1 or not taken.isdisjoint(touched):
            taken |= touched
            found[-1].append(place)
        else:
            found[owners.pop()].append(place)
    return found


def _attempt(lane: Commands, records: Records, step: Step, command: Any) -> Trace:
    """Run a command once, and keep nothing of it. What it raises is in the trace, KeyboardInterrupt is not."""
    try:
        return _outcome(lane, records, step, command)
    except ApplyError as error:
        return Trace(error=failure_of(error).message)


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
