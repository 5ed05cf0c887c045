"""Which shard owns a key: `slot = xxh64(partition_key, seed 0) & 16383`, `shard = slot * shards >> 14`.

Slots never move between keys; shards own contiguous ranges of them, for any shard count.
"""

from __future__ import annotations

from shardengine.shards.digest import key_hash

SLOTS = 1 << 14
SLOT_MASK = SLOTS - 1
SHARDS_MAX = 256


def slot_of(partition_key: bytes) -> int:
    """The slot of a partition key, 0 to 16383."""
    return key_hash(partition_key) & SLOT_MASK


def shard_of(slot: int, shards: int) -> int:
    """The shard that owns `slot` among `shards` of them."""
    return slot * shards >> 14


def shard_table(shards: int) -> bytes:
    """`shard_of` for every slot, as a table to index: one byte a slot."""
    assert 1 <= shards <= SHARDS_MAX
    first = [-(-shard * SLOTS // shards) for shard in range(shards + 1)]  # slot of each, and what is behind the last
    return b"".join(bytes((shard,)) * (first[shard + 1] - first[shard]) for shard in range(shards))
