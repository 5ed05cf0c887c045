"""A log that several nodes share: besides the log itself, they tell each other where they stand, and ask each other.

What is said here decides nothing about the state, which comes from the log alone: only how far the log may be cut, from
whom a snapshot can be had, and whether two nodes that stand at one place hold the same.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, runtime_checkable

import msgspec

from shardengine.engine.node.log import Log
from shardengine.shards.types import LogId


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """Where one node stands, as it said last.

    node: the name of its data directory, for life, 32 hexadecimal digits. host, pid: of its process, for people.
    applied: its newest entry. durable: what a power loss leaves it. snapshot: the newest that it gives to others;
    (0, 0): none. needs: the first position of the log that it still has use for. digest, digest_at: of its state at
    that entry, when it took one last; empty: never. run: of the process, unlike any other's; those that began later
    sort behind, as far as clocks agree. beat: rises with every word of a run. twins: runs of the same name that it
    heard of when it heard of others first; None: it has not yet. What a later version says besides is passed over.
    """

    node: str
    host: str
    pid: int
    applied: LogId
    durable: LogId
    snapshot: LogId
    needs: int
    run: str
    beat: int
    digest: bytes = b""
    digest_at: LogId = LogId(0, 0)
    twins: list[str] | None = None


Answer = Callable[[bytes], Awaitable[bytes]]


@runtime_checkable
class SharedLog(Log, Protocol):
    """A log of several nodes. Each node has an object of its own for it, which is one loop's as any log."""

    async def meet(self, me: Member) -> Sequence[Member]:
        """Say where this node stands, and hear where the others do: all that said so lately, this one included, in
        order of their names; of each run the last that it said, also where two runs have one name. Raises
        LogClosedError, or any other error when the others cannot be reached now."""
        ...

    async def ask(self, node: str, request: bytes) -> bytes:
        """What the node of that name answers. Raises PeerError when it does not, or not in time; LogClosedError."""
        ...

    def answer(self, handler: Answer | None) -> None:
        """What to answer others with, from now on; several may be asked for at once. What the handler raises is told
        to who asked, as a PeerError. None: nobody is answered. Holds until the log is closed."""
        ...
