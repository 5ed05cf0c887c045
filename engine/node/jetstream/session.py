"""What is between one opening of a log and its end: the connection, and all that uses it. A user of `asyncio`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from shardengine.engine.errors import (
    EngineError,
    LogFailedError,
    LogFullError,
    LogUnreachableError,
    WrongLoopError,
    named,
)
from shardengine.engine.node.arrivals import Arrivals
from shardengine.engine.node.jetstream.appending import Appender
from shardengine.engine.node.jetstream.asking import Peers
from shardengine.engine.node.jetstream.connection import Connection, pauses
from shardengine.engine.node.jetstream.guarding import Guard
from shardengine.engine.node.jetstream.link import Message
from shardengine.engine.node.jetstream.reading import HEARD_S, Reader
from shardengine.engine.node.jetstream.settings import HEADERS_BYTES, check_payload, check_settings, mark_of, news_of
from shardengine.engine.node.jetstream.stream import NOT_FOUND, Info, RefusedError, Stream
from shardengine.engine.node.log import LogState
from shardengine.engine.node.refusals import FRAME_BYTES_MAX, closed

OPEN_S = 30.0
"""Servers that cannot be reached, or do not agree, for so long keep a log from being opened."""
CLOSE_S = 5.0
"""For so long an end waits for what is under way."""
CUT_AGAIN_S = 5.0
"""After so long a cut is tried again that nobody took."""
log = logging.getLogger("shardengine")


class Session:
    """A log while it is open. `failure`: why it is of no use any more.

    Its attributes are the parts that it is made of, and how it ends.
    """

    def __init__(self, servers: Sequence[str], options: Mapping[str, Any], stream: str, replicas: int) -> None:
        self.loop = asyncio.get_running_loop()
        self.connection = Connection(servers, options)
        self.stream = Stream(stream, self.connection)
        self.arrivals = Arrivals()
        self.peers = Peers(stream, self.connection)
        self.frame_bytes_max = 0
        self.failure: EngineError | None = None
        self.unsettled: tuple[str, int] | None = None
        """What an earlier opening left behind, or this one does: see `Appender.unsettled`."""
        self.closing = False
        self._replicas = replicas
        self._tasks: list[asyncio.Task[None]] = []
        self._cuts: set[asyncio.Task[None]] = set()
        self._uncut = 0
        """Before that position is to be cut, soon; 0: nowhere."""

    @property
    def began(self) -> bool:
        """Whether it is open, and can be used."""
        return bool(self._tasks)

    def check_loop(self) -> None:
        """Raises WrongLoopError."""
        if asyncio.get_running_loop() is not self.loop:
            raise WrongLoopError("the log belongs to the event loop that opened it", hint="aclose() it there")

    # ---- the beginning -------------------------------------------------------------------------------------------

    async def begin(self, create_at: int) -> LogState:
        """Open it; where there is no stream, one is made that begins at position `create_at`, 0: none is. Raises what
        keeps it from that; `close` it then."""
        self.connection.start(self._changed)
        told = "the servers are still being asked"
        try:
            async with asyncio.timeout(OPEN_S):
                waits = pauses()
                while True:
                    try:
                        return await self._begin(create_at)
                    except LogUnreachableError as error:
                        told = error.message
                    await asyncio.sleep(next(waits))
        except TimeoutError:
            raise self.connection.unreachable(
                f"the log {self.stream.name!r} could not be opened in {OPEN_S:g} s: {told}"
            ) from None

    async def _begin(self, create_at: int) -> LogState:
        info = await self._found(create_at)
        link = self.connection.link
        if link is None:
            raise LogUnreachableError("the connection has ended", hint="see the servers' log")
        check_settings(self.stream.name, self._replicas, info.config, min(info.server, link.version, key=_numbers))
        check_payload(self.stream.name, payload := link.payload_bytes_max)
        if (most := info.config.get("max_msg_size") or 0) > 0:
            payload = min(payload, most)
        self.frame_bytes_max = min(payload - HEADERS_BYTES, FRAME_BYTES_MAX)
        self.stream.mark = mark_of(info.identity)
        self.guard = Guard(self.stream, self._replicas, info, self.fail)
        self.appender = Appender(self.stream, self.guard, self.appended)
        self.reader = Reader(self.stream, self.guard, self.arrivals)
        last = await self._proved(info)
        first = (await self._caught_up(last)).state.first_seq
        await self.connection.listen(news_of(self.stream.name), self._on_news)
        self._tasks = [asyncio.ensure_future(self._keep(work)) for work in (self.appender.run, self.guard.run)]
        return LogState(self.guard.identity, first, last, self.frame_bytes_max)

    async def _found(self, create_at: int) -> Info:
        try:
            return await self.stream.info()
        except RefusedError as error:
            if error.code != NOT_FOUND or not create_at:
                raise
        await self.stream.create(self._replicas, create_at)
        raise LogUnreachableError("the stream is being made", hint="see whether most servers run")

    async def _proved(self, info: Info) -> int:
        """The position of a frame such that all that was acknowledged before is at it or before it."""
        try:
            if self.unsettled is not None:
                await self.appender.settle(*self.unsettled)
                self.unsettled = None
            last = await self.appender.begin()
        except LogFullError as error:
            log.warning("the log can be read, and cut, and nothing can be appended: %s", error)
            last = info.state.last_seq
        self.guard.note(last)
        return last

    async def _caught_up(self, last: int) -> Info:
        """What the stream is, from a leader that knows of the frame at `last`."""
        waits = pauses()
        while True:
            info = await self.guard.check()
            if info is not None and info.state.last_seq >= last:
                return info
            await asyncio.sleep(next(waits))

    # ---- what happens --------------------------------------------------------------------------------------------

    def appended(self, position: int) -> None:
        self.guard.note(position)
        self.loop.call_later(HEARD_S, self._miss, position)

    def _miss(self, position: int) -> None:
        """Who has not read that far does not hear of it."""
        if self.guard.read_up_to < position:
            self.arrivals.wake()

    def fail(self, error: EngineError) -> None:
        """The log is of no use any more."""
        if self.failure is None:
            log.error("the log %s is of no use any more: %s", self.stream.name, error)
            self.failure = error
            self.arrivals.fail(error)
            self.unsettled = self.appender.unsettled
            self.appender.end(error, error)
            for task in self._tasks:
                if task is not asyncio.current_task():
                    task.cancel()
            self.guard.trusted.set()  # who waits for that hears why it is not to be had

    def cut(self, position: int) -> asyncio.Task[None]:
        """Have removed what lies before `position`, except the newest frame that was seen."""
        task = asyncio.ensure_future(self._cut(min(position, self.guard.seen)))
        self._cuts.add(task)
        task.add_done_callback(self._cuts.discard)
        return task

    async def _cut(self, position: int) -> None:
        if position <= self.guard.first:
            return
        if self.guard.trusted.is_set():
            try:
                await self.stream.purge(position)
            except LogUnreachableError as error:
                log.warning("the log is not cut at position %d now: %s", position, error)
            else:
                self.guard.first = max(self.guard.first, position)
                return
        if not self._uncut:
            self.loop.call_later(CUT_AGAIN_S, self._cut_again)
        self._uncut = max(self._uncut, position)

    def _cut_again(self) -> None:
        position, self._uncut = self._uncut, 0
        if not self.closing and self.failure is None:
            self.cut(position).add_done_callback(_tell)

    def _changed(self) -> None:
        if self._tasks:
            self.guard.changed()
            self.reader.forget()
        self.arrivals.wake()

    def _on_news(self, message: Message) -> None:
        """The stream's leader has stored a message."""
        if message.headers.get("Nats-Stream") == self.stream.name:
            logged = self.stream.logged(message)
            self.guard.newest = max(self.guard.newest, logged.position)
            self.reader.heard(logged)

    async def _keep(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except Exception as error:
            self.fail(named(error))

    # ---- the end -------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """End everything, once: what is under way first, if that ends soon."""
        if self.closing:
            return
        self.closing = True
        if self._tasks:
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_S):
                    await self.appender.drained()
                    if self._cuts:
                        await asyncio.wait(self._cuts)
        await self._abandon()

    async def _abandon(self) -> None:
        tasks = [*self._tasks, *self._cuts]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
            self.unsettled = self.appender.unsettled or self.unsettled
            self.appender.end(closed(), _unknown(self.stream.name))
        self.arrivals.close()
        if tasks:
            self.guard.trusted.set()
        await self.peers.close()
        await self.connection.close()


def _numbers(version: str) -> list[int]:
    return [int(number) for number in version.split("-", maxsplit=1)[0].split(".") if number.isdigit()]


def _tell(cut: asyncio.Task[None]) -> None:
    if not cut.cancelled() and (error := cut.exception()) is not None:
        log.warning("the log is not cut: %s", error)


def _unknown(stream: str) -> LogFailedError:
    return LogFailedError(
        f"the log {stream!r} was closed while the servers did not answer",
        hint="open it anew: whether these frames are in it, only reading on tells",
    )
