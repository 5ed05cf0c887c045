"""Chunks into an engine: several in flight, in order, ended cleanly by the end, a signal or a refusal."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass

from shardengine import ApplyResult, Engine, Entry
from shardengine.engine.cli.common import Stop

IN_FLIGHT_CHUNKS = 4
"""Chunks sent and not yet answered: enough to keep every worker busy while the next ones are read."""


@dataclass(frozen=True)
class Chunk:
    """Consecutive entries, and how far the input was read for them."""

    entries: list[Entry]
    position: int


class RefusedError(Exception):
    """The engine refused a chunk; the ones before it are applied, none behind it is."""

    def __init__(self, chunk: Chunk, error: Exception) -> None:
        super().__init__(str(error))
        self.chunk = chunk
        self.error = error


Applied = Callable[[Chunk, Sequence[ApplyResult]], Awaitable[None]]


async def feed(db: Engine, chunks: Iterator[Chunk], applied: Applied, stop: Stop) -> None:
    """Apply `chunks`, calling `applied` for each in order; returns with nothing in flight, whatever happens.

    `chunks` is advanced in a thread, one step at a time, so it may block; answers do not wait for it. A refusal ends
    `stop`, so that nothing waits for an input that nobody wants any more.

    Raises:
        RefusedError: the first chunk that the engine refused.
        Exception: what `chunks` raised, after everything it gave before is applied.
    """
    window = _Window(applied, stop)
    try:
        while not stop.asked:
            chunk = await window.settled_until(asyncio.ensure_future(asyncio.to_thread(next, chunks, None)))
            if chunk is None or stop.asked:
                break
            window.send(db, chunk)
            while window.is_full or window.has_answer:
                await window.settle_oldest()
    finally:
        while window.pending:
            await window.settle_oldest()
        if window.refused:  # earlier in the log than whatever else went wrong
            raise window.refused from window.refused.error


class _Window:
    """What is in flight, oldest first. After a refusal, answers to chunks behind it are its consequence: ignored."""

    def __init__(self, applied: Applied, stop: Stop) -> None:
        self.pending: deque[tuple[Chunk, asyncio.Task[Sequence[ApplyResult]]]] = deque()
        self.refused: RefusedError | None = None
        self._applied = applied
        self._stop = stop

    @property
    def is_full(self) -> bool:
        return len(self.pending) >= IN_FLIGHT_CHUNKS

    @property
    def has_answer(self) -> bool:
        return bool(self.pending) and self.pending[0][1].done()

    def send(self, db: Engine, chunk: Chunk) -> None:
        self.pending.append((chunk, asyncio.ensure_future(db.apply_chunk(chunk.entries))))

    async def settled_until(self, read: asyncio.Future[Chunk | None]) -> Chunk | None:
        """What is read next; answers that come before it are settled."""
        while self.pending and not read.done():
            await asyncio.wait((read, self.pending[0][1]), return_when=asyncio.FIRST_COMPLETED)
            if self.has_answer:
                await self.settle_oldest()
        return await read

    async def settle_oldest(self) -> None:
        chunk, task = self.pending.popleft()
        try:
            results = await task
        except Exception as error:
            self.refused = self.refused or RefusedError(chunk, error)
            self._stop.end()
            return
        if not self.refused:
            await self._applied(chunk, results)
