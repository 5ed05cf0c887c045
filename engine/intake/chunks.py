"""What is in flight: chunks, the groups they went into, the calls that wait for them. No I/O."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

from shardengine.engine import errors
from shardengine.engine.contract import Results
from shardengine.engine.errors import ChunkFailedError, EngineError, LogConflictError
from shardengine.engine.intake.split import Split
from shardengine.engine.intake.tail import Mark
from shardengine.ipc.ring import Extent
from shardengine.shards import wire
from shardengine.shards.fast import Normal
from shardengine.shards.types import ApplyResult, Position


class Chunk:
    """An accepted chunk until it is resolved: its parts, and who waits for it. `before` is the tail without it.

    Exactly one of `results` and `error` is set once it is done; then its entries' data and its parts are let go of.
    It has a slot for each thing that is asked of a chunk: there is one object a chunk, and none within it.
    """

    __slots__ = (
        "alone",
        "before",
        "bytes",
        "clock",
        "datas",
        "error",
        "first",
        "last",
        "parts",
        "rejected",
        "results",
        "terms",
        "waiting",
    )

    def __init__(self, form: Normal, before: Mark, split: Split) -> None:
        self.first = form.first
        self.last = form.last
        self.datas = form.datas
        self.terms = form.terms
        self.clock = form.clock
        self.before = before
        self.parts = split.parts
        self.rejected = split.rejected
        self.bytes = sum(map(len, split.parts.values()))
        self.alone = False
        self.results: Results | None = None
        self.error: EngineError | None = None
        self.waiting: list[Any] = []
        """Who waits, in the shell's own terms; the shell wakes them when the coordinator says the chunk is done."""

    def settle(self) -> list[Any]:
        """It is done. Returns who waited."""
        waiting, self.waiting, self.datas, self.parts = self.waiting, [], [], {}
        return waiting

    def check_same(self, other: Normal) -> None:
        """Raise LogConflictError when an entry that `other` has too is not the same there."""
        first, last = max(self.first, other.first), min(self.last, other.last)
        theirs = other.datas[first - other.first : last + 1 - other.first]
        for index, (accepted, data) in enumerate(zip(self.datas[first - self.first :], theirs, strict=False), first):
            if accepted != data:
                raise LogConflictError(
                    f"entry {index} has other data than the one that was accepted with its index and is in flight",
                    hint="an index is given once: callers that number entries themselves need one place that does it",
                    index=index,
                )


class Batch:
    """A submitted group: its chunks, the half of the rings it owns, where its parts lie there, and what its shards
    answered."""

    __slots__ = ("chunks", "extents", "half", "noes", "participants", "position", "results")

    def __init__(
        self,
        chunks: list[Chunk],
        half: int,
        position: Position,
        participants: frozenset[int],
        extents: dict[int, Extent],
    ) -> None:
        self.chunks = chunks
        self.half = half
        self.position = position
        self.participants = participants
        self.extents = extents
        self.results: dict[int, wire.PartResults] = {}
        self.noes: dict[int, tuple[int | None, wire.Problem]] = {}

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


class Delivery:
    """One call of `apply_chunk`: entries applied before it, then the chunks that carry the rest."""

    __slots__ = ("chunks", "first", "known", "last")

    def __init__(self, first: int, last: int, known: list[ApplyResult], chunks: list[Chunk]) -> None:
        self.first = first
        self.last = last
        self.known = known
        self.chunks = chunks

    def results(self) -> Sequence[ApplyResult]:
        """One result for each entry, in order. Raises the error of the first chunk that failed."""
        for chunk in self.chunks:
            if chunk.error is not None:
                raise chunk.error.again()
        if not self.known and len(self.chunks) == 1 and self.chunks[0].first == self.first:
            chunk = self.chunks[0]
            assert chunk.results is not None
            return chunk.results if chunk.last == self.last else chunk.results[: self.last - self.first + 1]
        found = list(self.known)
        for chunk in self.chunks:
            assert chunk.results is not None
            found += [result for result in chunk.results if self.first <= result.index <= self.last]
        return found


def error_of(problem: wire.Problem, index: int | None) -> EngineError:
    """The error that a worker's problem becomes here: of the same class, or ChunkFailedError for any other."""
    facts: dict[str, Any] = dict(problem.facts)
    kind = getattr(errors, problem.kind, None)
    message = problem.message
    if not (isinstance(kind, type) and issubclass(kind, EngineError)):
        kind = ChunkFailedError
        message = f"{problem.kind}: {message}"
        facts["reason"] = message
    if index is not None:
        message = f"entry {index} failed its chunk: {message}"
        facts["index"] = index
    error = kind(message, hint=problem.hint, **facts)
    if "traceback" in facts:
        error.add_note(f"In the worker:\n{facts['traceback']}")
    return error
