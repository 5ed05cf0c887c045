"""Who appends to a log on JetStream all the time, and who reads it meanwhile: each frame is where it was said to be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from shardengine.engine.cluster.servers import Servers
from shardengine.node import JetStreamLog, Logged
from tests.jetstream import frames_up_to, is_own, opened
from tests.killing import WATCHDOG_S

PAUSE_S = 0.005
"""So long a writer thinks before it appends again."""


class Writing:
    """Appends one call after the other, until its end, and notes what it is told."""

    def __init__(self, log: JetStreamLog, who: bytes) -> None:
        self.who = who
        self.sent = list[bytes]()
        self.given = list[int]()
        self._log = log
        self._told = asyncio.Condition()
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        number = 0
        while True:
            frames = [b"%s %d %d" % (self.who, number, each) for each in range(1 + number % 3)]
            number += 1
            self.sent += frames
            self.given += await self._log.append(frames)
            async with self._told:
                self._told.notify_all()
            await asyncio.sleep(PAUSE_S)

    async def more(self, count: int) -> None:
        """Wait until so many more frames are acknowledged."""
        goal = len(self.given) + count
        async with asyncio.timeout(WATCHDOG_S), self._told:
            while len(self.given) < goal:
                await self._told.wait()

    async def end(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        assert self._task.cancelled()


class Appends:
    """Two who append to one log, and one who reads it from its beginning."""

    def __init__(self, one: JetStreamLog, other: JetStreamLog) -> None:
        self._writers = [Writing(one, b"one"), Writing(other, b"other")]
        self._seen = list[Logged]()
        self._reading = asyncio.create_task(self._read(other))

    async def _read(self, log: JetStreamLog) -> None:
        async for logged in log.read(0):
            if not is_own(logged):
                self._seen.append(logged)

    async def more(self, count: int = 20) -> None:
        """Wait until each was told of so many more frames that they are there."""
        await asyncio.gather(*(writer.more(count) for writer in self._writers))

    async def end(self) -> None:
        for writer in self._writers:
            await writer.end()
        self._reading.cancel()
        await asyncio.wait([self._reading])
        assert self._reading.cancelled()

    async def judged(self, log: JetStreamLog) -> None:
        """All that was acknowledged is where it was said to be, what each sent is there in order, once, without a gap,
        and what the reader had seen is the beginning of it."""
        read = await frames_up_to(log, await log.last())
        where = {logged.position: logged.frame for logged in read}
        for writer in self._writers:
            assert [where[position] for position in writer.given] == writer.sent[: len(writer.given)]
            its = [logged.frame for logged in read if logged.frame.split()[0] == writer.who]
            assert its == writer.sent[: len(its)] and len(its) >= len(writer.given)
        assert self._seen == read[: len(self._seen)]


@asynccontextmanager
async def appends(servers: Servers, stream: str) -> AsyncIterator[Appends]:
    """They append until the block ends; then what became of it is judged, by a log that is opened anew."""
    async with opened(servers.urls, stream) as one, opened(servers.urls, stream) as other:
        found = Appends(one, other)
        try:
            yield found
        finally:
            await found.end()
    async with opened(servers.urls, stream) as again:
        await found.judged(again)
