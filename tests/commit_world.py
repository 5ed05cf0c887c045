"""A world of the commit protocol: what is explored, one state of it, and a step that changes it. See
tests/commit_model.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from shardengine.engine.commit.actions import (
    Abandon,
    Action,
    Publish,
    Record,
    RunCommands,
    SendAbort,
    SendAsk,
    SendCommit,
    SendPart,
    SendSolo,
    SendWrites,
)
from shardengine.engine.commit.decision import Record as Decision
from shardengine.engine.commit.decision import Recovery, recover
from shardengine.engine.commit.table import Commit
from shardengine.engine.intake.tail import Tail
from shardengine.shards import wire
from shardengine.shards.shard import Shard
from shardengine.shards.types import Standing
from tests.commit_pieces import CANCELLED, CODES, DEAD, KEY, OURS, PENDING, PUBLISHED, Issue, Item, Side, readable
from tests.commit_terms import NewRuns, taken_back
from tests.explorer import ViolationError

if TYPE_CHECKING:
    from tests.commit_model import Model


class Setting(NamedTuple):
    """A world. `deaths` of single workers, `kills` of everything and `failures` of commits happen at most that often,
    at any step. The last ten are the rules; anything but the default is a mistake to be caught, or to look past:
    without `deadlines` nobody minds who is waited for in vain."""

    shards: int
    items: tuple[Item, ...]
    deaths: int = 1
    kills: int = 1
    failures: int = 0
    commit: type[Commit] = Commit
    shard: type[Shard] = Shard
    recover: Callable[[Decision, Sequence[Standing]], Recovery] = recover
    new_runs: NewRuns = Tail.runs_between
    solo_beside: bool = False
    frees_early: bool = False
    lies: bool = False
    reruns_dirty: bool = False
    records_parts_only: bool = False
    deadlines: bool = True


class World(NamedTuple):
    """A state. `commit` is the number of an interned state of Commit. `todo`: the items not yet submitted. `record`:
    the group that the newest readable record names. `recording`: the one that is being written, or 0. `runs`: the terms
    that the coordinator remembers, and `recorded` those in the record; see tests/commit_terms.py."""

    commit: int
    todo: tuple[int, ...]
    issued: tuple[Issue, ...]
    record: int
    recording: int
    deaths: int
    kills: int
    failures: int
    sides: tuple[Side, ...]
    runs: bytes = b""
    recorded: bytes = b""


class Label(NamedTuple):
    """A step, for people. A fault is a step that nobody may wait for."""

    text: str
    message: bytes | None = None
    fault: bool = False

    def __str__(self) -> str:
        return self.text if self.message is None else f"{self.text} {readable(self.message)}"


Step = tuple[Label, World]


class Sides:
    """The sides of a world while a step changes it. Notes which of them the step `looked` at."""

    def __init__(self, sides: tuple[Side, ...]) -> None:
        self._sides = list(sides)
        self.looked: set[int] = set()

    def __getitem__(self, shard: int) -> Side:
        self.looked.add(shard)
        return self._sides[shard]

    def __setitem__(self, shard: int, side: Side) -> None:
        self.looked.add(shard)
        self._sides[shard] = side

    def __iter__(self) -> Iterator[Side]:
        self.looked.update(range(len(self._sides)))
        return iter(self._sides)

    def done(self) -> tuple[Side, ...]:
        return tuple(self._sides)


class Draft:
    """A World while a step changes it: carries out the table's actions."""

    def __init__(self, model: Model, world: World) -> None:
        self.model = model
        self.commit, self.todo, self.issued, self.record, self.recording = world[:5]
        self.budget = world[5:8]
        self.sides = Sides(world.sides)
        model.looked = self.sides.looked
        self.runs, self.recorded = world.runs, world.recorded

    def done(self) -> World:
        place = self.commit, self.todo, self.issued, self.record, self.recording, *self.budget
        return World(*place, self.sides.done(), self.runs, self.recorded)

    def tell(self, event: str, *arguments: Any) -> World:
        """Tell the table what happened, and do what it says."""
        self.commit, actions = self.model.table.step(self.commit, event, *arguments)
        for action in actions:
            self._carry_out(action)
        if len(actions) > 1 and isinstance(actions[-1], Abandon) and isinstance(actions[0], Publish):
            self.model.met.add("staged killer" if actions[-1].killer is not None else "staged no")
        return self.done()

    def _carry_out(self, action: Action) -> None:
        match action:
            case SendPart(shard) | SendSolo(shard) | SendWrites(shard):
                self._send(shard, self.model.order(action, self))
            case SendAsk(shard, number, question):
                self._send(shard, wire.encode(wire.Ask(number, wire.Question(question, [KEY], []))))
            case RunCommands(number):
                self._run_commands(number)
            case SendCommit(shard, number):
                self._send(shard, wire.encode(wire.Commit(number)))
            case SendAbort(shard, number):
                self._send(shard, wire.encode(wire.Abort(number)))
            case Record(number):
                self.recording = number
            case Publish(number):
                if any(issue.fate == PENDING for issue in self.issued[: number - 1]):
                    raise ViolationError(f"group {number} is published before an earlier one")
                self._settle(number, PUBLISHED)
                self.model.check_cut(self.sides, self.issued)
            case Abandon(number, killer):
                self._abandon(number, killer)

    def _run_commands(self, number: int) -> None:
        """The coordinator's command of a group: it appends to what every shard of the exchange has."""
        issue = self.issued[number - 1]
        item = self.model.items[issue.item]
        if not item.exchange <= issue.answered:
            raise ViolationError(
                f"group {number} is computed before shards {set(item.exchange - issue.answered)} answer"
            )
        if item.again and not issue.again:
            self.note(number, again=True)
            self.tell("asked", number, item.again)
        elif item.refused:
            self.tell("refused", number)
        else:
            for shard in item.exchange:
                found = self.model.base(self.issued, number, shard) + bytes([OURS | issue.item])
                if self.model.setting.reruns_dirty and issue.again:
                    found += found[-1:]
                self._write(shard, issue.half, found)
            self.note(number, written=True)
            self.tell("computed", number)

    def note(self, number: int, **facts: Any) -> None:
        """Something is known of a group from now on."""
        issue = self.issued[number - 1]._replace(**facts)
        self.issued = (*self.issued[: number - 1], issue, *self.issued[number:])

    def _write(self, shard: int, half: int, found: bytes) -> None:
        writes = self.sides[shard].writes
        self.sides[shard] = self.sides[shard]._replace(
            writes=(found, writes[1]) if half == 0 else (writes[0], found),
        )

    def _send(self, shard: int, order: bytes) -> None:
        side = self.sides[shard]
        if not side.up:
            raise ViolationError(f"{readable(order)} goes to worker {shard} before its Hello was read")
        if side.worker != DEAD:
            self.sides[shard] = side._replace(inbox=(*side.inbox, order))

    def _settle(self, number: int, fate: int) -> None:
        if self.issued[number - 1].fate != PENDING:
            raise ViolationError(f"group {number} is settled twice")
        self.note(number, fate=fate)
        self.free(number)

    def free(self, number: int) -> None:
        """Give the group's half of the rings back. Its bytes stay until they are overwritten."""
        half = self.issued[number - 1].half
        for shard, side in enumerate(self.sides):
            if side.ring[half] // CODES == number:
                self.fill(shard, half, -side.ring[half])

    def fill(self, shard: int, half: int, code: int) -> None:
        """What is written into a half lies at its start: what the coordinator's commands wrote there before is gone."""
        side = self.sides[shard]
        ring, writes = side.ring, side.writes
        if code > 0:
            writes = (b"", writes[1]) if half == 0 else (writes[0], b"")
        self.sides[shard] = side._replace(ring=(code, ring[1]) if half == 0 else (ring[0], code), writes=writes)

    def _abandon(self, number: int, killer: int | None) -> None:
        """A killer is sent again, and so is what was staged; what was voted down is dropped."""
        again = [] if killer is None else [self.issued[number - 1].item]
        self.model.met.update(() if killer is None else ("killer",))
        self.runs = taken_back(self.runs, self.issued[number - 1].item)
        self._settle(number, CANCELLED)
        for staged in range(number + 1, len(self.issued) + 1):
            again.append(self.issued[staged - 1].item)
            self._settle(staged, CANCELLED)
        self.todo = (*again, *self.todo)


def with_side(world: World, shard: int, side: Side) -> World:
    sides = world.sides
    return World(*world[:8], (*sides[:shard], side, *sides[shard + 1 :]), *world[9:])
