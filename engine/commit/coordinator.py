"""Chunks in, actions of the commit table carried out, results out. Single-threaded; no event loop, no clock.

The shell brings it what happened: a chunk, an answer, the end of a link, the time. It does I/O only through what it
was given: its host, workers to send to, rings to write, the decision file. A simulator can give it others.

Order of life of a chunk: `accept` checks, splits and queues it; `_fill` makes a group of what is queued, writes its
parts into the rings' free halves and submits it; answers come in; `_publish` shows it to readers and resolves it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence, Set
from typing import Any

from shardengine.engine.commit import actions
from shardengine.engine.commit.actions import Action, Group
from shardengine.engine.commit.barrier import Stage
from shardengine.engine.commit.decision import SOLO_RUNS_MAX, DecisionFile, Record, Recovery, encode_runs
from shardengine.engine.commit.exchanging import Exchanging, order_of
from shardengine.engine.commit.flushing import Done, Flushing
from shardengine.engine.commit.host import Host, Sender
from shardengine.engine.commit.inflight import Batch, InFlight
from shardengine.engine.commit.lives import Lives, Patience
from shardengine.engine.commit.packing import Packing
from shardengine.engine.commit.pinning import Pinning, Request
from shardengine.engine.commit.table import Commit
from shardengine.engine.errors import EngineError, SyncFailedError, WorkerFailedError, disk_error, named
from shardengine.engine.intake.chunks import Delivery, error_of
from shardengine.engine.intake.split import Splitter
from shardengine.engine.intake.tail import Tail
from shardengine.shards import wire
from shardengine.shards.types import Entry, LogId, Position

BRIEF_BYTES = 16 * 1024  # so much in flight is worth staying awake for
DECIDED_KILLS_MAX = 10  # more than `table.KILLS_MAX`, after which a group that is not decided is abandoned


class Coordinator:
    """Drives one generation from its start to its stop.

    Invariant: applied <= submitted <= accepted, in log order.
    """

    def __init__(
        self,
        *,
        host: Host,
        workers: Sender,
        splitter: Splitter,
        packing: Packing,
        decision: DecisionFile,
        recovery: Recovery,
        commit: Commit,
    ) -> None:
        self._host = host
        self._workers = workers
        self._packing = packing
        self._decision = decision
        self._commit = commit
        self.applied = position = recovery.position
        tail = Tail(position.index, position.term, position.clock, recovery.term_runs)
        self.in_flight = InFlight(splitter, tail, host.wake)
        self.lives = Lives(packing.shards)
        self.failure: EngineError | None = None
        self.pinning = Pinning(packing.shards, commit, tail.kept_runs)
        self.flushing = Flushing(packing.shards, commit)
        self._exchanging = Exchanging(host, commit, packing, splitter)
        if commit.open is not None:
            record = decision.record
            redo = Batch([], packing.half_of(record), record.position, record.participants)
            self.in_flight.batches[commit.open.number] = redo

    # ---- what is asked -------------------------------------------------------------------------------------------

    @property
    def up(self) -> Set[int]:
        """The shards whose workers can be sent to."""
        return self._commit.up

    @property
    def idle(self) -> bool:
        """True when nothing is accepted that is not resolved."""
        return self._commit.idle and not self.in_flight.queue

    @property
    def brief(self) -> bool:
        """True while something is in flight, and all of it is small."""
        return 0 < self.in_flight.bytes <= BRIEF_BYTES

    def owes(self, shard: int) -> bool:
        """True while the worker of `shard` owes an answer."""
        return self._commit.owes(shard) or self.flushing.owes(shard) or self.pinning.owes(shard)

    def check_running(self) -> None:
        """Raise the failure that ended it, if one did."""
        if self.failure is not None:
            raise self.failure.again()

    # ---- chunks --------------------------------------------------------------------------------------------------

    def accept(self, entries: Sequence[Entry]) -> Delivery:
        """Take a chunk, whole or not at all. Raises when it does not fit the log, or holds bad data."""
        self.check_running()
        delivery = self.in_flight.accept(entries, self.applied.index)
        if self.in_flight.queue:
            newest = self.in_flight.queue[-1]
            self._run(self.pinning.accepted(newest.first, newest.last))
            self._fill()
        return delivery

    def pass_over(self, last: LogId) -> None:
        """Have the log go on behind `last`, while nothing is in flight or pinned. A group of no entries moves index and
        term there, and is decided, hence kept, as every other. Raises what keeps it from that."""
        assert self.idle and self.applied.index < last.index
        self._host.before_write()
        tail, number = self.in_flight.tail, self._commit.last + 1
        tail.pass_over(last)
        self.in_flight.batches[number] = Batch([], 0, Position(number, last.index, last.term, tail.clock), {})
        self._run(self._commit.submit(Group(number, frozenset())))
        self.check_running()

    def _fill(self) -> None:
        """Submit what is queued, as far as the commit table takes groups."""
        in_flight = self.in_flight
        while in_flight.queue and self._commit.can_submit and not self.flushing.busy and self.failure is None:
            try:
                self._host.before_write()
                group = self._next_group()
            except EngineError as error:
                if self._decision.synced and isinstance(error, SyncFailedError):
                    self.fail(error)  # nothing can be acknowledged any more
                else:
                    self._fail_first(error)
            except OSError as error:
                self._fail_first(disk_error("a ring cannot be written", error))
            else:
                self._run(self._commit.submit(group))

    def _next_group(self) -> Group:
        """Take the first queued chunks, and write their parts where they belong. What is raised leaves them queued."""
        in_flight, half = self.in_flight, self.in_flight.free_half()
        packed = self._packing.pack(in_flight.queue, half, self.pinning.label)
        takeover = self._exchanging.begin(packed)
        batch = in_flight.submitted(self._commit.last + 1, packed, half, takeover, self._decision.record.position.index)
        exchange = frozenset(takeover.questions) if takeover else frozenset[int]()
        return Group(batch.position.group, batch.participants, self._solo(batch), exchange)

    def _solo(self, batch: Batch) -> bool:
        """A solo leaves no record, and takes a few terms along that the last one lacks. A generation's first group is
        none: by its record it is known to hold a state."""
        if len(batch.participants) != 1 or batch.takeover or not self._commit.can_solo:
            return False
        return bool(self._decision.record.term_runs) and len(batch.new_runs) <= SOLO_RUNS_MAX

    # ---- actions of the tables -----------------------------------------------------------------------------------

    def _run(self, asked: Iterable[Action]) -> None:
        """Carry out what a table says. It has changed its state already: what fails here fails the engine, and from
        there on nobody listens to the tables."""
        try:
            for action in asked:
                if self.failure is not None:
                    return
                _CARRY_OUT[type(action)](self, action)
        except Exception as error:
            self.fail(named(error))
            if not isinstance(error, (EngineError, OSError)):
                raise

    def _send_part(self, action: actions.SendPart | actions.SendAsk | actions.SendWrites) -> None:
        self._workers.send(action.shard, order_of(action, self.in_flight.batches[action.group]))

    def _run_commands(self, action: actions.RunCommands) -> None:
        self._run(self._exchanging.run(action.group, self.in_flight.batches[action.group]))

    def _send_solo(self, action: actions.SendSolo) -> None:
        batch = self.in_flight.batches[action.group]
        self.pinning.decided(batch.position.index)
        runs = encode_runs(batch.new_runs)
        self._workers.send(action.shard, wire.Solo(batch.position, batch.extents[action.shard], runs))

    def _record(self, action: actions.Record) -> None:
        """Write the decision: from its first byte on there is no way back."""
        batch = self.in_flight.batches[action.group]
        batch.extents = self._packing.summed(batch.extents)
        position, runs = batch.position, self.in_flight.tail.kept_runs(batch.position.index)
        try:
            if self._decision.synced:
                self._packing.sync(batch.extents)
            self._decision.write(Record(position, runs, batch.extents, self._exchanging.machine_version))
        except OSError as error:
            self.fail(disk_error("the last chunks are undecided until the next start: no decision record", error))
            return
        self.pinning.decided(position.index)
        self._run(self._commit.recorded(position.group))

    def _publish(self, action: actions.Publish) -> None:
        batch = self.in_flight.batches[action.group]
        self._host.published(batch)
        self.applied = batch.position
        self.in_flight.published(batch)
        self._host.moved()

    def _send_copy(self, action: actions.SendCopy) -> None:
        path = os.fsencode(self.pinning.path(action.shard))
        self._workers.send(action.shard, wire.Copy(action.barrier, path))

    def _sync_record(self, action: actions.SyncRecord) -> None:
        refused: EngineError | None = None
        try:
            self._decision.sync()
        except OSError as error:
            refused = disk_error("the decision record cannot be synced", error)
        self.flushing.synced(refused)

    # ---- what went wrong -----------------------------------------------------------------------------------------

    def _abandon(self, action: actions.Abandon) -> None:
        """Take the chunks of a group, and of the one staged behind it, back; then fail those that must fail. A group
        that failed without naming an entry fails when it is one chunk; and when that killed its worker, the engine
        does."""
        guilty = self.in_flight.take_back()
        assert guilty.position.group == action.group
        self._run(self.pinning.taken_back())
        index = None
        if action.killer is not None:
            error: EngineError = self.lives.killed_by(action.killer, guilty.first, guilty.position.index)
        else:
            index, problem = guilty.first_no()
            error = error_of(problem, index)
        if index is not None:
            self.in_flight.fail_at(index, error)
        elif not self.in_flight.isolate(guilty):
            self.fail(error) if isinstance(error, WorkerFailedError) else self.in_flight.fail_from(0, error)
        self._host.moved()

    def _fail_first(self, error: EngineError) -> None:
        """Fail the first queued chunk, and those behind it."""
        self.in_flight.fail_from(0, error)
        self._host.moved()

    def fail(self, error: EngineError) -> None:
        """Stop applying for good: every chunk in flight fails with `error`, and every later one. Reads go on."""
        if self.failure is not None:
            return
        self.failure = error
        self._host.failed(error)
        self.in_flight.fail_all(error)
        self.flushing.end(error)
        self.pinning.drop(error)
        self._host.moved()

    # ---- what workers say ----------------------------------------------------------------------------------------

    def on_answer(self, shard: int, answer: wire.Answer) -> None:
        """A message from the worker of `shard`."""
        if isinstance(answer, wire.Alive):
            self.lives.alive(shard)
            return
        self.lives.heard(shard)
        if self.failure is not None:
            return
        problem = getattr(answer, "problem", None)
        if problem is not None and not isinstance(answer, wire.Flushed):
            error = error_of(problem, None)
            if isinstance(error, SyncFailedError):
                self.fail(error)  # in mode "power": what was to be acknowledged is not on the disk
                return
        _TAKE[type(answer)](self, shard, answer)
        self._proceed()

    def _on_vote(self, shard: int, vote: wire.Vote) -> None:
        self.in_flight.note(shard, vote)
        self._run(self._commit.vote(shard, vote.group, vote.problem is None))

    def _on_values(self, shard: int, values: wire.Values) -> None:
        self._run(self._exchanging.take(shard, values, self.in_flight.batches.get(values.group)))

    def _on_solo_done(self, shard: int, done: wire.SoloDone) -> None:
        self.in_flight.note(shard, done)
        self._run(self._commit.solo_done(shard, done.group, done.problem is None))

    def _on_committed(self, shard: int, committed: wire.Committed) -> None:
        self.lives.stalled.pop(shard, None)
        self._run(self._commit.committed(shard, committed.group))

    def _on_hello(self, shard: int, hello: wire.Hello) -> None:
        assert hello.shard == shard
        self.lives.welcome(shard)
        self.in_flight.note_stored(shard, hello.position.group, hello.solo)
        self._run(self._commit.hello(shard, hello.position.group))
        self._run(self.flushing.welcome(shard))

    def on_link_end(self, shard: int) -> bool:
        """The worker of `shard` is dead and reaped. Returns True when another should be started."""
        hopeless = self.lives.ended(shard, was_up=shard in self.up)
        self.in_flight.forget_noes(shard)
        if self.failure is not None:
            return False
        if hopeless is not None:
            self.fail(hopeless)
            return False
        self._run(self._commit.link_end(shard))
        if self._commit.kills(shard) >= DECIDED_KILLS_MAX:
            guilty = self.in_flight.oldest()
            self.fail(self.lives.killed_by(shard, guilty.first, guilty.position.index))
            return False
        self._run(self.pinning.on_link_end(shard))
        self._proceed()
        return self.failure is None

    def on_start_refused(self, shard: int, error: OSError) -> None:
        """No worker could be started for `shard`, to be tried again unless that is a failure by now."""
        if (hopeless := self.lives.refused(shard, error)) is not None:
            self.fail(hopeless)

    def tick(self, now: float, patience: Patience) -> None:
        """Time passes (in seconds): kill workers that owe an answer for too long."""
        self._run(self.pinning.tick(now))
        awaits = self.owes if self.failure is None else lambda shard: False
        late = self.lives.tick(now, awaits, lambda shard: patience.limits(*self._state(shard)))
        for shard, limit in late.items():
            setting = patience.setting(*self._state(shard), limit)
            error, again = self.lives.condemn(shard, self._workers.pid(shard), limit, setting)
            if again:
                self.fail(error)
                return
            if setting == "flush_timeout_ms":
                self._run(self.flushing.expire(shard, error))
            self._workers.kill(shard)

    def _state(self, shard: int) -> tuple[bool, bool]:
        """Whether the worker of `shard` is up, and whether it owes the end of a flush."""
        up = shard in self.up
        return up, up and self.flushing.owes(shard)

    def _proceed(self) -> None:
        """After every event: submit what may now be submitted, flush when nothing is open."""
        if self.pinning.stage is Stage.WAITING:
            self._run(self.pinning.place(self.applied))
        if self.in_flight.queue:
            self._fill()
        self._run(self.flushing.proceed())

    # ---- snapshot and flush --------------------------------------------------------------------------------------

    def snapshot(self, request: Request) -> None:
        """Begin a snapshot; see `Pinning.request`. Raises the engine's failure when there is one."""
        self.check_running()
        self.pinning.request(request, self.applied, self.in_flight.all())
        self._proceed()

    def cancel_snapshot(self, why: str) -> None:
        """Give up the snapshot that is being taken, if one is."""
        self._run(self.pinning.cancel(why))

    def flush(self, done: Done) -> None:
        """Make all that is published durable, then call `done`, with an error if it failed. No group opens before."""
        if self.failure is not None:
            done(self.failure.again())
        else:
            self._run(self.flushing.request(done))


