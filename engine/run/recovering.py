"""What a generation has on the disk to go on from, found and judged before a worker is started."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from shardengine.engine.commit.decision import DecisionFile, Recovery, recover
from shardengine.engine.config import EngineConfig
from shardengine.engine.errors import DamagedError, MachineMismatchError
from shardengine.engine.run.opening import half_bytes
from shardengine.engine.storage.files import sync_directory
from shardengine.engine.storage.generations import Generation
from shardengine.ipc.ring import RingWriter, create_ring
from shardengine.shards.digest import checksum
from shardengine.shards.store import ReadStore
from shardengine.shards.types import Standing

_SPARE_READERS = 16
_SLOTS_A_READER = 8


class Recovered:
    """The decision file and the rings of a generation, open, and what is to be done about its shards."""

    def __init__(self, generation: Generation, machine_version: int, config: EngineConfig, *, through_map: bool):
        """Read record and positions. No predecessor writes any more: `open_directory` has waited for their end.

        Raises MachineMismatchError, DamagedError or StoreError; nothing is open then.
        """
        self._generation = generation
        self._through_map = through_map
        with ExitStack() as stack:
            standings = [self._standing(shard, config) for shard in range(generation.shards)]
            self.decision = DecisionFile(generation.decision, synced=config.durability == "power")
            stack.callback(self.decision.close)
            self.recovery: Recovery = recover(self.decision.record, standings)
            self._check_redo(machine_version)
            self.rings: list[RingWriter] = []
            for shard in range(generation.shards):
                self.rings.append(self._open_ring(shard, half_bytes(config)))
                stack.callback(self.rings[shard].close)
            self._open = stack.pop_all()

    def close(self) -> None:
        self._open.close()

    def _standing(self, shard: int, config: EngineConfig) -> Standing:
        store = open_read_store(self._generation, shard, config)
        try:
            store.clear_dead_readers()
            transaction = store.begin()
            standing = transaction.standing()
            transaction.close()
            return standing
        finally:
            store.close()

    def _check_redo(self, version: int) -> None:
        """What is to be redone must mean what it meant."""
        record = self.decision.record
        if self.recovery.redo is not None and record.machine_version != version:
            raise MachineMismatchError(
                f"group {record.position.group} was decided under machine version {record.machine_version} and is not "
                f"committed everywhere; it cannot be redone under version {version}",
                hint=f"start once with version {record.machine_version}, and stop, before moving on",
            )

    def _open_ring(self, shard: int, half: int) -> RingWriter:
        """The ring of `shard`. What is to be redone from it must be there, whole."""
        path = self._generation.shard(shard) / "ring"
        ring = RingWriter(path, through_map=self._through_map)
        if self.recovery.redo is not None:
            extent = self.decision.record.participants.get(shard)
            if extent is not None and checksum(ring.view(extent.offset, extent.length)) != extent.checksum:
                ring.close()
                raise DamagedError(
                    f"{path}: the decided part at {extent.offset} does not match its checksum",
                    shard=shard,
                    offset=extent.offset,
                )
        elif ring.half_bytes != half:
            ring.close()
            ring = self._replaced_ring(path, half)
        return ring

    def _replaced_ring(self, path: Path, half: int) -> RingWriter:
        """A ring of the size that is asked for, in place of one that nobody will redo from."""
        beside = path.with_name("ring.new")
        beside.unlink(missing_ok=True)
        create_ring(beside, half)
        beside.rename(path)
        sync_directory(path.parent)
        return RingWriter(path, through_map=self._through_map)


def open_read_store(generation: Generation, shard: int, config: EngineConfig) -> ReadStore:
    """The readers' side of one shard."""
    return ReadStore(
        generation.shard(shard),
        generation.identity(shard),
        map_bytes=config.map_bytes,
        readers_max=reader_slots(config),
    )


def reader_slots(config: EngineConfig) -> int:
    """Slots in a shard's readers' table: for the engine's views, its cuts and a worker's pins; and for other processes,
    each with its cut, the next one, four that LMDB's binding keeps, and two views."""
    return config.views_max + _SPARE_READERS + config.readers_max * _SLOTS_A_READER
