"""Do the nodes of a shared log hold the same? Now and then all of them take the digest of their state at one entry.

Which entry that is, the log alone decides: the last one of the first frame that reaches a multiple of some number. Who
stands there holds its feeding until the state of that entry is kept for reading, not until the digest is taken. One
digest at a time: who still takes one passes the next entry by.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping, Sequence

from shardengine.engine.engine import Engine
from shardengine.engine.errors import EngineError, StateDivergedError
from shardengine.engine.node.shared import Member
from shardengine.engine.run.tasks import one_turn
from shardengine.shards.types import LogId

KEPT = 16
"""The digests of so many entries are remembered: others may come there later."""
PATIENCE = 10
"""So many rounds a difference waits for members that told nothing of that entry yet."""
log = logging.getLogger("shardengine")


class Comparing:
    """The digests of one node, and what others told of theirs. `newest`: the last one taken here, and of which entry;
    b"" and (0, 0): none."""

    def __init__(self, engine: Engine, every: int) -> None:
        """`every`: how many entries lie between two comparisons; 0: nothing is compared."""
        self.newest = (b"", LogId(0, 0))
        self._engine = engine
        self._every = every
        self._taking: asyncio.Task[None] | None = None
        self._told: dict[LogId, dict[str, bytes]] = {}
        self._patience: dict[LogId, int] = {}
        self._decided: set[LogId] = set()

    def due(self, first: int, last: int) -> bool:
        """Whether the frame with the entries `first` to `last` ends where all nodes look."""
        idle = self._taking is None or self._taking.done()
        return bool(self._every) and last // self._every > (first - 1) // self._every and idle

    async def begin(self, at: LogId) -> None:
        """Take the digest of the state, which stands at `at`; returns when that state is kept."""
        self._taking = asyncio.ensure_future(self._take(at))
        await one_turn()

    async def _take(self, at: LogId) -> None:
        try:
            self.newest = (await self._engine.digest(), at)
        except EngineError as error:
            log.warning("the digest at entry %d was not taken: %s", at.index, error)

    async def close(self) -> None:
        """Take no digest any more."""
        if self._taking is not None:
            self._taking.cancel()
            await asyncio.wait([self._taking])

    # ---- what others told ----------------------------------------------------------------------------------------

    def judge(self, members: Sequence[Member], own: str) -> None:
        """Take note of what `members` say, this node, `own`, among them. Raises StateDivergedError when this one is the
        odd one; tells the log of others that are."""
        for member in members:
            if member.digest:
                self._told.setdefault(member.digest_at, {})[member.node] = member.digest
        for at in sorted(self._told)[:-KEPT]:
            del self._told[at]
            self._patience.pop(at, None)
            self._decided.discard(at)
        for at, told in self._told.items():
            live = {member.node: told[member.node] for member in members if member.node in told}
            if at not in self._decided and len(set(live.values())) > 1 and self._is_time(at, members, live):
                self._decide(at, live, own)

    def _is_time(self, at: LogId, members: Sequence[Member], told: Mapping[str, bytes]) -> bool:
        """Whether everybody has told, or will not, or was waited for."""
        left = self._patience[at] = self._patience.get(at, PATIENCE) - 1
        return left < 0 or all(member.node in told or member.digest_at > at for member in members)

    def _decide(self, at: LogId, told: Mapping[str, bytes], own: str) -> None:
        odd = odd_ones(told)
        self._decided.add(at)
        if own in odd:
            others = sorted({digest.hex() for node, digest in told.items() if digest != told[own]})
            raise StateDivergedError(
                f"at entry {at.index} this node's digest is {told[own].hex()}, and that of others {', '.join(others)}",
                hint="the machine did something else here than there: see `rehearse`. Start this node on an empty "
                "directory, or from another one's snapshot",
                at=at,
                digest=told[own],
                others=others,
            )
        log.error("at entry %d these nodes hold something else than the others: %s", at.index, ", ".join(sorted(odd)))


def odd_ones(told: Mapping[str, bytes]) -> set[str]:
    """Who holds something else than most do; where no digest is more frequent than every other, all."""
    (most, times), *rest = Counter(told.values()).most_common(2)
    if not rest:
        return set()
    return set(told) if rest[0][1] == times else {node for node, digest in told.items() if digest != most}
