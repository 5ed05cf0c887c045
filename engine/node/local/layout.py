"""The bytes of a segment: a head, then records, then zeroes.

    0       8       16      24         40       56    64
    +-------+-------+-------+----------+--------+-----+--------+--------+-- - - --+
    | magic | first | bytes | identity | zeroes | sum | record | record | zeroes  |
    +-------+-------+-------+----------+--------+-----+--------+--------+-- - - --+

    0     8      12       16         24        32       40                n
    +-----+------+--------+----------+---------+--------+-------+---------+
    | sum | mark | length | position | time_ms | synced | frame | zeroes  |      n: a multiple of 8
    +-----+------+--------+----------+---------+--------+-------+---------+

All numbers are little-endian; a sum is the XXH3-64 of what it stands beside: of the head before it, of the record
behind it. `first` is the position of the first record, `bytes` the length of the file. `synced`: every record up to
this position was on the disk before this one was written; so a damaged one among those was not torn by a power loss.

A record's sum is seeded with the log's secret, the segment's first position, and where the record lies: bytes of an
earlier use of the disk, of another segment, or inside a frame are no record. `mark` is of the same seed, and makes
records easy to find.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from struct import Struct
from typing import NamedTuple

from shardengine.shards.digest import checksum

MAGIC = b"SHRDLOG\x01"
"""Its last byte is the format."""
_HEAD = Struct("<8sQQ16s16x")
_SUM = Struct("<Q")
HEAD_BYTES = _HEAD.size + _SUM.size
_STAMP = Struct("<IIQQQ")
RECORD_BYTES = _SUM.size + _STAMP.size
"""Of a record with an empty frame."""
ALIGNMENT = 8
_PIECE = 1 << 20
_U64 = (1 << 64) - 1

assert HEAD_BYTES == 64 and RECORD_BYTES == 40


class Head(NamedTuple):
    """size: of the file, which is `bytes` above."""

    first: int
    size: int
    identity: bytes


def encode_head(head: Head) -> bytes:
    body = _HEAD.pack(MAGIC, head.first, head.size, head.identity)
    return body + _SUM.pack(checksum(body))


def decode_head(data: bytes) -> Head | None:
    """None: `data` is no head of this format."""
    body = data[: _HEAD.size]
    if len(data) != HEAD_BYTES or data[_HEAD.size :] != _SUM.pack(checksum(body)):
        return None
    magic, first, size, identity = _HEAD.unpack(body)
    return Head(first, size, identity) if magic == MAGIC else None


class Record(NamedTuple):
    """at: where it begins in its file. The rest: see above."""

    at: int
    position: int
    time_ms: int
    synced: int
    frame: bytes


def record_bytes(length: int) -> int:
    """Of a record whose frame has `length` bytes."""
    return RECORD_BYTES + (length + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT


class Codec:
    """Records of one segment, to bytes and back."""

    def __init__(self, secret: bytes, first: int) -> None:
        self._seed = checksum(secret + _SUM.pack(first))
        self._mark = self._seed & 0xFFFF_FFFF | 1
        self.mark = self._mark.to_bytes(4, "little")

    def encode(self, record: Record) -> bytes:
        at, position, time_ms, synced, frame = record
        body = _STAMP.pack(self._mark, len(frame), position, time_ms, synced) + frame + bytes(-len(frame) % ALIGNMENT)
        return _SUM.pack(checksum(body, self._seed + at & _U64)) + body

    def decode(self, data: bytes, at: int) -> Record | None:
        """The record that is `data`, whole and nothing more, and lies `at` there; None: it is none."""
        body = data[_SUM.size :]
        mark, length, position, time_ms, synced = _STAMP.unpack_from(body)
        if mark != self._mark or len(data) != record_bytes(length):
            return None
        if checksum(body, self._seed + at & _U64) != _SUM.unpack_from(data)[0]:
            return None
        return Record(at, position, time_ms, synced, body[_STAMP.size : _STAMP.size + length])


class Walk:
    """The records of an open segment, one behind the other, up to what is none: that is `at`."""

    def __init__(self, codec: Codec, descriptor: int, size: int, at: int = HEAD_BYTES) -> None:
        """`size`: of the file, in bytes. `at`: where a record begins."""
        self.at = at
        self._codec = codec
        self._descriptor = descriptor
        self._size = size

    def __iter__(self) -> Iterator[Record]:
        """Blocks. Raises OSError."""
        piece, start = b"", 0
        while True:
            size = RECORD_BYTES
            if len(piece) - start >= size:
                size = record_bytes(int.from_bytes(piece[start + 12 : start + 16], "little"))
            if len(piece) - start < size:
                if self.at + size > self._size:
                    return
                piece, start = os.pread(self._descriptor, max(_PIECE, size), self.at), 0
                if len(piece) < size:
                    return
                continue
            record = self._codec.decode(piece[start : start + size], self.at)
            if record is None:
                return
            self.at, start = self.at + size, start + size
            yield record

    def behind(self) -> Iterator[Record]:
        """The records behind the one that is none. Blocks. Raises OSError."""
        for begin in range(self.at, self._size, _PIECE):
            piece = os.pread(self._descriptor, _PIECE, begin)
            found = piece.find(self._codec.mark)
            while found >= 0:
                at = begin + found - _SUM.size
                if at > self.at and found % ALIGNMENT == 0:
                    record = next(iter(Walk(self._codec, self._descriptor, self._size, at)), None)
                    if record is not None:
                        yield record
                found = piece.find(self._codec.mark, found + 1)

    def end_of_bytes(self) -> int:
        """Where the last byte behind `at` ends that is not zero; `at` if there is none. Blocks. Raises OSError."""
        end = self.at
        for begin in range(self.at, self._size, _PIECE):
            piece = os.pread(self._descriptor, _PIECE, begin).rstrip(b"\0")
            if piece:
                end = begin + len(piece)
        return end
