"""The load: records, made from a seed so that every process can make the same, and the digest they must lead to."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from typing import Protocol

import msgspec
import xxhash

from shardengine import Entry, Put, encode

KEY_BYTES = 16
_POOL_BYTES = 1 << 20

Pair = tuple[bytes, bytes]


class Source(Protocol):
    """Where records come from, in every process the same."""

    def chunks(self) -> Iterator[list[Pair]]: ...


class Load(msgspec.Struct, frozen=True):
    """So many records with random keys, in chunks."""

    entries: int
    value_bytes: int
    chunk: int
    seed: int

    def chunks(self) -> Iterator[list[Pair]]:
        """The records, chunk by chunk: the same at every call, in every process."""
        rng = random.Random(self.seed)
        pool = rng.randbytes(_POOL_BYTES + self.value_bytes)
        for first in range(0, self.entries, self.chunk):
            count = min(self.chunk, self.entries - first)
            keys = rng.randbytes(KEY_BYTES * count)
            starts = [rng.randrange(_POOL_BYTES) for _ in range(count)]
            yield [
                (keys[KEY_BYTES * n : KEY_BYTES * (n + 1)], pool[start : start + self.value_bytes])
                for n, start in enumerate(starts)
            ]


def entries_of(chunks: Iterable[list[Pair]], first: int = 1) -> Iterator[list[Entry]]:
    """The same records as committed entries."""
    for pairs in chunks:
        yield [Entry(index, 1, encode(Put(key, value))) for index, (key, value) in enumerate(pairs, first)]
        first += len(pairs)


def digest_of(records: dict[bytes, bytes]) -> bytes:
    """The engine's digest from its formula: `digest_sum` mod 2^128."""
    return whole(digest_sum(records.items()))


def digest_sum(records: Iterable[Pair]) -> int:
    """What parts of a state add up to: xxh3_128(u32le(len key) | key | u64le(0) | value) of each record."""
    total = 0
    for key, value in records:
        total += xxhash.xxh3_128_intdigest(len(key).to_bytes(4, "little") + key + bytes(8) + value)
    return total


def whole(total: int) -> bytes:
    """The digest of a state whose parts add up to that."""
    return (total % (1 << 128)).to_bytes(16, "big")
