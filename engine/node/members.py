"""Who else is on a shared log: each node says once in a while where it stands, and hears where the others do."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import count

from shardengine.engine.engine import Engine
from shardengine.engine.errors import LogClosedError, NameTakenError
from shardengine.engine.node.comparing import Comparing
from shardengine.engine.node.giving import Giver
from shardengine.engine.node.shared import Member, SharedLog
from shardengine.engine.node.trimming import LOOK_S
from shardengine.engine.run.waiting import resolve

ROUNDS = 3
"""Who has heard so many rounds, one after the other, has heard all that are there."""
FRESH_S = 5.0
"""What was heard longer ago may not be true any more."""
log = logging.getLogger("shardengine")


class Members:
    """What one run of a node says, and hears. `name`: of this node. `heard`: all, as they said last; own included.

    `needs`: what to say of the log, see `Member.needs`; until the node knows better, what is behind its snapshot. Its
    attributes are these, what it works on, and the rounds.
    """

    def __init__(self, met: SharedLog, engine: Engine, giver: Giver, comparing: Comparing, name: str) -> None:
        self.name = name
        self.heard: Sequence[Member] = ()
        self.needs: Callable[[], int] = lambda: max(1, engine.durable().term)
        self._log = met
        self._engine = engine
        self._giver = giver
        self._comparing = comparing
        self._run = _new_run()
        self._beats = count(1)
        self._twins: dict[str, int] | None = None
        self._rounds = 0
        self._heard_at = -FRESH_S
        self._soon = asyncio.Event()
        self._waiting: list[asyncio.Future[None]] = []

    # ---- what others want of it ----------------------------------------------------------------------------------

    def lately(self) -> Sequence[Member] | None:
        """All that there are; None: that is not known well enough to cut the log by it."""
        fresh = time.monotonic() - self._heard_at < FRESH_S
        return self.heard if self._rounds >= ROUNDS and fresh else None

    def others(self) -> list[Member]:
        """As heard last, without this node."""
        return [member for member in self.now() if member.node != self.name]

    def now(self) -> list[Member]:
        """As heard last; of each name the newest run."""
        return list({member.node: member for member in sorted(self.heard, key=_by_run)}.values())

    def say_soon(self) -> None:
        """Something is new, and worth telling at once."""
        self._soon.set()

    async def round(self) -> None:
        """Wait until all have been heard once more, or could not be."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self.say_soon()
        await future

    # ---- rounds --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Say and hear until cancelled. Raises what ends the node: its name is another's, or its state is."""
        while True:
            self._soon.clear()
            await self._once()
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._soon.wait()

    async def _once(self) -> None:
        me = await self._me()
        try:
            async with asyncio.timeout(FRESH_S):
                heard = await self._log.meet(me)
        except LogClosedError:
            raise
        except Exception as error:
            if self._rounds or not self.heard:
                log.warning("the other nodes of the log cannot be heard: %r", error)
            self._rounds = 0
        else:
            self._check_name(heard)
            self.heard, self._heard_at = heard, time.monotonic()
            self._rounds += 1
            self._comparing.judge(self.now(), self.name)
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            resolve(future)

    async def _me(self) -> Member:
        snapshot = await self._giver.look()
        digest, digest_at = self._comparing.newest
        return Member(
            node=self.name,
            host=socket.gethostname(),
            pid=os.getpid(),
            applied=self._engine.last_applied(),
            durable=self._engine.durable(),
            snapshot=snapshot,
            needs=self.needs(),
            digest=digest,
            digest_at=digest_at,
            run=self._run,
            beat=next(self._beats),
            twins=None if self._twins is None else list(self._twins),
        )

    def _check_name(self, heard: Sequence[Member]) -> None:
        """Whether an earlier run under this node's name still goes on. One that says nothing new was ours; its last
        words may come late."""
        others = [member for member in heard if member.node == self.name and member.run != self._run]
        if self._twins is None:
            self._twins = {member.run: member.beat for member in others}
        for member in others:
            if self._is_earlier(member) and member.beat >= self._twins[member.run] + ROUNDS:
                raise NameTakenError(
                    f"process {member.pid} on {member.host} is node {self.name} already",
                    hint="a data directory was copied: stop this node, and remove the file `node` of the copy, which "
                    "then gets a name of its own",
                    node=self.name,
                    host=member.host,
                    pid=member.pid,
                )

    def _is_earlier(self, other: Member) -> bool:
        """It was there when this run heard of others first. Where that is so the other way round, too, they began
        together: the clocks decide, alike for both."""
        if self._twins is None or other.run not in self._twins or other.twins is None:
            return False
        return self._run not in other.twins or other.run < self._run


def _new_run() -> str:
    return f"{time.time_ns() // 1_000_000:012x}{os.urandom(8).hex()}"


def _by_run(member: Member) -> tuple[str, str]:
    return member.node, member.run
