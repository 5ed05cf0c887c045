"""What belongs into one group, and where it lies in the rings: one extent a shard, its parts one behind the other, and
behind them what the coordinator's own commands wrote.

Each half of the rings belongs to one group, from the moment it is packed until it is published or cancelled.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from shardengine.engine.commit.decision import Record
from shardengine.engine.commit.takeover import asked_bytes
from shardengine.engine.errors import ChunkTooLargeError
from shardengine.engine.intake.chunks import Chunk
from shardengine.engine.intake.split import Spanning, Split, Splitter
from shardengine.ipc.ring import Extent, RingWriter
from shardengine.shards.digest import checksum


class Packed(NamedTuple):
    """A group: its chunks, what each shard gets of them, and the commands that are the coordinator's. A shard of which
    one of those has taken a partition has an extent, if of no bytes."""

    chunks: list[Chunk]
    extents: dict[int, Extent]
    spanning: list[Spanning]


class Packing:
    """The rings of all shards, for the coordinator, their one writer.

    Invariant: `_written[half]` are the shards whose half is not empty.
    """

    def __init__(self, rings: Sequence[RingWriter], splitter: Splitter, group_bytes_max: int) -> None:
        self._rings = rings
        self._splitter = splitter
        self._group_bytes_max = group_bytes_max
        self._written: list[Collection[int]] = [range(len(rings)), range(len(rings))]

    @property
    def shards(self) -> int:
        return len(self._rings)

    @property
    def half_bytes(self) -> int:
        """What a ring takes of one group."""
        return self._rings[0].half_bytes

    def half_of(self, record: Record) -> int:
        """The half that a recorded group owns."""
        for shard, extent in record.participants.items():
            return extent.offset // self._rings[shard].half_bytes
        return 0

    def pack(self, queue: Iterable[Chunk], half: int, label: int | None) -> Packed:
        """Write the first chunks of `queue`, as many as belong into one group, into `half`; none behind the entry
        `label`. Their checksums are not known yet. OSError: the disk has no room; the half is free then."""
        for shard in self._written[half]:
            self._rings[shard].clear(half)
        packed = Packed([], {}, [])
        places: dict[int, tuple[int, int]] = {}
        self._written[half] = places
        taken: set[bytes] = set()
        size = asked = 0
        for chunk in queue:
            size += chunk.bytes
            if packed.chunks and (chunk.alone or size > self._group_bytes_max or not self._fits(chunk, half)):
                break
            split = self._splitter.split(chunk.form, taken) if taken else chunk.split
            asked += asked_bytes(split.spanning)
            if packed.chunks and asked > self.half_bytes // 2:
                break
            self._write(chunk, split, half, places)
            packed.chunks.append(chunk)
            packed.spanning.extend(split.spanning)
            taken.update(*(command.partitions for command in split.spanning))
            if chunk.alone or chunk.last == label:
                break
        for shard in map(self._splitter.place, taken):
            places.setdefault(shard, (half * self._rings[shard].half_bytes,) * 2)
        packed.extents.update({shard: Extent(start, end - start, 0) for shard, (start, end) in places.items()})
        return packed

    def _fits(self, chunk: Chunk, half: int) -> bool:
        """Whether its parts do, of which a group that has taken partitions leaves something out."""
        return all(length <= self._rings[shard].room(half) for shard, length in chunk.split.lengths.items())

    def _write(self, chunk: Chunk, split: Split, half: int, places: dict[int, tuple[int, int]]) -> None:
        """Write the parts of `chunk` behind what lies in `half`; `places` are where that begins and ends, by shard.
        OSError: the disk has no room; `places` are still true."""
        views: dict[int, memoryview] = {}
        try:
            for shard, length in split.lengths.items():
                view = self._rings[shard].claim(half, length)
                assert view is not None, "a part is at most half of a half, and a half begins empty"
                views[shard] = view
            chunk.fill(split, views)
            for shard, view in views.items():
                start = self._rings[shard].keep(half, view)
                places[shard] = places.get(shard, (start, start))[0], start + len(view)
        finally:
            for view in views.values():
                view.release()

    def append(self, half: int, extents: Mapping[int, Extent], writes: Mapping[int, bytes]) -> dict[int, Extent]:
        """The extents with `writes`, by shard, behind the parts. Raises ChunkTooLargeError when a half does not hold
        them, or OSError: the disk has no room."""
        longer = dict(extents)
        for shard, part in writes.items():
            ring, extent = self._rings[shard], extents[shard]
            view = ring.claim(half, len(part))
            if view is None:
                raise ChunkTooLargeError(
                    f"commands over several shards write {len(part)} bytes to shard {shard}, whose ring has "
                    f"{ring.room(half)} bytes left for them of {ring.half_bytes}",
                    hint="send smaller chunks, or raise ring_bytes (a group has half of it)",
                    size=len(part),
                    limit=ring.half_bytes,
                    shard=shard,
                )
            with view:
                view[:] = part
                start = ring.keep(half, view)
            first = extent.offset if extent.length else start
            longer[shard] = Extent(first, start + len(part) - first, 0)
        return longer

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
