"""Engines whose snapshots are looked into: what to open, what to feed, what a snapshot must hold."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

from shardengine import Engine, EngineConfig, KeyValue
from shardengine.engine.snapshot.manifest import Manifest
from shardengine.engine.verify import verify_snapshot
from shardengine.shards import snapshot
from shardengine.shards.placement import shard_table, slot_of
from shardengine.shards.store import ReadStore
from shardengine.shards.types import Position
from shardengine.shards.worker import Process
from tests.model import digest_of
from tests.streams import Follower, entries, term_at

CONFIG = EngineConfig(map_bytes=512 << 20, ring_bytes=1 << 20, value_bytes_max=16 << 10)
GATES = "GATES"


class Gated(KeyValue):
    """The built-in machine, in a worker whose copies wait at a gate: while the directory that the environment names
    holds a FIFO of the part's name, the copy does not begin before that was opened for writing, and closed."""

    name: ClassVar[str] = "test.gated"

    def __init__(self) -> None:
        if Process.is_worker:
            original = snapshot.copy_pinned

            def gated(store: Any, pinned: Any, path: Path, barrier: int) -> Any:
                gate = Path(os.environ[GATES], path.name)
                if gate.exists():
                    gate.read_bytes()
                return original(store, pinned, path, barrier)

            snapshot.copy_pinned = gated


class Gate:
    """A copy of one shard that waits until it is opened."""

    def __init__(self, directory: Path, shard: int) -> None:
        self._path = directory / f"shard-{shard:03}.mdb"
        os.mkfifo(self._path)

    def open(self) -> None:
        """Let the copy that waits, and all that follow, go on. Blocks until one waits."""
        descriptor = os.open(self._path, os.O_WRONLY)
        self._path.unlink()
        os.close(descriptor)

    def remove(self) -> None:
        """Nobody waits, or nobody who still matters."""
        self._path.unlink()


class Feeder:
    """Feeds the log of a seed into an engine, chunk after chunk, and leads the model along."""

    def __init__(self, db: Engine, seed: int = 7) -> None:
        self.db = db
        self.model = Follower(seed)
        self.sent = 0

    def send(self, count: int) -> asyncio.Task[None]:
        """Begin to apply the next `count` entries as one chunk."""
        first, self.sent = self.sent + 1, self.sent + count
        return asyncio.create_task(self._apply(first, self.sent))

    async def feed(self, *counts: int) -> None:
        """Apply so many chunks of so many entries, all in flight together."""
        await asyncio.gather(*[self.send(count) for count in counts])

    async def _apply(self, first: int, last: int) -> None:
        await self.db.apply_chunk(entries(self.model.seed, first, last))

    async def check(self) -> None:
        """The engine holds the model's state at what was sent."""
        await holds(self.db, self.model, self.sent)


async def holds(db: Engine, model: Follower, index: int) -> None:
    """The engine stands at `index` with the model's state there."""
    model.advance(index)
    last = db.last_applied()
    assert (last.index, last.term) == (index, term_at(index) if index else 0)
    assert dict(db.scan_prefix(b"").entries) == model.records
    assert (len(db), await db.digest()) == (len(model.records), model.digest())
    if index:
        assert db.entry_term(index) == term_at(index)


def holds_exactly(path: Path, model: Follower, *, deep: bool = False) -> Manifest:
    """The snapshot at `path` is whole and holds the model's state at the index in its manifest, to which the model is
    led; every record where it belongs. The model must not be beyond it."""
    manifest = verify_snapshot(path, deep=deep)
    index = manifest.last_included.index
    model.advance(index)
    assert manifest.last_included.term == (term_at(index) if index else 0)
    expected = Position(0, index, manifest.last_included.term, manifest.clock)
    found: dict[bytes, bytes] = {}
    table = shard_table(manifest.shards)
    for shard, part in enumerate(manifest.parts):
        records = dict(records_of(path / part.file, expected))
        assert part.entries == len(records)
        assert {table[slot_of(key)] for key in records} <= {shard}
        found |= records
    assert found == model.records
    assert digest_of(found.items()) == model.digest()
    assert manifest.last_included.term in [run.term for run in manifest.term_runs] or not index
    return manifest


def records_of(file: Path, limit: Position) -> Iterator[tuple[bytes, bytes]]:
    """The records in a part, which stands at `limit` or, when it had no part in the last groups, before."""
    with ExitStack() as stack:
        store = ReadStore.of_part(file)
        stack.callback(store.close)
        transaction = store.begin()
        stack.callback(transaction.close)
        position = transaction.position()
        assert (position.index, position.term, position.clock) <= (limit.index, limit.term, limit.clock)
        yield from transaction.scan(b"", None, reverse=False)


def pins(db: Engine) -> int:
    """Read transactions that workers hold, by LMDB's own reader tables."""
    runtime = db._running()
    found = 0
    for shard, store in enumerate(runtime.reads._stores):
        for line in store._env.readers().splitlines()[1:]:
            pid, _, transaction = line.split()
            found += int(pid) == runtime.workers.pid(shard) and transaction != "-"
    return found


def restarts(db: Engine) -> int:
    return sum(worker["restarts"] for worker in db.stats()["workers"])


def tree(path: Path) -> dict[str, bytes]:
    """Every file below `path` that an engine does not write as it runs, and every directory."""
    return {
        str(file.relative_to(path)): file.read_bytes() if file.is_file() and file.name != "data.mdb" else b""
        for file in sorted(path.rglob("*"))
        if file.name not in ("ring", "lock.mdb", "decision", "control", "worker.log", "run-mark")
    }
