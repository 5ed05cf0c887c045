"""The file of a state: the state of once, and every chunk since, each as one record behind the other.

    head      0   16  MAGIC
              16   4  format: FORMAT
              20  16  mark: random, of this file
              36   8  boot time, seconds     \\  of the machine when the file was begun
              44  16  boot id, XXH3-128      /
              60   8  checksum (XXH3-64) of all before
    record    0   16  the file's mark
              16   8  length of the payload
              24   8  synced: the disk had the file up to this offset when the record was written
              32   8  checksum (XXH3-64) of the record's offset, length, synced, and payload
              40      payload: a msgpack `Chunk`
    all little-endian

The first records are the *base*: the state when the file was begun, in pieces, of which the last says where the log
stood. A file gets its name when its base is on the disk as a whole.

A record that is not whole ends the file: a process died while it wrote, or the machine did. It is damage, and refused,
where that cannot be: in the base; where a record behind it tells that the disk had it; and where one lies behind it, of
a file that was begun since the machine started. What cannot be told: the last record, changed, from one that was never
written as a whole; and the file, cut off between two records, from one that ends there.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

import msgspec

from shardengine.engine.adaptors.store import Place, damaged
from shardengine.engine.errors import FormatError
from shardengine.engine.storage.runmark import Boot, this_boot
from shardengine.ipc.files import write_all
from shardengine.shards.digest import checksum, checksum128

MAGIC = b"shardengine-file"
FORMAT = 1
_HEAD = struct.Struct("<16sI16sq16s")
_SUM = struct.Struct("<Q")
_RECORD = struct.Struct("<16sQQQ")
_COUNTED = struct.Struct("<QQQ")
HEAD_BYTES = _HEAD.size + _SUM.size


class Chunk(msgspec.Struct, frozen=True, array_like=True):
    """Writes that belong together, None for a deletion, and where the log stands with them; None: with the next."""

    writes: dict[bytes, bytes | None]
    place: Place | None


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Chunk).decode


class Journal:
    """A file that is open to be appended to. Whoever writes tells where; nothing counts before `accept`.

    Invariant: the file is whole up to `end`; the disk has it up to `synced`; its base ends at `base_end`, 0: it has
    none yet.
    """

    def __init__(self, path: Path, file: FileIO, mark: bytes, *, same_boot: bool) -> None:
        """`file` is its own from now on. `same_boot`: it was begun since the machine started."""
        self.path = path
        self.descriptor = file.fileno()
        self._file = file
        self.same_boot = same_boot
        self.end = HEAD_BYTES
        self.base_end = 0
        self.synced = 0
        self._mark = mark

    @classmethod
    def begun(cls, path: Path, file: FileIO) -> Journal:
        """Write the head of an empty file. Raises OSError."""
        mark, boot = os.urandom(16), this_boot()
        head = _HEAD.pack(MAGIC, FORMAT, mark, boot.time, checksum128(boot.id.encode()))
        write_all(file.fileno(), head + _SUM.pack(checksum(head)), 0)
        return cls(path, file, mark, same_boot=True)

    @classmethod
    def found(cls, path: Path, file: FileIO) -> Journal:
        """Read the head. Raises FormatError, StoreDamagedError, OSError."""
        data = os.pread(file.fileno(), HEAD_BYTES, 0)
        if data[:16] != MAGIC:
            raise FormatError(f"{path} is no file of a state", hint="was it written by another program?")
        if len(data) < HEAD_BYTES or _SUM.unpack_from(data, _HEAD.size)[0] != checksum(data[: _HEAD.size]):
            raise damaged(str(path), "its head does not match its checksum")
        _, format_, mark, time, boot_id = _HEAD.unpack_from(data)
        if format_ != FORMAT:
            raise FormatError(
                f"{path} is of format {format_}; this version reads {FORMAT}",
                hint="open it with the version that wrote it",
                format=format_,
            )
        here = this_boot()
        same = checksum128(here.id.encode()) == boot_id and Boot("", time).is_same(here)
        return cls(path, file, mark, same_boot=same)

    def close(self) -> None:
        """Closing twice does nothing."""
        self._file.close()

    @property
    def appended(self) -> int:
        """Bytes behind the base."""
        return self.end - self.base_end

    def write(self, chunk: Chunk) -> int:
        """Write a record behind `end`. Returns where it ends. Raises OSError."""
        payload = _encode(chunk)
        counted = _COUNTED.pack(self.end, len(payload), self.synced)
        head = _RECORD.pack(self._mark, len(payload), self.synced, checksum(counted + payload))
        write_all(self.descriptor, head + payload, self.end)
        return self.end + len(head) + len(payload)

    def accept(self, end: int) -> None:
        """What was written up to there counts."""
        self.end = end

    def chunks(self) -> Iterator[Chunk]:
        """Everything that is in the file, in order, from the first record on; at the end of it, `end` is there, and the
        file as long. Raises StoreDamagedError, OSError."""
        size = os.fstat(self.descriptor).st_size
        while self.end < size:
            found = self._record(self.end, size)
            if found is None:
                self._check_torn(size)
                os.ftruncate(self.descriptor, self.end)
                break
            chunk, end, _ = found
            yield chunk
            self.end = end
            if not self.base_end and chunk.place is not None:
                self.base_end = self.synced = end
        if not self.base_end:
            raise damaged(str(self.path), f"offset {self.end}: its base has no end")

    def _record(self, at: int, size: int) -> tuple[Chunk, int, int] | None:
        """What the record at that offset holds, where it ends, and how much it says was synced; None: it is none."""
        head = os.pread(self.descriptor, _RECORD.size, at)
        if len(head) < _RECORD.size:
            return None
        mark, length, synced, sum_ = _RECORD.unpack(head)
        if mark != self._mark or length > size - at - len(head):
            return None
        payload = os.pread(self.descriptor, length, at + len(head))
        if checksum(_COUNTED.pack(at, length, synced) + payload) != sum_:
            return None
        try:
            return _decode(payload), at + len(head) + length, synced
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            return None

    def _check_torn(self, size: int) -> None:
        """Raise StoreDamagedError when the record at `end`, which is not whole, must have been."""
        at = self.end
        if not self.base_end:
            raise damaged(str(self.path), f"offset {at}: a record of its base is not whole")
        rest = os.pread(self.descriptor, size - at, at)
        place = rest.find(self._mark, 1)
        while place >= 0:
            found = self._record(at + place, size)
            if found is not None and (self.same_boot or found[2] > at):
                raise damaged(
                    str(self.path),
                    f"offset {at}: a record is not whole, and a whole one lies behind it, at {at + place}",
                )
            place = rest.find(self._mark, place + 1)
