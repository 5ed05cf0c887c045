"""A rate limiter: buckets of tokens that fill up by the log clock, so that all replicas allow and refuse the same.

State holds whole numbers only: a float may be rounded otherwise elsewhere, and adding up many of them drifts. A bucket
counts thousandths of a token. What refills r tokens a second refills exactly r thousandths a millisecond, the unit of
the log clock; nothing is ever rounded away, however often somebody looks.

A log whose entries carry no time stands at clock 0: nothing refills there. The first time stamp is a step from 0 to it,
like any other: one that counts from 1970 fills every bucket that refills at all. The clock never goes back. A bucket is
one key, its name, and a partition by itself.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from shardengine import Context, Machine, Rejected, Tx
from shardengine.engine.machines.common import Command

TOKENS_MAX = 10**12
Tokens = Annotated[int, msgspec.Meta(ge=0, le=TOKENS_MAX)]


class Configure(Command, frozen=True, tag=1):
    """Set how many tokens `bucket` holds at most, and how many it gets a second. A new one is full; one that was there
    keeps what it has, as far as it holds it. The result is the whole tokens in it."""

    bucket: bytes
    capacity: Tokens
    refill_per_s: Tokens


class Take(Command, frozen=True, tag=2):
    """Take `n` tokens, all or none; 0 only looks. The result is the whole tokens left. Rejected when there are fewer,
    with the reason, or no such bucket."""

    bucket: bytes
    n: Tokens = 1


class Bucket(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What is stored: `thousandths` of a token were there when the log clock stood at `time_ms`."""

    capacity: int
    refill_per_s: int
    thousandths: int
    time_ms: int

    def at(self, now: int) -> Bucket:
        """The same bucket later on: whether it was looked at in between, stored or not, makes no difference."""
        filled = min(1000 * self.capacity, self.thousandths + (now - self.time_ms) * self.refill_per_s)
        return Bucket(self.capacity, self.refill_per_s, filled, now)


_decode = msgspec.msgpack.Decoder(Bucket).decode


class Limiter(Machine):
    """`Configure` and `Take`."""

    name = "shardengine.limiter"
    command = Configure | Take

    def keys(self, command: Configure | Take) -> tuple[bytes]:
        return (command.bucket,)

    def apply(self, tx: Tx, command: Configure | Take, context: Context) -> int:
        value = tx.get(command.bucket)
        there = None if value is None else _decode(value).at(context.time_ms)
        if isinstance(command, Configure):
            most = 1000 * command.capacity
            thousandths = most if there is None else min(there.thousandths, most)
            after = Bucket(command.capacity, command.refill_per_s, thousandths, context.time_ms)
        elif there is None:
            raise Rejected(f"no bucket {command.bucket!r}")
        elif there.thousandths < 1000 * command.n:
            raise Rejected(f"{command.n} tokens wanted, {there.thousandths // 1000} of {there.capacity} left")
        else:
            after = msgspec.structs.replace(there, thousandths=there.thousandths - 1000 * command.n)
        tx.put(command.bucket, msgspec.msgpack.encode(after))
        return after.thousandths // 1000
