"""The whole contract over a dict."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from shardengine.engine.adaptors.base import InProcess
from shardengine.engine.adaptors.records import Records
from shardengine.engine.adaptors.state import DictStore, State
from shardengine.engine.intake.tail import Tail
from shardengine.engine.storage.generations import DirectoryConfig
from shardengine.shards.kv import KeyValue
from shardengine.shards.machine import Machine
from shardengine.shards.transaction import Record
from shardengine.shards.types import Limits


class MemoryStateMachine(InProcess):
    """A `StateMachine` for unit tests: no processes, no directory, nothing that outlives it.

    It answers as `Engine` does: the same results, the same errors with the same facts, the same `digest()`, and a
    snapshot of either is installed in the other. What differs:

    - It has no directory: no `create_snapshot`, `snapshots` and `set_snapshot_policy`, no `stats`, and nothing is
      durable.
    - No rings, maps and disks could be full, so no ChunkTooLargeError and no StoreFullError. Views are of any number
      and any age: no TooManyViewsError.
    - A chunk is applied when the call returns, so none is ever in flight. Awaiting its methods, other than
      `wait_applied`, gives no other task a turn.
    - The machine may be any class, one in a function or in the program's main file too; `rehearse` tells whether
      workers could run it. One that loops for ever is not stopped.

    It belongs to the thread that made it, and to no event loop.

    Args:
        machine: what the commands mean.
        limits: what keys and values may measure, bytes. None: those of a snapshot that is installed, else
            `Limits()`.
        bad_entry: "fail": data that is no command fails its chunk; "reject": it is consumed with `succeeded=False`.
            None: as a snapshot says, else "fail".

    Raises ConfigError, or MachineImportError when `machine` is no machine.
    """

    def __init__(
        self,
        machine: type[Machine] = KeyValue,
        *,
        limits: Limits | None = None,
        bad_entry: Literal["fail", "reject"] | None = None,
    ) -> None:
        super().__init__(MemoryStore(), machine, limits, bad_entry)


class MemoryStore(DictStore):
    """A dict, kept from one `open` to the next."""

    def open(self, *, create: bool) -> bool:
        return self._state is not None

    def commit(self, writes: Mapping[bytes, bytes | None], fixed: DirectoryConfig, tail: Tail) -> None:
        self._now.move(writes, tail)

    def replace(self, records: Iterable[Record], fixed: DirectoryConfig, tail: Tail) -> None:
        self._state = State(fixed, Records(dict(records)), tail)

    def settle(self) -> None:
        self._now.settle()

    def close(self) -> None:
        """Nothing is left open, and everything is kept."""
