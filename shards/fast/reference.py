"""What is done to every entry, in as few steps as there are: the normal form of a chunk, and the short cuts for chunks
of nothing but plain puts, which are weighed without decoding and sorted without dictionaries; and the parts of every
chunk, which are written where they belong.

A *plain put* is the built-in machine's `Put`, encoded as exactly the msgpack array [tag, key, value], a small positive
integer and two bins. This file is the specification; `_puts.c` is its compiled twin, and one suite tests both. Weigh
and sort answer None where a single command is anything else, and the general way is taken.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from operator import itemgetter
from typing import NamedTuple

import msgspec

from shardengine.shards.part import RUN_BYTES, Run, lengths, pack, pack_runs, places
from shardengine.shards.placement import SHARDS_MAX, slot_of
from shardengine.shards.types import U64_MAX, Entry

_TAG_MAX = 127


class _Fields(NamedTuple):
    tag: int
    key: bytes
    value: bytes


_decode_one = msgspec.msgpack.Decoder(_Fields).decode
_encode = msgspec.msgpack.Encoder().encode


class Normal(NamedTuple):
    """A chunk in its normal form.

    first: the index of its first entry; the others follow without a gap. datas: of each. terms: (index, term) where
    the term changes, the first entry's always. clock: the log clock behind it. runs: packed, see `part.pack_runs`.
    """

    first: int
    datas: list[bytes]
    terms: list[tuple[int, int]]
    clock: int
    runs: bytes

    @property
    def last(self) -> int:
        return self.first + len(self.datas) - 1

    def term_of(self, index: int) -> int:
        """The term of its entry `index`."""
        return self.terms[bisect_right(self.terms, index, key=itemgetter(0)) - 1][1]


def normal_form_in_python(entries: Sequence[Entry], clock: int) -> Normal | None:
    """The normal form of a chunk before which the log clock stands at `clock`; None when it has none: it is empty, its
    indices do not rise one by one, its terms fall, or something in it is of another type or size. The compiled twin
    also says None where an entry is of another class than `Entry` itself."""
    datas: list[bytes] = []
    terms: list[tuple[int, int]] = []
    runs: list[Run] = []
    for place, entry in enumerate(entries):
        try:
            index, term, data, time_ms = entry.index, entry.term, entry.data, entry.time_ms
        except AttributeError:
            return None
        if {type(index), type(term), type(time_ms)} != {int} or type(data) is not bytes:
            return None
        if min(index, term, time_ms) < 0 or max(index, term, time_ms) > U64_MAX:
            return None
        if place and (index != runs[0].first + place or term < terms[-1][1]):
            return None
        clock = max(clock, time_ms)
        if not terms or terms[-1][1] != term:
            terms.append((index, term))
        if not runs or (runs[-1].term, runs[-1].clock) != (term, clock):
            runs.append(Run(index, term, clock))
        datas.append(data)
    return Normal(runs[0].first, datas, terms, clock, pack_runs(runs)) if runs else None


def weigh_puts_in_python(
    datas: list[bytes],
    tag: int,
    key_bytes_max: int,
    value_bytes_max: int,
    table: bytes,
    shards: int,
    base: int,
    runs: bytes,
) -> tuple[bytes, list[int]] | None:
    """The shard of each put, one byte a put, and for each shard the length of its part, 0 where it gets nothing: see
    `part.lengths`. None instead of all that: a command is no plain put, or passes a limit."""
    if len(table) != 1 << 14 or not 1 <= shards <= SHARDS_MAX or not 0 <= tag <= _TAG_MAX:
        raise ValueError("weigh_puts: a table of 16,384 slots, 1 to 256 shards, a tag of 0 to 127")
    if not _are_whole(runs):
        raise ValueError("weigh_puts: more entries than an offset counts, or no whole run")
    owners = bytearray()
    for data in datas:
        put = _plain(data, tag)
        if put is None or not 1 <= len(put.key) <= key_bytes_max or len(put.value) > value_bytes_max:
            return None
        owners.append(table[slot_of(put.key)])
    if max(owners, default=0) >= shards:
        raise ValueError(f"weigh_puts: the table gives slots to shard {max(owners)}")
    return bytes(owners), lengths(datas, owners, shards, base, runs)


def fill_parts_in_python(
    datas: list[bytes], owners: bytes, base: int, runs: bytes, views: dict[int, memoryview]
) -> None:
    """Write into each shard's view its part of a chunk, `part.pack` of the entries that are its own: those that
    `owners` gives it, one byte an entry, and that have data. `base` and `runs` are the chunk's. ValueError, before
    anything is written: `views` are not one for each shard that gets something, exactly as long as its part, or the
    rest does not fit together."""
    if len(owners) != len(datas) or set(map(type, datas)) - {bytes} or not _are_whole(runs):
        raise ValueError("fill_parts: the data, their owners and the runs do not fit together")
    parts = {
        shard: pack(base, runs, mine, [datas[place] for place in mine])
        for shard, mine in enumerate(places(datas, owners, max(owners, default=0) + 1))
        if mine
    }
    if {shard: len(part) for shard, part in parts.items()} != {
        shard: 0 if view.readonly else view.nbytes for shard, view in views.items()
    }:
        raise ValueError("fill_parts: the views are not as long as the parts")
    for shard, part in parts.items():
        views[shard][:] = part


def _are_whole(runs: bytes) -> bool:
    return len(runs) > 0 and len(runs) % RUN_BYTES == 0


def _plain(data: bytes, tag: int) -> _Fields | None:
    try:
        put = _decode_one(data)
    except msgspec.MsgspecError:
        return None
    return put if put.tag == tag and _header_is_canonical(data) else None


def _header_is_canonical(data: bytes) -> bool:
    """A fixarray of three and a fixint: the compiled twin looks at nothing else."""
    return data[0] == 0x93 and data[1] <= _TAG_MAX


def sorted_puts_in_python(view: memoryview, tag: int) -> tuple[list[tuple[bytes, bytes]], int] | None:
    """The last put of each key in a part's commands, in key order, and the size of the longest value of all. None: a
    command is no plain put."""
    if len(view) < 5 or view[0] != 0xDD:
        return None
    try:
        raws = msgspec.msgpack.decode(view, type=list[msgspec.Raw])
    except msgspec.MsgspecError:
        return None
    puts = [_plain(bytes(raw), tag) for raw in raws]
    last: dict[bytes, bytes] = {}
    longest = 0
    for put in puts:
        if put is None:
            return None
        last[put.key] = put.value
        longest = max(longest, len(put.value))
    return sorted(last.items()), longest
