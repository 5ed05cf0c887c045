"""What the examples share: commands and their encoding, names, numbers, keys that begin with a name, a scan."""

from __future__ import annotations

from typing import Annotated

import msgspec

from shardengine import Machine, Tx

Name = Annotated[bytes, msgspec.Meta(min_length=1, max_length=200)]
"""What keys are made of: short enough that none of them passes 480 bytes."""

Count = Annotated[int, msgspec.Meta(ge=1, le=100)]
"""How many of something one command may ask for."""

WHOLE_MAX = (1 << 63) - 1
Whole = Annotated[int, msgspec.Meta(ge=0, le=WHOLE_MAX)]
"""A number that eight bytes hold."""

CLOCK_MAX = (1 << 64) - 1
"""The log clock is never past it."""


class Command(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """Base of commands: an array of tag and fields. Decoding one checks the bounds in the types of its fields."""


def prefix_of(name: bytes) -> bytes:
    """The first bytes of all keys that belong to `name`, and of no others: its length, and itself."""
    return bytes([len(name)]) + name


class ByName(Machine):
    """A machine whose keys begin with the prefix of a name; each name is a partition."""

    def partition_key(self, key: bytes) -> bytes:
        return key[: 1 + int.from_bytes(key[:1])]


_NEAR_BYTES = (15, 14, 7, 6, 5, 0)


def scan_from(tx: Tx, prefix: bytes, start: bytes, stop: bytes, n: int) -> list[bytes]:
    """What follows `prefix`, two numbers of eight bytes each, in the first `n` keys up to `stop`. If those are fewer,
    keys behind may come along; if there is none, one does, unless no key has the prefix. None may be before `start`.

    A scan walks over all that its group deleted under its prefix. So this one looks near `start` first, where as many
    bytes are the same, then farther off. Who deletes what it found, and goes on from there, walks over some hundred
    deletions each time, however many there were.
    """
    found: list[bytes] = []
    for near in _NEAR_BYTES:
        found = [key[-16:] for key, _ in tx.scan(prefix + start[:near], n)]
        if len(found) == n or (found and stop.startswith(start[:near])):
            break
    return found
