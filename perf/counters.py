"""The stages of an engine: those of this process, which is its coordinator, and those of its workers. See clocks.py."""

from __future__ import annotations

import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import msgspec

from perf.cells import Cell, Ran, applied
from perf.clocks import ELSEWHERE, FOR_PART, WORKER, Clock, Times, read
from perf.facts import cpu_seconds, kept_waiting_ns, wake_ns
from perf.report import CheckError
from perf.streams import Made
from shardengine.engine.commit import inflight
from shardengine.engine.commit.coordinator import Coordinator
from shardengine.engine.commit.decision import DecisionFile
from shardengine.engine.commit.exchanging import Exchanging
from shardengine.engine.commit.inflight import InFlight
from shardengine.engine.commit.packing import Packing
from shardengine.engine.intake.split import Splitter
from shardengine.engine.run import processes
from shardengine.engine.run.crew import Crew
from shardengine.engine.run.processes import Workers
from shardengine.engine.run.runtime import Runtime
from shardengine.shards import wire
from shardengine.shards.worker import bootstrap

VOTE, SLOWEST_VOTE = "waits for a vote", "waits for the slowest vote"
COMMIT, SLOWEST_COMMIT = "waits for a commit", "waits for the slowest commit"
COORDINATOR = (
    *(ELSEWHERE, "normal form", "split", "ring", "run", "decide", "send", "receive", "protocol", "publish"),
    *(VOTE, SLOWEST_VOTE, COMMIT, SLOWEST_COMMIT),
)
"""ring: write parts into rings. run: commands over several shards. decide: sum what lies there, write the record.
protocol: the commit table, and what surrounds the rest. publish: show it to readers, give results. elsewhere: the event
loop, its tasks, and whoever feeds the engine."""
_TRIES, _AGAIN_S = 1_000, 0.002
_WRAPPED: tuple[tuple[Any, str, str], ...] = (
    (inflight, "normalised", "normal form"),
    (Splitter, "split", "split"),
    (Packing, "pack", "ring"),
    (Packing, "append", "ring"),
    (Exchanging, "run", "run"),
    (Packing, "summed", "decide"),
    (Packing, "sync", "decide"),
    (DecisionFile, "write", "decide"),
    (Workers, "send", "send"),
    (Coordinator, "accept", "protocol"),
    (Coordinator, "on_answer", "protocol"),
    (Runtime, "published", "publish"),
    (InFlight, "published", "publish"),
)


class Process(msgspec.Struct, frozen=True):
    """What one process did in a stretch: its stages, all of its time, and how much of that it wanted a core and had
    none; ns. `name` is "coordinator", or "worker" and its shard."""

    name: str
    stages: Times
    wall_ns: int
    cpu_ns: int
    kept_waiting_ns: int


class Counted(msgspec.Struct, frozen=True):
    """A run, and its processes, the coordinator's first; and how long it takes to wake a process that sleeps."""

    ran: Ran
    processes: list[Process]
    wake_ns: float


async def counted(directory: Path, cell: Cell, made: Made) -> Counted:
    """As `cells.applied`, with the stages counted."""
    with counting(directory) as counters:
        ran = await applied(directory / "data", cell, made, counters.stretch)
        return Counted(ran, counters.processes, wake_ns())


class _Looked(msgspec.Struct, frozen=True):
    """At one moment: the time, all stages, CPU seconds, and how long a core was wanted; of each process."""

    now: int
    stages: list[Times]
    cpu: list[float]
    waiting: list[int]


class Counters:
    """`processes` is what the last `stretch` took."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._counts = array("q", bytes(8 * Clock.size(COORDINATOR)))
        self.clock = Clock(self._counts, COORDINATOR)
        self.processes: list[Process] = []

    @contextmanager
    def stretch(self, pids: Sequence[int]) -> Iterator[None]:
        """The time of the block, in which the engine with these workers is idle at both ends."""
        before = self._look(pids)
        yield
        after = self._look(pids)
        self.processes = [
            Process(
                f"worker {place - 1}" if place else "coordinator",
                {name: (wall - earlier[name][0], cpu - earlier[name][1]) for name, (wall, cpu) in later.items()},
                after.now - before.now,
                round((after.cpu[place] - before.cpu[place]) * 1e9),
                after.waiting[place] - before.waiting[place],
            )
            for place, (earlier, later) in enumerate(zip(before.stages, after.stages, strict=True))
        ]

    def _look(self, pids: Sequence[int]) -> _Looked:
        self.clock.to(self.clock.place(ELSEWHERE))
        own = read(self._counts, COORDINATOR)
        assert own is not None
        stages = [own.times, *(self._of_worker(pid, own.last) for pid in pids)]
        waiting = [kept_waiting_ns("self"), *map(kept_waiting_ns, pids)]
        return _Looked(own.last, stages, [time.process_time(), *map(cpu_seconds, pids)], waiting)

    def _of_worker(self, pid: int, now: int) -> Times:
        """Its wait for the next part is not counted before that comes."""
        for _ in range(_TRIES):
            found = read(array("q", (self._directory / str(pid)).read_bytes()), WORKER)
            if found is not None:
                wall, cpu = found.times[FOR_PART]
                return found.times | {FOR_PART: (wall + now - found.last, cpu)}
            time.sleep(_AGAIN_S)
        raise CheckError(f"the stages of the worker {pid} do not add up")


@contextmanager
def counting(directory: Path) -> Iterator[Counters]:
    """Engines that are started within count the stages of their workers, in files in `directory`, and of this thread.
    One at a time."""
    counters = Counters(directory)
    clock = counters.clock

    def counting_bootstrap(link: int, *, instead: bool) -> str:
        start, _, last = bootstrap(link, instead=instead).rpartition("\n")
        return f"{start}\nfrom perf.clocks import in_worker\nin_worker({str(directory)!r})\n{last}"

    with ExitStack() as patches:
        patches.enter_context(patch.object(processes, "bootstrap", counting_bootstrap))
        for owner, name, stage in _WRAPPED:
            patches.enter_context(patch.object(owner, name, clock.wrapped(getattr(owner, name), stage)))
        patches.enter_context(patch.object(Crew, "on_readable", clock.wrapped(_noted(clock), "receive")))
        patches.enter_context(patch.object(wire, "decode_answer", _classified(clock)))
        yield counters


def _noted(clock: Clock) -> Callable[[Crew, int], None]:
    """What comes may have been waited for: how long is known before it is known what it is."""
    on_readable = Crew.on_readable

    def noted(crew: Crew, shard: int) -> None:
        clock.note_idle()
        on_readable(crew, shard)

    return noted


def _classified(clock: Clock) -> Callable[[bytes], wire.Answer]:
    """What the coordinator waited for shows when it comes: of a group's votes, the first, or another one, which the
    first one waited for; and its commits alike."""
    decode, seen = wire.decode_answer, Counter[tuple[type, int]]()

    def classified(message: bytes) -> wire.Answer:
        answer: wire.Answer = decode(message)
        if isinstance(answer, (wire.Vote, wire.Committed, wire.SoloDone)):
            kind = type(answer)
            seen[kind, answer.group] += 1
            later = seen[kind, answer.group] > 1
            if kind is wire.Committed:
                clock.waited(SLOWEST_COMMIT if later else COMMIT)
            else:
                clock.waited(SLOWEST_VOTE if later else VOTE)
        return answer

    return classified
