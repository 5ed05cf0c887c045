"""What belongs into one group, and where it lies in the rings: one extent a shard, its parts one behind the other.

Each half of the rings belongs to one group, from the moment it is packed until it is published or cancelled.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from shardengine.engine.commit.decision import Record
from shardengine.engine.intake.chunks import Chunk
from shardengine.ipc.ring import Extent, RingWriter
from shardengine.shards.digest import checksum


class Packing:
    """The rings of all shards, for the coordinator, their one writer.

    Invariant: `_written[half]` are the shards whose half is not empty.
    """

    def __init__(self, rings: Sequence[RingWriter], group_bytes_max: int) -> None:
        self._rings = rings
        self._group_bytes_max = group_bytes_max
        self._written: list[Iterable[int]] = [range(len(rings)), range(len(rings))]

    @property
    def shards(self) -> int:
        return len(self._rings)

    def half_of(self, record: Record) -> int:
        """The half that a recorded group owns."""
        for shard, extent in record.participants.items():
            return extent.offset // self._rings[shard].half_bytes
        return 0

    def pack(self, queue: Iterable[Chunk], half: int, label: int | None) -> tuple[list[Chunk], dict[int, Extent]]:
        """Write the first chunks of `queue`, as many as belong into one group, into `half`; none behind the entry
        `label`. Their checksums are not known yet. OSError: the disk has no room; the half is free then."""
        for shard in self._written[half]:
            self._rings[shard].clear(half)
        chunks: list[Chunk] = []
        places: dict[int, tuple[int, int]] = {}
        self._written[half] = places
        size = 0
        for chunk in queue:
            size += chunk.bytes
            if chunks and (chunk.alone or size > self._group_bytes_max or not self._fits(chunk, half)):
                break
            self._write(chunk, half, places)
            chunks.append(chunk)
            if chunk.alone or chunk.last == label:
                break
        return chunks, {shard: Extent(start, end - start, 0) for shard, (start, end) in places.items()}

    def _fits(self, chunk: Chunk, half: int) -> bool:
        return all(length <= self._rings[shard].room(half) for shard, length in chunk.lengths.items())

    def _write(self, chunk: Chunk, half: int, places: dict[int, tuple[int, int]]) -> None:
        """Write the parts of `chunk` behind what lies in `half`; `places` are where that begins and ends, by shard.
        OSError: the disk has no room; `places` are still true."""
        views: dict[int, memoryview] = {}
        try:
            for shard, length in chunk.lengths.items():
                view = self._rings[shard].claim(half, length)
                assert view is not None, "a part is at most half of a half, and a half begins empty"
                views[shard] = view
            chunk.fill(views)
            for shard, view in views.items():
                start = self._rings[shard].keep(half, view)
                places[shard] = places.get(shard, (start, start))[0], start + len(view)
        finally:
            for view in views.values():
                view.release()

    def summed(self, extents: Mapping[int, Extent]) -> dict[int, Extent]:
        """The same extents with the checksums of what they hold."""
        return {
            shard: Extent(extent.offset, extent.length, checksum(self._rings[shard].view(extent.offset, extent.length)))
            for shard, extent in extents.items()
        }

    def sync(self, shards: Iterable[int]) -> None:
        """Wait until what was written for `shards` is on the disk. Raises SyncError."""
        for shard in shards:
            self._rings[shard].sync()
