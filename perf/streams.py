"""What a sweep has applied: commands of several kinds, over keys in several orders, made from a seed; what they write;
and the state that they must lead to."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import count
from operator import eq
from statistics import fmean
from typing import Any

import msgspec

from perf.load import KEY_BYTES, Pair, digest_of
from perf.shifting import Shift, Shifting
from perf.zipf import Zipf
from shardengine import CompareAndSwap, Entry, Machine, Put, encode
from shardengine.shards.kv import KeyValue
from shardengine.shards.placement import SLOTS, shard_of, shard_table, slot_of

_POOL_BYTES = 1 << 20
_SKEW = 0.99
_HOT_KEYS, _HOT_PERCENT = 100, 90
_REJECTED_EVERY = 10  # of the compare-and-swaps, one expects what is not there
_MIXED_PUTS, _MIXED_CAS = 0.6, 0.3  # the rest are over two keys
SPANNED_MAX = 8
"""The two keys of a `Shift` lie on two shards under every shard count from 2 to this."""


class Stream(msgspec.Struct, frozen=True):
    """So many commands, with the values of so many bytes.

    keys: "random", each of them new; "ordered", as numbers that rise, each new; "zipfian", over as many keys as there
    are entries, with a skew of 0.99; "hot", of which 90 % go to 100 keys, all others to random ones.
    command: "put"; "cas", of which one in ten is rejected; "spanning", over two keys on two shards; "mixed", 60 % puts,
    30 % compare-and-swaps, and 10 % over two shards.
    """

    entries: int
    value_bytes: int
    keys: str
    command: str
    seed: int

    @property
    def machine(self) -> type[Machine]:
        return KeyValue if self.command in ("put", "cas") else Shifting

    def steps(self) -> Iterator[tuple[Any, list[Pair]]]:
        """Each command, and what it writes. The same at every call, in every process."""
        rng = random.Random(f"{self.seed} {self.keys} {self.command}")
        keys = KEYS[self.keys](rng, self.entries, self.seed)
        make, held = COMMANDS[self.command], dict[bytes, bytes]()
        pool = rng.randbytes(_POOL_BYTES + self.value_bytes)
        for key in keys:
            start = rng.randrange(_POOL_BYTES)
            command, pairs = make(rng, held, key, pool[start : start + self.value_bytes])
            held.update(pairs)
            yield command, pairs

    def slots(self) -> list[int]:
        """Where each of all writes goes."""
        return [slot_of(key) for _, pairs in self.steps() for key, _ in pairs]


def largest_share(slots: Sequence[int], shards: int, size: int) -> float:
    """Of every `size` writes, the share of the shard that gets most, of so many: the mean."""
    owners = bytes(map(shard_table(shards).__getitem__, slots))
    groups = [owners[at : at + size] for at in range(0, len(owners), size)]
    return fmean(max(map(group.count, range(shards))) / len(group) for group in groups)


class Pieces(msgspec.Struct, frozen=True):
    """What a stream writes, chunk by chunk, for who has no commands."""

    stream: Stream
    chunk: int

    def chunks(self) -> Iterator[list[Pair]]:
        pairs: list[Pair] = []
        for number, (_, written) in enumerate(self.stream.steps(), 1):
            pairs += written
            if number % self.chunk == 0:
                yield pairs
                pairs = []
        if self.stream.entries % self.chunk:
            yield pairs


class Made(msgspec.Struct, frozen=True):
    """A stream as entries, and the state they must lead to."""

    stream: Stream
    entries: list[Entry]
    records: int
    digest: bytes

    def chunks(self, size: int) -> list[list[Entry]]:
        return [self.entries[first : first + size] for first in range(0, len(self.entries), size)]


def made(stream: Stream) -> Made:
    entries, held = [], dict[bytes, bytes]()
    for index, (command, pairs) in enumerate(stream.steps(), 1):
        entries.append(Entry(index, 1, encode(command)))
        held.update(pairs)
    return Made(stream, entries, len(held), digest_of(held))


# ---- keys ------------------------------------------------------------------------------------------------------------


def _random(rng: random.Random, entries: int, seed: int) -> list[bytes]:
    drawn = rng.randbytes(KEY_BYTES * entries)
    return [drawn[at : at + KEY_BYTES] for at in range(0, len(drawn), KEY_BYTES)]


def _ordered(rng: random.Random, entries: int, seed: int) -> list[bytes]:
    return [number.to_bytes(KEY_BYTES, "big") for number in range(1, entries + 1)]


def _zipfian(rng: random.Random, entries: int, seed: int) -> list[bytes]:
    keys = _random(rng, entries, seed)
    return [keys[rank] for rank in Zipf(entries, _SKEW, seed).draw(entries)]


def _hot(rng: random.Random, entries: int, seed: int) -> list[bytes]:
    keys, hot = _random(rng, entries, seed), _random(rng, _HOT_KEYS, seed)
    return [rng.choice(hot) if rng.random() * 100 < _HOT_PERCENT else key for key in keys]


KEYS: dict[str, Callable[[random.Random, int, int], list[bytes]]] = {
    "random": _random,
    "ordered": _ordered,
    "zipfian": _zipfian,
    "hot": _hot,
}


# ---- commands --------------------------------------------------------------------------------------------------------

_Step = tuple[Any, list[Pair]]


def _put(rng: random.Random, held: dict[bytes, bytes], key: bytes, value: bytes) -> _Step:
    return Put(key, value), [(key, value)]


def _cas(rng: random.Random, held: dict[bytes, bytes], key: bytes, value: bytes) -> _Step:
    if rng.randrange(_REJECTED_EVERY) == 0:
        return CompareAndSwap(key, b"", value), []  # no value is empty
    return CompareAndSwap(key, held.get(key), value), [(key, value)]


def _shift(rng: random.Random, held: dict[bytes, bytes], key: bytes, value: bytes) -> _Step:
    shift = Shift(key, _far_from(key), value)
    return shift, [(shift.second, shift.handed_on(held.get(key))), (key, value)]


def _mixed(rng: random.Random, held: dict[bytes, bytes], key: bytes, value: bytes) -> _Step:
    lot = rng.random()
    make = _put if lot < _MIXED_PUTS else _cas if lot < _MIXED_PUTS + _MIXED_CAS else _shift
    return make(rng, held, key, value)


COMMANDS: dict[str, Callable[[random.Random, dict[bytes, bytes], bytes, bytes], _Step]] = {
    "put": _put,
    "cas": _cas,
    "spanning": _shift,
    "mixed": _mixed,
}


@cache
def _places() -> Sequence[tuple[int, ...]]:
    """The shard of each slot, under every shard count from 2 to SPANNED_MAX."""
    counts = range(2, SPANNED_MAX + 1)
    return [tuple(shard_of(slot, shards) for shards in counts) for slot in range(SLOTS)]


def _far_from(key: bytes) -> bytes:
    """The same key for the same one, on another shard."""
    places = _places()
    here = places[slot_of(key)]
    return next(
        other for number in count() if not any(map(eq, here, places[slot_of(other := b"%s %d" % (key, number))]))
    )
