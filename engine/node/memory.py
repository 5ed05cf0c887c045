"""A log in the memory of this process, for tests and examples."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncGenerator, Sequence

from shardengine.engine.errors import EngineStateError
from shardengine.engine.node.arrivals import Arrivals
from shardengine.engine.node.log import Logged, LogState
from shardengine.engine.node.refusals import FRAME_BYTES_MAX, check_frames, closed, truncated

_BATCH_FRAMES = 256


class MemoryLog:
    """A log that lasts as long as this object: through `aclose` and another `open`, and no longer.

    It is one loop's from `open` to `aclose`, and may be another's after that. Nothing in it blocks.
    """

    def __init__(self, identity: str | None = None) -> None:
        """`identity`: see `LogState`; None: a random one."""
        self._identity = os.urandom(16).hex() if identity is None else identity
        self._kept: list[Logged] = []
        self._last = 0
        self._time_ms = 0
        self._arrivals: Arrivals | None = None

    async def open(self) -> LogState:
        """See `Log.open`. Raises EngineStateError when it is open."""
        if self._arrivals is not None:
            raise EngineStateError("the log is open already")
        self._arrivals = Arrivals()
        return LogState(self._identity, self._first, self._last, FRAME_BYTES_MAX)

    async def append(self, frames: Sequence[bytes]) -> list[int]:
        """See `Log.append`; no other call comes between."""
        arrivals = self._opened()
        check_frames(frames, FRAME_BYTES_MAX)
        self._time_ms = max(self._time_ms, time.time_ns() // 1_000_000)
        before = self._last
        for frame in frames:
            self._last += 1
            self._kept.append(Logged(self._last, self._time_ms, frame))
        arrivals.wake()
        return list(range(before + 1, self._last + 1))

    async def read(self, after: int) -> AsyncGenerator[Logged, None]:
        """See `Log.read`."""
        arrivals = self._opened()
        while not arrivals.closed:
            if after + 1 < self._first:
                raise truncated(self._first, after)
            start = after + 1 - self._first
            batch = self._kept[start : start + _BATCH_FRAMES]
            for logged in batch:
                yield logged
                after = logged.position
            if not batch:
                await arrivals.wait()
        raise closed()

    async def last(self) -> int:
        """See `Log.last`."""
        self._opened()
        return self._last

    async def truncate_before(self, position: int) -> None:
        """See `Log.truncate_before`: all that may go does."""
        self._opened()
        del self._kept[: max(0, position - self._first)]

    async def aclose(self) -> None:
        """See `Log.aclose`."""
        arrivals, self._arrivals = self._arrivals, None
        if arrivals is not None:
            arrivals.close()

    @property
    def _first(self) -> int:
        return self._kept[0].position if self._kept else self._last + 1

    def _opened(self) -> Arrivals:
        if self._arrivals is None:
            raise closed()
        return self._arrivals
