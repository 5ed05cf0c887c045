"""The commit protocol in a small world, walked breadth first through every state the world can be in.

The world is one coordinator, two or three workers, and a short log. Its decisions are made by the very classes the
engine runs, `Commit`, `recover` and `Shard`, which speak in encoded messages of `shards/wire.py`. What is modelled is
what lies around them:

    coordinator   carries out the table's actions: rings in two halves, the decision record, publish, resubmission
    link          two queues in order; what a dead worker has sent is read before the end of the link is
    worker        its death between any two orders, and in the middle of one: after a commit, before the answers
    store         what is committed survives every process; a commit may be refused, for a while
    kill          everything dies at once; rings, record and committed state are all that is left

A torn record leaves the older one, so a kill while a record is being written is a kill before it was written. A
coordinator that dies alone leaves workers that finish what they were sent: that is a kill a few steps later.

Each shard's state is one value, the items of the log it has applied, in order and one byte each, so that what was
read from a ring shows in what was committed. `Setting` says what is explored and which rules are broken on purpose;
`explore` (tests/commit_folded.py) walks, and raises ViolationError with the shortest trace to a broken promise.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from shardengine.engine.commit.actions import Group, SendPart, SendSolo, SendWrites
from shardengine.engine.commit.decision import Record as Decision
from shardengine.engine.commit.decision import Recovery
from shardengine.engine.errors import DamagedError
from shardengine.ipc.ring import Extent
from shardengine.shards import wire
from shardengine.shards.types import Position, Standing
from tests.commit_pieces import (
    CANCELLED,
    CODES,
    DEAD,
    END,
    HALF_BYTES,
    KEY,
    PENDING,
    PUBLISHED,
    Committed,
    Issue,
    Outcome,
    Side,
    Table,
    Workers,
    event_of,
    position_of,
)
from tests.commit_terms import accepted, check_terms, decoded, recorded, taken_along, term_of
from tests.commit_world import Draft, Label, Setting, Step, World, with_side
from tests.explorer import ViolationError


class Model:
    """The rules of one Setting's world: from each state, its next ones."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.items = setting.items
        self.table = Table(setting.shards)
        self.workers = Workers(setting.items, lies=setting.lies, kind=setting.shard)
        self.met: set[str] = set()
        self.trying: Label | None = None
        self.looked: set[int] = set()  # the sides that mattered to the newest step of the coordinator
        self._starts: dict[tuple[Any, ...], tuple[Any, ...]] = {}
        self._orders: dict[tuple[Any, ...], bytes] = {}
        self._events: dict[bytes, tuple[Any, ...]] = {b"": ()}

    def start(self) -> World:
        """Empty shards, every worker welcomed."""
        shards = range(self.setting.shards)
        commit = self.table.intern(self.setting.commit(self.setting.shards))
        for shard in shards:
            commit, _ = self.table.step(commit, "hello", shard, 0)
        budget = (self.setting.deaths, self.setting.kills, self.setting.failures)
        return World(commit, tuple(range(len(self.items))), (), 0, 0, *budget, tuple(Side(up=True) for _ in shards))

    def steps(self, world: World) -> Iterator[Step]:
        """Every step that is possible in `world`. Raises ViolationError at one that breaks a promise."""
        for move in self.moves(world):
            yield self.move(world, move)
        for shard, side in enumerate(world.sides):
            if side.outbox:
                yield self.react(with_side(world, shard, self.heard(shard, side)), shard, side.outbox[0])
            yield from self.alone(world, shard, side)
        if world.kills:
            yield self.restart(world)

    # The coordinator

    def moves(self, world: World) -> list[str]:
        """What the coordinator can do by itself."""
        commit, found = self.table.states[world.commit], []
        if world.todo:
            item = self.items[world.todo[0]]
            alone = len(item.participants) == 1 and not item.exchange
            if commit.can_submit:
                found.append("submit")
            if alone and (commit.idle or (self.setting.solo_beside and commit.can_submit)):
                found.append("submit a solo")
        return [*found, "record"] if world.recording else found

    def move(self, world: World, move: str) -> Step:
        return self._record(world) if move == "record" else self._submit(world, solo=move != "submit")

    def _submit(self, world: World, *, solo: bool) -> Step:
        draft, item = Draft(self, world), world.todo[0]
        number, shards = len(world.issued) + 1, self.items[item].participants
        self.trying = Label(f"submit group {number} over {sorted(shards)}{', solo' * solo}")
        taken = {issue.half for n, issue in enumerate(world.issued, 1) if self._holds(world, n, issue)}
        half = 1 if 0 in taken else 0
        if half in taken:
            raise ViolationError(f"no half of the rings is free for group {number}")
        draft.issued = (*world.issued, Issue(item, solo, half))
        draft.todo, draft.runs = world.todo[1:], accepted(world.runs, item)
        for shard in shards:
            draft.fill(shard, half, number * CODES + item)
        return self.trying, draft.tell("submit", Group(number, shards, solo, self.items[item].exchange))

    def _holds(self, world: World, number: int, issue: Issue) -> bool:
        return issue.fate == PENDING and not (self.setting.frees_early and world.record == number)

    def _record(self, world: World) -> Step:
        draft, self.trying = Draft(self, world), Label(f"the record of group {world.recording} is written")
        draft.record, draft.recording = world.recording, 0
        draft.recorded = recorded(world.runs, world.issued[world.recording - 1].item)
        if self.setting.frees_early:
            draft.free(world.recording)
        return self.trying, draft.tell("recorded", world.recording)

    def heard(self, shard: int, side: Side) -> Side:
        """The coordinator has read the next answer of a worker, or the end of its link."""
        message = side.outbox[0]
        if message == END:
            return self._spawned(shard, side)
        event = self._event(shard, message)
        return side._replace(up=side.up or bool(event and event[0] == "hello"), outbox=side.outbox[1:])

    def react(self, world: World, shard: int, message: bytes) -> Step:
        """What the coordinator makes of it. Of that side `world` has what is left."""
        draft = Draft(self, world)
        self.trying = Label(f"from worker {shard}:", message)
        event = self._event(shard, message)
        if message == END:
            event = ("link_end", shard)
        elif not event:
            self.met.add("stalled")
        elif event[0] != "hello":
            self._check_owed(world, shard, event[2])
            if event[0] == "values":
                self._check_values(world, shard, event[2], *event[4:])
                draft.note(event[2], answered=world.issued[event[2] - 1].answered | {shard})
                event = event[:4]
        return self.trying, draft.tell(*event) if event else draft.done()

    def _event(self, shard: int, message: bytes) -> tuple[Any, ...]:
        found = self._events.get(message)
        if found is None:
            found = self._events[message] = event_of(wire.decode_answer(message))
        return (found[0], shard, *found[1:]) if found else found

    def _spawned(self, shard: int, side: Side) -> Side:
        """A new process, which says Hello. All that the old one was sent or held is lost."""
        position = position_of(side.group, side.content)
        hello = wire.encode(wire.Hello(shard, position, wire.PartResults({}, {})))
        return Side(side.group, side.content, side.ring, side.writes, 0, False, (), (hello,), side.runs)

    def order(self, action: SendPart | SendSolo | SendWrites, draft: Draft) -> bytes:
        issue, side, runs = draft.issued[action.group - 1], draft.sides[action.shard], b""
        if isinstance(action, SendSolo):
            record = draft.issued[draft.record - 1].item + 1 if draft.record else 0
            runs = taken_along(self.setting.new_runs, draft.runs, record, issue.item)
        half, item = issue.half, self.items[issue.item]
        if action.shard not in item.participants:  # only a mistake sends it anything: what its ring holds
            half = 0 if abs(side.ring[0]) > abs(side.ring[1]) else 1
        key = (action, issue.item, half, side.writes[half], runs)
        found = self._orders.get(key)
        if found is None:
            found = self._orders[key] = wire.encode(self._order(*key))
        return found

    def _order(
        self, action: SendPart | SendSolo | SendWrites, item: int, half: int, writes: bytes, runs: bytes
    ) -> wire.Order:
        pauses = isinstance(action, SendPart) and action.pause
        decided = isinstance(action, SendPart) and action.decided
        if pauses or (decided and self.setting.records_parts_only):
            writes = b""
        meant = action.shard in self.items[item].participants
        length = len(self.workers.part(action.shard, item, writes)) if meant else HALF_BYTES
        extent = Extent(half * HALF_BYTES, length, 0)
        position = Position(action.group, item + 1, term_of(item))
        match action:
            case SendSolo():
                return wire.Solo(position, extent, runs)
            case SendWrites(group=group):
                return wire.Writes(group, extent)
            case SendPart(question=number):
                question = None if number is None else wire.Question(number, [KEY], [])
                return wire.Part(position, extent, decided, pauses, question)

    def base(self, issued: tuple[Issue, ...], number: int, shard: int) -> bytes:
        """What a shard holds when its own commands of group `number` are done, and the coordinator's are not."""
        before = [issue.item for issue in issued[: number - 1] if issue.fate != CANCELLED]
        item = issued[number - 1].item
        return b"".join(self.items[n].trace(n, shard) for n in before) + bytes(
            [item] * (shard in self.items[item].shards)
        )

    # The workers

    def alone(self, world: World, shard: int, side: Side) -> Iterator[Step]:
        """What becomes of a worker without the coordinator: it works, or dies."""
        if side.worker != DEAD:
            yield from self._work(world, shard, side)
            if world.deaths:
                yield from self._die(world, shard, side)

    def _work(self, world: World, shard: int, side: Side) -> Iterator[Step]:
        """The worker carries out its next order, or tries again what stalled. It may die over it."""
        orders = [END] if self.workers.stalled(side.worker) else []
        for order in (*orders, *side.inbox[:1]):
            text = f"worker {shard} carries out" if order else f"worker {shard} tries again after"
            self.trying = Label(text, order)
            outcome = self.workers.handle(shard, side, order)
            yield self.trying, self._worked(world, shard, side, order, outcome)
            if world.deaths:
                yield from self._die_over(world, shard, side, order, outcome)
            if world.failures and outcome.commits:
                outcome = self.workers.handle(shard, side, order, failing=True)
                after = self._worked(world._replace(failures=world.failures - 1), shard, side, order, outcome)
                yield Label(f"the commit fails as {text}", order, True), after

    def _worked(self, world: World, shard: int, side: Side, order: bytes, outcome: Outcome) -> World:
        for number, half in outcome.reads:
            self._check_read(world, shard, number, half)
        group, content, runs = self._committed(world, shard, side, outcome.commits)
        inbox = side.inbox[1:] if order else side.inbox
        outbox = side.outbox + outcome.answers
        after = Side(group, content, side.ring, side.writes, outcome.worker, side.up, inbox, outbox, runs)
        return with_side(world, shard, after)

    def _committed(self, world: World, shard: int, side: Side, commits: tuple[Committed, ...]) -> Committed:
        group, content, runs = side.group, side.content, side.runs
        for number, after, left in commits:
            self._check_commit(world, shard, number, group, content, after)
            group, content, runs = number, after, left
        return group, content, runs

    def _die(self, world: World, shard: int, side: Side) -> Iterator[Step]:
        """The worker dies between two orders. Its orders are lost; its answers are read yet."""
        outbox = side.outbox
        if not side.up and side.worker == 0 and len(outbox) == 1:  # all it has said is Hello, or not even that
            yield Label(f"worker {shard} dies before its Hello", fault=True), self._dead(world, shard, side, ())
        yield Label(f"worker {shard} dies", fault=True), self._dead(world, shard, side, outbox)

    def _dead(self, world: World, shard: int, side: Side, outbox: tuple[bytes, ...]) -> World:
        dead = Side(side.group, side.content, side.ring, side.writes, DEAD, side.up, (), (*outbox, END), side.runs)
        return with_side(world._replace(deaths=world.deaths - 1), shard, dead)

    def _die_over(self, world: World, shard: int, side: Side, order: bytes, outcome: Outcome) -> Iterator[Step]:
        """The worker dies after some of the order's commits, or after all and some of the answers."""
        commits, answers = outcome.commits, outcome.answers
        ways = [(count, 0) for count in range(1, len(commits) + 1)]
        ways += [(len(commits), count) for count in range(1, len(answers))]
        for committed, answered in ways:
            group, content, runs = self._committed(world, shard, side, commits[:committed])
            after = side._replace(group=group, content=content, runs=runs)
            text = f"worker {shard} dies, {committed} commits and {answered} answers into its work on"
            self.met.add("death between commit and answer")
            yield Label(text, order, True), self._dead(world, shard, after, (*side.outbox, *answers[:answered]))

    # The start after a kill

    def restart(self, world: World) -> Step:
        """Nothing is left but what is durable, so that is all the next state depends on."""
        self.trying = Label("everything is killed; start again", fault=True)
        if world.recording:
            self.met.add("torn record")
        key = (
            world.issued,
            world.record,
            world.recorded,
            *((side.group, side.content, side.ring, side.writes, side.runs) for side in world.sides),
        )
        found = self._starts.get(key)
        if found is None:
            found = self._starts[key] = self._started(world)
        commit, todo, issued, sides, runs = found
        budget = (world.deaths, world.kills - 1, world.failures)
        return self.trying, World(commit, todo, issued, world.record, 0, *budget, sides, runs, world.recorded)

    def _started(self, world: World) -> tuple[Any, ...]:
        recovery = self._recover(world)
        number, redo = recovery.position.group, recovery.redo
        if any(issue.fate == PUBLISHED for issue in world.issued[number:]):
            raise ViolationError(f"the engine starts at group {number}, but a later one was acknowledged")
        draft = Draft(self, world)
        for n, issue in enumerate(world.issued, 1):
            if issue.fate == PENDING and (redo is None or n != redo.number):
                draft.free(n)
        issued = tuple(
            issue._replace(fate=self._fate(world, n, issue, redo)) for n, issue in enumerate(world.issued[:number], 1)
        )
        if redo is None:
            self.check_cut(draft.sides, issued)
        self.met.update({"redo"} if redo else {"solo ahead of the record"} if number > world.record else ())
        commit = self.setting.commit(self.setting.shards, number, redo, recovery.committed)
        sides = tuple(self._spawned(shard, side) for shard, side in enumerate(draft.sides))
        runs = check_terms(recovery, [issue.item for issue in issued if issue.fate != CANCELLED])
        return self.table.intern(commit), tuple(range(recovery.position.index, len(self.items))), issued, sides, runs

    def _recover(self, world: World) -> Recovery:
        position, extents = Position(), {}
        if world.record:
            issue = world.issued[world.record - 1]
            position = Position(world.record, issue.item + 1, term_of(issue.item))
            extents = {shard: Extent(issue.half * HALF_BYTES, 0, 0) for shard in self.items[issue.item].participants}
        standings = [Standing(position_of(side.group, side.content), side.runs) for side in world.sides]
        try:
            return self.setting.recover(Decision(position, decoded(world.recorded), extents, 1), standings)
        except DamagedError as error:
            raise ViolationError(f"the start finds damage: {error}") from error

    def _fate(self, world: World, number: int, issue: Issue, redo: Group | None) -> int:
        """What becomes of a group at or below the one at which the engine starts: all of it is there, or will be."""
        if issue.fate == CANCELLED or (redo is not None and redo.number == number):
            return issue.fate
        item, sides = self.items[issue.item], world.sides
        missing = [s for s in item.participants if item.trace(issue.item, s) not in sides[s].content]
        if missing:
            raise ViolationError(f"after the start group {number} is not on shards {missing}, and will not be")
        return PUBLISHED

    # The promises

    def check_cut(self, sides: Iterable[Side], issued: tuple[Issue, ...]) -> None:
        """What readers are shown now: every published group, whole and in order, and nothing else."""
        for shard, side in enumerate(sides):
            published = [issue.item for issue in issued if issue.fate == PUBLISHED]
            expected = b"".join(self.items[item].trace(item, shard) for item in published)
            if side.content != expected:
                raise ViolationError(f"readers see items {list(side.content)} on shard {shard}, not {list(expected)}")

    def _check_commit(self, world: World, shard: int, number: int, group: int, before: bytes, after: bytes) -> None:
        issue = world.issued[number - 1]
        if issue.fate == CANCELLED:
            raise ViolationError(f"shard {shard} commits group {number}, which was abandoned")
        if world.record != number and not issue.solo:
            raise ViolationError(f"shard {shard} commits group {number}, which is not decided")
        if number <= group or issue.fate != PENDING:
            raise ViolationError(f"shard {shard} commits group {number} after group {group}")
        if after != before + self.items[issue.item].trace(issue.item, shard) or after == before:
            raise ViolationError(f"shard {shard} commits group {number} as {list(after)} upon {list(before)}")

    def _check_read(self, world: World, shard: int, number: int, half: int) -> None:
        """Only of a cancelled group may a worker read bytes that are free, or another group's."""
        issue, code = world.issued[number - 1], world.sides[shard].ring[half]
        if issue.fate != CANCELLED and code != number * CODES + issue.item:
            whose = f"{'freed ' if code < 0 else ''}bytes of group {abs(code) // CODES}"
            raise ViolationError(f"worker {shard} reads {whose} as its part of group {number}")

    def _check_values(self, world: World, shard: int, number: int, value: bytes | None) -> None:
        expected = self.base(world.issued, number, shard)
        if world.issued[number - 1].fate == PENDING and (value or b"") != expected:
            raise ViolationError(f"group {number} runs on {list(value or b'')} of shard {shard}, not {list(expected)}")

    def _check_owed(self, world: World, shard: int, number: int) -> None:
        if world.issued[number - 1].fate == CANCELLED:
            self.met.add("late answer")
        elif self.setting.deadlines and shard not in self.table.owing[world.commit]:
            raise ViolationError(f"an answer to group {number} comes from worker {shard}, which owes none")

    def check(self, world: World) -> None:
        """Assert that no worker is waited for that has nothing to do: its deadline would kill it."""
        self.trying = None
        owing = self.table.owing[world.commit] if self.setting.deadlines else frozenset()
        for shard in owing:
            side = world.sides[shard]
            if not side.inbox and not side.outbox and not self.workers.stalled(side.worker):
                raise ViolationError(f"worker {shard} is said to owe an answer, and has nothing to do")

    def check_end(self, world: World) -> None:
        """Assert that where nothing more happens everything is done."""
        self.trying = None
        idle = all(side.up and side.worker == 0 and not side.inbox + side.outbox for side in world.sides)
        if world.todo or world.recording or not idle or any(issue.fate == PENDING for issue in world.issued):
            raise ViolationError("nothing more can happen, but not all is done")
        self.check_cut(world.sides, world.issued)
