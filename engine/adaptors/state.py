"""What a machine in memory stands at: records and a log's end, which move together or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from shardengine.engine.adaptors.records import Records
from shardengine.engine.adaptors.store import Store
from shardengine.engine.intake.tail import Tail
from shardengine.engine.storage.generations import DirectoryConfig
from shardengine.shards.transaction import Record
from shardengine.shards.types import LogId


class State(msgspec.Struct):
    """What is replaced as a whole: the records, where the log stands, and what is fixed.

    `decided`: writes, and the tail with them, that count from the moment they are set. An interrupt may keep them from
    being carried out: whoever uses the state does that first.
    """

    fixed: DirectoryConfig
    records: Records
    tail: Tail
    decided: tuple[Mapping[bytes, bytes | None], Tail] | None = None

    def move(self, writes: Mapping[bytes, bytes | None], tail: Tail) -> None:
        """Write, and stand at `tail`."""
        self.decided = (writes, tail)
        self.settle()

    def settle(self) -> None:
        """Carry out what is decided. Interrupted anywhere, it is to be done once more."""
        if self.decided is not None:
            writes, tail = self.decided
            self.records.write(writes)
            self.tail = tail
            self.decided = None

    @property
    def last(self) -> LogId:
        return LogId(self.tail.index, self.tail.term)


class DictStore(Store):
    """A store whose state is in memory. A view is a copy of its records."""

    def __init__(self) -> None:
        self._state: State | None = None

    @property
    def _now(self) -> State:
        assert self._state is not None
        return self._state

    @property
    def tail(self) -> Tail:
        return self._now.tail

    @property
    def fixed(self) -> DirectoryConfig:
        return self._now.fixed

    def get(self, key: bytes) -> bytes | None:
        return self._now.records.get(key)

    def under(self, prefix: bytes, start_after: bytes | None = None, *, reverse: bool = False) -> Iterator[Record]:
        return self._now.records.under(prefix, start_after, reverse=reverse)

    def __len__(self) -> int:
        return len(self._now.records)

    def view(self) -> Records:
        return self._now.records.copy()
