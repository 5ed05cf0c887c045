"""From entries to parts: decode, check, place. No I/O.

A chunk is split when it is accepted, so that bad data is refused before any shard sees a byte. What is left of it is
one part a shard, as it goes into the ring: see `shards/part.py`.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from shardengine.engine.errors import BadEntryError, ChunkTooLargeError
from shardengine.shards import part as layout
from shardengine.shards.digest import key_hash
from shardengine.shards.fast import COMPILED, Normal, split_puts
from shardengine.shards.kv import plain_put_of
from shardengine.shards.machine import Machine
from shardengine.shards.placement import SLOT_MASK, shard_table, slot_of
from shardengine.shards.types import Limits

Pieces = dict[int, tuple["array[int]", list[bytes]]]
"""By shard: the offsets of its entries from the chunk's first index, ascending, and their data."""


class Split(NamedTuple):
    """A chunk taken apart: the parts by shard, and why entries are rejected, by offset (only with
    `bad_entry="reject"`)."""

    parts: dict[int, bytes]
    rejected: dict[int, str]


class Splitter:
    """Splits chunks for one machine, shard count and set of limits."""

    def __init__(self, machine: Machine, shards: int, limits: Limits, *, reject_bad: bool, part_bytes_max: int) -> None:
        self._machine = machine
        self._limits = limits
        self._reject_bad = reject_bad
        self.part_bytes_max = part_bytes_max
        self._shards = shards
        self._table = shard_table(shards)
        self._decode = msgspec.msgpack.Decoder(machine.command).decode
        self._keyed_by_itself = type(machine).partition_key is Machine.partition_key
        self._plain_put = plain_put_of(machine) if COMPILED else None

    def owner(self, key: bytes) -> int:
        """The shard that holds `key`."""
        return self._table[slot_of(key if self._keyed_by_itself else self._machine.partition_key(key))]

    def check(self, data: bytes) -> None:
        """Raise BadEntryError when `data` must not enter the log. Empty data, a no-op, may."""
        reason = self._judge(data)[1] if data else None
        if reason is not None:
            raise BadEntryError(f"bad entry: {reason}", hint="do not propose it", reason=reason)

    def split(self, chunk: Normal) -> Split:
        """Take a chunk apart.

        Raises BadEntryError naming the first bad entry, or ChunkTooLargeError when a part passes what a ring takes.
        """
        rejected: dict[int, str] = {}
        parts = self._split_plain(chunk)
        if parts is None:
            owners = self._owners(chunk.datas)
            pieces = self._split_each(chunk, rejected) if owners is None else self._distribute(owners, chunk.datas)
            parts = {shard: layout.pack(chunk.first, chunk.runs, *piece) for shard, piece in pieces.items()}
        for shard, part in parts.items():
            if len(part) > self.part_bytes_max:
                raise self._too_large(shard, len(part), chunk)
        return Split(parts, rejected)

    def _split_plain(self, chunk: Normal) -> dict[int, bytes] | None:
        """The parts of a chunk of nothing but plain puts within the limits; None for any other chunk. Only where the
        compiled twin is there: in Python the general way is as fast."""
        if self._plain_put is None:
            return None
        parts = split_puts(
            chunk.datas,
            self._plain_put,
            self._limits.key_bytes_max,
            self._limits.value_bytes_max,
            self._table,
            self._shards,
            chunk.first,
            chunk.runs,
        )
        if parts is None:
            return None
        return {shard: part for shard, part in enumerate(parts) if part is not None}

    def _owners(self, datas: list[bytes]) -> Sequence[int] | None:
        """Each entry's shard, when every entry is a good command with one key; None when one needs a closer look."""
        if max(map(len, datas)) > self._limits.value_bytes_max:
            return None
        try:
            commands = list(map(self._decode, datas))
            keys = [key for (key,) in map(self._machine.keys, commands)]
            if set(map(type, keys)) != {bytes}:
                return None
            lengths = set(map(len, keys))
            if min(lengths) < 1 or max(lengths) > self._limits.key_bytes_max:
                return None
            if not self._keyed_by_itself:
                keys = list(map(self._machine.partition_key, keys))
            table = self._table
            return [table[key_hash(key) & SLOT_MASK] for key in keys]
        except Exception:  # a bad command or a no-op among them, which _split_each names
            return None

    def _distribute(self, owners: Sequence[int], datas: list[bytes]) -> Pieces:
        offsets: list[list[int]] = [[] for _ in range(self._shards)]
        buckets: list[list[bytes]] = [[] for _ in range(self._shards)]
        add_offset = [bucket.append for bucket in offsets]
        add_data = [bucket.append for bucket in buckets]
        for offset, owner in enumerate(owners):
            add_offset[owner](offset)
            add_data[owner](datas[offset])
        return {shard: (array("I", offsets[shard]), bucket) for shard, bucket in enumerate(buckets) if bucket}

    def _split_each(self, chunk: Normal, rejected: dict[int, str]) -> Pieces:
        found: Pieces = {}
        for offset, data in enumerate(chunk.datas):
            if not data:
                continue
            owner, reason = self._judge(data)
            if reason is None:
                offsets, datas = found.setdefault(owner, (array("I"), []))
                offsets.append(offset)
                datas.append(data)
            elif self._reject_bad:
                rejected[offset] = reason
            else:
                raise BadEntryError(
                    f"entry {chunk.first + offset}: {reason}",
                    hint='check(data) before proposing; bad_entry="reject" consumes such entries',
                    index=chunk.first + offset,
                    reason=reason,
                )
        return found

    def _judge(self, data: bytes) -> tuple[int, str | None]:
        """The shard of a command, or why it is a bad one."""
        try:
            command: Any = self._decode(data)
        except (msgspec.MsgspecError, TypeError) as error:
            return 0, f"data is no command of {self._machine.name}: {error}"
        try:
            return self._place(command, len(data))
        except Exception as error:
            return 0, f"the machine's keys(), partition_key() or check() failed: {type(error).__name__}: {error}"

    def _place(self, command: Any, size: int) -> tuple[int, str | None]:
        """The shard of a command whose encoding has `size` bytes, or why it is a bad one."""
        keys = tuple(self._machine.keys(command))
        if not keys:
            return 0, "keys() names no key"
        for key in keys:
            if not isinstance(key, bytes) or not 1 <= len(key) <= self._limits.key_bytes_max:
                found = f"{len(key)} bytes" if isinstance(key, bytes) else type(key).__name__
                return 0, f"a key of {found}; allowed are 1 to key_bytes_max={self._limits.key_bytes_max}"
        partitions = [self._machine.partition_key(key) for key in keys]
        for partition in partitions:
            if not isinstance(partition, bytes):
                return 0, f"partition_key() returned {type(partition).__name__}, not bytes"
        slots = set(map(slot_of, partitions))
        if len(slots) > 1:
            reason = f"its {len(keys)} keys lie in {len(slots)} partitions; partition_key() keeps related keys together"
            return 0, reason
        shard = self._table[slots.pop()]
        return shard, self._machine.check(command, self._limits) if size > self._limits.value_bytes_max else None

    def _too_large(self, shard: int, size: int, chunk: Normal) -> ChunkTooLargeError:
        return ChunkTooLargeError(
            f"the chunk of entries {chunk.first} to {chunk.last} has a part of {size} bytes for shard "
            f"{shard}, over the limit of {self.part_bytes_max}",
            hint="send smaller chunks, or raise ring_bytes (a part may take a quarter of it)",
            size=size,
            limit=self.part_bytes_max,
            shard=shard,
        )
