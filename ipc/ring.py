"""A ring: one memory-mapped file in two halves, one writer, one reader.

    0                       half_bytes                    2 * half_bytes
    +-----------------------+-----------------------------+
    | half 0                | half 1                      |
    +-----------------------+-----------------------------+
      extents, contiguous, each starting at a multiple of 8

The open group owns one half and the staged group the other; a half is freed whole (`clear`). There are no cursors in
the file: an extent means something only once a message or a record names it, so a reader cannot see half a write. The
bytes outlive every process, which makes the file the redo log.
"""

from __future__ import annotations

import mmap
import os

import msgspec

from shardengine.ipc.errors import RingError
from shardengine.ipc.files import allocate, create_file, open_file, sync, write_all

ALIGNMENT = 8
_RESERVE_STEP = 1 << 20


class Extent(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Where bytes lie in a ring, and what they hash to. Offsets and lengths in bytes; `checksum` is the owner's."""

    offset: int
    length: int
    checksum: int


def aligned(length: int) -> int:
    """The least multiple of 8 that is not below `length`."""
    return -(-length // ALIGNMENT) * ALIGNMENT


def create_ring(path: str | os.PathLike[str], half_bytes: int) -> None:
    """Make the file of a ring at `path`, zero-filled and sparse. Fails with FileExistsError when there is one."""
    assert half_bytes % mmap.PAGESIZE == 0
    descriptor = create_file(path)
    try:
        os.ftruncate(descriptor, 2 * half_bytes)
    finally:
        os.close(descriptor)


class RingWriter:
    """The writing end of a ring. One per ring, in the process that owns it; not thread-safe.

    Invariant, per half: 0 <= used <= half_bytes, and used is a multiple of 8.
    """

    def __init__(self, path: str | os.PathLike[str], *, through_map: bool = True) -> None:
        """`through_map`: store into the file's map, which is faster. Not where the file system promises nothing for
        disk that was reserved: a store is a SIGBUS there when the disk is full, a write an OSError."""
        self._through_map = through_map
        self._path = path
        self._descriptor = open_file(path, os.O_RDWR)
        size = os.fstat(self._descriptor).st_size
        if size == 0 or size % (2 * mmap.PAGESIZE):
            os.close(self._descriptor)
            raise RingError(f"{path}: a ring of {size} bytes, not two whole halves", size=size)
        self.half_bytes = size // 2
        try:
            self._map = mmap.mmap(self._descriptor, size)
        except OSError:
            os.close(self._descriptor)
            raise
        self._map.madvise(mmap.MADV_RANDOM)  # else the first touch of a page reads megabytes of zeroes ahead
        self._view = memoryview(self._map)
        self._used = [0, 0]
        self._reserved = [0, 0]

    def claim(self, half: int, length: int) -> memoryview | None:
        """Memory for `length` bytes behind what `half` already holds: to be filled, given to `keep`, and released.

        None when they do not fit. Raises OSError when the disk has no room for them. Until `keep` nothing has changed,
        and a later claim is for the same place.
        """
        used = self._used[half]
        if used + length > self.half_bytes:
            return None
        if not self._through_map:
            return memoryview(bytearray(length))
        if used + length > self._reserved[half]:
            self._reserve(half, used + length)
        start = half * self.half_bytes + used
        return self._view[start : start + length]

    def keep(self, half: int, claimed: memoryview) -> int:
        """Have `half` hold what the last claim in it was filled with.

        Returns where that lies, from the file's start. Raises OSError when the disk has no room; nothing has changed
        then.
        """
        used, length = self._used[half], len(claimed)
        start = half * self.half_bytes + used
        if not self._through_map:
            write_all(self._descriptor, claimed, start)
        self._used[half] = min(self.half_bytes, aligned(used + length))
        return start

    def room(self, half: int) -> int:
        """Bytes that still fit into `half`."""
        return self.half_bytes - self._used[half]

    def clear(self, half: int) -> None:
        """Free `half` whole. Extents in it mean nothing any more."""
        self._used[half] = 0

    def view(self, offset: int, length: int) -> memoryview:
        """The bytes of an extent, not copied. Raises RingError when they lie outside the ring."""
        return _slice(self._view, offset, length)

    def _reserve(self, half: int, needed: int) -> None:
        """Have the file system allocate the first `needed` bytes of `half`: a store to a page that a full disk has
        no block for would be a SIGBUS, this is an OSError."""
        step = min(self.half_bytes, -(-needed // _RESERVE_STEP) * _RESERVE_STEP)
        start = half * self.half_bytes + self._reserved[half]
        allocate(self._descriptor, start, step - self._reserved[half])
        self._reserved[half] = step

    def sync(self) -> None:
        """Wait until all that was written is on the disk. Raises SyncError."""
        sync(self._descriptor, self._path, content_only=True)

    def close(self) -> None:
        self._view.release()
        self._map.close()
        os.close(self._descriptor)


class RingReader:
    """The reading end: looks only at extents that somebody named."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        descriptor = open_file(path)
        try:
            if (size := os.fstat(descriptor).st_size) == 0:
                raise RingError(f"{path}: an empty file is no ring", size=size)
            self.half_bytes = size // 2
            self._map = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        finally:
            os.close(descriptor)
        self._view = memoryview(self._map)

    def view(self, offset: int, length: int) -> memoryview:
        """The bytes of an extent, not copied; release it before `close`. RingError when it lies outside the ring."""
        return _slice(self._view, offset, length)

    def close(self) -> None:
        self._view.release()
        self._map.close()


def _slice(view: memoryview, offset: int, length: int) -> memoryview:
    if not 0 <= offset <= offset + length <= len(view):
        raise RingError(
            f"an extent of {length} bytes at {offset} does not lie in a ring of {len(view)} bytes",
            offset=offset,
            length=length,
            size=len(view),
        )
    return view[offset : offset + length]
