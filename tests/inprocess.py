"""A machine over a dict, in this process: every command goes in as its bytes, as an engine with any shard count would
run it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from typing import Any, NamedTuple

import msgspec

from shardengine import ApplyResult, Context, Entry, Limits, Machine, Rejected, Tx, encode
from shardengine.shards.machine import partition_of
from shardengine.shards.transaction import Record

REJECTED = "rejected"
"""What a dumb model answers instead of a value."""


class Records(dict[bytes, bytes]):
    """What a transaction may lie on."""

    def scan(self, prefix: bytes, partitions: Set[bytes], limit: int | None, reverse: bool) -> Iterator[Record]:
        return iter([item for item in sorted(self.items(), reverse=reverse) if item[0].startswith(prefix)])


class Step(NamedTuple):
    """A command, by how much the log clock moves before it, and whether a group ends behind it."""

    command: Any
    later_ms: int = 0
    last: bool = False


class Bench:
    """What was applied so far, `records` up to the last group's end."""

    def __init__(self, machine: type[Machine]) -> None:
        self.machine = machine()
        self.context = Context()
        self.records = Records()
        self._limits = Limits()
        self._decode = msgspec.msgpack.Decoder(machine.command).decode
        self._tx = self._group()

    def _group(self) -> Tx:
        return Tx(self.records, self._limits, partition_of(self.machine))

    def end_group(self) -> None:
        for key, value in self._tx.writes.items():
            assert 1 <= len(key) <= self._limits.key_bytes_max
            if value is None:
                self.records.pop(key, None)
            else:
                self.records[key] = value
        self._tx = self._group()

    def run(self, command: Any, later_ms: int = 0) -> ApplyResult:
        """Raises what the decoder says of a command that is none, and whatever would fail a chunk."""
        self.context.index += 1
        self.context.time_ms += later_ms
        decoded = self._decode(encode(command))
        keys = self.machine.keys(decoded)
        assert keys and all(1 <= len(key) <= self._limits.key_bytes_max for key in keys)
        self._tx.declare(keys)
        try:
            value = self.machine.apply(self._tx, decoded, self.context)
        except Rejected as rejection:
            self._tx.drop()
            return ApplyResult(self.context.index, False, reason=rejection.reason)
        self._tx.settle()
        return ApplyResult(self.context.index, True, value=msgspec.msgpack.decode(msgspec.msgpack.encode(value)))

    def value(self, command: Any, later_ms: int = 0) -> Any:
        """The value of a command, or REJECTED."""
        result = self.run(command, later_ms)
        return result.value if result.succeeded else REJECTED

    def agrees(self, model: Callable[[Any, int], Any], steps: Sequence[Step]) -> None:
        """Every command gives what the model gives, which gets the command and the log clock."""
        for step in steps:
            assert self.value(step.command, step.later_ms) == model(step.command, self.context.time_ms), step
            if step.last:
                self.end_group()
        self.end_group()


def entries_of(steps: Sequence[Step]) -> list[Entry]:
    """The log that a bench runs."""
    now, entries = 0, []
    for index, step in enumerate(steps, start=1):
        now += step.later_ms
        entries.append(Entry(index, 1, encode(step.command), now))
    return entries
