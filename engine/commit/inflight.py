"""What is accepted and not resolved: chunks that queue, groups under way, and where the accepted log ends. No I/O."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from shardengine.engine.commit.packing import Packed
from shardengine.engine.commit.takeover import Takeover
from shardengine.engine.contract import Results
from shardengine.engine.errors import ChunkAbortedError, EngineError
from shardengine.engine.intake.chunks import Chunk, Delivery
from shardengine.engine.intake.split import Splitter
from shardengine.engine.intake.tail import Tail, normalised
from shardengine.ipc.ring import Extent
from shardengine.shards import wire
from shardengine.shards.fast import Normal
from shardengine.shards.types import ApplyResult, Entry, LogId, Position

OURS = -1
"""Where the number of a shard stands: the coordinator's own commands."""


class Batch:
    """A submitted group: its chunks, the half of the rings it owns, where its parts lie there, the coordinator's own
    commands, if it has any, and what became of those and of its shards' (`results`, `noes`). `new_runs` are the term
    runs up to its end that the record did not have when it was submitted."""

    __slots__ = ("chunks", "extents", "half", "new_runs", "noes", "participants", "position", "results", "takeover")

    def __init__(
        self,
        chunks: list[Chunk],
        half: int,
        position: Position,
        extents: dict[int, Extent],
        takeover: Takeover | None = None,
        new_runs: Sequence[LogId] = (),
    ) -> None:
        self.chunks = chunks
        self.takeover = takeover
        self.half = half
        self.position = position
        self.participants = frozenset(extents)
        self.extents = extents
        self.new_runs = new_runs
        self.results: dict[int, wire.PartResults] = {}
        self.noes: dict[int, tuple[int | None, wire.Problem]] = {}

    @property
    def first(self) -> int:
        """Its first entry, or where it stands when it has none."""
        return self.chunks[0].first if self.chunks else self.position.index

    def told(self) -> list[dict[int, ApplyResult]]:
        """For each chunk, by index, the results that say more than "succeeded"."""
        told: list[dict[int, ApplyResult]] = [
            {chunk.first + at: ApplyResult(chunk.first + at, False, reason=why) for at, why in chunk.rejected.items()}
            for chunk in self.chunks
        ]
        lasts = [chunk.last for chunk in self.chunks]
        for answered in self.results.values() if lasts else ():
            for index, value in answered.values.items():
                told[bisect_left(lasts, index)][index] = ApplyResult(index, True, value)
            for index, reason in answered.rejected.items():
                told[bisect_left(lasts, index)][index] = ApplyResult(index, False, reason=reason)
        return told

    def first_no(self) -> tuple[int | None, wire.Problem]:
        """The no that decides: of the first entry that failed, whichever shard said it; else one that names none."""
        return min(self.noes.values(), key=lambda no: (no[0] is None, no[0]))


