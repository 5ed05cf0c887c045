"""The dumb model of the built-in machine: one dict, entries applied one by one in log order.

It shares no code with what it stands beside: commands are read from their bytes by the format's own numbers, and the
digest is computed from its formula, sum over records of xxh3_128(u32le(len key) | key | u64le(0) | value) mod 2^128.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

import msgspec
import xxhash

from shardengine import ApplyResult, Entry

PUT, DELETE, COMPARE_AND_SWAP = 1, 2, 3


class Model:
    """What the state must be, and what every entry must have been answered."""

    def __init__(self) -> None:
        self.data: dict[bytes, bytes] = {}
        self.index = 0
        self.term = 0

    def apply(self, entries: Iterable[Entry]) -> list[ApplyResult]:
        """Apply entries that continue the log. Returns what the engine must answer."""
        return [self._apply(entry) for entry in entries]

    def _apply(self, entry: Entry) -> ApplyResult:
        assert entry.index == self.index + 1 and entry.term >= self.term
        self.index, self.term = entry.index, entry.term
        if not entry.data:
            return ApplyResult(entry.index, True)
        kind, key, *rest = msgspec.msgpack.decode(entry.data)
        if kind == PUT:
            self.data[key] = rest[0]
        elif kind == DELETE:
            self.data.pop(key, None)
        elif kind == COMPARE_AND_SWAP and self.data.get(key) == rest[0]:
            self.data[key] = rest[1]
        else:
            return ApplyResult(entry.index, False, reason="compare failed")
        return ApplyResult(entry.index, True)

    def digest(self) -> bytes:
        return digest_of(self.data.items())

    def scan(self, prefix: bytes) -> list[tuple[bytes, bytes]]:
        return sorted((key, value) for key, value in self.data.items() if key.startswith(prefix))


def digest_of(records: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The 16 bytes that `Engine.digest()` must return."""
    total = 0
    for key, value in records:
        total += xxhash.xxh3_128_intdigest(struct.pack("<I", len(key)) + key + struct.pack("<Q", 0) + value)
    return (total % (1 << 128)).to_bytes(16, "big")


def chunks_of(entries: Sequence[Entry], size: int) -> list[Sequence[Entry]]:
    """The entries cut into chunks of `size`, the last one shorter."""
    return [entries[at : at + size] for at in range(0, len(entries), size)]


def log_of(datas: Iterable[bytes], first: int = 1, term: int = 1) -> list[Entry]:
    """Consecutive entries of one term."""
    return [Entry(index, term, data) for index, data in enumerate(datas, first)]
