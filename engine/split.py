"""From entries to parts: decode, check, place. No I/O.

A chunk is split when it is accepted, so that bad data is refused before any shard sees a byte. What is left of it is
one `Piece` a shard: the untouched `data` bytes of its entries and their offsets from the chunk's first index.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import msgspec

from engine.errors import BadEntryError, ChunkTooLargeError
from shards import part as layout
from shards.digest import key_hash
from shards.machine import Machine, plain_put_of
from shards.part import Run
from shards.placement import SLOT_MASK, shard_table, slot_of
from shards.puts import COMPILED, Columns, split_puts
from shards.types import Entry, Limits


class Piece:
    """What one shard gets of a chunk."""

    __slots__ = ("datas", "entries", "offsets", "plain", "size")

    def __init__(self, entries: int, offsets: bytes, datas: list[bytes], *, plain: bool = False) -> None:
        self.entries = entries
        self.offsets = offsets
        """Of each entry from the chunk's first index, as u32."""
        self.datas = datas
        """Their bytes, end to end, in one buffer or many."""
        self.plain = plain
        """Whether they are known to be plain puts."""
        self.size = 0
        """Bytes it takes in a ring."""


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
        self._plain_put = plain_put_of(machine) if COMPILED and self._keyed_by_itself else None

    def owner(self, key: bytes) -> int:
        """The shard that holds `key`."""
        return self._table[slot_of(key if self._keyed_by_itself else self._machine.partition_key(key))]

    def check(self, data: bytes) -> None:
        """Raise BadEntryError when `data` must not enter the log. Empty data, a no-op, may."""
        reason = self._judge(data)[1] if data else None
        if reason is not None:
            raise BadEntryError(f"bad entry: {reason}", hint="do not propose it", reason=reason)

    def split(
        self, entries: Sequence[Entry], runs: int, columns: Columns | None
    ) -> tuple[dict[int, Piece], dict[int, str]]:
        """The pieces by shard, and why entries are rejected, by offset (only with `bad_entry="reject"`). `columns` are
        those of the entries, if they are regular.

        Raises BadEntryError naming the first bad entry, or ChunkTooLargeError when a piece, with its `runs`, passes
        what a ring takes.
        """
        datas = [entry.data for entry in entries] if columns is None else columns[3]
        rejected: dict[int, str] = {}
        pieces = self._split_plain(datas)
        if pieces is None:
            owners = self._owners(datas)
            pieces = self._split_each(entries, rejected) if owners is None else self._distribute(owners, datas)
        for shard, piece in pieces.items():
            piece.size = layout.packed_size(runs, piece.entries, sum(map(len, piece.datas)))
            if piece.size > self.part_bytes_max:
                raise self._too_large(shard, piece.size, entries)
        return pieces, rejected

    def _split_plain(self, datas: list[bytes]) -> dict[int, Piece] | None:
        """The pieces of a chunk of nothing but plain puts within the limits; None for any other chunk. Only where the
        compiled twin is there: in Python the general way is as fast."""
        if self._plain_put is None:
            return None
        limits = self._limits
        pieces = split_puts(
            datas, self._plain_put, limits.key_bytes_max, limits.value_bytes_max, self._table, self._shards
        )
        if pieces is None:
            return None
        return {
            shard: Piece(one[0], one[1], [one[2]], plain=True) for shard, one in enumerate(pieces) if one is not None
        }

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
        except Exception:  # a bad command or a no-op among them, which _split_each names
            return None
        table = self._table
        return [table[key_hash(key) & SLOT_MASK] for key in keys]

    def _distribute(self, owners: Sequence[int], datas: list[bytes]) -> dict[int, Piece]:
        offsets: list[list[int]] = [[] for _ in range(self._shards)]
        buckets: list[list[bytes]] = [[] for _ in range(self._shards)]
        add_offset = [bucket.append for bucket in offsets]
        add_data = [bucket.append for bucket in buckets]
        for offset, owner in enumerate(owners):
            add_offset[owner](offset)
            add_data[owner](datas[offset])
        return {
            shard: Piece(len(bucket), array("I", offsets[shard]).tobytes(), bucket)
            for shard, bucket in enumerate(buckets)
            if bucket
        }

    def _split_each(self, entries: Sequence[Entry], rejected: dict[int, str]) -> dict[int, Piece]:
        found: dict[int, tuple[array[int], list[bytes]]] = {}
        for offset, entry in enumerate(entries):
            if not entry.data:
                continue
            owner, reason = self._judge(entry.data)
            if reason is None:
                offsets, datas = found.setdefault(owner, (array("I"), []))
                offsets.append(offset)
                datas.append(entry.data)
            elif self._reject_bad:
                rejected[offset] = reason
            else:
                raise BadEntryError(
                    f"entry {entry.index}: {reason}",
                    hint='check(data) before proposing; bad_entry="reject" consumes such entries',
                    index=entry.index,
                    reason=reason,
                )
        return {owner: Piece(len(datas), offsets.tobytes(), datas) for owner, (offsets, datas) in found.items()}

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
        slots = {slot_of(self._machine.partition_key(key)) for key in keys}
        if len(slots) > 1:
            reason = f"its {len(keys)} keys lie in {len(slots)} partitions; partition_key() keeps related keys together"
            return 0, reason
        shard = self._table[slots.pop()]
        return shard, self._machine.check(command, self._limits) if size > self._limits.value_bytes_max else None

    def _too_large(self, shard: int, size: int, entries: Sequence[Entry]) -> ChunkTooLargeError:
        return ChunkTooLargeError(
            f"the chunk of entries {entries[0].index} to {entries[-1].index} has a part of {size} bytes for shard "
            f"{shard}, over the limit of {self.part_bytes_max}",
            hint="send smaller chunks, or raise ring_bytes (a part may take a quarter of it)",
            size=size,
            limit=self.part_bytes_max,
            shard=shard,
        )


def pack(first: int, runs: Sequence[Run], piece: Piece) -> list[bytes]:
    """The buffers of a piece, for a ring."""
    return layout.pack(first, runs, piece.entries, piece.offsets, piece.datas)
