"""A dumb model of the engine's pipeline, event by event: a coordinator and workers, each of which does one job after
another, on cores that they queue for. The formulas of perf/model.py are held against it."""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import NamedTuple

_WARM_GROUPS, _GROUPS = 30, 200
_SLICE_NS = 4e6
"""Of a Linux whose timer interrupts 250 times a second."""
_SOON_NS = 1e-6

Then = Callable[[], None]


class Prices(NamedTuple):
    """What jobs take, ns: of the coordinator, for an entry, a chunk, a message to or from a worker, and a group; of a
    worker, for an entry and a commit; and to wake who sleeps."""

    accept_entry: float = 45
    accept_chunk: float = 60_000
    ring_entry: float = 60
    decide_entry: float = 30
    send: float = 4_000
    receive: float = 15_000
    publish: float = 60_000
    work_entry: float = 700
    commit: float = 60_000
    wake: float = 5_000


class Job:
    def __init__(self, length: float, then: Then) -> None:
        self.length = length
        self.then = then


class Processes:
    """Each has jobs, in order. Who has one wants a core: the one that it had last, or one that is idle. It keeps that
    until its jobs are done, or for a slice of time if others queue there."""

    def __init__(self, processes: int, cores: int) -> None:
        self.now = 0.0
        self._jobs: list[deque[Job]] = [deque() for _ in range(processes)]
        self._had = [process % cores for process in range(processes)]
        self._queues: list[deque[int]] = [deque() for _ in range(cores)]
        self._left = [_SLICE_NS] * cores
        self._woken: list[tuple[float, int, Then]] = []
        self._numbers = count()

    def give(self, process: int, length: float, then: Then, wake: float = 0.0) -> None:
        """One more job, at once; or after `wake` if it has none."""
        job = Job(length, then)
        if self._jobs[process] or not wake:
            self._add(process, job)
        else:
            heapq.heappush(self._woken, (self.now + wake, next(self._numbers), lambda: self._add(process, job)))

    def _add(self, process: int, job: Job) -> None:
        self._jobs[process].append(job)
        had = self._had[process]
        if process not in self._queues[had]:
            idle = [core for core, queue in enumerate(self._queues) if not queue]
            core = self._had[process] = had if had in idle or not idle else idle[0]
            self._queues[core].append(process)

    def step(self) -> None:
        """Up to the next end of a job, or of a slice, or waking."""
        running = [(core, queue[0]) for core, queue in enumerate(self._queues) if queue]
        passed = min((self._jobs[process][0].length for _, process in running), default=float("inf"))
        passed = min([passed, *(self._left[core] for core, _ in running if len(self._queues[core]) > 1)])
        if self._woken:
            passed = min(passed, self._woken[0][0] - self.now)
        self.now += passed
        ended = []
        for core, process in running:
            self._left[core] -= passed
            self._jobs[process][0].length -= passed
            if self._jobs[process][0].length < _SOON_NS:
                ended.append(self._jobs[process].popleft())
        while self._woken and self._woken[0][0] <= self.now + _SOON_NS:
            heapq.heappop(self._woken)[2]()
        for job in ended:
            job.then()
        for core, process in running:
            self._turn(core, process)

    def _turn(self, core: int, process: int) -> None:
        """Another process has the core if this one has no job left, or had it for a slice."""
        if not self._jobs[process]:
            self._queues[core].popleft()
        elif self._left[core] < _SOON_NS:
            self._queues[core].rotate(-1)
        else:
            return
        self._left[core] = _SLICE_NS


class Group:
    """Chunks that are applied together, and how many entries of them each shard gets."""

    def __init__(self, chunks: int, parts: list[float], *, solo: bool) -> None:
        self.chunks = chunks
        self.parts = parts
        self.solo = solo
        self.votes = self.committed = 0


class Worker:
    """Works on one part, up to its commit; others queue."""

    def __init__(self) -> None:
        self.current: Group | None = None
        self.parts: deque[Group] = deque()


