"""The log into the engine: each frame as one chunk, in order, several in flight.

An entry's index is its number in the log, its term the position of its frame; so the engine's last applied entry tells
where to read on, and a restart needs nothing else.

A chunk that fails stops the feeding; what was sent behind it fails with it. When all of that has come back, the reason
decides: where there was no room, the same frame is fed again once in a while; a frame whose commands write more than
one group can take is fed in pieces, which changes no result; for anything else the node fails, by name.

Where the log does not hold any more what comes next, and others share it, a snapshot of theirs takes its place.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing, suppress

from shardengine.engine.engine import Engine
from shardengine.engine.errors import (
    ChunkTooLargeError,
    EngineError,
    LogClosedError,
    LogReplacedError,
    LogTruncatedError,
    NodeStoppedError,
    StoreFullError,
    named,
)
from shardengine.engine.node.comparing import Comparing
from shardengine.engine.node.frames import decode_frame, entries_in
from shardengine.engine.node.log import Log, Logged
from shardengine.engine.node.place import entries_of_last_frame
from shardengine.engine.node.proposals import Proposals
from shardengine.engine.node.trimming import Marks
from shardengine.engine.run.waiting import ForIndex, resolve
from shardengine.shards.types import ApplyResult, Entry, LogId

IN_FLIGHT_FRAMES = 64
IN_FLIGHT_BYTES = 32 << 20
RETRY_S = 0.5
log = logging.getLogger("shardengine")


class _Fed:
    """A frame on its way through the engine; without entries it has no task."""

    __slots__ = ("entries", "error", "first", "id", "position", "size", "task")

    def __init__(self, position: int, id: bytes, first: int, size: int, entries: list[Entry]) -> None:
        self.position = position
        self.id = id
        self.first = first
        self.size = size
        self.entries = entries
        self.task: asyncio.Task[Sequence[ApplyResult]] | None = None
        self.error: EngineError | None = None

    @property
    def applied(self) -> bool:
        return self.task is None or (self.task.done() and not self.task.cancelled() and self.task.exception() is None)


class Feeder:
    """Frames from the log to the engine, and what came of them to who proposed them.

    `position`: that frame, and all before it, are applied. Invariant: `_window` are the frames behind it that were
    sent, in order. Its attributes are what it was given, the window, who waits, and how one reading ended.

    Of a shared log: `comparing` takes digests on the way; `refill` installs a snapshot where the log was cut, and
    returns the position to read on from.
    """

    def __init__(
        self,
        engine: Engine,
        source: Log,
        proposals: Proposals,
        marks: Marks,
        position: int,
        *,
        comparing: Comparing | None = None,
        refill: Callable[[LogTruncatedError], Awaitable[int]] | None = None,
    ) -> None:
        self.position = position
        self.stalled: str | None = None
        self._engine = engine
        self._log = source
        self._proposals = proposals
        self._marks = marks
        self._comparing = comparing
        self._refill = refill
        self._window: deque[_Fed] = deque()
        self._window_bytes = 0
        self._reading: asyncio.Task[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self._for_position = ForIndex()
        self._for_index = ForIndex()
        self._dropping = False
        self._newest = engine.last_applied()
        self._failed: _Fed | None = None
        self._in_pieces = 0

    async def reached(self, position: int) -> None:
        """Wait until every frame up to `position` is applied. Raises what the node failed with."""
        if position > self.position:
            await self._for_position.wait(position, None)

    async def applied(self, index: int) -> None:
        """Wait until every entry up to `index` is applied. Raises what the node failed with."""
        if index > self._engine.last_applied().index:
            await self._for_index.wait(index, None)

    def check_state(self) -> None:
        """Raise LogReplacedError when the engine stands before what was applied from here."""
        last = self._engine.last_applied()
        if last < self._newest:
            raise LogReplacedError(
                f"the engine stands at {last}, and was fed up to {self._newest}: its state was replaced under the node",
                hint="close the node, and start it again: it goes on from there, if the log still holds what follows",
                applied=last,
                fed=self._newest,
            )

    def close(self, error: EngineError) -> None:
        """Nothing is reached any more."""
        self._for_position.release(error)
        self._for_index.release(error)

    # ---- one reading, until a frame fails ------------------------------------------------------------------------

    async def run(self) -> None:
        """Feed until cancelled. Raises what ends the node."""
        while True:
            self._failed = None
            self._reading = asyncio.ensure_future(self._read())
            try:
                await self._reading
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if self._failed is None or (task is not None and task.cancelling()):
                    await self._drop()
                    raise
            except LogTruncatedError as error:
                await self._go_on_behind(error)
                continue
            await self._settled()
            await self._judge()

    async def _go_on_behind(self, truncated: LogTruncatedError) -> None:
        """What comes next was cut away."""
        if self._refill is None:
            raise truncated
        await self._settled()
        if self._failed is not None:
            await self._judge()
            return
        position = await self._refill(truncated)
        self.position, self._newest = position, self._engine.last_applied()
        self._marks.note(self._newest.index, self._newest.term)
        self._proposals.pass_over(position)
        self._for_position.reached(position)
        self._for_index.reached(self._newest.index)

    async def _read(self) -> None:
        """Send what the log has behind the last applied frame, and all that comes."""
        last = self._engine.last_applied()
        index = last.index + 1
        if last.term > self.position:
            index -= entries_of_last_frame(self._engine)  # of the next frame, some are applied already
        async with aclosing(self._log.read(self.position)) as frames:
            async for logged in frames:
                first, index = index, await self._send(logged, index)
                if self._comparing is not None and self._comparing.due(first, index - 1):
                    await self._emptied()
                    await self._comparing.begin(LogId(index - 1, logged.position))
        raise LogClosedError("the log has come to its end, which no log does", hint="see what closed it")

    async def _send(self, logged: Logged, first: int) -> int:
        """Have a frame applied, whose first entry is number `first`; returns that of the next one's."""
        position = logged.position
        frame = decode_frame(logged.frame, position)
        entries = entries_in(frame, logged, first)
        alone = position == self._in_pieces
        if alone:
            await self._emptied()
        while self._window and not self._has_room(len(logged.frame)):
            await self._some_room()
        sent = _Fed(position, frame.id, first, len(logged.frame), entries)
        self._window.append(sent)
        self._window_bytes += sent.size
        if entries:
            work = self._apply_in_pieces(entries) if alone else self._engine.apply_chunk(entries)
            sent.task = asyncio.ensure_future(work)
            sent.task.add_done_callback(lambda task: self._settle(sent, task))
            if alone:
                await asyncio.wait([sent.task])
        else:
            self._advance()
        return first + len(entries)

    async def _emptied(self) -> None:
        """Wait until all that was sent is applied."""
        while self._window:
            await self._some_room()

    async def _some_room(self) -> None:
        self._room = asyncio.get_running_loop().create_future()
        await self._room

    def _has_room(self, size: int) -> bool:
        return len(self._window) < IN_FLIGHT_FRAMES and self._window_bytes + size <= IN_FLIGHT_BYTES

    def _settle(self, sent: _Fed, task: asyncio.Task[Sequence[ApplyResult]]) -> None:
        """A frame was applied, or not."""
        if self._dropping:
            return
        error = NodeStoppedError("a task of the node was cancelled") if task.cancelled() else task.exception()
        if error is None:
            self._proposals.applied(sent.id, task.result())
            self._advance()
            return
        sent.error = named(error) if isinstance(error, Exception) else None
        if self._failed is None or sent.position < self._failed.position:
            self._failed = sent
        if self._reading is not None:
            self._reading.cancel()

    def _advance(self) -> None:
        window = self._window
        while window and window[0].applied:
            sent = window.popleft()
            self._window_bytes -= sent.size
            self.position = sent.position
            if sent.entries:
                self._newest = LogId(sent.entries[-1].index, sent.position)
                self._marks.note(sent.first, sent.position)
        self.stalled = None
        self._for_position.reached(self.position)
        self._for_index.reached(self._newest.index)
        if self._room is not None:
            resolve(self._room)

    # ---- when one failed -----------------------------------------------------------------------------------------

    async def _settled(self) -> None:
        """Everything that was sent has come back."""
        if tasks := [sent.task for sent in self._window if sent.task is not None]:
            await asyncio.wait(tasks)
            await asyncio.sleep(0)  # their callbacks
        self._window.clear()
        self._window_bytes = 0

    async def _drop(self) -> None:
        """Nobody waits for what was sent."""
        self._dropping = True
        for sent in self._window:
            if sent.task is not None:
                sent.task.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await sent.task

    async def _judge(self) -> None:
        """Wait, or have the frame fed in pieces, or raise what the node fails with."""
        failed = self._failed
        assert failed is not None
        too_large = isinstance(failed.error, ChunkTooLargeError) and len(failed.entries) > 1
        if too_large and failed.position != self._in_pieces:
            self._in_pieces = failed.position
        elif isinstance(failed.error, StoreFullError):
            await self._await_room(failed.position, failed.error)
        else:
            raise failed.error or NodeStoppedError("the node was interrupted")

    async def _await_room(self, position: int, error: EngineError) -> None:
        if self.stalled is None:
            log.warning("the frame at position %d waits for room, and all behind it: %s", position, error)
        self.stalled = str(error)
        await asyncio.sleep(RETRY_S)

    async def _apply_in_pieces(self, entries: Sequence[Entry]) -> Sequence[ApplyResult]:
        """As one chunk; where a group cannot take it, the first half, and then the other."""
        while True:
            try:
                return await self._engine.apply_chunk(entries)
            except StoreFullError as error:
                await self._await_room(entries[0].term, error)
            except ChunkTooLargeError:
                if len(entries) == 1:
                    raise
                break
        half = len(entries) // 2
        first = await self._apply_in_pieces(entries[:half])
        return [*first, *await self._apply_in_pieces(entries[half:])]
