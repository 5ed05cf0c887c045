"""From entries to their shards: decode, check, place. No I/O.

A chunk is split when it is accepted, so that bad data is refused before any shard sees a byte. What is known then is
whose each entry is, and how long the part of each shard gets; the parts are written where they belong, in the rings, as
`shards/part.py` draws them.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from itertools import chain, islice
from typing import Any, NamedTuple

import msgspec

from shardengine.engine.errors import BadEntryError, ChunkTooLargeError
from shardengine.shards import part as layout
from shardengine.shards.digest import key_hash
from shardengine.shards.fast import COMPILED, Normal, weigh_puts
from shardengine.shards.kv import plain_put_of
from shardengine.shards.machine import Machine, partition_of
from shardengine.shards.placement import SLOT_MASK, shard_table, slot_of
from shardengine.shards.types import Limits


class Spanning(NamedTuple):
    """A command that is the coordinator's: of the entry at `entry`, which stands in `run`. It is decoded anew each time
    it is run, as on a shard: `apply` may have changed it."""

    entry: int
    run: layout.Run
    data: bytes
    keys: tuple[bytes, ...]
    partitions: frozenset[bytes]


class Split(NamedTuple):
    """A chunk taken apart: each entry's shard, one byte an entry; the lengths of the parts, by shard; why entries are
    rejected, by offset (only with `bad_entry="reject"`); and the commands that are the coordinator's. An entry that is
    rejected, has no data, or is the coordinator's, is no shard's."""

    owners: bytes
    lengths: dict[int, int]
    rejected: dict[int, str]
    spanning: list[Spanning]

    def placed(self, chunk: Normal) -> list[bytes]:
        """The data of the chunk's entries, without that of those which are no shard's."""
        if not self.rejected and not self.spanning:
            return chunk.datas
        datas = chunk.datas.copy()
        for spanning in self.spanning:
            datas[spanning.entry - chunk.first] = b""
        for offset in self.rejected:
            datas[offset] = b""
        return datas


NOTHING = Split(b"", {}, {}, [])


class _Judged(NamedTuple):
    """What a good command touches."""

    keys: tuple[bytes, ...]
    partitions: list[bytes]


class _Read(NamedTuple):
    """Of a chunk's commands, all of them good, the keys of each, and their partitions; and the shards of all these
    partitions, one behind the other, one byte a shard."""

    keys: list[tuple[bytes, ...]]
    partitions: list[tuple[bytes, ...]]
    shards: bytes

    def owners(self) -> tuple[bytearray, set[int]]:
        """For each command the shard of its first partition; and which commands touch others too, by offset."""
        over_several: set[int] = set()
        if len(self.shards) == len(self.keys):
            return bytearray(self.shards), over_several
        owners, shards = bytearray(), iter(self.shards)
        for offset, count in enumerate(map(len, self.keys)):
            owner = next(shards)
            owners.append(owner)
            for shard in islice(shards, count - 1):
                if shard != owner:
                    over_several.add(offset)
        return owners, over_several


class Splitter:
    """Splits chunks for one machine, shard count and set of limits."""

    def __init__(self, machine: Machine, shards: int, limits: Limits, *, reject_bad: bool, part_bytes_max: int) -> None:
        self.machine = machine
        self.limits = limits
        self._reject_bad = reject_bad
        self.part_bytes_max = part_bytes_max
        self._shards = shards
        self._table = shard_table(shards)
        self.decode = msgspec.msgpack.Decoder(machine.command).decode
        self._keyed_by_itself = partition_of(machine) is None
        self._plain_put = plain_put_of(machine) if COMPILED else None

    def owner(self, key: bytes) -> int:
        """The shard that holds `key`."""
        return self._table[slot_of(key if self._keyed_by_itself else self.machine.partition_key(key))]

    def place(self, partition: bytes) -> int:
        """The shard that holds a partition."""
        return self._table[slot_of(partition)]

    def check(self, datas: Sequence[bytes]) -> None:
        """Raise BadEntryError when one of `datas` must not enter the log. Empty data, a no-op, may."""
        if len(datas) > 1 and self._are_plain(datas):
            return
        for data in datas:
            judged = self._judge(data) if data else None
            if isinstance(judged, str):
                raise BadEntryError(f"bad entry: {judged}", hint="do not propose it", reason=judged)

    def _are_plain(self, datas: Sequence[bytes]) -> bool:
        """Whether they are known at a glance for plain puts within the limits."""
        if not all(type(data) is bytes for data in datas):
            return False
        return self._weigh_plain(Normal(1, list(datas), [(1, 0)], 0, bytes(layout.RUN_BYTES))) is not None

    def split(self, chunk: Normal, taken: Set[bytes] = frozenset()) -> Split:
        """Take a chunk apart that is to follow others in a group, whose spanning commands have `taken` partitions.

        Raises BadEntryError naming the first bad entry, or ChunkTooLargeError when a part passes what a ring takes.
        """
        weighed = None if taken else self._weigh_plain(chunk)
        if weighed is None:
            read, held = self._read(chunk.datas), set(taken)
            split = self._split_each(chunk, held) if read is None else self._split_read(chunk, read, held)
            lengths = layout.lengths(split.placed(chunk), split.owners, self._shards, chunk.first, chunk.runs)
        else:
            split, lengths = Split(weighed[0], {}, {}, []), weighed[1]
        for shard, length in enumerate(lengths):
            if length > self.part_bytes_max:
                raise self._too_large(shard, length, chunk)
        return split._replace(lengths={shard: length for shard, length in enumerate(lengths) if length})

    def _weigh_plain(self, chunk: Normal) -> tuple[bytes, list[int]] | None:
        """The owners and lengths of a chunk of nothing but plain puts within the limits; None for any other chunk.
        Only where the compiled twin is there: in Python the general way is as fast."""
        if self._plain_put is None:
            return None
        return weigh_puts(
            chunk.datas,
            self._plain_put,
            self.limits.key_bytes_max,
            self.limits.value_bytes_max,
            self._table,
            self._shards,
            chunk.first,
            chunk.runs,
        )

    def _read(self, datas: list[bytes]) -> _Read | None:
        """What a chunk's commands touch, when all of them are good ones; None when one needs a closer look."""
        if max(map(len, datas)) > self.limits.value_bytes_max:
            return None
        try:
            keys = list(map(tuple, map(self.machine.keys, map(self.decode, datas))))
            named = list(chain.from_iterable(keys))
            lengths = set(map(len, named))
            if not all(keys) or set(map(type, named)) != {bytes}:
                return None
            if min(lengths) < 1 or max(lengths) > self.limits.key_bytes_max:
                return None
            if self._keyed_by_itself:
                return _Read(keys, keys, self._places(named))
            found = list(map(self.machine.partition_key, named))
            if set(map(type, found)) != {bytes}:
                return None
            one_by_one = iter(found)
            partitions = [tuple(islice(one_by_one, count)) for count in map(len, keys)]
            return _Read(keys, partitions, self._places(found))
        except Exception:  # a no-op among them, or a bad command, which _split_each names
            return None

    def _places(self, partitions: list[bytes]) -> bytes:
        table = self._table
        return bytes([table[key_hash(partition) & SLOT_MASK] for partition in partitions])

    def _split_read(self, chunk: Normal, read: _Read, taken: set[bytes]) -> Split:
        """As `_split_each`, of a chunk whose commands are read."""
        owners, over_several = read.owners()
        if not over_several and not taken:
            return Split(bytes(owners), {}, {}, [])
        spanning, runs = [], layout.unpack_runs(chunk.runs)
        for offset, partitions in enumerate(read.partitions):
            if offset in over_several or not taken.isdisjoint(partitions):
                taken.update(partitions)
                data, keys, entry = chunk.datas[offset], read.keys[offset], chunk.first + offset
                spanning.append(Spanning(entry, layout.run_at(runs, entry), data, keys, frozenset(partitions)))
                owners[offset] = 0
        return Split(bytes(owners), {}, {}, spanning)

    def _split_each(self, chunk: Normal, taken: set[bytes]) -> Split:
        """Look at one entry after the other. Those that touch a `taken` partition, or more shards than one, are the
        coordinator's, and what they touch is taken from there on."""
        owners, runs = bytearray(len(chunk.datas)), layout.unpack_runs(chunk.runs)
        rejected: dict[int, str] = {}
        spanning: list[Spanning] = []
        for offset, data in enumerate(chunk.datas):
            judged = self._judge(data) if data else None
            if isinstance(judged, str):
                if not self._reject_bad:
                    raise _bad(chunk.first + offset, judged)
                rejected[offset] = judged
            elif judged is not None:
                shards = set(map(self.place, judged.partitions))
                if len(shards) == 1 and taken.isdisjoint(judged.partitions):
                    owners[offset] = shards.pop()
                    continue
                taken.update(judged.partitions)
                entry = chunk.first + offset
                run = layout.run_at(runs, entry)
                spanning.append(Spanning(entry, run, data, judged.keys, frozenset(judged.partitions)))
        return Split(bytes(owners), {}, rejected, spanning)

    def _judge(self, data: bytes) -> _Judged | str:
        """A command and what it touches, or why it is a bad one."""
        try:
            command: Any = self.decode(data)
        except Exception as error:  # of msgspec, or of what a command does as it is made
            return f"data is no command of {self.machine.name}: {error}"
        try:
            return self._look_at(command, len(data))
        except Exception as error:
            return f"the machine's keys(), partition_key() or check() failed: {type(error).__name__}: {error}"

    def _look_at(self, command: Any, size: int) -> _Judged | str:
        """A command whose encoding has `size` bytes, and what it touches, or why it is a bad one."""
        named = self.machine.keys(command)
        if named is None or isinstance(named, (bytes, str)):
            return f"keys() returned {type(named).__name__}, not a list of keys"
        keys = tuple(named)
        if not keys:
            return "keys() names no key"
        for key in keys:
            if type(key) is not bytes or not 1 <= len(key) <= self.limits.key_bytes_max:
                found = f"{len(key)} bytes" if isinstance(key, bytes) else type(key).__name__
                return f"a key of {found}; allowed are 1 to key_bytes_max={self.limits.key_bytes_max}"
        partitions = list(keys) if self._keyed_by_itself else list(map(self.machine.partition_key, keys))
        for partition in partitions:
            if type(partition) is not bytes:
                return f"partition_key() returned {type(partition).__name__}, not bytes"
        reason = self.machine.check(command, self.limits) if size > self.limits.value_bytes_max else None
        return _Judged(keys, partitions) if reason is None else reason

    def _too_large(self, shard: int, size: int, chunk: Normal) -> ChunkTooLargeError:
        return ChunkTooLargeError(
            f"the chunk of entries {chunk.first} to {chunk.last} has a part of {size} bytes for shard "
            f"{shard}, over the limit of {self.part_bytes_max}",
            hint="send smaller chunks, or raise ring_bytes (a part may take a quarter of it)",
            size=size,
            limit=self.part_bytes_max,
            shard=shard,
        )


def _bad(index: int, reason: str) -> BadEntryError:
    return BadEntryError(
        f"entry {index}: {reason}",
        hint='check(data) before proposing; bad_entry="reject" consumes such entries',
        index=index,
        reason=reason,
    )