class InFlight:
    """Chunks from their acceptance to their end, in log order.

    Invariant: `queue` is what is accepted and not submitted; `batches` are the open group and the staged one, by
    number; `tail` ends behind the last entry of both. `chunks` and `bytes` are the chunks among them, and the size of
    their parts.
    """

    def __init__(self, splitter: Splitter, tail: Tail, wake: Callable[[Any], None]) -> None:
        """`wake` is called with each of a chunk's waiters when it is done."""
        self._splitter = splitter
        self._wake = wake
        self._entries_applied = 0
        self._bytes_applied = 0
        self.tail = tail
        self.queue: deque[Chunk] = deque()
        self.batches: dict[int, Batch] = {}
        self.chunks = 0
        self.bytes = 0

    def all(self) -> list[Chunk]:
        return [chunk for batch in self.batches.values() for chunk in batch.chunks] + list(self.queue)

    def accept(self, entries: Sequence[Entry], applied: int) -> Delivery:
        """Take a chunk, whole or not at all; entries up to `applied` are done already. Raises when it does not fit the
        log, or holds bad data."""
        form = normalised(entries, self.tail.clock)
        known = self.tail.check(form)
        if not known:
            return Delivery(form.first, form.last, [], [self._queue(form)])
        shared = [chunk for chunk in self.all() if chunk.last >= form.first and chunk.first <= form.last]
        for chunk in shared:
            chunk.check_same(form)
        last = min(form.last, applied)
        done = [ApplyResult(index, True, already_applied=True) for index in range(form.first, last + 1)]
        if known < len(form.datas):
            shared.append(self._queue(normalised(entries[known:], self.tail.clock)))
        return Delivery(form.first, form.last, done, shared)

    def _queue(self, form: Normal) -> Chunk:
        chunk = Chunk(form, self.tail.mark, self._splitter.split(form))
        self.tail.extend(form)
        self.queue.append(chunk)
        self.chunks += 1
        self.bytes += chunk.bytes
        return chunk

    def submitted(self, number: int, packed: Packed, half: int, takeover: Takeover | None, recorded: int) -> Batch:
        """The first chunks of the queue are group `number` from now on; the record ends at entry `recorded`."""
        last = packed.chunks[-1]
        for _ in packed.chunks:
            self.queue.popleft()
        position = Position(number, last.last, last.terms[-1][1], last.clock)
        new_runs = self.tail.runs_between(recorded, last.last)
        batch = self.batches[number] = Batch(packed.chunks, half, position, packed.extents, takeover, new_runs)
        return batch

    def free_half(self) -> int:
        """The half of the rings that no group owns, while one may be submitted."""
        return 1 - self.oldest().half if self.batches else 0

    def note(self, shard: int, answer: wire.Vote | wire.SoloDone) -> None:
        """Keep what `shard` says of its part."""
        batch = self.batches.get(answer.group)
        if batch is None:
            return
        if answer.problem is not None:
            batch.noes[shard] = (answer.index, answer.problem)
        elif answer.results is not None:
            batch.results[shard] = answer.results

    def note_stored(self, shard: int, number: int, results: wire.PartResults) -> None:
        """A new worker of `shard` has brought the results that a solo, `number`, left there."""
        batch = self.batches.get(number)
        if batch is not None:
            batch.results.setdefault(shard, results)

    def forget_noes(self, shard: int) -> None:
        """The worker of `shard` died: its votes are void."""
        for batch in self.batches.values():
            batch.noes.pop(shard, None)

    def published(self, batch: Batch) -> None:
        """`batch` can be read: give its chunks their results."""
        del self.batches[batch.position.group]
        self.tail.forget_old_runs(batch.position.index)
        for chunk, told in zip(batch.chunks, batch.told(), strict=True):
            chunk.results = Results(chunk.first, chunk.last, told)
            self._entries_applied += len(chunk.results)
            self._bytes_applied += chunk.bytes
            self._settle(chunk)

    def take_counts(self) -> tuple[int, int]:
        """Entries and bytes applied since this was asked last."""
        counts = self._entries_applied, self._bytes_applied
        self._entries_applied = self._bytes_applied = 0
        return counts

    def take_back(self) -> Batch:
        """Queue again what is submitted, and return the first group of it."""
        batches = [self.batches.pop(number) for number in sorted(self.batches)]
        self.queue.extendleft(reversed([chunk for batch in batches for chunk in batch.chunks]))
        return batches[0]

    def oldest(self) -> Batch:
        """The open group."""
        return next(iter(self.batches.values()))

    def isolate(self, guilty: Batch) -> bool:
        """A group failed without naming an entry: have its chunks sent again one by one. False: it is one already."""
        for chunk in guilty.chunks:
            chunk.alone = True
        return len(guilty.chunks) > 1

    def fail_at(self, index: int, error: EngineError) -> None:
        """Fail the queued chunk that holds the entry `index`, and those behind it."""
        self.fail_from(next(at for at, chunk in enumerate(self.queue) if chunk.last >= index), error)

    def fail_from(self, at: int, error: EngineError) -> None:
        """Fail the queued chunk at position `at`; those behind it would be gaps, so they fail with it."""
        chunks = list(self.queue)
        failing, behind = chunks[at], chunks[at + 1 :]
        self.queue = deque(chunks[:at])
        self.tail.retreat(failing.before)
        self._fail(failing, error)
        for chunk in behind:
            self._fail(chunk, _aborted(chunk, failing, error))

    def fail_all(self, error: EngineError) -> None:
        """Fail every chunk."""
        failing = self.all()
        self.batches.clear()
        self.queue.clear()
        for chunk in failing:
            self._fail(chunk, error)

    def _fail(self, chunk: Chunk, error: EngineError) -> None:
        chunk.error = error
        self._settle(chunk)

    def _settle(self, chunk: Chunk) -> None:
        """`chunk` is done: it makes room, and who waits for it may go on."""
        self.chunks -= 1
        self.bytes -= chunk.bytes
        for waiter in chunk.settle():
            self._wake(waiter)


def _aborted(chunk: Chunk, failing: Chunk, error: EngineError) -> ChunkAbortedError:
    """What `chunk` fails with when `failing`, ahead of it, failed with `error`."""
    return ChunkAbortedError(
        f"the chunk of entries {chunk.first} to {chunk.last} was not applied: the chunk of entries "
        f"{failing.first} to {failing.last}, ahead of it, failed: {error.message}",
        hint=f"send it again once the log is applied up to {chunk.first - 1}",
        first=chunk.first,
        last=chunk.last,
        failed_first=failing.first,
        failed_last=failing.last,
    )
