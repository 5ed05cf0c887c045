"""Barriers: when is all applied here that was acknowledged to anybody before?"""

from __future__ import annotations

import asyncio

from shardengine.engine.errors import EngineError
from shardengine.engine.node.log import Log


class Barriers:
    """Asks a log for its end, once for all who want to know at the same time.

    An answer is good for who came before it was asked for. So who comes while one is on its way waits for the next.
    """

    def __init__(self, asked: Log) -> None:
        self._log = asked
        self._asking: asyncio.Task[int] | None = None
        self._next: asyncio.Task[int] | None = None
        self._closed: EngineError | None = None

    async def last(self) -> int:
        """A position such that all that was acknowledged before this call is at it or before it. Raises as
        `Log.last`, or what it was closed with."""
        asking = self._next
        if asking is None and self._closed is None:
            asking = self._next = asyncio.ensure_future(self._ask(self._asking))
        if asking is not None:
            await asyncio.wait([asking])
        if self._closed is not None:
            raise self._closed.again()
        assert asking is not None
        return asking.result()

    async def _ask(self, before: asyncio.Task[int] | None) -> int:
        await asyncio.sleep(0)  # never at once, whatever makes the loop's tasks: who asks notes the task first
        if before is not None and not before.done():
            await asyncio.wait([before])
        self._asking, self._next = self._next, None
        return await self._log.last()

    def close(self, error: EngineError) -> None:
        """Nobody is told any more: who waits, or will, is told `error`."""
        self._closed = error
        for task in (self._asking, self._next):
            if task is not None and not task.get_loop().is_closed():
                task.cancel()
