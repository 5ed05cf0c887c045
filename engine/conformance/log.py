"""Logs that need no source, and the state that they come to: a dumb model of what a machine is to do."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

from shardengine import CompareAndSwap, Delete, LogId, Put

ENTRIES_PER_TERM = 50


class Move(NamedTuple):
    """The value of `source` goes to `target`, and `source` is absent then; refused when it is absent."""

    source: bytes
    target: bytes


Operation = Put | Delete | CompareAndSwap | Move | None
"""What an entry does; None: nothing."""


def outcome(records: Mapping[bytes, bytes], operation: Operation) -> dict[bytes, bytes | None] | None:
    """What an operation writes, None for a key that goes; None when it is refused."""
    match operation:
        case Put(key, value):
            return {key: value}
        case Delete(key):
            return {key: None}
        case CompareAndSwap(key, expected, value):
            return {key: value} if records.get(key) == expected else None
        case Move(source, target):
            return {source: None, target: records[source]} if source in records else None
        case None:
            return {}


class Log:
    """Operations from index 1 on, made as they are asked for; what became of each, and the state behind each.

    A log of more than 49 entries has several terms.
    """

    def __init__(self, operations: Iterable[Operation]) -> None:
        self._source = iter(operations)
        self._records: dict[bytes, bytes] = {}
        self._operations: list[Operation] = []
        self._writes: list[dict[bytes, bytes | None] | None] = []

    def operations(self, first: int, last: int) -> Sequence[Operation]:
        self._grow(last)
        return self._operations[first - 1 : last]

    def succeeds(self, index: int) -> bool:
        """Whether the command of that entry is not refused."""
        self._grow(index)
        return self._writes[index - 1] is not None

    def term(self, index: int) -> int:
        return 1 + index // ENTRIES_PER_TERM if index else 0

    def name(self, index: int) -> LogId:
        return LogId(index, self.term(index))

    def contents(self, last: int) -> dict[bytes, bytes]:
        """The records behind entry `last`."""
        self._grow(last)
        records: dict[bytes, bytes] = {}
        for writes in self._writes[:last]:
            _write(records, writes or {})
        return records

    def _grow(self, last: int) -> None:
        for operation in islice(self._source, max(0, last - len(self._operations))):
            writes = outcome(self._records, operation)
            self._operations.append(operation)
            self._writes.append(writes)
            _write(self._records, writes or {})
        assert len(self._operations) >= last, f"the log ends at {len(self._operations)}, before {last}"


def _write(records: dict[bytes, bytes], writes: Mapping[bytes, bytes | None]) -> None:
    for key, value in writes.items():
        if value is None:
            records.pop(key, None)
        else:
            records[key] = value


def mixed(keys: Sequence[bytes], values: Iterator[bytes], kinds: Sequence[type], seed: int = 1) -> Iterator[Operation]:
    """Operations of those kinds over those keys, for ever; about half of what may be refused is refused. No value is
    written twice, so that records tell at which index they were written."""
    draw = random.Random(seed)
    records: dict[bytes, bytes] = {}
    while True:
        operation = _drawn(draw, keys, values, kinds, records)
        yield operation
        _write(records, outcome(records, operation) or {})


def _drawn(
    draw: random.Random,
    keys: Sequence[bytes],
    values: Iterator[bytes],
    kinds: Sequence[type],
    records: dict[bytes, bytes],
) -> Operation:
    key, kind = draw.choice(keys), draw.choice(kinds)
    if kind is Delete:
        return Delete(key)
    if kind is CompareAndSwap:
        expected = records.get(key) if draw.random() < 0.5 else next(values)
        return CompareAndSwap(key, expected, next(values))
    if kind is Move:
        return Move(key, draw.choice([other for other in keys if other != key]))
    return Put(key, next(values)) if kind is Put else None
