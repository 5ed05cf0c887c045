"""Who waits for the next frame of a log. A user of `asyncio`."""

from __future__ import annotations

import asyncio

from shardengine.engine.errors import EngineError
from shardengine.engine.node.refusals import closed
from shardengine.engine.run.waiting import resolve


class Arrivals:
    """Calls of one loop that wait while they have read all there is, for as long as one `open` of a log lasts.

    `error`: why nothing comes any more; None: more may. `closed`: nor may be read what is there.
    """

    def __init__(self) -> None:
        self.error: EngineError | None = None
        self.closed = False
        self._waiting: set[asyncio.Future[None]] = set()

    async def wait(self) -> None:
        """Return when there may be another frame. Raises `error`."""
        if self.error is not None:
            raise self.error.again()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            await future
        finally:
            self._waiting.discard(future)

    def wake(self) -> None:
        """There is another frame; or none will come, and `error` says why."""
        waiting, self._waiting = self._waiting, set()
        for future in waiting:
            resolve(future, self.error)

    def fail(self, error: EngineError) -> None:
        """No frame comes any more."""
        self.error = error
        self.wake()

    def close(self) -> None:
        """Nobody reads here any more."""
        self.closed = True
        self.fail(closed())
