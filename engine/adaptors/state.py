"""What a machine in memory stands at: records and a log's end, which move together or not at all."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from shardengine.engine.adaptors.records import Records
from shardengine.engine.intake.tail import Tail
from shardengine.engine.storage.generations import DirectoryConfig
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
