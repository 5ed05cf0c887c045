"""The log is cut behind the snapshots: what a snapshot of the directory holds, and `keep_entries` before its end, need
not be read again. Where several nodes share the log, each looks at what all of them need.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence

from shardengine.engine.contract import SnapshotInfo
from shardengine.engine.engine import Engine
from shardengine.engine.node.log import Log
from shardengine.engine.node.shared import Member
from shardengine.shards.types import LogId

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
    """Cuts one log. `cut`: what lies before that position was given up. `needs`: the first position that is still of
    use here; 0: that of the first frame.

    By itself it cuts only what two snapshots hold: should the newest be found damaged after a power loss, the one
    before it is there, and the log behind that. In mode "power" the state is durable without them, and it cuts by that.

    `others`: the members of a shared log as they were heard lately, this node among them; None: they were not. Its
    attributes are what it works on, and what it found out.
    """

    def __init__(
        self,
        engine: Engine,
        trimmed: Log,
        marks: Marks,
        keep_entries: int,
        *,
        by_snapshots: bool,
        others: Callable[[], Sequence[Member] | None] | None = None,
    ) -> None:
        self.cut = 0
        self.needs = 0
        self._engine = engine
        self._log = trimmed
        self._marks = marks
        self._keep_entries = keep_entries
        self._by_snapshots = by_snapshots
        self._others = others
        self._newest = self._older = LogId(0, 0)
        self._given_up = 0
        durable = engine.durable()
        marks.note(durable.index, durable.term)

    async def run(self) -> None:
        """Look once in a while, until cancelled. Raises what the engine failed with."""
        while True:
            await asyncio.sleep(LOOK_S)
            await self._engine.lease_background_cleanup()
            try:
                await self.trim()
            except Exception as error:
                log.warning("the log could not be cut: %s", error)

    async def trim(self) -> None:
        """Cut as far as the policy says. Raises as `Log.truncate_before`."""
        self.look()
        await self._cut_before(self.needs)

    def look(self) -> None:
        """Find out what is needed by now."""
        durable = self._engine.durable()
        if self._by_snapshots and durable != self._newest:
            self._newest, self._older = durable, _one_before(durable, self._engine.snapshots())
        safe = self._older if self._by_snapshots else durable
        self.needs = max(self._before(safe, self._keep_entries), self._given_up)

    async def cut_behind(self, last: LogId, keep_entries: int) -> None:
        """Cut what lies before the newest `keep_entries` up to `last`, of which nothing is needed here any more. Raises
        as `Log.truncate_before`."""
        self._given_up = max(self._given_up, self._before(last, keep_entries))
        await self._cut_before(self._given_up)

    def _before(self, last: LogId, keep_entries: int) -> int:
        first = last.index - keep_entries + 1
        return 0 if first < 1 else min(last.term, self._engine.entry_term(first) or self._marks.before(first))

    async def _cut_before(self, position: int) -> None:
        if self._others is not None:
            position = cut_at(position, self._others() or ())
        if position > self.cut:
            await self._log.truncate_before(position)
            self.cut = max(self.cut, position)


def cut_at(needed: int, members: Sequence[Member]) -> int:
    """Before which position a log is cut that who asks needs from `needed` on; 0: nowhere. No member needs what lies
    before it, and at least one gives a snapshot that holds all of that: the frame of its last entry stays, too, which
    tells whether it holds that one whole."""
    given = max((member.snapshot.term for member in members), default=0)
    return min([needed, given, *(member.needs for member in members)])


def _one_before(newest: LogId, snapshots: Sequence[SnapshotInfo]) -> LogId:
    """The newest of the same lineage before `newest`; (0, 0): there is none."""
    lineages = {info.lineage for info in snapshots if info.last_included == newest}
    own = [info.last_included for info in snapshots if info.lineage in lineages]
    return max((last for last in own if last < newest), default=LogId(0, 0))
