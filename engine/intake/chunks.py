"""Accepted chunks, and the calls that wait for them. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shardengine.engine import errors
from shardengine.engine.contract import Results
from shardengine.engine.errors import ChunkFailedError, EngineError, LogConflictError
from shardengine.engine.intake.split import NOTHING, Split
from shardengine.engine.intake.tail import Mark
from shardengine.shards import wire
from shardengine.shards.fast import Normal, fill_parts
from shardengine.shards.types import ApplyResult


class Chunk:
    """An accepted chunk until it is resolved: what its parts are made of, and who waits for it. `before` is the tail
    without it. `split` is it taken apart as the first of a group; `bytes` are those of its parts and of the
    coordinator's commands.

    Its attributes are the facts that are asked for when the entries are not there any more. Exactly one of `results`
    and `error` is set once it is done; then its entries' data, runs and what was made of them are let go of.
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
        "rejected",
        "results",
        "runs",
        "split",
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
        self.runs = form.runs
        self.split = split
        self.rejected = split.rejected
        spanning = sum(len(form.datas[command.entry - form.first]) for command in split.spanning)
        self.bytes = sum(split.lengths.values()) + spanning
        self.alone = False
        self.results: Results | None = None
        self.error: EngineError | None = None
        self.waiting: list[Any] = []
        """Who waits, in the shell's own terms; the shell wakes them when the coordinator says the chunk is done."""

    def settle(self) -> list[Any]:
        """It is done. Returns who waited."""
        waiting, self.waiting = self.waiting, []
        self.datas, self.runs, self.split = [], b"", NOTHING
        return waiting

    @property
    def form(self) -> Normal:
        """As it was accepted."""
        return Normal(self.first, self.datas, self.terms, self.clock, self.runs)

    def fill(self, split: Split, views: dict[int, memoryview]) -> None:
        """Write the parts of a `split` of it into `views`, one for each of its `lengths` and exactly as long."""
        fill_parts(split.placed(self.form), split.owners, self.first, self.runs, views)

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


def error_of(problem: wire.Problem, index: int | None, *, here: bool = False) -> EngineError:
    """The error that a worker's problem becomes here: of the same class, or ChunkFailedError for any other. `here`: it
    is no worker's, and its cause is raised along with it."""
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
    if "traceback" in facts and not here:
        error.add_note(f"In the worker:\n{facts['traceback']}")
    return error
