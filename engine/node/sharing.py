"""A log in this process that several nodes of one loop share, for tests and examples."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from shardengine.engine.errors import PeerError
from shardengine.engine.node.memory import MemoryLog
from shardengine.engine.node.shared import Answer, Member

LATELY_S = 10.0
"""Who said nothing for so long is heard no more."""
ANSWER_S = 5.0
"""So long an answer is waited for."""


class SharedMemoryLog(MemoryLog):
    """One node's end of a log in memory: `SharedMemoryLog()` is the first, `SharedMemoryLog(first)` another one's.

    All ends live in one loop. Who closes its end is heard for a while longer, as who died would be, and answers nobody.
    """

    def __init__(self, other: SharedMemoryLog | None = None) -> None:
        super().__init__()
        self._handler: Answer | None = None
        self._said: dict[str, tuple[Member, float, SharedMemoryLog]] = {}  # by run
        if other is not None:
            self._held, self._said = other._held, other._said

    async def meet(self, me: Member) -> Sequence[Member]:
        """See `SharedLog.meet`."""
        self._opened()
        now = time.monotonic()
        self._said[me.run] = (me, now, self)
        lately = [member for member, at, _ in self._said.values() if now - at <= LATELY_S]
        return sorted(lately, key=lambda member: (member.node, member.run))

    async def ask(self, node: str, request: bytes) -> bytes:
        """See `SharedLog.ask`."""
        self._opened()
        ends = {member.run: end for member, _, end in self._said.values() if member.node == node}
        handler = ends[max(ends)]._answering() if ends else None
        if handler is None:
            raise _silent(node, "it is not there")
        try:
            async with asyncio.timeout(ANSWER_S):
                answer = await handler(request)
        except Exception as error:
            raise _silent(node, f"{error}") from error
        if ends[max(ends)]._answering() is None:
            raise _silent(node, "it went away")
        return answer

    def answer(self, handler: Answer | None) -> None:
        """See `SharedLog.answer`."""
        self._handler = handler

    async def aclose(self) -> None:
        """See `Log.aclose`."""
        self._handler = None
        await super().aclose()

    def _answering(self) -> Answer | None:
        return None if self._arrivals is None else self._handler


def _silent(node: str, why: str) -> PeerError:
    return PeerError(f"node {node} did not answer: {why}", hint="ask again, or another one", node=node)
