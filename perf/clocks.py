"""What the time of a thread goes to, counted from outside: functions of the engine are wrapped so that two clocks are
read, the wall's and the thread's CPU time, whenever one begins or ends: some fifty times a group in the coordinator,
and half as often in a worker, for about a microsecond each.

The time of a function is its own, without that of wrapped ones that it calls: so all stages add up to all time.
`in_worker` does that in a worker, for good. Nothing here is loaded, and nothing wrapped, unless it is asked for.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import msgspec

ELSEWHERE = "elsewhere"
"""Every thread's first stage: what is in no wrapped function."""
FOR_PART, FOR_COMMIT, FOR_OTHER = "waits for a part", "waits for COMMIT", "waits for another order"
WORKER = (ELSEWHERE, "decode", "run", "sort", "put", "free", "commit", "answer", FOR_PART, FOR_COMMIT, FOR_OTHER)
"""decode: take a part apart, and where it is nothing but puts, sort it in the same call. run: other commands, with what
they read. put: begin a transaction, see that there is room, write. free: let go of what was decoded. answer: send."""
_BYTES = 8
_MADE, _LAST = 0, 1

Times = dict[str, tuple[int, int]]
"""Wall and CPU time of each stage, ns."""


class Clock:
    """One thread's. `counts` takes when it was made, when it was last read, and wall and CPU time of each stage, ns."""

    def __init__(self, counts: Any, stages: Sequence[str]) -> None:
        self._counts = counts
        self._places = {stage: 2 + 2 * number for number, stage in enumerate(stages)}
        self._at = self._places[ELSEWHERE]
        self._wall, self._cpu = time.monotonic_ns(), time.thread_time_ns()
        self._idle = self._noted = 0
        counts[_MADE] = counts[_LAST] = self._wall

    @staticmethod
    def size(stages: Sequence[str]) -> int:
        """How many numbers it counts in."""
        return 2 + 2 * len(stages)

    def to(self, place: int) -> int:
        """The time up to now is the stage's that was set; from now on it is that of the one at `place`. Returns where
        the other one is."""
        wall, cpu = time.monotonic_ns(), time.thread_time_ns()
        at, counts = self._at, self._counts
        counts[at] += wall - self._wall
        counts[at + 1] += cpu - self._cpu
        self._idle = wall - self._wall - (cpu - self._cpu)
        counts[_LAST] = self._wall = wall
        self._cpu, self._at = cpu, place
        return at

    def was(self, stage: str) -> None:
        """What goes on since the last look turns out to be `stage`."""
        self._at = self._places[stage]

    def note_idle(self) -> None:
        """A stage has begun: what took no CPU before it was time to wait, for what `waited` will say."""
        self._noted = self._idle

    def waited(self, stage: str) -> None:
        """What was noted as idle is the time of `stage`."""
        self._counts[self._places[ELSEWHERE]] -= self._noted
        self._counts[self._places[stage]] += self._noted
        self._noted = 0

    def place(self, stage: str) -> int:
        return self._places[stage]

    def wrapped(self, function: Callable[..., Any], stage: str) -> Callable[..., Any]:
        """`function`, whose time is `stage`."""
        to, place = self.to, self._places[stage]

        @wraps(function)
        def timed(*args: Any, **named: Any) -> Any:
            before = to(place)
            try:
                return function(*args, **named)
            finally:
                to(before)

        return timed


class Counts(msgspec.Struct, frozen=True):
    """What was counted up to `last`, of the monotonic clock, ns."""

    last: int
    times: Times


def read(counts: Sequence[int], stages: Sequence[str]) -> Counts | None:
    """As they were counted. None: they do not fit together, since they were changed meanwhile."""
    found = {stage: (counts[2 + 2 * number], counts[3 + 2 * number]) for number, stage in enumerate(stages)}
    if sum(wall for wall, _ in found.values()) != counts[_LAST] - counts[_MADE]:
        return None
    return Counts(counts[_LAST], found)


# ---- in a worker -----------------------------------------------------------------------------------------------------


def in_worker(directory: str) -> None:
    """From now on this worker counts, in a file there that is called like its pid."""
    from shardengine.ipc.link import Link
    from shardengine.shards import wire
    from shardengine.shards.shard import Shard
    from shardengine.shards.store import Store

    path, size = Path(directory) / str(os.getpid()), _BYTES * Clock.size(WORKER)
    path.write_bytes(bytes(size))
    with path.open("r+b") as file:
        clock = Clock(memoryview(mmap.mmap(file.fileno(), size)).cast("q"), WORKER)
    for owner, name, stage in (
        (Shard, "_apply", "free"),
        (Shard, "_finish", "free"),
        (Shard, "_parts", "decode"),
        (Shard, "_plain", "decode"),
        (Shard, "_apply_part", "decode"),
        (Shard, "_apply_each", "run"),
        (Store, "write", "sort"),
        (Store, "_write", "put"),
        (Store, "begin", "put"),
        (Store, "commit", "commit"),
        (Link, "send", "answer"),
    ):
        setattr(owner, name, clock.wrapped(getattr(owner, name), stage))
    _count_waits(clock, Link, wire)


def _count_waits(clock: Clock, link: Any, wire: Any) -> None:
    """What a worker waited for shows when it comes."""
    receive, decode, elsewhere = link.receive, wire.decode_order, clock.place(ELSEWHERE)
    for_other = clock.place(FOR_OTHER)

    def received(end: Any) -> bytes | None:
        clock.to(for_other)
        found: bytes | None = receive(end)
        return found

    def decoded(message: bytes) -> Any:
        order = decode(message)
        if isinstance(order, (wire.Part, wire.Solo)):
            clock.was(FOR_PART)
        elif isinstance(order, wire.Commit):
            clock.was(FOR_COMMIT)
        clock.to(elsewhere)
        return order

    link.receive, wire.decode_order = received, decoded
