"""Chunks in, actions of the commit table carried out, results out. Single-threaded; no event loop, no clock.

The shell (`run/shell.py`) brings it what happened: a chunk, an answer, the end of a link, the time. It does I/O only
through what it was given: workers to send to, rings to write, the decision file, the readers' side. A simulator can
give it others.

Order of life of a chunk: `accept` checks, splits and queues it; `_fill` makes a group of what is queued, writes its
parts into the rings' free halves and submits it; answers come in; `_publish` shows it to readers and resolves it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

from shardengine.engine.commit.barrier import Stage
from shardengine.engine.commit.decision import DecisionFile
from shardengine.engine.commit.decision import Record as DecisionRecord
from shardengine.engine.commit.flushing import Done, Flushing
from shardengine.engine.commit.lives import Lives, Patience
from shardengine.engine.commit.packing import Packing
from shardengine.engine.commit.pinning import Pinning, Request, Sender
from shardengine.engine.commit.table import (
    Abandon,
    Action,
    Commit,
    Group,
    Publish,
    Record,
    SendAbort,
    SendCommit,
    SendPart,
    SendSolo,
)
from shardengine.engine.contract import Results
from shardengine.engine.errors import (
    ChunkAbortedError,
    EngineError,
    SnapshotAbortedError,
    SyncFailedError,
    WorkerFailedError,
    disk_error,
    named,
)
from shardengine.engine.intake.chunks import Batch, Chunk, Delivery, error_of
from shardengine.engine.intake.split import Splitter
from shardengine.engine.intake.tail import Tail, normalised
from shardengine.shards import wire
from shardengine.shards.fast import Normal
from shardengine.shards.types import ApplyResult, Entry, LogId, Position

BRIEF_BYTES = 16 * 1024  # so much in flight is worth staying awake for
DECIDED_KILLS_MAX = 10  # more than `commit.KILLS_MAX`, after which a group that is not decided is abandoned


class Publisher(Protocol):
    """What it needs of the readers' side."""

    def publish(self, shards: Collection[int], position: Position) -> None: ...


