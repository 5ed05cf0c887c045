"""The short cuts for what most chunks are: regular entries, taken apart in one pass, and nothing but plain puts,
split without decoding, sorted without dictionaries.

A chunk is *regular* when its entries are exactly of the class `Entry`, with plain ints of 64 bits and plain bytes, have
rising indices without a gap, and one term.

A *plain put* is a command whose encoding is exactly the msgpack array [tag, key, value], a small positive integer and
two bins, and whose `apply` does exactly `tx.put(key, value)`; a machine names its tag (`Machine.plain_put`). This file
is the specification; `_puts.c` is its compiled twin, and one suite tests both. Both answer None where a single command
is anything else, or an entry irregular, and the general way is taken.

Which one is used: the compiled one where it was built. SHARDENGINE_COMPILED=require makes its absence an ImportError,
SHARDENGINE_COMPILED=off leaves it alone.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from shards.part import pack
from shards.placement import slot_of
from shards.types import U64_MAX, Entry

SWITCH = "SHARDENGINE_COMPILED"
_TAG_MAX = 127


class _Fields(NamedTuple):
    tag: int
    key: bytes
    value: bytes


_decode_one = msgspec.msgpack.Decoder(_Fields).decode
_decode_many = msgspec.msgpack.Decoder(list[_Fields]).decode
_encode = msgspec.msgpack.Encoder().encode


Columns = tuple[int, int, int, list[bytes]]
"""Of a regular chunk: its first index, its term, its latest `time_ms`, and the data of its entries."""


def columns_in_python(entries: Sequence[Entry]) -> Columns | None:
    """The columns of a regular chunk; None for any other, and for an empty one."""
    if {*map(type, entries)} != {Entry}:
        return None
    indices = [entry.index for entry in entries]
    terms = [entry.term for entry in entries]
    datas = [entry.data for entry in entries]
    times = [entry.time_ms for entry in entries]
    if {*map(type, indices), *map(type, terms), *map(type, times)} != {int} or {*map(type, datas)} != {bytes}:
        return None
    numbers = [indices[0], indices[-1], terms[0], min(times), max(times)]
    if min(numbers) < 0 or max(numbers) > U64_MAX or len(set(terms)) != 1:
        return None
    if indices != list(range(indices[0], indices[0] + len(indices))):
        return None
    return indices[0], terms[0], max(times), datas


def split_puts_in_python(
    datas: list[bytes],
    tag: int,
    key_bytes_max: int,
    value_bytes_max: int,
    table: bytes,
    shards: int,
    base: int,
    runs: bytes,
) -> list[bytes | None] | None:
    """For each shard its part (`part.pack` of `base`, `runs`, and its puts with their places in `datas`); None for a
    shard that gets nothing. None instead of all that: a command is no plain put, or passes a limit."""
    if len(table) != 1 << 14 or not 1 <= shards <= 256 or not 0 <= tag <= _TAG_MAX:
        raise ValueError("split_puts: a table of 16,384 slots, 1 to 256 shards, a tag of 0 to 127")
    offsets = [array("I") for _ in range(shards)]
    buckets: list[list[bytes]] = [[] for _ in range(shards)]
    for offset, data in enumerate(datas):
        put = _plain(data, tag)
        if put is None or not 1 <= len(put.key) <= key_bytes_max or len(put.value) > value_bytes_max:
            return None
        owner = table[slot_of(put.key)]
        offsets[owner].append(offset)
        buckets[owner].append(data)
    return [
        pack(base, runs, len(bucket), places.tobytes(), bucket) if bucket else None
        for places, bucket in zip(offsets, buckets, strict=True)
    ]


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


columns, split_puts, sorted_puts, COMPILED = columns_in_python, split_puts_in_python, sorted_puts_in_python, False
if os.environ.get(SWITCH) != "off":
    try:
        import shards._puts as compiled
    except ImportError:
        if os.environ.get(SWITCH) == "require":
            raise
    else:
        columns, split_puts, sorted_puts, COMPILED = compiled.columns, compiled.split_puts, compiled.sorted_puts, True
