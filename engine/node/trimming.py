"""The log is cut behind the snapshots: what a snapshot of the directory holds, and `keep_entries` before its end, need
not be read again.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque

from shardengine.engine.engine import Engine
from shardengine.engine.errors import EngineError
from shardengine.engine.node.log import Log

LOOK_S = 1.0
_MARKS_MAX = 1024
log = logging.getLogger("shardengine")


class Marks:
    """At which position of the log some of the entries lie: enough to know where to cut it.

    Invariant: indices and positions rise; at most `_MARKS_MAX`, evenly thinned as they become more.
    """

    def __init__(self) -> None:
        self._marks: deque[tuple[int, int]] = deque()
        self._apart = 1

    def note(self, index: int, position: int) -> None:
        """The frame at `position` begins with entry `index`, or an earlier one."""
        if self._marks and index < self._marks[-1][0] + self._apart:
            return
        self._marks.append((index, position))
        if len(self._marks) > _MARKS_MAX:
            self._marks = deque(list(self._marks)[::2])
            self._apart *= 2

    def before(self, index: int) -> int:
        """The newest marked position whose frame begins with an entry up to `index`; 0: none is known. Marks before it
        are forgotten."""
        while len(self._marks) > 1 and self._marks[1][0] <= index:
            self._marks.popleft()
        return self._marks[0][1] if self._marks and self._marks[0][0] <= index else 0


class Trimmer:
    """Cuts one log. `cut`: what lies before that position was given up."""

    def __init__(self, engine: Engine, trimmed: Log, marks: Marks, keep_entries: int) -> None:
        self.cut = 0
        self._engine = engine
        self._log = trimmed
        self._marks = marks
        self._keep_entries = keep_entries
        durable = engine.durable()
        marks.note(durable.index, durable.term)

    async def run(self) -> None:
        """Look once in a while, until cancelled. Raises what the engine failed with."""
        while True:
            await asyncio.sleep(LOOK_S)
            await self._engine.lease_background_cleanup()
            try:
                await self.trim()
            except EngineError as error:
                log.warning("the log could not be cut: %s", error)

    async def trim(self, keep_entries: int | None = None) -> int:
        """Cut as far as may be; returns the position that the log was cut before, by this call or an earlier one."""
        keep = self._keep_entries if keep_entries is None else keep_entries
        durable = self._engine.durable()
        position = min(durable.term, self._marks.before(durable.index - keep + 1))
        if position > self.cut:
            await self._log.truncate_before(position)
            self.cut = position
        return self.cut