_CARRY_OUT: dict[type[Action], Callable[[Coordinator, Any], None]] = {
    **dict.fromkeys((actions.SendPart, actions.SendAsk, actions.SendWrites), Coordinator._send_part),
    actions.RunCommands: Coordinator._run_commands,
    actions.SendSolo: Coordinator._send_solo,
    actions.SendCommit: lambda self, action: self._workers.send(action.shard, wire.Commit(action.group)),
    actions.SendAbort: lambda self, action: self._workers.send(action.shard, wire.Abort(action.group)),
    actions.Record: Coordinator._record,
    actions.Publish: Coordinator._publish,
    actions.Abandon: Coordinator._abandon,
    actions.SendPin: lambda self, action: self._workers.send(action.shard, wire.Pin(action.barrier)),
    actions.SendCopy: Coordinator._send_copy,
    actions.SendUnpin: lambda self, action: self._workers.send(action.shard, wire.Unpin(action.barrier)),
    actions.Resume: lambda self, action: self._run(self._commit.release()),
    actions.Kill: lambda self, action: self._workers.kill(action.shard),
    actions.Complete: lambda self, action: self.pinning.complete(action),
    actions.Abandoned: lambda self, action: self.pinning.end(action.error),
    actions.SendFlush: lambda self, action: self._workers.send(action.shard, wire.Flush(action.token)),
    actions.SyncRecord: Coordinator._sync_record,
}

_TAKE: dict[type[wire.Answer], Callable[[Coordinator, int, Any], None]] = {
    wire.Hello: Coordinator._on_hello,
    wire.Vote: Coordinator._on_vote,
    wire.Values: Coordinator._on_values,
    wire.Committed: Coordinator._on_committed,
    wire.SoloDone: Coordinator._on_solo_done,
    wire.Stalled: lambda self, shard, stalled: self.lives.stalled.update({shard: stalled.problem}),
    wire.Failed: lambda self, shard, answer: self.lives.said_last(shard, answer.problem),
    wire.Flushed: lambda self, shard, answer: self._run(self.flushing.on_answer(shard, answer)),
    **dict.fromkeys(
        (wire.Pinned, wire.Copied, wire.Unpinned),
        lambda self, shard, answer: self._run(self.pinning.on_answer(shard, answer)),
    ),
}
