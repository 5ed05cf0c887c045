"""The load of `python -m perf transactions`: accounts, transfers of which a given share spans shards, and the balances
that they must lead to."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from operator import eq

from perf.load import digest_of
from perf.report import CheckError
from perf.zipf import Zipf
from shardengine import Entry, encode
from shardengine.machines.bank import Open, Transfer
from shardengine.shards.placement import shard_of, slot_of

OPENED_WITH = 10**9
"""Enough for an account that every transfer takes from."""
AMOUNT_MAX = 100
_TRIES = 1_000_000  # to find two accounts that lie as they should


class Accounts:
    """So many accounts, placed for several shard counts; and their balances, behind all transfers that were made."""

    def __init__(self, count: int, shard_counts: Sequence[int], seed: int) -> None:
        several = [shards for shards in shard_counts if shards > 1]
        by_slot = [tuple(shard_of(slot, shards) for shards in several) for slot in range(1 << 14)]
        self.names = [b"account-%08d" % number for number in range(count)]
        self.balances = [OPENED_WITH] * count
        self._places = [by_slot[slot_of(name)] for name in self.names]
        self._rng = random.Random(seed)

    def opened(self, chunk: int) -> Iterator[list[Entry]]:
        """The log's first entries, which open them all."""
        entries = [Entry(index, 1, encode(Open(name, OPENED_WITH))) for index, name in enumerate(self.names, 1)]
        for first in range(0, len(entries), chunk):
            yield entries[first : first + chunk]

    def transfers(self, ranks: Zipf, percent: float, entries: int, first: int) -> list[Entry]:
        """So many transfers, from the entry `first` on. Of `percent` of them the two accounts lie on two shards under
        every shard count above one, of the others on one; which those are is random. Otherwise accounts are as `ranks`
        draws them."""
        whose = {spans: self._pairs(ranks, spans=spans) for spans in (False, True)}
        made = []
        for index in range(first, first + entries):
            source, target = next(whose[self._rng.random() * 100 < percent])
            amount = self._rng.randint(1, AMOUNT_MAX)
            self.balances[source] -= amount
            self.balances[target] += amount
            made.append(Entry(index, 1, encode(Transfer(self.names[source], self.names[target], amount))))
        return made

    def _pairs(self, ranks: Zipf, *, spans: bool) -> Iterator[tuple[int, int]]:
        """Two different accounts at a time. Raises CheckError when there seem to be none that lie as they should."""
        places, failed = self._places, 0
        while failed < _TRIES:
            for source, target in zip(ranks.draw(1000), ranks.draw(1000), strict=True):
                one, other = places[source], places[target]
                if source != target and (not any(map(eq, one, other)) if spans else one == other):
                    failed = 0
                    yield source, target
                failed += 1
        raise CheckError(f"no two of {len(places):,} accounts lie on {'two shards' if spans else 'one shard'}")

    def digest(self) -> bytes:
        """Of a machine that has applied all that was made."""
        return digest_of({name: b"%d" % balance for name, balance in zip(self.names, self.balances, strict=True)})
