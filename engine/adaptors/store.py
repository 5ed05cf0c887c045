"""What a state machine in this process keeps its state in: a store. The whole difference between two of them is theirs.

A store holds records and, with them, where the log stands and what is fixed. Both change together or not at all,
whatever is killed, and whatever interrupts a call.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Set

import msgspec

from shardengine.engine.contract import ScanResult, scanned
from shardengine.engine.errors import StoreDamagedError
from shardengine.engine.intake.tail import Tail, can_be_runs
from shardengine.engine.storage.generations import DirectoryConfig
from shardengine.shards.transaction import Record
from shardengine.shards.types import LogId


class Reads(ABC):
    """Records as they are at one index. Commands run over them: they are a `transaction.Base`."""

    @abstractmethod
    def get(self, key: bytes) -> bytes | None:
        """The value of `key`, which is bytes, or None."""

    @abstractmethod
    def under(self, prefix: bytes, start_after: bytes | None = None, *, reverse: bool = False) -> Iterator[Record]:
        """Records whose key starts with `prefix`, in key order or against it, those beyond `start_after` only. Nothing
        may be written before its end."""

    def __len__(self) -> int:
        """Looks at all of them where a store keeps no count."""
        return sum(1 for _ in self.under(b""))

    def __bool__(self) -> bool:
        return True

    def is_empty(self) -> bool:
        return next(self.under(b""), None) is None

    def scan(self, prefix: bytes, partitions: Set[bytes], limit: int | None, reverse: bool) -> Iterator[Record]:
        """See `transaction.Base`: of all partitions."""
        return self.under(prefix, reverse=reverse)

    def scan_prefix(
        self, prefix: bytes, limit: int | None, start_after: bytes | None, revision: int, *, reverse: bool
    ) -> ScanResult:
        """See `Engine.scan_prefix`; `revision` is the index that the records stand at."""
        after = None if start_after is None else as_bytes(start_after, "start_after")
        return scanned(self.under(as_bytes(prefix, "a prefix"), after, reverse=reverse), limit, revision)

    @abstractmethod
    def close(self) -> None:
        """Let go of what it holds. Closing twice does nothing."""


class Store(Reads):
    """Records, and where they stand. Everything blocks.

    What cannot be done is a StoreError. StoreFullError: there was no room, nothing has changed, and the next call may
    have more luck. After any other one nobody can tell what the disk has: nothing is written any more, and the next
    `open` tells.

    """

    @property
    @abstractmethod
    def tail(self) -> Tail:
        """Where the log stands, from `open` or the first `replace` to `close`. Nobody changes it but by a copy."""

    @property
    @abstractmethod
    def fixed(self) -> DirectoryConfig:
        """What is part of the state machine, as long as `tail`."""

    @abstractmethod
    def open(self, *, create: bool) -> bool:
        """Find out where the state stands; False: there is none, and `replace` makes the first. `create`: there may be
        none. What is found is as durable as it ever gets when this returns."""

    @abstractmethod
    def commit(self, writes: Mapping[bytes, bytes | None], fixed: DirectoryConfig, tail: Tail) -> None:
        """Set keys, or delete those that are given as None, and stand at `tail`: at once."""

    @abstractmethod
    def replace(self, records: Iterable[Record], fixed: DirectoryConfig, tail: Tail) -> None:
        """Become another state: at once, and durable when this returns. `records` are in key order; what their iterator
        raises leaves everything as it was."""

    def settle(self) -> None:
        """Make good what an interrupt has left undone. Whoever uses a store calls it first."""

    def flush(self) -> None:
        """Return when all that was committed survives power loss."""

    def compact(self) -> None:
        """Give back room that deleted and rewritten records left. No view is open."""

    @abstractmethod
    def view(self) -> Reads:
        """The records as they are now, whatever is committed meanwhile. It is closed before the store is."""


class Transactional(Store):
    """A store over a library that has transactions: it writes the place with the records, and reads it again when a
    call did not come to its end.

    Invariant: `_place` is what is committed, None: that has to be read.
    """

    _place: tuple[Tail, DirectoryConfig] | None = None

    @property
    def tail(self) -> Tail:
        return self._settled()[0]

    @property
    def fixed(self) -> DirectoryConfig:
        return self._settled()[1]

    def settle(self) -> None:
        self._settled()

    def _settled(self) -> tuple[Tail, DirectoryConfig]:
        if self._place is None:
            self._place = self._read_again()
        return self._place

    @abstractmethod
    def _read_again(self) -> tuple[Tail, DirectoryConfig]:
        """Drop what is not committed, and read the place."""


def as_bytes(value: bytes, what: str = "a key") -> bytes:
    """Raises TypeError when it holds no bytes."""
    if type(value) is bytes:
        return value
    try:
        return bytes(memoryview(value))
    except TypeError:
        raise TypeError(f"{what} is bytes, not {type(value).__name__}") from None


def after_all(prefix: bytes) -> bytes | None:
    """The least string of bytes above all that start with `prefix`; None: there is none."""
    kept = prefix.rstrip(b"\xff")
    return kept[:-1] + bytes([kept[-1] + 1]) if kept else None


class Place(msgspec.Struct, frozen=True, array_like=True):
    """A tail, and what is fixed, as a store writes them down beside the records."""

    index: int
    term: int
    clock: int
    runs: list[LogId]
    fixed: DirectoryConfig


def place_of(tail: Tail, fixed: DirectoryConfig) -> Place:
    return Place(tail.index, tail.term, tail.clock, tail.kept_runs(tail.index), fixed)


def read_place(data: bytes, where: str) -> tuple[Tail, DirectoryConfig]:
    """From the bytes of an encoded Place. StoreDamagedError: they are none."""
    try:
        place = msgspec.msgpack.decode(data, type=Place)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise damaged(where, f"it does not say where its log stands: {error}") from error
    return stands(place, where)


def stands(place: Place, where: str) -> tuple[Tail, DirectoryConfig]:
    """From what was written down. StoreDamagedError: no log can stand there."""
    if not can_be_runs(place.runs, LogId(place.index, place.term)):
        raise damaged(where, f"its term runs {place.runs} cannot end at {place.index} in term {place.term}")
    return Tail(place.index, place.term, place.clock, place.runs), place.fixed


def damaged(where: str, what: str) -> StoreDamagedError:
    return StoreDamagedError(
        f"{where}: {what}", hint="nothing was changed: restore a snapshot into another directory", path=where
    )
