"""The closed set of messages on a link. Tagged msgpack arrays; anything else is a defect and says so.

Coordinator to worker: Part, Ask, Writes, Solo, Commit, Abort, Flush, Pin, Copy, Unpin, Stop. Worker to coordinator:
Hello, Vote, Values, Committed, SoloDone, Stalled, Flushed, Alive, Pinned, Copied, Unpinned, Failed. A worker answers
every Part with one Vote (or, when it is marked decided, with one Committed), every Commit with one Committed, every
Solo with one SoloDone, every Flush with one Flushed, every Pin with one Pinned, every Copy with one Copied, every Unpin
with one Unpinned, after which no Copied of that barrier comes.

A Part may tell the worker to pause when its own commands are done: it answers the question that came along, and every
Ask, with one Values, and votes when it is given the Writes; or votes no before, and answers nothing more of it.
"""

from __future__ import annotations

from typing import Any

import msgspec

from shardengine.ipc.ring import Extent
from shardengine.shards.types import Position


class _Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    pass


class Range(msgspec.Struct, frozen=True, array_like=True):
    """The records of `partitions` whose key starts with `prefix`, at most `limit`, in key order or against it."""

    prefix: bytes
    partitions: list[bytes]
    limit: int | None
    reverse: bool


class Question(msgspec.Struct, frozen=True, array_like=True):
    """What the coordinator's own commands need of a shard, as the shard's commands of the group left it. `number`
    counts the questions of a group from 0."""

    number: int
    keys: list[bytes]
    ranges: list[Range]


class Found(msgspec.Struct, frozen=True, array_like=True):
    """The first records of a Range; all of it when `whole`."""

    records: list[tuple[bytes, bytes]]
    whole: bool


class Part(_Message, frozen=True):
    """Apply what lies at `extent` and vote; when `decided`, commit it at once: the vote was taken long ago. With
    `pause`, first answer `question`, if there is one, and wait for the Writes."""

    position: Position
    extent: Extent
    decided: bool
    pause: bool = False
    question: Question | None = None


class Ask(_Message, frozen=True):
    group: int
    question: Question


class Writes(_Message, frozen=True):
    """What the coordinator's commands wrote lies behind the part, `extent` has both: apply it and vote."""

    group: int
    extent: Extent


class Solo(_Message, frozen=True):
    """Apply what lies at `extent` and commit it, with its results and `runs`, in one go. What `runs` are is the
    coordinator's business."""

    position: Position
    extent: Extent
    runs: bytes = b""


class Commit(_Message, frozen=True):
    group: int


class Abort(_Message, frozen=True):
    """Forget `group` and everything sent after it."""

    group: int


class Flush(_Message, frozen=True):
    """Make all that is committed durable."""

    token: int


class Pin(_Message, frozen=True):
    """Keep the last commit readable, for the snapshot `barrier`."""

    barrier: int


class Copy(_Message, frozen=True):
    """Copy what is pinned for `barrier` into a new file at `path`, as the system encodes it, on a thread, while orders
    go on."""

    barrier: int
    path: bytes


class Unpin(_Message, frozen=True):
    """Give the snapshot `barrier` up, whatever it has come to."""

    barrier: int


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


class Values(_Message, frozen=True):
    """The answer to the question `number`: what was found for each of its keys and ranges, in its order."""

    group: int
    number: int
    values: list[bytes | None]
    ranges: list[Found]


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


class Alive(_Message, frozen=True):
    """A flush takes its time; this process does not hang. Comes every now and then before a Flushed."""


class Pinned(_Message, frozen=True):
    """The commit at `position` is pinned, or cannot be."""

    barrier: int
    position: Position
    problem: Problem | None


class Copied(_Message, frozen=True):
    """The pinned commit is on the disk, and not pinned any more; or the copy failed."""

    barrier: int
    size: int
    entries: int
    checksum: bytes
    problem: Problem | None


class Unpinned(_Message, frozen=True):
    """Nothing is pinned or written for `barrier` any more."""

    barrier: int


class Failed(_Message, frozen=True):
    """The worker's last word: it cannot take up its duty (no Hello was said), or go on with it, and exits."""

    problem: Problem


Order = Part | Ask | Writes | Solo | Commit | Abort | Flush | Pin | Copy | Unpin | Stop
Answer = Hello | Vote | Values | Committed | SoloDone | Stalled | Flushed | Alive | Pinned | Copied | Unpinned | Failed

encode = msgspec.msgpack.Encoder().encode
decode_order = msgspec.msgpack.Decoder(Order).decode
decode_results = msgspec.msgpack.Decoder(PartResults).decode
decode_answer = msgspec.msgpack.Decoder(Answer).decode
