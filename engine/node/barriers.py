"""Barriers: when is all applied here that was acknowledged to anybody before?"""

from __future__ import annotations

import asyncio

from shardengine.engine.node.log import Log


class Barriers:
    """Asks a log for its end, once for all who want to know at the same time.

    An answer is good for who came before it was asked for. So who comes while one is on its way waits for the next.
    """

    def __init__(self, asked: Log) -> None:
        self._log = asked
        self._asking: asyncio.Task[int] | None = None
        self._next: asyncio.Task[int] | None = None

    async def last(self) -> int:
        """A position such that all that was acknowledged before this call is at it or before it. Raises as
        `Log.last`."""
        if self._next is None:
            self._next = asyncio.ensure_future(self._ask(self._asking))
        return await asyncio.shield(self._next)

    async def _ask(self, before: asyncio.Task[int] | None) -> int:
        if before is not None and not before.done():
            await asyncio.wait([before])
        self._asking, self._next = self._next, None
        return await self._log.last()

    def close(self) -> None:
        """Nobody is told any more."""
        for task in (self._asking, self._next):
            if task is not None:
                task.cancel()
