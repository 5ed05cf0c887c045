"""Stores of one shard, opened, filled and read."""

from __future__ import annotations

import random
from pathlib import Path

from shardengine.shards.placement import SLOTS
from shardengine.shards.store import Identity, ReadStore, Store
from shardengine.shards.types import Position

OURS = Identity("gen-1", 1, 3, SLOTS, "test.machine")
MAP_BYTES = 64 << 20


def store_at(path: Path, identity: Identity = OURS, map_bytes: int = MAP_BYTES, sync: bool = False) -> Store:
    path.mkdir(exist_ok=True)
    return Store(path, identity, map_bytes=map_bytes, readers_max=20, sync=sync)


def reader_at(path: Path, identity: Identity = OURS) -> ReadStore:
    return ReadStore(path, identity, map_bytes=MAP_BYTES, readers_max=20)


def records(side: Store | ReadStore) -> dict[bytes, bytes]:
    transaction = side.pin() if isinstance(side, Store) else side.begin()
    try:
        found = dict(transaction.scan(b"", None, reverse=False))
        assert transaction.count() == len(found)
        return found
    finally:
        transaction.close()


def commit(store: Store, writes: dict[bytes, bytes | None], group: int, solo: bytes | None = None) -> None:
    store.begin()
    store.write(writes)
    store.commit(Position(group, 10 * group, 1, 0), solo)


def random_writes(draw: random.Random, data: dict[bytes, bytes]) -> dict[bytes, bytes | None]:
    writes: dict[bytes, bytes | None] = {}
    for _ in range(draw.choice([0, 1, 5, 400])):
        key = b"%d" % draw.randrange(1_500) * draw.choice([1, 1, 30])
        if draw.random() < 0.3:
            key = draw.choice([key, *list(data)[:50]])
            writes[key[:480]] = None
        else:
            writes[key[:480]] = bytes([draw.randrange(256)]) * draw.choice([0, 3, 100, 1_500, 2_100, 5_000, 70_000])
    return writes
