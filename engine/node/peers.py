"""The other nodes of a shared log, as one run of a node deals with them: all of it in one place."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from pathlib import Path
from typing import TypeVar

from shardengine.engine.engine import Engine
from shardengine.engine.node.bootstrap import Bootstrap
from shardengine.engine.node.comparing import Comparing
from shardengine.engine.node.giving import Giver
from shardengine.engine.node.members import Members
from shardengine.engine.node.shared import SharedLog
from shardengine.engine.node.shelf import Shelf
from shardengine.engine.run.waiting import ended

T = TypeVar("T")


class Peers:
    """From the log's opening on: says and hears, and gives snapshots. `task`: ends with what ends the node."""

    def __init__(
        self,
        log: SharedLog,
        engine: Engine,
        directory: Path,
        name: str,
        compare_entries: int,
        shelf: Shelf | None = None,
    ) -> None:
        self._log = log
        self._giver = Giver(directory, engine.create_snapshot, shelf)
        self.comparing = Comparing(engine, compare_entries)
        self.members = Members(log, engine, self._giver, self.comparing, name)
        self.bootstrap = Bootstrap(engine, log, self.members, directory, shelf)
        log.answer(self._giver.answer)
        self.task = asyncio.ensure_future(self.members.run())

    async def beside(self, work: Awaitable[T]) -> T:
        """Do `work`, which needs the others; raises what ends the node meanwhile."""
        working = asyncio.ensure_future(work)
        try:
            await asyncio.wait([working, self.task], return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                await self.task
            return await working
        finally:
            working.cancel()
            await asyncio.wait([working])

    def stop(self) -> None:
        """Say and give nothing any more."""
        self._log.answer(None)
        self.task.cancel()

    async def close(self) -> None:
        """As `stop`, and wait until that is so."""
        self.stop()
        await ended([self.task])
        await self.comparing.close()
        await self._giver.close()
