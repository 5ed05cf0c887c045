"""Reads: one read transaction per shard, all at the same applied index.

A `Cut` never changes. The published one answers `get`; a view holds a cut of its own choosing for as long as it likes.
A publish opens a new read transaction on each shard that committed, shares those of the others with the cut before,
and closes what no cut holds any more.

Invariant: `ReadTx.holders` counts the cuts, alive, that hold it; a cut is alive while published or pinned.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import islice
from operator import itemgetter

from engine.contract import ScanResult
from shards.digest import records_digest
from shards.store import BadKey, ReadStore, ReadTx
from shards.types import Position

_RECORDS_PER_SLICE = 512


class Cut:
    """All shards at one applied index. Every read of it, at any time, sees the same state."""

    __slots__ = ("_owner", "pins", "position", "shards")

    def __init__(self, shards: Sequence[ReadTx], position: Position, owner: Callable[[bytes], int]) -> None:
        self.shards = shards
        self.position = position
        self.pins = 0
        self._owner = owner

    def get(self, key: bytes) -> bytes | None:
        try:
            return self.shards[self._owner(key)].get(key)
        except BadKey:
            return None  # no record can have such a key

    def get_multi(self, keys: Iterable[bytes]) -> list[bytes | None]:
        return [self.get(key) for key in keys]

    def scan_prefix(
        self, prefix: bytes, limit: int | None = None, start_after: bytes | None = None, reverse: bool = False
    ) -> ScanResult:
        if limit is not None and limit < 0:
            raise ValueError(f"limit is {limit}; it counts records, 0 or more, or is None")
        scans = [shard.scan(prefix, start_after, reverse=reverse) for shard in self.shards]
        merged = heapq.merge(*scans, key=itemgetter(0), reverse=reverse) if len(scans) > 1 else scans[0]
        if limit is None:
            return ScanResult(list(merged), self.position.index, more=False)
        found = list(islice(merged, limit + 1))
        return ScanResult(found[:limit], self.position.index, more=len(found) > limit)

    def count(self) -> int:
        return sum(shard.count() for shard in self.shards)

    def digest_slices(self) -> Iterator[int]:
        """The digest, as a sum of parts that take about a millisecond each."""
        for shard in self.shards:
            records = shard.scan(b"", None, reverse=False)
            while batch := list(islice(records, _RECORDS_PER_SLICE)):
                yield records_digest(batch)


class Reads:
    """The readers' side of one generation: its stores, the published cut, and the pinned ones."""

    def __init__(self, stores: Sequence[ReadStore], position: Position, owner: Callable[[bytes], int]) -> None:
        self._stores = stores
        self._owner = owner
        self._pinned: set[Cut] = set()
        self.cut = self._hold([store.begin() for store in stores], position)

    @property
    def pinned(self) -> int:
        """Cuts that are kept alive beside the published one."""
        return len(self._pinned - {self.cut})

    def clear_dead_readers(self, shard: int) -> None:
        """Free what a killed worker of `shard` had pinned: the environment would grow for its sake for ever."""
        self._stores[shard].clear_dead_readers()

    def publish(self, shards: Collection[int], position: Position) -> None:
        """Make what `shards` have committed visible, all at once."""
        old = self.cut
        fresh = list(old.shards)
        for shard in shards:
            fresh[shard] = self._stores[shard].begin()
        self.cut = self._hold(fresh, position)
        if old.pins == 0:
            self._drop(old)

    def pin(self) -> Cut:
        """The published cut, kept until it is unpinned as often as it was pinned."""
        self.cut.pins += 1
        self._pinned.add(self.cut)
        return self.cut

    def unpin(self, cut: Cut) -> None:
        cut.pins -= 1
        if cut.pins == 0:
            self._pinned.discard(cut)
            if cut is not self.cut:
                self._drop(cut)

    def close(self) -> None:
        """Close every transaction and environment. Cuts still pinned are dead."""
        for cut in self._pinned | {self.cut}:
            self._drop(cut)
        for store in self._stores:
            store.close()

    def _hold(self, shards: Sequence[ReadTx], position: Position) -> Cut:
        for shard in shards:
            shard.holders += 1
        return Cut(shards, position, self._owner)

    def _drop(self, cut: Cut) -> None:
        for shard in cut.shards:
            shard.holders -= 1
            if shard.holders == 0:
                shard.close()