class Pipeline:
    """So many shards on so many cores, fed with chunks, `window` of them in flight; up to `merge` go into a group."""

    def __init__(
        self, shards: int, cores: int, prices: Prices, chunk: int = 5_000, window: int = 4, merge: int = 2
    ) -> None:
        self._prices = prices
        self._chunk = chunk
        self._merge = merge
        self._rng = random.Random(1)
        self._processes = Processes(shards + 1, cores)
        self._workers = [Worker() for _ in range(shards)]
        self._open: Group | None = None
        self._staged: Group | None = None
        self._queued = 0
        self._groups = self._entries = 0
        for _ in range(window):
            self._accept()

    def run(self) -> tuple[float, float]:
        """Entries a second, and entries a group."""
        self._until(_WARM_GROUPS)
        began, entries, groups = self._processes.now, self._entries, self._groups
        self._until(_WARM_GROUPS + _GROUPS)
        entries = self._entries - entries
        return entries / (self._processes.now - began) * 1e9, entries / (self._groups - groups)

    def _until(self, groups: int) -> None:
        while self._groups < groups:
            self._processes.step()

    def _accept(self) -> None:
        length = self._chunk * self._prices.accept_entry + self._prices.accept_chunk
        self._processes.give(0, length, self._accepted)

    def _accepted(self) -> None:
        self._queued += 1
        self._fill()

    def _fill(self) -> None:
        if not self._queued or self._staged or (self._open and self._open.solo):
            return
        chunks = min(self._queued, self._merge)
        self._queued -= chunks
        shards, size = len(self._workers), chunks * self._chunk
        spread = (size * (shards - 1)) ** 0.5 / shards
        parts = [size / shards + self._rng.gauss(0, spread) for _ in self._workers]
        group = Group(chunks, parts, solo=shards == 1 and self._open is None)
        if self._open is None:
            self._open = group
        else:
            self._staged = group
        length = size * self._prices.ring_entry + shards * self._prices.send
        self._processes.give(0, length, lambda: self._send_parts(group))

    def _send_parts(self, group: Group) -> None:
        for worker in self._workers:
            worker.parts.append(group)
            self._next_part(worker, self._prices.wake)

    def _next_part(self, worker: Worker, wake: float = 0.0) -> None:
        if worker.current is None and worker.parts:
            group = worker.current = worker.parts.popleft()
            place = self._workers.index(worker)
            length = group.parts[place] * self._prices.work_entry + self._prices.commit * group.solo
            then = (lambda: self._commit_ended(worker)) if group.solo else (lambda: self._tell(self._voted, group))
            self._processes.give(place + 1, length, then, wake)

    def _tell(self, event: Callable[[Group], None], group: Group) -> None:
        """A worker does."""
        self._processes.give(0, self._prices.receive, lambda: event(group), self._prices.wake)

    def _voted(self, group: Group) -> None:
        group.votes += 1
        self._decide()

    def _decide(self) -> None:
        group, shards = self._open, len(self._workers)
        if group is not None and not group.solo and group.votes == shards:
            group.votes = 0  # it is decided once
            length = self._chunk * group.chunks * self._prices.decide_entry + shards * self._prices.send
            self._processes.give(0, length, self._send_commits)

    def _send_commits(self) -> None:
        for place, worker in enumerate(self._workers, 1):
            then = lambda worker=worker: self._commit_ended(worker)  # noqa: E731
            self._processes.give(place, self._prices.commit, then, self._prices.wake)

    def _commit_ended(self, worker: Worker) -> None:
        group, worker.current = worker.current, None
        assert group is not None
        self._tell(self._committed, group)
        self._next_part(worker)

    def _committed(self, group: Group) -> None:
        group.committed += 1
        if group.committed == len(self._workers):
            self._processes.give(0, self._prices.publish, lambda: self._published(group))

    def _published(self, group: Group) -> None:
        self._open, self._staged = self._staged, None
        self._groups += 1
        self._entries += self._chunk * group.chunks
        self._decide()
        self._fill()
        for _ in range(group.chunks):
            self._accept()
