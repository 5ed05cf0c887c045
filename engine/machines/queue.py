"""Queues: messages are leased, and acknowledged when done. None is lost, and none has two holders at a time.

Time is the log clock; a lease ends at its deadline. Ready are first messages whose lease ended, by deadline, then those
that nobody held yet, in order. A command takes up to `n` ready ones, fewer where bodies are long: the one with which
they reach LOT_BYTES is the last. So what a `Move` between two shards takes fits their rings, as it fits one shard; of
long bodies, put a few such commands into a chunk, not all.

A queue is a partition; `Move` is over two, and finds its keys while it runs.
"""

from __future__ import annotations

from shardengine import Context, Limits, Rejected, Tx
from shardengine.engine.machines.backlog import Backlog
from shardengine.engine.machines.common import CLOCK_MAX, ByName, Command, Count, Name, Whole, prefix_of

LOT_BYTES = 1 << 20
"""So many bytes of bodies are enough for one command. A shard's ring has 32 MiB unless told otherwise."""


class Push(Command, frozen=True, tag=1):
    """Put a message at the end of `queue`. The result is its id, which counts from 0."""

    queue: Name
    body: bytes


class Lease(Command, frozen=True, tag=2):
    """Give up to `n` ready messages to `consumer`, who holds them for `ttl_ms`. The result is a list of (id, body),
    empty when none is ready."""

    queue: Name
    consumer: Name
    ttl_ms: Whole
    n: Count = 1


class Ack(Command, frozen=True, tag=3):
    """Message `id` is done, and is removed. Rejected unless `consumer` was the last to hold it; that the lease ended is
    no matter while nobody else got one."""

    queue: Name
    id: Whole
    consumer: Name


class Move(Command, frozen=True, tag=4):
    """Take up to `n` ready messages from `source`, and put them at the end of `target`, where they get new ids. The
    result is how many."""

    source: Name
    target: Name
    n: Count = 1


class Queue(ByName):
    """`Push`, `Lease`, `Ack` and `Move`."""

    name = "shardengine.queue"
    command = Push | Lease | Ack | Move

    def keys(self, command: Push | Lease | Ack | Move) -> list[bytes]:
        queues = [command.source, command.target] if isinstance(command, Move) else [command.queue]
        return [prefix_of(queue) + b"h" for queue in queues]

    def check(self, command: Push | Lease | Ack | Move, limits: Limits) -> str | None:
        long = isinstance(command, Push) and len(command.body) > limits.value_bytes_max
        return f"a body over value_bytes_max={limits.value_bytes_max}" if long else None

    def apply(self, tx: Tx, command: Push | Lease | Ack | Move, context: Context) -> object:
        match command:
            case Push(queue, body):
                return Backlog(tx, queue).push(body)
            case Lease(queue, consumer, ttl_ms, n):
                backlog, now = Backlog(tx, queue), context.time_ms
                lot = backlog.take(n, LOT_BYTES, now)
                backlog.hold([number for number, _ in lot], consumer, min(now + ttl_ms, CLOCK_MAX))
                return lot
            case Ack(queue, number, consumer):
                if not Backlog(tx, queue).finish(number, consumer):
                    raise Rejected(f"message {number} is not leased to {consumer!r}")
                return None
            case Move(source, target, n):
                backlog = Backlog(tx, source)
                lot = backlog.take(n, LOT_BYTES, context.time_ms)
                for number, _ in lot:
                    backlog.drop(number)
                backlog = Backlog(tx, target)  # which may be the same queue
                for _, body in lot:
                    backlog.push(body)
                return len(lot)
