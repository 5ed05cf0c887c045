"""Making all that is published durable: every worker syncs its environment, then the decision record is. No clock."""

from __future__ import annotations

from collections.abc import Callable, Collection

from shardengine.engine.commit.decision import DecisionFile
from shardengine.engine.commit.pinning import Sender
from shardengine.engine.commit.table import Commit
from shardengine.engine.errors import EngineError, disk_error
from shardengine.engine.intake.chunks import error_of
from shardengine.shards import wire

Done = Callable[[EngineError | None], None]


class Flushing:
    """At most one flush at a time, while no group is open; who asks during one shares the next.

    `up` are the shards whose workers can be sent to, for the coordinator to change.

    Invariant: `_asking` is empty when no flush is under way; `_owed` are the shards that have not answered, None before
    they are asked.
    """

    def __init__(
        self, shards: int, commit: Commit, workers: Sender, decision: DecisionFile, up: Collection[int]
    ) -> None:
        self._shards = shards
        self._commit = commit
        self._workers = workers
        self._decision = decision
        self._up = up
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

    def request(self, done: Done) -> None:
        """Flush, then call `done`, with an error when it failed."""
        if self.busy:
            self._next.append(done)
        else:
            self._begin([done])

    def _begin(self, asking: list[Done]) -> None:
        self._asking = asking
        self._token += 1
        self.proceed()

    def proceed(self) -> None:
        """Ask every worker, once nothing is open."""
        if self._asking and self._owed is None and self._commit.idle:
            self._owed = set(range(self._shards))
            for shard in self._owed.intersection(self._up):
                self._workers.send(shard, wire.Flush(self._token))

    def welcome(self, shard: int) -> None:
        """The worker of `shard` is new: ask it what its predecessor did not answer."""
        if self.owes(shard):
            self._workers.send(shard, wire.Flush(self._token))

    def on_answer(self, shard: int, flushed: wire.Flushed) -> None:
        if self._owed is None or self._token != flushed.token or shard not in self._owed:
            return
        self._answered(shard, None if flushed.problem is None else error_of(flushed.problem, None))

    def _answered(self, shard: int, error: EngineError | None) -> None:
        assert self._owed is not None
        self._owed.discard(shard)
        self._error = error or self._error
        if self._owed:
            return
        try:
            self._decision.sync()
        except OSError as error:
            self._error = disk_error("the decision record cannot be synced", error)
        asking, outcome, following = self._asking, self._error, self._next
        self._asking, self._error, self._next, self._owed = [], None, [], None
        for done in asking:
            done(outcome)
        if following:
            self._begin(following)

    def expire(self, shard: int, error: EngineError) -> None:
        """The worker of `shard` has taken too long, as `error` says, and is killed: its answer is that."""
        if self.owes(shard):
            self._answered(shard, error)

    def end(self, error: EngineError | None) -> None:
        """Tell all who wait that it is over: it failed, or there is nothing left to do."""
        asking = self._asking + self._next
        self._asking, self._next, self._owed, self._error = [], [], None, None
        for done in asking:
            done(error)
