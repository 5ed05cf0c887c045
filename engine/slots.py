"""Two checksummed slots in one file, written in turn, of which the newest whole one counts.

    a slot                0   8  sequence: rises by one with every write
                          8   8  length of the payload
                          16  8  checksum (XXH3-64) of sequence, length and payload
                          24  .. payload
                          all little-endian

A write goes over the older or unreadable slot, so the newest whole one survives a crash in the middle of it.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec

from shardengine.ipc.files import write_all
from shardengine.shards.digest import checksum

_HEAD = struct.Struct("<QQQ")
_COUNT = struct.Struct("<QQ")
T = TypeVar("T")


class Slots(Generic[T]):
    """What two slots of `slot_bytes` each hold, and which of them is written next.

    Invariant: `newest` is the content of the slot that counts, None: neither is readable; `_target` is the other one.
    """

    def __init__(self, descriptor: int, slot_bytes: int, decode: Callable[[bytes], T]) -> None:
        """Read both. What `decode` refuses with an error of msgspec's is not readable. Raises OSError."""
        self._slot_bytes = slot_bytes
        found = [_read(os.pread(descriptor, slot_bytes, slot * slot_bytes), decode) for slot in (0, 1)]
        newest = max((one for one in found if one is not None), default=None, key=lambda one: one[0])
        self._sequence = newest[0] if newest else 0
        self._target = found.index(newest) ^ 1 if newest else 0
        self.newest = newest[1] if newest else None

    @property
    def payload_bytes_max(self) -> int:
        return self._slot_bytes - _HEAD.size

    def write(self, descriptor: int, payload: bytes) -> None:
        """Write over the slot that does not count; it does when `turn` is called. Raises OSError: the other one counts
        on, and this one is written over again."""
        assert len(payload) <= self.payload_bytes_max
        write_all(descriptor, slot_of(self._sequence + 1, payload), self._target * self._slot_bytes)

    def turn(self, content: T) -> None:
        """What was written last, `content`, is what counts from now on."""
        self._sequence += 1
        self._target ^= 1
        self.newest = content

    def write_again(self, descriptor: int, payload: bytes) -> None:
        """Write what counts, whose `payload` that is, once more over itself: the disk may lack what the system shows of
        it. Raises OSError."""
        write_all(descriptor, slot_of(self._sequence, payload), (self._target ^ 1) * self._slot_bytes)


def slot_of(sequence: int, payload: bytes) -> bytes:
    """The bytes of a slot, as far as they count."""
    counted = _COUNT.pack(sequence, len(payload))
    return counted + checksum(counted + payload).to_bytes(8, "little") + payload


def _read(data: bytes, decode: Callable[[bytes], T]) -> tuple[int, T] | None:
    if len(data) < _HEAD.size:
        return None
    sequence, length, expected = _HEAD.unpack_from(data)
    payload = data[_HEAD.size : _HEAD.size + length]
    if sequence == 0 or len(payload) != length or checksum(_COUNT.pack(sequence, length) + payload) != expected:
        return None
    try:
        return sequence, decode(payload)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None
