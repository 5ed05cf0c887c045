"""Queues: messages are leased, and acknowledged when done. None is lost, and none has two holders at a time.

`Push` gives an id, `Lease` a list of (id, body), `Move` a count; `Ack` is for the last holder, though late. Time is the
log clock; a lease ends at its deadline. Ready are first messages whose lease ended, by deadline, then those that nobody
held yet, in order. A queue is a partition; `Move` is over two, and finds its keys while it runs. In a room: `h`, head,
tail and due; `m id`, a body; `l id`, deadline and holder; `d deadline id`, leases by time. Scans walk over what their
group deleted, too: so messages that nobody held are counted, head to tail, and leases scanned only from `due` on.
"""

from __future__ import annotations

from struct import pack, unpack

from shardengine import Context, Limits, Rejected, Tx
from shardengine.engine.machines.common import CLOCK_MAX, Command, Count, Name, Rooms, Whole, room


class Push(Command, frozen=True, tag=1):
    queue: Name
    body: bytes


class Lease(Command, frozen=True, tag=2):
    queue: Name
    consumer: Name
    ttl_ms: Whole
    n: Count = 1


class Ack(Command, frozen=True, tag=3):
    queue: Name
    id: Whole
    consumer: Name


class Move(Command, frozen=True, tag=4):
    source: Name
    target: Name
    n: Count = 1


class Queue(Rooms):
    name = "shardengine.queue"
    command = Push | Lease | Ack | Move

    def keys(self, command: Push | Lease | Ack | Move) -> list[bytes]:
        queues = [command.source, command.target] if isinstance(command, Move) else [command.queue]
        return [room(queue) + b"h" for queue in queues]

    def check(self, command: Push | Lease | Ack | Move, limits: Limits) -> str | None:
        long = isinstance(command, Push) and len(command.body) > limits.value_bytes_max
        return f"a body over value_bytes_max={limits.value_bytes_max}" if long else None

    def apply(self, tx: Tx, command: Push | Lease | Ack | Move, context: Context) -> object:
        at, now = self.keys(command)[0][:-1], context.time_ms
        match command:
            case Push(_, body):
                head, tail, due = unpack(">QQQ", tx.get(at + b"h") or pack(">QQQ", 0, 0, CLOCK_MAX))
                tx.put(at + b"h", pack(">QQQ", head, tail + 1, due))
                tx.put(at + b"m" + pack(">Q", tail), body)
                return tail
            case Lease(_, consumer, ttl_ms, n):
                until = min(now + ttl_ms, CLOCK_MAX)
                ids = _take(tx, at, n, now, until)
                for id in ids:
                    tx.put(at + b"l" + id, pack(">Q", until) + consumer)
                    tx.put(at + b"d" + pack(">Q", until) + id, b"")
                return [(int.from_bytes(id), tx.get(at + b"m" + id)) for id in ids]
            case Move(_, target, n):
                ids = _take(tx, at, n, now, CLOCK_MAX)
                for key in [at + b"m" + id for id in ids]:
                    self.apply(tx, Push(target, tx.get(key) or b""), context)
                    tx.delete(key)
                return len(ids)
            case Ack(_, number, consumer):
                id = pack(">Q", number)
                lease = tx.get(at + b"l" + id) or b""
                if lease[8:] != consumer:
                    raise Rejected(f"message {number} is not leased to {consumer!r}")
                for key in (b"m" + id, b"l" + id, b"d" + lease[:8] + id):
                    tx.delete(at + key)
        return None


def _take(tx: Tx, at: bytes, n: int, now: int, until: int) -> list[bytes]:
    """Up to `n` ready ids, which are not ready any more: they are moved away, or leased `until` then."""
    head, tail, due = unpack(">QQQ", tx.get(at + b"h") or pack(">QQQ", 0, 0, CLOCK_MAX))
    leases: list[bytes] = []
    if due <= now:
        found = [*(key[-16:] for key, _ in tx.scan(at + b"d", n + 1)), pack(">QQ", CLOCK_MAX, CLOCK_MAX)]
        leases = [lease for lease in found[:n] if lease < pack(">QQ", now, CLOCK_MAX)]
        due = int.from_bytes(found[len(leases)][:8])
    for lease in leases:
        tx.delete(at + b"d" + lease)
        tx.delete(at + b"l" + lease[8:])
    stop = min(tail, head + n - len(leases))
    if tail:
        tx.put(at + b"h", pack(">QQQ", stop, tail, min(due, until)))
    return [lease[8:] for lease in leases] + [pack(">Q", id) for id in range(head, stop)]
