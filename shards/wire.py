"""The closed set of messages on a link. Tagged msgpack arrays; anything else is a defect and says so.

Coordinator to worker: Part, Solo, Commit, Abort, Flush, Stop. Worker to coordinator: Hello, Vote, Committed,
SoloDone, Stalled, Flushed, Failed. A worker answers every Part with one Vote (or, when it is marked decided, with
one Committed), every Commit with one Committed, every Solo with one SoloDone, every Flush with one Flushed.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ipc.ring import Extent
from shards.types import Position


class _Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    pass


class Part(_Message, frozen=True):
    """Apply the part at `extents` and vote; when `decided`, commit it at once: the vote was taken long ago."""

    position: Position
    extents: list[Extent]
    decided: bool


class Solo(_Message, frozen=True):
    """Apply the part and commit it, with its results, in one go. It lies at `extents`, or a small one is `inline`."""

    position: Position
    extents: list[Extent]
    inline: bytes


class Commit(_Message, frozen=True):
    group: int


class Abort(_Message, frozen=True):
    """Forget `group` and everything sent after it."""

    group: int


class Flush(_Message, frozen=True):
    """Make all that is committed durable."""

    token: int


class Stop(_Message, frozen=True):
    """Close the environment tidily and exit."""


class Problem(_Message, frozen=True):
    """An error on its way to the coordinator: the class's name, what it says, and its numbers."""

    kind: str
    message: str
    hint: str
    facts: dict[str, Any]


class PartResults(_Message, frozen=True):
    """What the entries of a part came to. Most succeed with no value: only the others are named, by index."""

    values: dict[int, Any]
    rejected: dict[int, str]


class Hello(_Message, frozen=True):
    """The first word of a worker: it holds the shard's lock, and this is where the shard stands. `solo` are the
    results of the group it stands at, if that was a Solo."""

    shard: int
    position: Position
    solo: PartResults


class Vote(_Message, frozen=True):
    """Yes with results, or no with a problem; `index` names the entry that caused it, if one did."""

    group: int
    results: PartResults | None
    problem: Problem | None
    index: int | None


class Committed(_Message, frozen=True):
    group: int


class SoloDone(_Message, frozen=True):
    """A Solo is committed (`results`), or rolled back (`problem`, as in a Vote)."""

    group: int
    results: PartResults | None
    problem: Problem | None
    index: int | None


class Stalled(_Message, frozen=True):
    """A decided group cannot be committed for now; the worker goes on trying."""

    group: int
    problem: Problem


class Flushed(_Message, frozen=True):
    token: int
    problem: Problem | None


class Failed(_Message, frozen=True):
    """The worker cannot take up its duty and exits."""

    problem: Problem


Order = Part | Solo | Commit | Abort | Flush | Stop
Answer = Hello | Vote | Committed | SoloDone | Stalled | Flushed | Failed

encode = msgspec.msgpack.Encoder().encode
decode_order = msgspec.msgpack.Decoder(Order).decode
decode_results = msgspec.msgpack.Decoder(PartResults).decode
decode_answer = msgspec.msgpack.Decoder(Answer).decode
