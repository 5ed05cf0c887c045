"""Where in the log a snapshot's barrier goes: events in, actions of the barrier table out. No I/O, no clock of its own.

A label (`LogId`) asks for the state at exactly that entry: its group is cut there, and nothing behind it is decided
before every shard has pinned. Without a label the first place that comes will do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from shardengine.engine.commit.actions import Action, Complete, Resume
from shardengine.engine.commit.barrier import Barrier, Stage
from shardengine.engine.commit.table import Commit
from shardengine.engine.errors import (
    EngineError,
    SnapshotAbortedError,
    SnapshotError,
    SnapshotInProgressError,
    SnapshotLabelError,
)
from shardengine.engine.intake.chunks import Chunk
from shardengine.shards import wire
from shardengine.shards.types import LogId, Position


class Completed(msgspec.Struct, frozen=True):
    """Every part is on the disk: the state at `position`, as parts by shard."""

    position: Position
    term_runs: list[LogId]
    parts: list[wire.Copied]


Done = Callable[[Completed | SnapshotError], None]


class Request(msgspec.Struct):
    """A snapshot under way. `deadline` is in the shell's seconds; None until the first tick."""

    label: LogId | None
    directory: Path
    timeout: float
    done: Done
    deadline: float | None = None


class Pinning:
    """At most one snapshot at a time, over one commit table. `term_runs` tells the term runs up to an index."""

    def __init__(self, shards: int, commit: Commit, term_runs: Callable[[int], list[LogId]]) -> None:
        self._barrier = Barrier(shards)
        self._shards = shards
        self._commit = commit
        self._term_runs = term_runs
        self._request: Request | None = None
        self.label = 0
        """The index that a group must end at; 0 when no snapshot waits for one."""
        self._placed: tuple[Position, list[LogId]] | None = None

    @property
    def busy(self) -> bool:
        """True while a snapshot is under way."""
        return self._request is not None

    @property
    def stage(self) -> Stage:
        return self._barrier.stage

    def request(self, request: Request, applied: Position, in_flight: Sequence[Chunk]) -> None:
        """Begin a snapshot; `request.done` hears of its end, once nothing is pinned or written any more.

        Raises SnapshotInProgressError, or SnapshotLabelError when the label is past or inside a chunk in flight.
        """
        if self._request is not None:
            raise SnapshotInProgressError("a snapshot is being taken already", hint="await it, then ask again")
        label = request.label
        if label is not None:
            check_label(label, LogId(applied.index, applied.term), moved_on=not self._commit.quiet)
            for chunk in in_flight:
                self._check_chunk(label, chunk.first, chunk.last)
        self._request = request
        self.label = 0 if label is None else label.index
        self._barrier.begin()

    def _check_chunk(self, label: LogId, first: int, last: int) -> None:
        if first <= label.index < last:
            raise SnapshotLabelError(
                f"index {label.index} lies inside the chunk of entries {first} to {last}, which is applied as a whole",
                hint=f"take one at index {last}, or end a chunk at {label.index}",
                asked=label.index,
                first=first,
                last=last,
            )

    def accepted(self, first: int, last: int) -> list[Action]:
        """A chunk was accepted: a label inside it cannot be placed any more."""
        if first <= self.label < last:
            try:
                self._check_chunk(LogId(self.label, 0), first, last)
            except SnapshotLabelError as error:
                return self._barrier.abort("its label lies inside a chunk", error=error)
        return []

    def owes(self, shard: int) -> bool:
        """True while applies wait for the worker of `shard` to pin."""
        return self._barrier.stage is Stage.PINNING and self._barrier.awaits(shard)

    def taken_back(self) -> list[Action]:
        """A group was abandoned. When it was the solo that ends at the label, others may be decided again."""
        return [Resume()] if self._barrier.stage is Stage.WAITING and self.label else []

    def decided(self, index: int) -> None:
        """A group that ends at `index` is decided: when that is the label, nothing more is before all have pinned."""
        if index == self.label:
            self._commit.hold()

    def place(self, applied: Position) -> list[Action]:
        """Pin, when this is the place; else see to it that it comes."""
        request = self._request
        if request is None or self._barrier.stage is not Stage.WAITING:
            return []
        label = request.label
        if label is not None and applied.index > label.index:
            error = SnapshotLabelError(
                f"index {label.index} lay inside a group, of chunks up to {applied.index}, that was under way already",
                hint="take one at a later index, or with last_included=None",
                asked=label.index,
                applied=applied.index,
            )
            return self._barrier.abort("its label is past", error=error)
        if label is not None and applied.index < label.index:
            return []
        if label is not None and applied.term != label.term:
            return self._barrier.abort("its label names another term", error=_other_term(label, applied.term))
        self._commit.hold()
        if not self._commit.quiet or len(self._commit.up) < self._shards:
            return []
        self._placed = applied, self._term_runs(applied.index)
        self.label = 0
        return self._barrier.place()

    def on_answer(self, shard: int, answer: wire.Pinned | wire.Copied | wire.Unpinned) -> list[Action]:
        """A worker has pinned, copied, or let go."""
        if isinstance(answer, wire.Pinned):
            problem = None if answer.problem is None else answer.problem.message
            return self._barrier.pinned(shard, answer.barrier, problem)
        if isinstance(answer, wire.Copied):
            return self._barrier.copied(shard, answer.barrier, answer)
        return self._barrier.unpinned(shard, answer.barrier)

    def on_link_end(self, shard: int) -> list[Action]:
        return self._barrier.link_end(shard)

    def tick(self, now: float) -> list[Action]:
        """Time passes (`now` in seconds): give up, and then kill, what takes longer than its request allows."""
        request = self._request
        if request is None:
            return []
        if request.deadline is None:
            request.deadline = now + request.timeout
        elif now > request.deadline:
            request.deadline = now + request.timeout
            return self._barrier.expire(f"it took longer than {request.timeout} s")
        return []

    def cancel(self, why: str) -> list[Action]:
        """Give up what is under way."""
        return self._barrier.abort(why)

    def drop(self, error: EngineError) -> None:
        """Nobody listens to the workers any more, because of `error`: end at once."""
        if self._request is not None:
            self.end(SnapshotAbortedError(f"the snapshot was given up: {error.message}"))

    def path(self, shard: int) -> Path:
        """Where the part of `shard` goes."""
        assert self._request is not None
        return self._request.directory / part_name(shard)

    def complete(self, action: Complete) -> None:
        """Every part is on the disk: tell who asked."""
        assert self._placed is not None
        position, term_runs = self._placed
        self.end(Completed(position, term_runs, [action.parts[shard] for shard in range(self._shards)]))

    def end(self, outcome: Completed | SnapshotError) -> None:
        """The snapshot is over: tell who asked."""
        request, self._request, self._placed, self.label = self._request, None, None, 0
        assert request is not None
        request.done(outcome)


def part_name(shard: int) -> str:
    """The file of a shard's part in a snapshot's directory."""
    return f"shard-{shard:03}.mdb"


def check_label(label: LogId, applied: LogId, *, moved_on: bool) -> None:
    """Raise SnapshotLabelError when the state at `label` is past, or the entry another. `moved_on`: what follows
    `applied` is decided already."""
    if label.index < applied.index or (label.index == applied.index and moved_on):
        raise SnapshotLabelError(
            f"the state at index {label.index} is past: {applied.index} is applied, and what follows is decided",
            hint="take one at a later index, or with last_included=None",
            asked=label.index,
            applied=applied.index,
        )
    if label.index == applied.index and label.term != applied.term:
        raise _other_term(label, applied.term)


def _other_term(label: LogId, found: int) -> SnapshotLabelError:
    return SnapshotLabelError(f"entry {label.index} has term {found}, not {label.term}", asked=label.term, found=found)
