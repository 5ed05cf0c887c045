"""The byte layout of a part: what one shard gets of a chunk, contiguous in its ring.

    offset          size       field (little-endian)
    0               4          entries: how many, n
    4               4          runs: how many, r
    8               8          base: log index the entries' offsets count from
    16              8          length: of the whole part in bytes
    24              24 * r     runs: (first index, term, clock) where term or clock change, ascending, and only those
                               that hold for one of this part's own entries
    24 + 24 * r     4 * n      offsets: index - base of each entry, ascending
    ...             the rest   a msgpack array header and the entries' `data`, untouched

The parts of one group for one shard follow each other, each at a multiple of 8: they are one extent. The worker decodes
the last field, a whole part, with one typed call.

A part without runs is what the coordinator's own commands wrote on that shard. It has no offsets either, and its last
field is a msgpack array of `entries` pairs: a key, and its value or nil. It is the last one of its extent.
"""

from __future__ import annotations

import struct
import sys
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from operator import attrgetter

import msgspec

from shardengine.ipc.errors import RingError
from shardengine.ipc.ring import aligned

_HEAD = struct.Struct("<IIQQ")
_RUN = struct.Struct("<QQQ")
_ARRAY = struct.Struct(">BI")
_ARRAY32 = 0xDD  # https://github.com/msgpack/msgpack/blob/master/spec.md#array-format-family
RUN_BYTES = _RUN.size
_OFFSET_BYTES = 4
_first = attrgetter("first")
_decode_writes = msgspec.msgpack.Decoder(list[tuple[bytes, bytes | None]]).decode

assert sys.byteorder == "little" and array("I").itemsize == 4, "parts are written as this machine's integers"


class Run(msgspec.Struct, frozen=True, gc=False):
    """From the entry `first` on, entries have this term and stand at this log clock, up to the next run."""

    first: int
    term: int
    clock: int


class Unpacked:
    """A part taken apart. `commands` is the msgpack array of its `entries` commands; the rest is unpacked on demand."""

    __slots__ = ("_base", "_offsets", "_runs", "commands", "entries")

    def __init__(self, entries: int, commands: memoryview, base: int, runs: memoryview, offsets: memoryview) -> None:
        self.entries = entries
        self.commands = commands
        self._base = base
        self._runs = runs
        self._offsets = offsets

    def writes(self) -> list[tuple[bytes, bytes | None]] | None:
        """The pairs of a part that is what the coordinator's commands wrote; None: it is another. RingError: these
        bytes are no pairs."""
        if self._runs:
            return None
        try:
            pairs = _decode_writes(self.commands)
        except msgspec.MsgspecError as error:
            raise RingError(f"what the coordinator's commands wrote does not decode: {error}") from error
        if len(pairs) != self.entries:
            raise RingError(f"{self.entries} writes of the coordinator's commands are {len(pairs)}")
        return pairs

    def runs(self) -> list[Run]:
        """Where term or clock change."""
        return unpack_runs(self._runs)

    def indices(self) -> list[int]:
        """The log index of each command."""
        offsets = array("I")
        offsets.frombytes(self._offsets)
        base = self._base
        return [base + offset for offset in offsets]


def pack_runs(runs: Sequence[Run]) -> bytes:
    """The runs of a chunk, or of a part, as they lie in a part."""
    return b"".join([_RUN.pack(run.first, run.term, run.clock) for run in runs])


def unpack_runs(runs: bytes | memoryview) -> list[Run]:
    """What `pack_runs` packed."""
    return [Run(*run) for run in _RUN.iter_unpack(runs)]


def run_at(runs: Sequence[Run], index: int) -> Run:
    """The one that holds for the entry `index`."""
    return runs[bisect_right(runs, index, key=_first) - 1] if len(runs) > 1 else runs[0]


def runs_at(runs: bytes, base: int, offsets: Sequence[int]) -> bytes:
    """Those of a chunk's packed `runs` that hold for one of the entries at `offsets` from `base`, which ascend."""
    if len(runs) == _RUN.size:
        return runs
    starts = [first for first, _, _ in _RUN.iter_unpack(runs)]
    held = sorted({bisect_right(starts, base + offset) - 1 for offset in offsets})
    return b"".join([runs[at * _RUN.size : (at + 1) * _RUN.size] for at in held])


def places(datas: Sequence[bytes], owners: bytes | bytearray, shards: int) -> list[array[int]]:
    """For each shard, where in a chunk its entries are: those that `owners` gives it, and that have data."""
    found = [array("I") for _ in range(shards)]
    add = [mine.append for mine in found]
    for place, (data, owner) in enumerate(zip(datas, owners, strict=True)):
        if data:
            add[owner](place)
    return found


def lengths(datas: Sequence[bytes], owners: bytes | bytearray, shards: int, base: int, runs: bytes) -> list[int]:
    """The length of each shard's part of a chunk, as `pack` gives it; 0 where it has no entries."""
    return [
        _data_at(len(mine), runs_at(runs, base, mine)) + sum(map(len, map(datas.__getitem__, mine))) if mine else 0
        for mine in places(datas, owners, shards)
    ]


def _data_at(entries: int, runs: bytes) -> int:
    """Where in a part the data begins."""
    return _HEAD.size + len(runs) + _OFFSET_BYTES * entries + _ARRAY.size


def pack(base: int, runs: bytes, offsets: array[int], datas: Sequence[bytes]) -> bytes:
    """A part of the chunk that begins at `base` and has those packed `runs`: its entries' `offsets`, u32, and data."""
    entries = len(offsets)
    own = runs_at(runs, base, offsets)
    length = _data_at(entries, own) + sum(map(len, datas))
    packed = _HEAD.pack(entries, len(own) // _RUN.size, base, length)
    return b"".join((packed, own, offsets.tobytes(), _ARRAY.pack(_ARRAY32, entries), *datas))


def pack_writes(writes: Mapping[bytes, bytes | None]) -> bytes:
    """A part of what the coordinator's commands wrote: the last write of each key, None for a deletion."""
    pairs = msgspec.msgpack.encode(sorted(writes.items()))
    return _HEAD.pack(len(writes), 0, 0, _HEAD.size + len(pairs)) + pairs


def unpack(view: memoryview) -> Iterator[Unpacked]:
    """Take the parts of an extent apart, one after the other, without copying the commands. RingError: these bytes are
    no parts."""
    at = 0
    while at < len(view) or at == 0:
        rest = view[at:]
        if len(rest) < _HEAD.size:
            raise RingError("no part at this extent: it has no head", length=len(rest))
        entries, runs, base, length = _HEAD.unpack_from(rest)
        offsets_at = _HEAD.size + _RUN.size * runs
        commands_at = offsets_at + (_OFFSET_BYTES * entries if runs else 0)
        if not commands_at < length <= len(rest):
            raise RingError("no part at this extent: it is cut short", length=len(rest))
        runs_view, offsets = rest[_HEAD.size : offsets_at], rest[offsets_at:commands_at]
        yield Unpacked(entries, rest[commands_at:length], base, runs_view, offsets)
        at += aligned(length)
