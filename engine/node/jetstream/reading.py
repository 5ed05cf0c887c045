"""What is read: what the servers send on when it is stored, else ranges, from whatever server answers. A user of
`asyncio`.

What is sent on may be lost on its way: then it is asked for.
A server's copy of the stream may end before that of others: what it does not have is asked for again, of any of them,
for as long as nobody says that it was cut away. A hole that all of them go on showing is damage.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator

from shardengine.engine.errors import LogDamagedError, LogUnreachableError
from shardengine.engine.node.arrivals import Arrivals
from shardengine.engine.node.jetstream.connection import pauses
from shardengine.engine.node.jetstream.guarding import Guard
from shardengine.engine.node.jetstream.stream import READ_FRAMES, Foreign, Stream
from shardengine.engine.node.log import Logged
from shardengine.engine.node.refusals import closed, truncated

POLL_S = 1.0
"""Who waits for the next frame asks so often by itself, in case nobody says that there is one."""
HEARD_S = 0.02
"""What was appended here, and is not sent on by then, is asked for."""
HEARD_BYTES = 8 << 20
"""So much of what was sent on is kept for who reads on from there."""
_KEPT_BYTES = 300
"""More than a frame takes besides its own bytes."""
HOLE_S = 5.0
"""A hole that is seen for so long is one."""


class Reader:
    """Reads a stream while it is open; `arrivals` wakes who waits at its end, and says why nothing can be read."""

    def __init__(self, stream: Stream, guard: Guard, arrivals: Arrivals) -> None:
        self._stream = stream
        self._guard = guard
        self._arrivals = arrivals
        self._heard: dict[int, Logged] = {}
        self._heard_bytes = 0

    def heard(self, logged: Logged) -> None:
        """A server sends on what was just stored."""
        if logged.position not in self._heard:
            self._heard[logged.position] = logged
            self._heard_bytes += len(logged.frame) + _KEPT_BYTES
        while self._heard_bytes > HEARD_BYTES:
            self._heard_bytes -= len(self._heard.pop(next(iter(self._heard))).frame) + _KEPT_BYTES
        self._arrivals.wake()

    def forget(self) -> None:
        """What was heard may be of another stream."""
        self._heard.clear()
        self._heard_bytes = 0

    async def read(self, after: int) -> AsyncGenerator[Logged, None]:
        """See `Log.read`."""
        waits, hole_since, hears = pauses(), None, False
        while not self._arrivals.closed:
            if self._arrivals.error is not None:
                raise self._arrivals.error.again()
            if after + 1 < self._guard.first:
                raise truncated(self._guard.first, after)
            if not self._guard.trusted.is_set():
                await self._trust()
                continue
            batch = self._heard_behind(after)
            if hears and not batch:
                hears = False
                await self._arrival(HEARD_S if self._guard.newest > after else POLL_S)
                continue
            hears = bool(batch)
            if not batch:
                batch = await self._some(after)
            if any(type(one) is Foreign for one in batch) and not await self._still_ours():
                await asyncio.sleep(next(waits))
                continue
            if batch and batch[0].position == after + 1:
                waits, hole_since = pauses(), None
                for logged in batch:
                    self._guard.note_read(logged)
                    yield logged
                    after = logged.position
            elif batch:
                hole_since = time.monotonic() if hole_since is None else hole_since
                await self._judge_hole(after, batch[0].position, hole_since)
                await asyncio.sleep(next(waits))
            elif self._guard.newest > after:
                await asyncio.sleep(next(waits))
            else:
                await self._arrival(POLL_S)
        raise closed()

    async def _some(self, after: int) -> list[Logged]:
        try:
            return await self._stream.read(after)
        except LogUnreachableError:
            return []

    async def _still_ours(self) -> bool:
        """Whether the stream is what it was, behind what was read from it. Raises LogReplacedError, or what else it
        is."""
        try:
            return await self._guard.check() is not None
        except LogUnreachableError:
            return False

    async def _trust(self) -> None:
        """Return when the stream may be what it was."""
        try:
            async with asyncio.timeout(POLL_S):
                await self._guard.trusted.wait()
        except TimeoutError:
            pass

    def _heard_behind(self, after: int) -> list[Logged]:
        found, heard = list[Logged](), self._heard
        while (logged := heard.get(after + 1)) is not None and len(found) < READ_FRAMES:
            found.append(logged)
            after += 1
        return found

    async def _arrival(self, patience_s: float) -> None:
        """Return when there may be another frame, or after so long."""
        try:
            async with asyncio.timeout(patience_s):
                await self._arrivals.wait()
        except TimeoutError:
            pass

    async def _judge_hole(self, after: int, next_one: int, since: float) -> None:
        """Between the two there is nothing, says a server. Raises LogDamagedError when that has lasted."""
        try:
            await self._guard.check()
        except LogUnreachableError:
            return
        if after + 1 >= self._guard.first and time.monotonic() - since > HOLE_S:
            raise LogDamagedError(
                f"positions {after + 1} to {next_one - 1} are missing in the stream {self._stream.name!r}, and not cut",
                hint="restore the stream, or begin a new one from a snapshot that holds what is missing",
                first=after + 1,
                last=next_one - 1,
            )
