"""The state machines without worker processes, by name: made, fed with one log, and judged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from shardengine import Delete, Entry, KeyValue, Machine, Put, encode
from shardengine.adaptors import FileStateMachine, MemoryStateMachine, RocksDBStateMachine, SQLiteStateMachine
from shardengine.engine.adaptors.base import InProcess
from shardengine.engine.adaptors.durable import InDirectory
from tests.model import Model

DURABLE = ("file", "sqlite", "rocksdb")
KINDS = ("memory", *DURABLE)
_CLASSES: dict[str, Callable[..., InDirectory]] = {
    "file": FileStateMachine,
    "sqlite": SQLiteStateMachine,
    "rocksdb": RocksDBStateMachine,
}


def durable(kind: str, path: Path, machine: type[Machine] = KeyValue, **options: Any) -> InDirectory:
    return _CLASSES[kind](path, machine, **options)


def made(kind: str, path: Path, machine: type[Machine] = KeyValue, **options: Any) -> InProcess:
    return MemoryStateMachine(machine, **options) if kind == "memory" else durable(kind, path, machine, **options)


def entry(index: int) -> Entry:
    """The entry of the log at that index: some are no-ops, some delete."""
    key = b"key-%d" % (index * index % 23)
    if index % 11 == 0:
        return Entry(index, 1 + index // 20, b"")
    data = encode(Delete(key)) if index % 5 == 0 else encode(Put(key, b"%d " % index * (index % 40)))
    return Entry(index, 1 + index // 20, data)


def entries(first: int, count: int) -> list[Entry]:
    return [entry(index) for index in range(first, first + count)]


def model_at(index: int) -> Model:
    """What the log leads to there."""
    model = Model()
    model.apply(entries(1, index))
    return model


async def judge(machine: InProcess, least: int, most: int) -> int:
    """Raises AssertionError unless it stands at an index from `least` to `most`, with the state of it. Returns that."""
    last = machine.last_applied()
    assert least <= last.index <= most, f"stands at {last.index}, which is not from {least} to {most}"
    model = model_at(last.index)
    assert last.term == model.term
    assert (len(machine), await machine.digest()) == (len(model.data), model.digest())
    assert machine.scan_prefix(b"").entries == model.scan(b"")
    return last.index
