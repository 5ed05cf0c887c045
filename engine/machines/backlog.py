"""The messages of a queue as they are stored: those that nobody held yet, and the others by when their lease ends.

Behind a queue's prefix: `h`, its state; `m id`, a body; `l id`, deadline and holder; `d deadline id`, leases in order.
A scan walks over what its group deleted, too: so what nobody held is counted, and leases are looked for near `due`.
"""

from __future__ import annotations

from struct import pack

import msgspec

from shardengine import Tx
from shardengine.engine.machines.common import CLOCK_MAX, prefix_of, scan_from


class State(msgspec.Struct, array_like=True, gc=False):
    """Messages `head` up to `tail` nobody held yet. Of the others, `leases` are there, and none comes before `due`."""

    head: int = 0
    tail: int = 0
    leases: int = 0
    due: bytes = b""


_decode = msgspec.msgpack.Decoder(State).decode


class Backlog:
    """One queue, while one command runs; it does not see what another object writes of the same queue."""

    def __init__(self, tx: Tx, queue: bytes) -> None:
        self._tx, self._at = tx, prefix_of(queue)
        stored = tx.get(self._at + b"h")
        self._state = State() if stored is None else _decode(stored)

    def push(self, body: bytes) -> int:
        """Put a message at the end. Returns its id."""
        self._tx.put(self._at + b"m" + pack(">Q", self._state.tail), body)
        self._state.tail += 1
        self._keep()
        return self._state.tail - 1

    def take(self, n: int, bytes_enough: int, now: int) -> list[tuple[int, bytes]]:
        """Up to `n` ready messages, (id, body), until those are bytes enough: ready no more, to be held or dropped."""
        state, lot, size = self._state, list[tuple[int, bytes]](), 0
        ended = self._ended(n, now)
        waiting = range(state.head, state.tail)[: n - len(ended)]
        for number in [*(int.from_bytes(lease[8:]) for lease in ended), *waiting]:
            if size < bytes_enough:
                lot.append((number, self._tx.get(self._at + b"m" + pack(">Q", number)) or b""))
                size += len(lot[-1][1])
        for lease in ended[: len(lot)]:
            self._end(lease)
        state.head += max(0, len(lot) - len(ended))
        self._keep()
        return lot

    def hold(self, numbers: list[int], consumer: bytes, deadline: int) -> None:
        """Lease what was taken."""
        state, until = self._state, pack(">Q", deadline)
        for lease in [until + pack(">Q", number) for number in numbers]:
            self._tx.put(self._at + b"l" + lease[8:], until + consumer)
            self._tx.put(self._at + b"d" + lease, b"")
            state.due = min(state.due, lease) if state.leases else lease
            state.leases += 1
        self._keep()

    def finish(self, number: int, consumer: bytes) -> bool:
        """Drop what `consumer` was the last to hold. Returns whether it was."""
        lease = self._tx.get(self._at + b"l" + pack(">Q", number)) or b""
        if lease[8:] != consumer:
            return False
        self._end(lease[:8] + pack(">Q", number))
        self._keep()
        self.drop(number)
        return True

    def drop(self, number: int) -> None:
        """Remove what was taken."""
        self._tx.delete(self._at + b"m" + pack(">Q", number))

    def _ended(self, n: int, now: int) -> list[bytes]:
        """The first `n` leases that ended, each as deadline and id."""
        state, last = self._state, pack(">QQ", now, CLOCK_MAX)
        if not state.leases or state.due > last:
            return []
        found = scan_from(self._tx, self._at + b"d", state.due, last, min(n, state.leases))
        state.due = found[0]
        return [lease for lease in found if lease <= last]

    def _end(self, lease: bytes) -> None:
        self._tx.delete(self._at + b"d" + lease)
        self._tx.delete(self._at + b"l" + lease[8:])
        self._state.leases -= 1

    def _keep(self) -> None:
        if self._state.tail:  # who only asks leaves no trace
            self._tx.put(self._at + b"h", msgspec.msgpack.encode(self._state))
