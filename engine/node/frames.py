"""Entries that travel together: encoded, decoded, and checked by a sum of our own.

    0        1                                            n - 16      n
    +--------+--------------------------------------------+-----------+
    | format | msgpack [id: bin 16, data: [bin, bin, ..]] | XXH3-128  |
    +--------+--------------------------------------------+-----------+

The sum covers all bytes before it. An id is a proposer's 8 random bytes and its counter, big-endian.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import count
from typing import Annotated

import msgspec

from shardengine.engine.errors import FrameDamagedError
from shardengine.engine.node.log import Logged
from shardengine.shards.digest import checksum128
from shardengine.shards.types import Entry

FORMAT = b"\x01"
OVERHEAD_BYTES = 48
"""More than a frame is longer than its entries, each of which takes `ENTRY_BYTES` more."""
ENTRY_BYTES = 5
_SUM_BYTES = 16
_LEAST = len(FORMAT) + _SUM_BYTES

_Id = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]


class Frame(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """id: who proposed it, and its number there; unlike any other frame's. datas: the entries' data, in order."""

    id: _Id
    datas: list[bytes]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Frame).decode


def encode_frame(frame: Frame) -> bytes:
    body = FORMAT + _encode(frame)
    return body + checksum128(body)


def decode_frame(data: bytes, position: int) -> Frame:
    """The frame at `position`. Raises FrameDamagedError, which names it, when `data` is none."""
    body = memoryview(data)[:-_SUM_BYTES]
    if len(data) < _LEAST or data[:1] != FORMAT:
        raise FrameDamagedError(
            f"the frame at position {position} has format {data[:1].hex() or 'none'} and {len(data)} bytes",
            hint="something else writes into this log, or a later version of this one does",
            position=position,
        )
    if checksum128(body) != data[-_SUM_BYTES:]:
        raise FrameDamagedError(
            f"the frame at position {position} does not match its checksum",
            hint="it changed on its way, or where it is kept: restore the log from a copy of it",
            position=position,
        )
    try:
        return _decode(body[len(FORMAT) :])
    except msgspec.DecodeError as error:
        raise FrameDamagedError(
            f"the frame at position {position} is no frame: {error}",
            hint="something else writes into this log",
            position=position,
        ) from error


def entries_in(frame: Frame, logged: Logged, first: int) -> list[Entry]:
    """Its entries as an engine is fed them, from index `first` on: their term is the frame's position."""
    position, time_ms, _ = logged
    return [Entry(index, position, data, time_ms) for index, data in enumerate(frame.datas, first)]


class FrameIds:
    """Ids for the frames of one proposer, no two alike, here or elsewhere."""

    def __init__(self) -> None:
        self._proposer = os.urandom(8)
        self._numbers = count(1)

    def __next__(self) -> bytes:
        return self._proposer + next(self._numbers).to_bytes(8, "big")


def frame_bytes(datas: Sequence[bytes]) -> int:
    """At most so long is a frame of these."""
    return OVERHEAD_BYTES + sum(map(len, datas)) + ENTRY_BYTES * len(datas)
