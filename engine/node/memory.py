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


class Held:
    """What a log in memory holds, and who reads it just now."""

    def __init__(self, identity: str) -> None:
        self.identity = identity
        self.kept: list[Logged] = []
        self.last = 0
        self.time_ms = 0
        self.readers: set[Arrivals] = set()

    @property
    def first(self) -> int:
        return self.kept[0].position if self.kept else self.last + 1


class MemoryLog:
    """A log that lasts as long as this object: through `aclose` and another `open`, and no longer.

    It is one loop's from `open` to `aclose`, and may be another's after that. Nothing in it blocks.
    """

    def __init__(self, identity: str | None = None) -> None:
        """`identity`: see `LogState`; None: a random one."""
        self._held = Held(os.urandom(16).hex() if identity is None else identity)
        self._arrivals: Arrivals | None = None

    async def open(self) -> LogState:
        """See `Log.open`. Raises EngineStateError when it is open."""
        if self._arrivals is not None:
            raise EngineStateError("the log is open already")
        held, self._arrivals = self._held, Arrivals()
        held.readers.add(self._arrivals)
        return LogState(held.identity, held.first, held.last, FRAME_BYTES_MAX)

    async def append(self, frames: Sequence[bytes]) -> list[int]:
        """See `Log.append`; no other call comes between."""
        self._opened()
        check_frames(frames, FRAME_BYTES_MAX)
        held = self._held
        held.time_ms = max(held.time_ms, time.time_ns() // 1_000_000)
        before = held.last
        for frame in frames:
            held.last += 1
            held.kept.append(Logged(held.last, held.time_ms, frame))
        for reader in held.readers:
            reader.wake()
        return list(range(before + 1, held.last + 1))

    async def read(self, after: int) -> AsyncGenerator[Logged, None]:
        """See `Log.read`."""
        arrivals, held = self._opened(), self._held
        while not arrivals.closed:
            if after + 1 < held.first:
                raise truncated(held.first, after)
            start = after + 1 - held.first
            batch = held.kept[start : start + _BATCH_FRAMES]
            for logged in batch:
                yield logged
                after = logged.position
            if not batch:
                await arrivals.wait()
        raise closed()

    async def last(self) -> int:
        """See `Log.last`."""
        self._opened()
        return self._held.last

    async def truncate_before(self, position: int) -> None:
        """See `Log.truncate_before`: all that may go does."""
        self._opened()
        del self._held.kept[: max(0, position - self._held.first)]

    async def aclose(self) -> None:
        """See `Log.aclose`."""
        arrivals, self._arrivals = self._arrivals, None
        if arrivals is not None:
            self._held.readers.discard(arrivals)
            arrivals.close()

    def _opened(self) -> Arrivals:
        if self._arrivals is None:
            raise closed()
        return self._arrivals
