"""What the examples share: how commands are encoded, what names and numbers they take, keys that begin with a name."""

from __future__ import annotations

from typing import Annotated

import msgspec

from shardengine import Machine

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


def room(name: bytes) -> bytes:
    """The first bytes of all keys that belong to `name`, and of no others: its length, and itself."""
    return bytes([len(name)]) + name


class Rooms(Machine):
    """A machine whose keys begin with a `room`; each room is a partition."""

    def partition_key(self, key: bytes) -> bytes:
        return key[: 1 + int.from_bytes(key[:1])]
