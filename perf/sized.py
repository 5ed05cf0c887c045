"""An engine of one size under a stream that leaves the size as it is, and the pauses of its snapshot barriers."""

from __future__ import annotations

import asyncio
import heapq
import random
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from itertools import cycle, islice
from pathlib import Path
from unittest.mock import patch

from perf.load import Load, entries_of
from perf.report import CheckError
from perf.sides import feed
from shardengine import Engine, Entry, Put, encode
from shardengine.engine.commit.actions import Action
from shardengine.engine.commit.table import Commit

PAUSES = 8  # of each size and stream, each round
BETWEEN_S = 0.02  # at most, at random, before a barrier: it may fall anywhere in a group's life
WAIT_S = 60.0  # for a stream that stands still, before that is an error
STREAMS = ("near", "spread")
"""Which keys are overwritten. near: those next to each other, on as many leaves whatever the size, so that a group
costs the same. spread: random ones, on the more leaves the larger the state."""


@contextmanager
def pauses() -> Iterator[list[float]]:
    """The pauses, in seconds, that all commit tables of this process make meanwhile: from `hold` to `release`."""
    found: list[float] = []
    since: dict[int, float] = {}
    hold, release = Commit.hold, Commit.release

    def held(table: Commit) -> None:
        if not table.held:
            since[id(table)] = time.perf_counter()
        hold(table)

    def released(table: Commit) -> list[Action]:
        if table.held:
            found.append(time.perf_counter() - since.pop(id(table)))
        return release(table)

    with patch.object(Commit, "hold", held), patch.object(Commit, "release", released):
        yield found


class Sized:
    """An engine of one size, and streams that overwrite `hot` of its keys again and again."""

    def __init__(self, db: Engine, path: Path, load: Load, hot: int, window: int) -> None:
        self.db = db
        self.path = path
        self.load = load
        self._window = window
        self._overwrites = {name: cycle(_overwrites(load, hot, near=name == "near")) for name in STREAMS}
        self.pauses: dict[str, list[float]] = {name: [] for name in STREAMS}

    async def fill(self) -> None:
        await feed(self.db, entries_of(self.load.chunks()), self._window)
        await self.db.flush_async()

    def stream(self, name: str) -> Iterator[list[Entry]]:
        """Chunks that follow what is applied; take them one after another, once all before are applied."""
        first = self.db.last_applied().index + 1
        for datas in self._overwrites[name]:
            yield [Entry(index, 1, data) for index, data in enumerate(datas, first)]
            first += len(datas)

    async def feed(self, chunks: Iterator[list[Entry]] | list[list[Entry]]) -> None:
        await feed(self.db, chunks, self._window)

    @asynccontextmanager
    async def streaming(self, name: str) -> AsyncIterator[None]:
        """Stream at full speed meanwhile; afterwards nothing is in flight, and all is on the disk."""
        going = True

        def chunks() -> Iterator[list[Entry]]:
            stream = self.stream(name)
            while going:
                yield next(stream)

        feeding = asyncio.create_task(self.feed(chunks()))
        try:
            yield
        finally:
            going = False
            await feeding
        await self.db.flush_async()
        if len(self.db) != self.load.entries:
            raise CheckError(f"{len(self.db)} records after the stream, expected {self.load.entries}")

    async def pause(self, name: str, place: Path, rng: random.Random) -> None:
        """Take snapshots while the stream goes on."""
        with pauses() as found:
            async with self.streaming(name):
                for number in range(PAUSES):
                    ahead = 2 * self._window * self.load.chunk
                    await self.db.wait_applied(self.db.last_applied().index + ahead, WAIT_S)
                    await asyncio.sleep(BETWEEN_S * rng.random())
                    await self.db.generate_snapshot_data(place / str(number))
                    await asyncio.to_thread(shutil.rmtree, place / str(number))
        self.pauses[name] += found


def _overwrites(load: Load, hot: int, *, near: bool) -> list[list[bytes]]:
    """Commands that give `hot` records of `load` another value, in chunks, in random order."""
    records = (record for pairs in load.chunks() for record in pairs)
    if near:
        chosen = heapq.nsmallest(hot, records)
        random.Random(load.seed).shuffle(chosen)
    else:
        chosen = list(islice(records, hot))
    datas = [encode(Put(key, value[::-1])) for key, value in chosen]
    return [datas[first : first + load.chunk] for first in range(0, hot, load.chunk)]
