"""Logs that a seed and an index determine, entry by entry, and the dumb model of what they lead to.

Two processes that know the seed know the whole log: the one that is killed feeds it, the one that kills judges.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from shardengine import ApplyResult, CompareAndSwap, Delete, Entry, Put, encode
from tests.model import Model

KEYS = 1500
HOT_KEYS = 6
SCRIPT_ENTRIES = 100  # one run of the script of tests/kill_child.py
SCRIPT_CHUNKS = ((40,), (1,), (2,), (1,), (12, 12, 12, 12), (4,), (4,))  # what is in flight together
SCRIPT_NOOPS = range(41, 43)

Command = Put | Delete | CompareAndSwap | None


def command_at(seed: int, index: int) -> Command:
    """The command of entry `index`; None is a no-op. Seed 0 is the script's log, any other a random one."""
    if seed == 0:
        place = index % SCRIPT_ENTRIES
        return None if place in SCRIPT_NOOPS else Put(b"key-%d" % place, b"value-%d" % index)
    rng = random.Random(seed * 1_000_003 + index)
    dice = rng.random()
    key = b"key-%d" % rng.randrange(KEYS)
    hot = b"hot-%d" % rng.randrange(HOT_KEYS)
    if dice < 0.70:
        return Put(key, b"%d:" % index + bytes(rng.randrange(80)))
    if dice < 0.80:
        return Delete(key)
    if dice < 0.95:
        return CompareAndSwap(hot, rng.choice([None, b"0", b"1"]), rng.choice([b"0", b"1"]))
    return None


def term_at(index: int) -> int:
    return 1 + index // 700


def entries(seed: int, first: int, last: int) -> list[Entry]:
    """The entries `first` to `last` of the log of `seed`."""
    return [
        Entry(index, term_at(index), b"" if command is None else encode(command), time_ms=index ^ 5)
        for index in range(first, last + 1)
        for command in (command_at(seed, index),)
    ]


def chunk_ends(sizes_seed: str, start: int, largest: int) -> Iterator[int]:
    """Where the chunks end that a feeder with this `sizes_seed` sends from `start` on, for ever. Many are small."""
    rng = random.Random(sizes_seed)
    last = start
    while True:
        last += rng.choice([1, 1, 2, rng.randint(1, largest), rng.randint(1, largest)])
        yield last


def script_ends(start: int) -> list[list[int]]:
    """Where the script's chunks end, those in flight together in one list; the first one reaches its starting place,
    and is never empty."""
    return ends_of(SCRIPT_CHUNKS, SCRIPT_ENTRIES, start)


def ends_of(chunks: Sequence[Sequence[int]], period: int, start: int) -> list[list[int]]:
    """The same for a script of other chunks, which starts behind a multiple of its period, less one."""
    last = start + period - (start + 1) % period
    ends = [[last]]
    for together in chunks:
        ends.append([])
        for size in together:
            last += size
            ends[-1].append(last)
    return ends


class Follower:
    """The model of tests/model.py, led along the log of a seed."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.model = Model()

    @property
    def index(self) -> int:
        return self.model.index

    @property
    def records(self) -> dict[bytes, bytes]:
        return self.model.data

    def advance(self, index: int) -> list[ApplyResult]:
        """Apply everything up to `index`. Returns the results of what this call applied."""
        return self.model.apply(entries(self.seed, self.index + 1, index))

    def digest(self) -> bytes:
        return self.model.digest()
