"""The snapshot barrier as a table: events in, actions out, no I/O, no clock of its own.

              begin              place                all pinned           all copied
    IDLE ------------> WAITING ----------> PINNING --------------> COPYING ----------> IDLE (Complete)
                          |                   |                       |
                          +------- a death, a problem, the deadline, or cancel
                          v
                      RELEASING ---- all let go ----> IDLE (Abandoned)

Between `place` and the last pin nothing may be decided (until `Resume`): every pin then sees exactly the last
published group. That is the whole pause, however much data there is. A death before the last pin, or of a worker that
is still copying, costs the snapshot, never the engine. Nobody is told of the end before nothing is pinned or written
any more; workers that do not let go in time are killed.
"""

from __future__ import annotations

import enum

from shardengine.engine.commit.actions import Abandoned, Action, Complete, Kill, Resume, SendCopy, SendPin, SendUnpin
from shardengine.engine.errors import CommitRuleError, SnapshotAbortedError, SnapshotError
from shardengine.shards import wire


class Stage(enum.Enum):
    IDLE = "idle"
    WAITING = "waiting"
    PINNING = "pinning"
    COPYING = "copying"
    RELEASING = "releasing"


class Barrier:
    """One barrier after another over `shards` shards. Answers to an earlier barrier are ignored, by number.

    Invariant: `_waiting` are the shards whose next answer the stage waits for; it is empty in IDLE and WAITING.
    """

    def __init__(self, shards: int) -> None:
        self._shards = frozenset(range(shards))
        self._waiting: set[int] = set()
        self._parts: dict[int, wire.Copied] = {}
        self._error: SnapshotError | None = None
        self.stage = Stage.IDLE
        self.number = 0

    def awaits(self, shard: int) -> bool:
        """True while the stage waits for an answer of `shard`."""
        return shard in self._waiting

    def begin(self) -> int:
        """A snapshot is wanted. Returns the barrier's number."""
        self._expect("begin", Stage.IDLE)
        self.stage = Stage.WAITING
        self.number += 1
        self._parts = {}
        return self.number

    def place(self) -> list[Action]:
        """Nothing is decided and not published, and nothing will be until Resume: pin now, on every shard."""
        self._expect("place", Stage.WAITING)
        self.stage = Stage.PINNING
        self._waiting = set(self._shards)
        return [SendPin(shard, self.number) for shard in sorted(self._shards)]

    def pinned(self, shard: int, number: int, problem: str | None) -> list[Action]:
        """The worker of `shard` has pinned its last commit, or could not (`problem`)."""
        if number != self.number or self.stage is not Stage.PINNING:
            return []
        self._expect_answer("pinned", shard)
        if problem is not None:
            return self.abort(f"shard {shard} could not pin: {problem}")
        self._waiting.discard(shard)
        if self._waiting:
            return []
        self.stage = Stage.COPYING
        self._waiting = set(self._shards)
        return [Resume(), *(SendCopy(shard, self.number) for shard in sorted(self._shards))]

    def copied(self, shard: int, number: int, part: wire.Copied) -> list[Action]:
        """The part of `shard` is on the disk, or its copy failed."""
        if number != self.number:
            return []
        if self.stage is Stage.RELEASING:
            return self.unpinned(shard, number)
        self._expect("copied", Stage.COPYING)
        self._expect_answer("copied", shard)
        self._waiting.discard(shard)
        if part.problem is not None:
            hint = f" ({part.problem.hint})" if part.problem.hint else ""
            return self.abort(f"the copy of shard {shard} failed: {part.problem.message}{hint}")
        self._parts[shard] = part
        if self._waiting:
            return []
        self.stage = Stage.IDLE
        return [Complete(self._parts)]

    def unpinned(self, shard: int, number: int) -> list[Action]:
        """The worker of `shard` holds and writes nothing any more."""
        if number != self.number or self.stage is not Stage.RELEASING:
            return []
        self._waiting.discard(shard)
        return self._released()

    def link_end(self, shard: int) -> list[Action]:
        """The worker of `shard` died, and its pin with it."""
        if self.stage is Stage.RELEASING:
            return self.unpinned(shard, self.number)
        if self.stage is Stage.PINNING or shard in self._waiting:
            self._waiting.discard(shard)
            return self.abort(f"the worker of shard {shard} died", gone=shard)
        return []

    def abort(self, why: str, *, gone: int | None = None, error: SnapshotError | None = None) -> list[Action]:
        """Give the snapshot up, from any stage but IDLE and RELEASING, where nothing happens. `gone`: a shard whose
        worker is dead. `error`: what to say instead of SnapshotAbortedError."""
        if self.stage in (Stage.IDLE, Stage.RELEASING):
            return []
        self._error = error or SnapshotAbortedError(
            f"the snapshot was given up: {why}", hint="no file is left and applies go on; try again", reason=why
        )
        resume: list[Action] = [] if self.stage is Stage.COPYING else [Resume()]
        told = self._waiting if self.stage is Stage.COPYING else self._shards - {gone}
        if self.stage is Stage.WAITING:
            told = frozenset()
        self.stage = Stage.RELEASING
        self._waiting = set(told)
        return [*resume, *(SendUnpin(shard, self.number) for shard in sorted(told)), *self._released()]

    def expire(self, why: str) -> list[Action]:
        """The time is up: give up; or, when that was done already, kill who does not let go."""
        if self.stage is Stage.RELEASING:
            return [Kill(shard) for shard in sorted(self._waiting)]
        return self.abort(why)

    def _released(self) -> list[Action]:
        if self._waiting:
            return []
        self.stage = Stage.IDLE
        assert self._error is not None
        return [Abandoned(self._error)]

    def _expect(self, event: str, stage: Stage) -> None:
        if self.stage is not stage:
            raise CommitRuleError(f"{event} does not fit the snapshot barrier in stage {self.stage.value}")

    def _expect_answer(self, event: str, shard: int) -> None:
        if shard not in self._waiting:
            raise CommitRuleError(f"{event} from shard {shard} does not fit the snapshot barrier", shard=shard)
