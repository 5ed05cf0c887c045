"""The log of a bank, which a seed and an index determine, and what every view of it must add up to.

Accounts are in circles, and money stays in its circle: so a scan of a circle's prefix tells whether any was made, or
lost, as the scan of everything does. Circles spread over all shards.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import ClassVar

from shardengine import Engine, Entry, Machine, View, encode
from shardengine.machines.bank import Balance, Bank, Open, Transfer
from shardengine.shards.placement import shard_of, slot_of
from tests.deep import DEEP
from tests.streams import chunk_ends, term_at

ACCOUNTS = 10_000 if DEEP else 2_000
CIRCLES = 100
OPENED_WITH = 1000
OPENING_CHUNK = ACCOUNTS // 4
LOOK_EVERY_S = 0.004  # at most; a look is at no moment in particular
ALL_VIEWED = 0.03  # of views are added up as a whole


def account(number: int) -> bytes:
    return b"%02d/%02d" % (number % CIRCLES, number // CIRCLES)


class Banking:
    """Accounts are opened first; then `percent` of the transfers are between accounts of two of the `shards`."""

    machine: ClassVar[type[Machine]] = Bank

    def __init__(self, seed: int, shards: int, percent: int) -> None:
        self.seed = seed
        self._percent = percent if shards > 1 else 0
        self._shards = [shard_of(slot_of(account(number)), shards) for number in range(ACCOUNTS)]
        self._circles = [range(circle, ACCOUNTS, CIRCLES) for circle in range(CIRCLES)]

    def entries(self, first: int, last: int) -> list[Entry]:
        return [Entry(index, term_at(index), encode(self.command_at(index))) for index in range(first, last + 1)]

    def command_at(self, index: int) -> Open | Transfer | Balance:
        if index <= ACCOUNTS:
            return Open(account(index - 1), OPENED_WITH)
        rng = random.Random(self.seed * 1_000_003 + index)
        source = rng.randrange(ACCOUNTS) if rng.random() < 0.8 else rng.randrange(0, ACCOUNTS, CIRCLES)
        if rng.random() < 0.05:
            return Balance(account(source))
        return Transfer(account(source), account(self._target(rng, source)), rng.randrange(OPENED_WITH))

    def _target(self, rng: random.Random, source: int) -> int:
        spans = rng.random() * 100 < self._percent
        circle, shards = self._circles[source % CIRCLES], self._shards
        return rng.choice([other for other in circle if (shards[other] != shards[source]) == spans])

    def ends(self, sizes_seed: str, start: int, largest: int) -> Iterator[int]:
        while start < ACCOUNTS:
            start += OPENING_CHUNK - start % OPENING_CHUNK
            yield start
        yield from chunk_ends(sizes_seed, start, largest)

    def script(self, start: int) -> list[list[int]]:
        raise NotImplementedError("a bank has no script")


def look(view: View, rng: random.Random) -> tuple[bytes, int, int]:
    """Add up a circle, or everything: the prefix, how many accounts there are, and what they hold."""
    prefix = b"" if rng.random() < ALL_VIEWED else b"%02d/" % rng.randrange(CIRCLES)
    found = [int(balance) for _, balance in view.scan_prefix(prefix).entries]
    return prefix, len(found), sum(found)


def check(revision: int, prefix: bytes, accounts: int, money: int) -> None:
    """No money was made, and none lost."""
    opened = range(min(revision, ACCOUNTS))
    mine = opened if not prefix else opened[int(prefix[:2]) :: CIRCLES]
    assert (accounts, money) == (len(mine), OPENED_WITH * len(mine)), f"{prefix!r} at {revision}"


def look_and_check(db: Engine, rng: random.Random) -> None:
    with db.view() as view:
        check(view.revision, *look(view, rng))
