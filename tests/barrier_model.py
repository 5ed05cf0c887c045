"""The snapshot barrier and the commit table in a world of their own: a coordinator, workers, and the messages between.

Workers are modelled as shards/snapshot.py has them; the coordinator's glue is that of engine/commit/pinning.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple

import msgspec

from shardengine.engine.commit import actions
from shardengine.engine.commit.actions import Group, Publish, Record, SendCommit, SendPart
from shardengine.engine.commit.barrier import Barrier, Stage
from shardengine.engine.commit.state import State
from shardengine.engine.commit.table import Commit
from shardengine.shards import wire

PROBLEM = wire.Problem("StoreError", "told to fail", "", {})


class Step(NamedTuple):
    name: str
    fault: bool = False

    def __str__(self) -> str:
        return self.name


class Budget(NamedTuple):
    """How often something may still happen."""

    groups: tuple[frozenset[int], ...]
    snapshots: int
    deaths: int
    problems: int
    deadlines: int


class Worker(msgspec.Struct):
    """`inbox` holds orders, `outbox` answers; both outlive nobody but the reader of what was sent before a death."""

    committed: int = 0
    alive: bool = True
    inbox: tuple[tuple[Any, ...], ...] = ()
    outbox: tuple[tuple[Any, ...], ...] = ()
    parts: tuple[int, ...] = ()
    pin: tuple[int, int] | None = None  # barrier, group
    copying: bool = False
    unpin: bool = False

    def say(self, *answer: Any) -> None:
        self.outbox = (*self.outbox, answer)

    def die(self) -> None:
        if self.alive:
            self.alive, self.inbox, self.parts, self.pin = False, (), (), None
            self.copying = self.unpin = False
            self.say("end")

    def take(self, problem: bool = False) -> None:
        (kind, *rest), self.inbox = self.inbox[0], self.inbox[1:]
        if kind == "part":
            group, decided = rest
            if decided:
                self.committed = group
                self.say("committed", group)
                return
            self.parts = (*self.parts, group)
            if self.parts == (group,):
                self.say("vote", group)
        elif kind == "commit":
            self.committed, self.parts = rest[0], self.parts[1:]
            self.say("committed", rest[0])
            if self.parts:
                self.say("vote", self.parts[0])
        elif kind == "pin":
            assert self.pin is None, "two pins"
            if not problem:
                self.pin = rest[0], self.committed
            self.say("pinned", rest[0], problem)
        elif kind == "copy":
            assert self.pin is not None and self.pin[0] == rest[0]
            self.copying = True
        elif self.copying:
            self.unpin = True
        else:
            self.pin = None
            self.say("unpinned", rest[0])

    def end_copy(self, problem: bool = False) -> None:
        assert self.pin is not None
        if self.unpin:
            self.say("unpinned", self.pin[0])
        else:
            self.say("copied", *self.pin, problem)
        self.pin, self.copying, self.unpin = None, False, False


KNOWS = ("mind", "commit", "barrier", "groups", "published", "placed", "resumed", "up")
"""What the coordinator knows of a world."""


class World:
    """Everything, and the coordinator in it. Equal worlds have equal `key`s.

    Clones share their parts. A worker is had from `worker` by who changes it. What the coordinator does depends on what
    it knows and on what it is told, and on no worker: it is worked out once (`tell`), and done to the workers after.
    """

    barrier_type: type[Barrier] = Barrier
    ignores_hold = False

    def __init__(self, shards: int, budget: Budget) -> None:
        self.budget = budget
        self.commit = Commit(shards)
        self.barrier = self.barrier_type(shards)
        self.workers = [Worker() for _ in range(shards)]
        self.groups: tuple[frozenset[int], ...] = ()
        self.published = self.placed = self.resumed = 0
        self.up = frozenset(range(shards))
        self.minds: dict[tuple[Any, ...], tuple[int, Commit, Barrier]] = {}
        self.told: dict[tuple[Any, ...], tuple[dict[str, Any], list[Callable[[World], None]]]] = {}
        self.doing: list[Callable[[World], None]] = []
        for shard in range(shards):
            self.commit.hello(shard, 0)
        self.know()

    def clone(self) -> World:
        world = object.__new__(type(self))
        vars(world).update(vars(self))
        world.workers = list(self.workers)
        return world

    def worker(self, shard: int) -> Worker:
        """That of this world alone."""
        worker = self.workers[shard] = msgspec.structs.replace(self.workers[shard])
        return worker

    def know(self) -> None:
        """The coordinator has changed, maybe to what it was once before: number what differs."""
        barrier = vars(self.barrier)
        fixed = tuple([_hashable(value) for name, value in barrier.items() if name not in ("_error", "_parts")])
        parts = frozenset([(shard, part.entries) for shard, part in barrier["_parts"].items()])
        key = tuple(map(_hashable, _values(self.commit))), fixed, parts
        self.mind, self.commit, self.barrier = self.minds.setdefault(key, (len(self.minds), self.commit, self.barrier))

    def key(self) -> tuple[Any, ...]:
        workers = tuple(map(msgspec.structs.astuple, self.workers))
        return self.mind, workers, self.budget, self.published, self.placed, self.resumed, self.up

    # what the coordinator does

    def tell(self, what: Callable[..., None], *arguments: Any) -> None:
        """The coordinator is told `what`, one of the methods that follow."""
        key = self.mind, self.published, self.placed, self.resumed, self.up, self.groups, what, arguments
        if key not in self.told:
            world = self.clone()
            world.commit, world.barrier, world.doing = Commit.__new__(Commit), object.__new__(type(self.barrier)), []
            for name in State.__slots__:
                setattr(world.commit, name, _copied(getattr(self.commit, name)))
            vars(world.barrier).update({name: _copied(value) for name, value in vars(self.barrier).items()})
            what(world, *arguments)
            world.proceed()
            world.know()
            self.told[key] = {name: getattr(world, name) for name in KNOWS}, world.doing
        known, doing = self.told[key]
        vars(self).update(known)
        for do in doing:
            do(self)

    def run(self, actions: Iterable[Any]) -> None:
        for action in actions:
            match action:
                case SendPart(shard, group, decided):
                    self.send(shard, "part", group, decided)
                case SendCommit(shard, group):
                    self.send(shard, "commit", group)
                case Record(group):
                    assert self.barrier.stage is not Stage.PINNING, f"group {group} is decided while shards pin"
                    self.run(self.commit.recorded(group))
                case Publish(group):
                    self.published = group
                case _:
                    self.act(action)

    def act(self, action: actions.Action) -> None:
        match action:
            case actions.SendPin(shard, number):
                self.send(shard, "pin", number)
            case actions.SendCopy(shard, number):
                self.send(shard, "copy", number)
            case actions.SendUnpin(shard, number):
                self.send(shard, "unpin", number)
            case actions.Resume():
                self.resumed += 1
                self.run(self.commit.release())
            case actions.Kill(shard):
                self.doing.append(partial(World.kill, shard=shard))
            case actions.Complete(parts):
                assert {shard: part.entries for shard, part in parts.items()} == self.expected(), "not what was placed"
            case actions.Abandoned():
                self.doing.append(partial(World.check_free, number=self.barrier.number))

    def expected(self) -> dict[int, int]:
        """The group that each shard stands at once `placed` is published everywhere."""
        done = list(enumerate(self.groups[: self.placed], 1))
        return {
            shard: max([number for number, participants in done if shard in participants], default=0)
            for shard in range(len(self.workers))
        }

    def send(self, shard: int, *order: Any) -> None:
        assert shard in self.up, f"an order for a dead worker: {order}"
        self.doing.append(partial(World.give, shard=shard, order=order))

    def proceed(self) -> None:
        if self.barrier.stage is Stage.WAITING:
            if not self.ignores_hold:
                self.commit.hold()
            if (self.commit.quiet or self.ignores_hold) and len(self.up) == len(self.workers):
                self.placed = self.published
                self.run(self.barrier.place())

    def hear(self, shard: int, kind: str, *rest: Any) -> None:
        if kind == "vote":
            self.run(self.commit.vote(shard, rest[0], True))
        elif kind == "committed":
            self.run(self.commit.committed(shard, rest[0]))
        elif kind == "hello":
            self.up |= {shard}
            self.run(self.commit.hello(shard, rest[0]))
        elif kind == "pinned":
            self.run(self.barrier.pinned(shard, rest[0], "told to fail" if rest[1] else None))
        elif kind == "copied":
            number, group, problem = rest
            part = wire.Copied(number, 0, group, b"", PROBLEM if problem else None)
            self.run(self.barrier.copied(shard, number, part))
        elif kind == "unpinned":
            self.run(self.barrier.unpinned(shard, rest[0]))
        else:
            self.up -= {shard}
            self.run(self.commit.link_end(shard))
            self.run(self.barrier.link_end(shard))
            self.doing.append(partial(World.start, shard=shard))

    def submit(self, participants: frozenset[int]) -> None:
        self.groups = (*self.groups, participants)
        self.run(self.commit.submit(Group(len(self.groups), participants)))

    def begin(self) -> None:
        self.resumed = 0
        self.barrier.begin()

    def expire(self) -> None:
        self.run(self.barrier.expire("the time is up"))

    # what becomes of the workers

    def kill(self, shard: int) -> None:
        self.worker(shard).die()

    def start(self, shard: int) -> None:
        committed = self.workers[shard].committed
        self.workers[shard] = Worker(committed, outbox=(("hello", committed),))

    def give(self, shard: int, order: tuple[Any, ...]) -> None:
        if self.workers[shard].alive:
            worker = self.worker(shard)
            worker.inbox = (*worker.inbox, order)

    def check_free(self, number: int) -> None:
        assert not any(worker.pin and worker.pin[0] == number for worker in self.workers), "still pinned"

    # what may happen

    def listen(self, shard: int) -> None:
        worker = self.worker(shard)
        message, worker.outbox = worker.outbox[0], worker.outbox[1:]
        self.tell(World.hear, shard, *message)

    def open(self) -> None:
        participants, rest = self.budget.groups[0], self.budget.groups[1:]
        self.budget = self.budget._replace(groups=rest)
        self.tell(World.submit, participants)

    def snapshot(self) -> None:
        self.budget = self.budget._replace(snapshots=self.budget.snapshots - 1)
        self.tell(World.begin)

    def wait(self) -> None:
        self.budget = self.budget._replace(deadlines=self.budget.deadlines - 1)
        self.tell(World.expire)

    def die(self, shard: int) -> None:
        self.budget = self.budget._replace(deaths=self.budget.deaths - 1)
        self.worker(shard).die()

    def take(self, shard: int) -> None:
        self.worker(shard).take()

    def end_copy(self, shard: int) -> None:
        self.worker(shard).end_copy()

    def fail(self, shard: int) -> None:
        self.budget = self.budget._replace(problems=self.budget.problems - 1)
        worker = self.worker(shard)
        worker.end_copy(problem=True) if worker.copying else worker.take(problem=True)

    def possible(self) -> Iterable[tuple[Step, Callable[[World], None]]]:
        budget, stage = self.budget, self.barrier.stage
        if budget.groups and self.commit.can_submit:
            yield Step("submit"), World.open
        if budget.snapshots and stage is Stage.IDLE:
            yield Step("begin"), World.snapshot
        if budget.deadlines and stage is not Stage.IDLE:
            yield Step("the time is up", fault=True), World.wait
        for shard, worker in enumerate(self.workers):
            if worker.outbox:
                yield Step(f"hear {worker.outbox[0]} of {shard}"), partial(World.listen, shard=shard)
            if worker.inbox:
                yield Step(f"{shard} takes {worker.inbox[0]}"), partial(World.take, shard=shard)
            if worker.copying:
                yield Step(f"{shard} ends its copy"), partial(World.end_copy, shard=shard)
            if budget.problems and (worker.copying or (worker.inbox and worker.inbox[0][0] == "pin")):
                yield Step(f"{shard} fails", fault=True), partial(World.fail, shard=shard)
            if budget.deaths and worker.alive:
                yield Step(f"{shard} dies", fault=True), partial(World.die, shard=shard)


_values = attrgetter(*State.__slots__)


def _copied(value: Any) -> Any:
    return value.copy() if isinstance(value, (set, dict)) else value


def _hashable(value: Any) -> Any:
    return frozenset(value.items() if isinstance(value, dict) else value) if isinstance(value, (set, dict)) else value