class Coordinator:
    """Drives one generation from its start to its stop.

    Invariants: applied <= submitted <= accepted, in log order; `_queue` is what is accepted and not submitted;
    `_batches` are the open group and the staged one; each half of the rings belongs to at most one of them.
    """

    def __init__(
        self,
        *,
        splitter: Splitter,
        workers: Sender,
        packing: Packing,
        shards: int,
        decision: DecisionFile,
        position: Position,
        commit: Commit,
        machine_version: int,
        power: bool,
    ) -> None:
        record = decision.record
        self._splitter = splitter
        self._workers = workers
        self._packing = packing
        self._decision = decision
        self._commit = commit
        self._machine_version = machine_version
        self._power = power
        self._queue: deque[Chunk] = deque()
        self._batches: dict[int, Batch] = {}
        self._last_group = position.group
        self._reads: Publisher | None = None
        self.lives = Lives(shards)
        self.up: set[int] = set()
        self.applied = position
        self.tail = Tail(position.index, position.term, position.clock, record.term_runs)
        self.failure: EngineError | None = None
        self.stalled: dict[int, wire.Problem] = {}
        self.in_flight_chunks = 0
        self.in_flight_bytes = 0
        self._entries_applied = 0
        self._bytes_applied = 0
        self.wake: Callable[[Any], None] = lambda waiter: None
        self.on_publish: Callable[[], None] = lambda: None
        self.on_failure: Callable[[EngineError], None] = lambda error: None
        self.before_write: Callable[[], None] = lambda: None
        self._carry_out: dict[type[Action], Callable[[Any], None]] = {
            SendPart: self._send_part,
            SendSolo: self._send_solo,
            SendCommit: self._send_commit,
            SendAbort: self._send_abort,
            Record: self._record,
            Publish: self._publish,
            Abandon: self._abandon,
        }
        self._take: dict[type[wire.Answer], Callable[[int, Any], None]] = {
            wire.Hello: self._on_hello,
            wire.Vote: self._on_vote,
            wire.Committed: self._on_committed,
            wire.SoloDone: self._on_solo_done,
            wire.Stalled: self._on_stalled,
            wire.Failed: self._on_failed,
        }
        self.pinning = Pinning(shards, commit, workers, self._run, self.tail.kept_runs)
        self.flushing = Flushing(shards, commit, workers, decision, self.up)
        self._take[wire.Flushed] = self.flushing.on_answer
        self._take |= dict.fromkeys((wire.Pinned, wire.Copied, wire.Unpinned), self.pinning.on_answer)
        if commit.open is not None:
            self._batches[commit.open.number] = Batch(
                [], packing.half_of(record), record.position, frozenset(record.participants), record.participants
            )

    # ---- what is asked -------------------------------------------------------------------------------------------

    def attach(self, reads: Publisher) -> None:
        """From now on publishes are shown to `reads`."""
        self._reads = reads

    @property
    def idle(self) -> bool:
        """True when nothing is accepted that is not resolved."""
        return self._commit.idle and not self._queue

    @property
    def brief(self) -> bool:
        """True while something is in flight, and all of it is small."""
        return 0 < self.in_flight_bytes <= BRIEF_BYTES

    def owes(self, shard: int) -> bool:
        """True while the worker of `shard` owes an answer."""
        return self._commit.owes(shard) or self.flushing.owes(shard) or self.pinning.owes(shard)

    # ---- chunks --------------------------------------------------------------------------------------------------

    def accept(self, entries: Sequence[Entry]) -> Delivery:
        """Take a chunk, whole or not at all. Raises when it does not fit the log, or holds bad data."""
        if self.failure is not None:
            raise self.failure.again()
        form = normalised(entries, self.tail.clock)
        known = self.tail.check(form)
        if not known:
            return Delivery(form.first, form.last, [], [self._queue_chunk(form)])
        shared = [chunk for chunk in self._in_flight() if chunk.last >= form.first and chunk.first <= form.last]
        for chunk in shared:
            chunk.check_same(form)
        last = min(form.last, self.applied.index)
        applied = [ApplyResult(index, True, already_applied=True) for index in range(form.first, last + 1)]
        if known < len(form.datas):
            shared.append(self._queue_chunk(normalised(entries[known:], self.tail.clock)))
        return Delivery(form.first, form.last, applied, shared)

    def _in_flight(self) -> list[Chunk]:
        return [chunk for batch in self._batches.values() for chunk in batch.chunks] + list(self._queue)

    def _queue_chunk(self, form: Normal) -> Chunk:
        split = self._splitter.split(form)
        chunk = Chunk(form, self.tail.mark, split)
        self.tail.extend(form)
        self.pinning.accepted(chunk.first, chunk.last)
        self._queue.append(chunk)
        self.in_flight_chunks += 1
        self.in_flight_bytes += chunk.bytes
        self._fill()
        return chunk

    def begin_at(self, last: LogId) -> None:
        """Have the log begin behind `last`, where nothing is accepted yet. A group of no entries moves index and term
        there, and is decided, hence kept, as every other. Raises what keeps it from that."""
        assert self.idle and self.applied.index == 0
        self.before_write()
        position = Position(self._last_group + 1, last.index, last.term, self.tail.clock)
        self.tail.begin_at(last)
        self._last_group += 1
        self._batches[position.group] = Batch([], 0, position, frozenset(), {})
        self._run(self._commit.submit(Group(position.group, frozenset())))
        if self.failure is not None:
            raise self.failure.again()

    def _fill(self) -> None:
        """Submit what is queued, as far as the commit table takes groups."""
        while self._queue and self._commit.can_submit and not self.flushing.busy and self.failure is None:
            try:
                self.before_write()
                group = self._next_group()
            except EngineError as error:
                if self._power and isinstance(error, SyncFailedError):
                    self.fail(error)  # nothing can be acknowledged any more
                else:
                    self._fail_from(0, error)
            except OSError as error:
                self._fail_from(0, disk_error("a ring cannot be written", error))
            else:
                self._run(self._commit.submit(group))

    def _next_group(self) -> Group:
        """Take the first queued chunks, and write their parts where they belong. What is raised leaves them queued."""
        half = 1 - next(iter(self._batches.values())).half if self._batches else 0
        chunks, extents = self._packing.pack(self._queue, half, self.pinning.label)
        participants = frozenset(extents)
        last = chunks[-1]
        position = Position(self._last_group + 1, last.last, last.terms[-1][1], last.clock)
        for _ in chunks:
            self._queue.popleft()
        self._last_group += 1
        self._batches[position.group] = Batch(chunks, half, position, participants, extents)
        return Group(position.group, participants, self._solo(chunks, participants))

    def _solo(self, chunks: list[Chunk], participants: Collection[int]) -> bool:
        """A solo leaves no record, so all its entries must be of the term that the record ends with."""
        if len(participants) != 1 or not self._commit.can_solo:
            return False
        runs = self._decision.record.term_runs
        return bool(runs) and chunks[0].terms[0][1] == runs[-1].term == chunks[-1].terms[-1][1]

    # ---- actions of the commit table -----------------------------------------------------------------------------

    def _run(self, actions: list[Action]) -> None:
        """Carry out what the table says. It has changed its state already: what fails here fails the engine."""
        try:
            for action in actions:
                self._carry_out[type(action)](action)
        except Exception as error:
            self.fail(named(error))
            if not isinstance(error, (EngineError, OSError)):
                raise

    def _send_part(self, action: SendPart) -> None:
        batch = self._batches[action.group]
        self._workers.send(action.shard, wire.Part(batch.position, batch.extents[action.shard], action.decided))

    def _send_solo(self, action: SendSolo) -> None:
        batch = self._batches[action.group]
        self.pinning.decided(batch.position.index)
        self._workers.send(action.shard, wire.Solo(batch.position, batch.extents[action.shard]))

    def _send_commit(self, action: SendCommit) -> None:
        self._workers.send(action.shard, wire.Commit(action.group))

    def _send_abort(self, action: SendAbort) -> None:
        self._workers.send(action.shard, wire.Abort(action.group))

    def _record(self, action: Record) -> None:
        """Write the decision: from its first byte on there is no way back."""
        batch = self._batches[action.group]
        batch.extents = self._packing.summed(batch.extents)
        position = batch.position
        record = DecisionRecord(position, self.tail.kept_runs(position.index), batch.extents, self._machine_version)
        try:
            if self._power:
                self._packing.sync(batch.extents)
            self._decision.write(record, sync=self._power)
        except OSError as error:
            self.fail(disk_error("the last chunks are undecided until the next start: no decision record", error))
            return
        self.pinning.decided(position.index)
        self._run(self._commit.recorded(position.group))

    def _publish(self, action: Publish) -> None:
        batch = self._batches[action.group]
        assert self._reads is not None or not batch.chunks
        if self._reads is not None:
            self._reads.publish(batch.participants, batch.position)
        self.applied = batch.position
        del self._batches[action.group]
        self.tail.forget_old_runs()
        for chunk, told in zip(batch.chunks, batch.told(), strict=True):
            chunk.results = Results(chunk.first, chunk.last, told)
            self._entries_applied += len(chunk.results)
            self._bytes_applied += chunk.bytes
            self._settle(chunk)
        self.on_publish()

    def take_counts(self) -> tuple[int, int]:
        """Entries and bytes applied since this was asked last."""
        counts = self._entries_applied, self._bytes_applied
        self._entries_applied = self._bytes_applied = 0
        return counts

    def _settle(self, chunk: Chunk) -> None:
        """`chunk` is done: it makes room, and who waits for it may go on."""
        self.in_flight_chunks -= 1
        self.in_flight_bytes -= chunk.bytes
        for waiter in chunk.settle():
            self.wake(waiter)

    def _fail_chunk(self, chunk: Chunk, error: EngineError) -> None:
        chunk.error = error
        self._settle(chunk)

    # ---- what went wrong -----------------------------------------------------------------------------------------

    def _abandon(self, action: Abandon) -> None:
        """Take the chunks of a group, and of the one staged behind it, back; then fail those that must fail."""
        batches = [self._batches.pop(number) for number in sorted(self._batches)]
        guilty = batches[0]
        assert guilty.position.group == action.group
        self.pinning.taken_back()
        self._queue.extendleft(reversed([chunk for batch in batches for chunk in batch.chunks]))
        if action.killer is not None:
            self._isolate(guilty, self._killer_error(guilty, action.killer))
            return
        index, problem = guilty.first_no()
        error = error_of(problem, index)
        if index is None:
            self._isolate(guilty, error)
        else:
            self._fail_from(next(at for at, chunk in enumerate(self._queue) if chunk.last >= index), error)

    def _isolate(self, guilty: Batch, error: EngineError) -> None:
        """A group failed without naming an entry: send its chunks again one by one. When it is one chunk already,
        that chunk fails; and when it killed its worker, the engine does."""
        if len(guilty.chunks) > 1:
            for chunk in guilty.chunks:
                chunk.alone = True
        elif isinstance(error, WorkerFailedError):
            self.fail(error)
        else:
            self._fail_from(0, error)

    def _killer_error(self, guilty: Batch, shard: int) -> WorkerFailedError:
        last = guilty.position.index
        first = guilty.chunks[0].first if guilty.chunks else last
        chunk, worker = f"the chunk of entries {first} to {last}", f"the worker of shard {shard}"
        what = f"{chunk} killed {worker} every time it was sent"
        hint = "see worker.log; reads go on, and a restart with a mended machine applies again"
        if setting := self.lives.outlasted(shard):
            what = f"{worker} was not done with {chunk} in time, however often it was sent"
            hint = f"raise {setting}, or find what it waits for: the disk, or the machine's apply; reads go on"
        return WorkerFailedError(
            f"{what}, the last time: {self.lives.why_ended(shard)}",
            hint=hint,
            shard=shard,
            index=first,
            last=last,
        )

    def _fail_from(self, at: int, error: EngineError) -> None:
        """Fail the queued chunk at position `at`; those behind it would be gaps, so they fail with it."""
        chunks = list(self._queue)
        failing, behind = chunks[at], chunks[at + 1 :]
        self._queue = deque(chunks[:at])
        self.tail.retreat(failing.before)
        self._fail_chunk(failing, error)
        for chunk in behind:
            self._fail_chunk(
                chunk,
                ChunkAbortedError(
                    f"the chunk of entries {chunk.first} to {chunk.last} was not applied: the chunk of entries "
                    f"{failing.first} to {failing.last}, ahead of it, failed: {error.message}",
                    hint=f"send it again once the log is applied up to {chunk.first - 1}",
                    first=chunk.first,
                    last=chunk.last,
                    failed_first=failing.first,
                    failed_last=failing.last,
                ),
            )
        self.on_publish()

    def fail(self, error: EngineError) -> None:
        """Stop applying for good: every chunk in flight fails with `error`, and every later one. Reads go on."""
        if self.failure is not None:
            return
        self.failure = error
        self.on_failure(error)
        failing = self._in_flight()
        self._batches.clear()
        self._queue.clear()
        for chunk in failing:
            self._fail_chunk(chunk, error)
        self.flushing.end(error)
        self.pinning.drop(SnapshotAbortedError(f"the snapshot was given up: {error.message}"))
        self.on_publish()

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
        if problem is not None and problem.kind == SyncFailedError.__name__ and not isinstance(answer, wire.Flushed):
            self.fail(error_of(problem, None))  # in mode "power": what was to be acknowledged is not on the disk
            return
        self._take[type(answer)](shard, answer)
        self._proceed()

    def _on_vote(self, shard: int, vote: wire.Vote) -> None:
        self._note(shard, vote)
        self._run(self._commit.vote(shard, vote.group, vote.problem is None))

    def _on_solo_done(self, shard: int, done: wire.SoloDone) -> None:
        self._note(shard, done)
        self._run(self._commit.solo_done(shard, done.group, done.problem is None))

    def _on_committed(self, shard: int, committed: wire.Committed) -> None:
        self.stalled.pop(shard, None)
        self._run(self._commit.committed(shard, committed.group))

    def _on_stalled(self, shard: int, stalled: wire.Stalled) -> None:
        self.stalled[shard] = stalled.problem

    def _on_failed(self, shard: int, failed: wire.Failed) -> None:
        self.lives.said_last(shard, failed.problem)

    def _on_hello(self, shard: int, hello: wire.Hello) -> None:
        assert hello.shard == shard
        self.lives.welcome(shard)
        self.up.add(shard)
        batch = self._batches.get(hello.position.group)
        if batch is not None:
            batch.results.setdefault(shard, hello.solo)
        self._run(self._commit.hello(shard, hello.position.group))
        self.flushing.welcome(shard)

    def _note(self, shard: int, answer: wire.Vote | wire.SoloDone) -> None:
        batch = self._batches.get(answer.group)
        if batch is None:
            return
        if answer.problem is not None:
            batch.noes[shard] = (answer.index, answer.problem)
        elif answer.results is not None:
            batch.results[shard] = answer.results

    def on_link_end(self, shard: int) -> bool:
        """The worker of `shard` is dead and reaped. Returns True when another should be started."""
        hopeless = self.lives.ended(shard, was_up=shard in self.up)
        self.up.discard(shard)
        self.stalled.pop(shard, None)
        for batch in self._batches.values():
            batch.noes.pop(shard, None)
        if self.failure is not None:
            return False
        if hopeless is not None:
            self.fail(hopeless)
            return False
        self._run(self._commit.link_end(shard))
        if self._commit.kills(shard) >= DECIDED_KILLS_MAX:
            self.fail(self._killer_error(next(iter(self._batches.values())), shard))
            return False
        self.pinning.on_link_end(shard)
        self._proceed()
        return self.failure is None

    def on_start_refused(self, shard: int, error: OSError) -> None:
        """No worker could be started for `shard`, to be tried again unless that is a failure by now."""
        if (hopeless := self.lives.refused(shard, error)) is not None:
            self.fail(hopeless)

    def tick(self, now: float, patience: Patience) -> None:
        """Time passes (in seconds): kill workers that owe an answer for too long."""
        self.pinning.tick(now)
        late = self.lives.tick(now, self._awaits, lambda shard: self._limits(shard, patience))
        for shard, limit in late.items():
            setting = self._setting(shard, limit, patience)
            error, again = self.lives.condemn(shard, self._workers.pid(shard), limit, setting)
            if again:
                self.fail(error)
                return
            if self._flushes(shard) and setting == "flush_timeout_ms":
                self.flushing.expire(shard, error)
            self._workers.kill(shard)

    def _awaits(self, shard: int) -> bool:
        return self.failure is None and self.owes(shard)

    def _limits(self, shard: int, patience: Patience) -> tuple[float, float]:
        """How long the worker of `shard` may owe its answer, and be silent: it is not while it waits for the disk."""
        if shard not in self.up:
            return patience.start, patience.start
        if self._flushes(shard):
            return patience.flush, patience.answer
        return max(patience.flush, patience.answer) if self._power else patience.answer, patience.answer

    def _setting(self, shard: int, limit: float, patience: Patience) -> str:
        """Which setting the `limit` is of that the worker of `shard` has passed."""
        if shard not in self.up:
            return "start_timeout_ms"
        waits = self._flushes(shard) or self._power
        return "flush_timeout_ms" if waits and limit == patience.flush else "worker_timeout_ms"

    def _flushes(self, shard: int) -> bool:
        return shard in self.up and self.flushing.owes(shard)

    def _proceed(self) -> None:
        """After every event: submit what may now be submitted, flush when nothing is open."""
        if self.pinning.stage is Stage.WAITING:
            self.pinning.place(self.applied, len(self.up))
        if self._queue:
            self._fill()
        self.flushing.proceed()

    # ---- snapshot ------------------------------------------------------------------------------------------------

    def snapshot(self, request: Request) -> None:
        """Begin a snapshot; see `Pinning.request`. Raises the engine's failure when there is one."""
        if self.failure is not None:
            raise self.failure.again()
        self.pinning.request(request, self.applied, self._in_flight())
        self._proceed()

    # ---- flush ---------------------------------------------------------------------------------------------------

    def flush(self, done: Done) -> None:
        """Make all that is published durable; then call `done`, with an error when it failed. No group opens
        meanwhile."""
        if self.failure is not None:
            done(self.failure.again())
        else:
            self.flushing.request(done)
