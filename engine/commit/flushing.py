"""Making all that is published durable: every worker syncs its environment, then the decision record is. Events in,
actions out; no I/O, no clock.
"""

from __future__ import annotations

from collections.abc import Callable

from shardengine.engine.commit.actions import Action, SendFlush, SyncRecord
from shardengine.engine.commit.table import Commit
from shardengine.engine.errors import EngineError
from shardengine.engine.intake.chunks import error_of
from shardengine.shards import wire

Done = Callable[[EngineError | None], None]


class Flushing:
    """At most one flush at a time, while no group is open; who asks during one shares the next, which lets what queues
    go first.

    Invariant: `_asking` is empty when no flush is under way; `_owed` are the shards that have not answered, None before
    they are asked.
    """

    def __init__(self, shards: int, commit: Commit) -> None:
        self._shards = shards
        self._commit = commit
        self._token = 0
        self._asking: list[Done] = []
        self._next: list[Done] = []
        self._owed: set[int] | None = None
        self._error: EngineError | None = None

    @property
    def busy(self) -> bool:
        """True while a flush is under way: no group may be opened."""
        return bool(self._asking)

    def owes(self, shard: int) -> bool:
        """True while the worker of `shard` has not answered."""
        return self._owed is not None and shard in self._owed

    def request(self, done: Done) -> list[Action]:
        """Flush, then call `done`, with an error when it failed."""
        self._next.append(done)
        return self.proceed()

    def proceed(self) -> list[Action]:
        """Begin for who has asked; ask every worker, once nothing is open."""
        if self._next and not self._asking:
            self._asking, self._next = self._next, []
            self._token += 1
        if not self._asking or self._owed is not None or not self._commit.idle:
            return []
        self._owed = set(range(self._shards))
        return [SendFlush(shard, self._token) for shard in sorted(self._owed.intersection(self._commit.up))]

    def welcome(self, shard: int) -> list[Action]:
        """The worker of `shard` is new: ask it what its predecessor did not answer."""
        return [SendFlush(shard, self._token)] if self.owes(shard) else []

    def on_answer(self, shard: int, flushed: wire.Flushed) -> list[Action]:
        if self._token != flushed.token or not self.owes(shard):
            return []
        return self._answered(shard, None if flushed.problem is None else error_of(flushed.problem, None))

    def expire(self, shard: int, error: EngineError) -> list[Action]:
        """The worker of `shard` has taken too long, as `error` says, and is killed: its answer is that."""
        return self._answered(shard, error) if self.owes(shard) else []

    def _answered(self, shard: int, error: EngineError | None) -> list[Action]:
        assert self._owed is not None
        self._owed.discard(shard)
        self._error = error or self._error
        return [] if self._owed else [SyncRecord()]

    def synced(self, error: EngineError | None) -> None:
        """The decision record is on the disk, or cannot be (`error`): tell who asked."""
        asking, outcome = self._asking, error or self._error
        self._asking, self._error, self._owed = [], None, None
        for done in asking:
            done(outcome)

    def end(self, error: EngineError | None) -> None:
        """Tell all who wait that it is over: it failed, or there is nothing left to do."""
        asking = self._asking + self._next
        self._asking, self._next, self._owed, self._error = [], [], None, None
        for done in asking:
            done(error)
