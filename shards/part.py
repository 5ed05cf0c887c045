"""The byte layout of a part: what one shard gets of a group, contiguous in its ring.

    offset          size       field (little-endian)
    0               4          entries: how many
    4               4          runs: how many
    8               8          base: log index the entries' offsets count from
    16              24 * runs  runs: (first index, term, clock) where term or clock change, ascending
    16 + 24 * runs  4 * n      offsets: index - base of each entry, ascending
    ...             the rest   a msgpack array header and the entries' `data`, untouched

The worker decodes the last field, a whole part, with one typed call.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Sequence

import msgspec

from ipc.errors import RingError

_HEAD = struct.Struct("<IIQ")
_RUN = struct.Struct("<QQQ")
_ARRAY = struct.Struct(">BI")
_ARRAY32 = 0xDD  # https://github.com/msgpack/msgpack/blob/master/spec.md#array-format-family
_OFFSET_BYTES = 4

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

    def runs(self) -> list[Run]:
        """Where term or clock change."""
        return [Run(*run) for run in _RUN.iter_unpack(self._runs)]

    def indices(self) -> list[int]:
        """The log index of each command."""
        offsets = array("I")
        offsets.frombytes(self._offsets)
        base = self._base
        return [base + offset for offset in offsets]


def pack_runs(runs: Sequence[Run]) -> bytes:
    """The runs of a part, as they lie in it."""
    return b"".join([_RUN.pack(run.first, run.term, run.clock) for run in runs])


def pack(base: int, runs: bytes, entries: int, offsets: bytes, datas: Sequence[bytes]) -> bytes:
    """A part. `runs` are from `pack_runs`; `offsets` are u32, one for each of `entries`; `datas` holds the bytes of all
    of them, in any number of buffers."""
    head = _HEAD.pack(entries, len(runs) // _RUN.size, base)
    return b"".join((head, runs, offsets, _ARRAY.pack(_ARRAY32, entries), *datas))


def unpack(view: memoryview) -> Unpacked:
    """Take a part apart without copying the commands. RingError: these bytes are no part."""
    if len(view) < _HEAD.size:
        raise RingError("no part at this extent: it has no head", length=len(view))
    entries, runs, base = _HEAD.unpack_from(view)
    offsets_at = _HEAD.size + _RUN.size * runs
    commands_at = offsets_at + _OFFSET_BYTES * entries
    if runs == 0 or commands_at >= len(view):
        raise RingError("no part at this extent: it is cut short", length=len(view))
    return Unpacked(entries, view[commands_at:], base, view[_HEAD.size : offsets_at], view[offsets_at:commands_at])
