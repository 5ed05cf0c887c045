"""Who waits in the loop for the coordinator: for room, for an index, for quiet. A user of `asyncio`.

What must be waited for is a future of the caller's loop, which the coordinator's progress resolves.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Iterable
from itertools import count
from typing import Any

from shardengine.engine.commit.coordinator import Coordinator
from shardengine.engine.config import EngineConfig
from shardengine.engine.errors import EngineError
from shardengine.engine.run.busy import Busy

_AGAIN_S = 0.1


class ForIndex:
    """Calls that wait until an index is applied."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, asyncio.Future[None]]] = []
        self._numbers = count()

    def __len__(self) -> int:
        return len(self._heap)

    async def wait(self, index: int, timeout: float | None) -> None:
        """Wait until `index` is applied. Raises TimeoutError after `timeout` seconds."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiter = (index, next(self._numbers), future)
        heapq.heappush(self._heap, waiter)
        try:
            async with asyncio.timeout(timeout):
                await future
        finally:
            if waiter in self._heap:  # it gave up
                self._heap.remove(waiter)
                heapq.heapify(self._heap)

    def reached(self, index: int) -> None:
        """Everything up to `index` is applied: wake who waits for that."""
        while self._heap and self._heap[0][0] <= index:
            resolve(heapq.heappop(self._heap)[2])

    def release(self, error: EngineError) -> None:
        """No index is reached any more: all of them fail with `error`."""
        waiting, self._heap = self._heap, []
        for _, _, future in waiting:
            resolve(future, error)


class Waiting:
    """Calls that wait for the `coordinator` of the run; None: nothing runs.

    Invariant: the first future in `room` keeps its place until its owner has taken its turn.
    """

    def __init__(self, config: EngineConfig, busy: Busy) -> None:
        self.coordinator: Coordinator | None = None
        self.room: deque[asyncio.Future[None]] = deque()
        self._config = config
        self._busy = busy
        self.for_index = ForIndex()
        self._for_quiet: list[asyncio.Future[None]] = []

    def has_room(self) -> bool:
        """Whether a chunk may be accepted now, or will be refused at once."""
        coordinator, config = self.coordinator, self._config
        return coordinator is not None and (
            coordinator.failure is not None
            or (
                coordinator.in_flight.chunks < config.in_flight_chunks_max
                and coordinator.in_flight.bytes < config.in_flight_bytes_max
                and not self._busy.replacing
            )
        )

    async def for_room(self) -> None:
        """Wait, first in first out, for a turn; the caller takes it at once, and then calls `wake_next`."""
        turn = asyncio.get_running_loop().create_future()
        self.room.append(turn)
        while True:
            try:
                await turn
            except asyncio.CancelledError:
                if turn in self.room:
                    self.room.remove(turn)
                    self.wake_next()
                raise
            if not self.room or self.room[0] is not turn:
                return
            if not self._busy.replacing:
                self.room.popleft()
                return
            turn = self.room[0] = asyncio.get_running_loop().create_future()  # an install began after it was given

    def wake_next(self) -> None:
        """Give the first waiting call its turn; it stays first in line until it takes it."""
        if self.room and not self.room[0].done() and self.has_room():
            resolve(self.room[0])

    async def for_quiet(self) -> None:
        """Wait until nothing was in flight at some moment."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._for_quiet.append(future)
        await future

    def published(self) -> None:
        """The coordinator has moved: wake who waits for an index, for room, or for quiet."""
        coordinator = self.coordinator
        if coordinator is None:
            return
        if coordinator.failure is not None:
            self.release(coordinator.failure)
            return
        self.for_index.reached(coordinator.applied.index)
        if self.room:
            self.wake_next()
        if self._for_quiet and coordinator.idle:
            idlers, self._for_quiet = self._for_quiet, []
            for future in idlers:
                resolve(future)

    def release(self, error: EngineError) -> None:
        """Nobody's turn comes any more: all of them fail with `error`."""
        waiting = [*self.room, *self._for_quiet]
        self.room.clear()
        self._for_quiet.clear()
        for future in waiting:
            resolve(future, error)
        self.for_index.release(error)


def resolve(future: asyncio.Future[Any], error: EngineError | None = None) -> None:
    """Wake who awaits `future`, unless it was cancelled or its loop is gone."""
    if future.done() or future.get_loop().is_closed():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error.again())


async def ended(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks, which do nothing at their end, until all have ended: a cancellation that comes together with what a
    task waits for may be lost."""
    while left := [task for task in tasks if not task.done()]:
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=_AGAIN_S)
