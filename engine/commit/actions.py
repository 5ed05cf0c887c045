"""Groups, and what the tables of this room ask to be done. The coordinator does it."""

from __future__ import annotations

import msgspec

from shardengine.engine.errors import SnapshotError
from shardengine.shards import wire


class Group(msgspec.Struct, frozen=True):
    """A numbered group and the shards that have a part in it. A solo has exactly one, and is never staged. `exchange`
    are the participants with partitions that the coordinator has taken over."""

    number: int
    participants: frozenset[int]
    solo: bool = False
    exchange: frozenset[int] = frozenset()


class SendPart(msgspec.Struct, frozen=True, gc=False):
    """Send `shard` its part of `group`; `decided` parts are committed without a vote. With `pause` it comes without the
    coordinator's writes, and with the question of a round, if it has to answer one; else with what is written."""

    shard: int
    group: int
    decided: bool = False
    pause: bool = False
    question: int | None = None


class SendAsk(msgspec.Struct, frozen=True, gc=False):
    """Ask `shard` the question of a round."""

    shard: int
    group: int
    question: int


class RunCommands(msgspec.Struct, frozen=True, gc=False):
    """Every question is answered: run the coordinator's commands of `group`, as far as they come, then report `asked`,
    `computed` or `refused`."""

    group: int


class SendWrites(msgspec.Struct, frozen=True, gc=False):
    """Give `shard` what the coordinator's commands wrote."""

    shard: int
    group: int


class SendSolo(msgspec.Struct, frozen=True, gc=False):
    shard: int
    group: int


class SendCommit(msgspec.Struct, frozen=True, gc=False):
    shard: int
    group: int


class SendAbort(msgspec.Struct, frozen=True, gc=False):
    """Tell `shard` to forget `group` and everything after it."""

    shard: int
    group: int


class Record(msgspec.Struct, frozen=True, gc=False):
    """Write the decision record of `group`, make it durable, then report `recorded`."""

    group: int


class Publish(msgspec.Struct, frozen=True, gc=False):
    """`group` is committed everywhere: show it to readers, resolve its results, free its half of the rings."""

    group: int


class Abandon(msgspec.Struct, frozen=True, gc=False):
    """`group`, and what was staged behind it, is cancelled on every shard. `killer` names the shard whose worker it
    killed over and over; None when it was voted down."""

    group: int
    killer: int | None


class SendPin(msgspec.Struct, frozen=True):
    shard: int
    barrier: int


class SendCopy(msgspec.Struct, frozen=True):
    shard: int
    barrier: int


class SendUnpin(msgspec.Struct, frozen=True):
    shard: int
    barrier: int


class Resume(msgspec.Struct, frozen=True):
    """Groups may be decided again."""


class Kill(msgspec.Struct, frozen=True):
    """The worker of `shard` does not let go of its pin."""

    shard: int


class Complete(msgspec.Struct, frozen=True):
    """Every part is on the disk."""

    parts: dict[int, wire.Copied]


class Abandoned(msgspec.Struct, frozen=True):
    """The snapshot is given up, and nobody pins or writes anything for it any more."""

    error: SnapshotError


class SendFlush(msgspec.Struct, frozen=True):
    """Have the worker of `shard` sync its environment."""

    shard: int
    token: int


class SyncRecord(msgspec.Struct, frozen=True):
    """Every worker has answered: sync the decision record, then report `synced`."""


Action = (
    (SendPart | SendAsk | RunCommands | SendWrites)
    | (SendSolo | SendCommit | SendAbort | Record | Publish | Abandon)
    | (SendPin | SendCopy | SendUnpin | Resume | Kill | Complete | Abandoned)
    | (SendFlush | SyncRecord)
)
