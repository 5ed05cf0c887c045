"""The snapshot barrier and the commit table together, walked through every state of small worlds.

Groups are submitted, staged and committed, snapshots begin, workers die, cannot pin, cannot copy, and the time is up,
at any moment. Whatever happens: between `place` and Resume nothing is decided; every part holds exactly the last
published group; a snapshot is complete only when every shard has copied; nothing is pinned any more once given up.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from shardengine.engine.commit import actions
from shardengine.engine.commit.barrier import Barrier, Stage
from shardengine.shards import wire
from tests.barrier_model import Budget, Step, World
from tests.explorer import Explorer, ViolationError


class State:
    __slots__ = ("key", "world")

    def __init__(self, world: World) -> None:
        self.world = world
        self.key = world.key()

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, State) and self.key == other.key


class Walk:
    """The model for the explorer."""

    def __init__(self, world: World) -> None:
        self._start = world
        self.trying: Step | None = None
        self.stages: set[Stage] = set()

    def start(self) -> State:
        return State(self._start)

    def steps(self, state: State) -> Iterable[tuple[Step, State]]:
        for step, change in state.world.possible():
            self.trying = step
            world = state.world.clone()
            change(world)
            yield step, State(world)
        self.trying = None

    def check(self, state: State) -> None:
        world, stage = state.world, state.world.barrier.stage
        world.commit.check()
        self.stages.add(stage)
        if stage is Stage.PINNING:
            assert world.commit.quiet and world.published == world.placed, "decided between place and Resume"
        if stage in (Stage.WAITING, Stage.PINNING):
            assert world.commit.held and world.resumed == 0
        elif world.barrier.number:
            assert world.resumed == 1 and not world.commit.held, "resumed once, and then free"

    def check_end(self, state: State) -> None:
        world = state.world
        assert world.barrier.stage is Stage.IDLE and world.commit.idle, "it ends in the middle"
        assert world.published == len(world.groups) and not world.budget.groups
        assert not any(worker.pin or worker.copying for worker in world.workers)


def walk(kind: type[World], shards: int, budget: Budget) -> Walk:
    model = Walk(kind(shards, budget))
    Explorer().walk(model)
    return model


BOTH, FIRST, ALL = frozenset({0, 1}), frozenset({0}), frozenset({0, 1, 2})

WORLDS = {
    "two snapshots, a death": (2, Budget((BOTH,), 2, 1, 0, 0)),
    "two groups, a death, a deadline": (2, Budget((BOTH, FIRST), 1, 1, 0, 1)),
    "two groups, a problem, two deadlines": (2, Budget((FIRST, BOTH), 1, 0, 1, 2)),
    "two snapshots, a problem, a deadline": (2, Budget((BOTH,), 2, 0, 1, 1)),
    "three shards, a death": (3, Budget((FIRST,), 1, 1, 0, 0)),
}


@pytest.mark.parametrize("world", WORLDS)
def test_in_every_reachable_state_a_snapshot_is_what_was_published_and_leaves_nothing_behind(world: str) -> None:
    assert walk(World, *WORLDS[world]).stages == set(Stage)


class Hasty(World):
    """Pins without waiting until nothing is decided and not published."""

    ignores_hold = True


class Sloppy(Barrier):
    """Complete when the first part is there."""

    def copied(self, shard: int, number: int, part: wire.Copied) -> list[actions.Action]:
        if self.stage is Stage.COPYING and number == self.number and part.problem is None:
            self.stage = Stage.IDLE
            return [actions.Complete({shard: part})]
        return super().copied(shard, number, part)


class Rude(Barrier):
    """Gives up without waiting for anybody to let go."""

    def _released(self) -> list[actions.Action]:
        self._waiting = set()
        return super()._released()


class Forgetful(Barrier):
    """Takes late answers for those it waits for."""

    def unpinned(self, shard: int, number: int) -> list[actions.Action]:
        return super().unpinned(shard, self.number)


class Silent(Barrier):
    """Gives up without a Resume."""

    def abort(self, why: str, **more: Any) -> list[actions.Action]:
        return [action for action in super().abort(why, **more) if not isinstance(action, actions.Resume)]


@pytest.mark.parametrize(
    ("fault", "budget"),
    [
        (Sloppy, Budget((), 1, 0, 0, 0)),
        (Rude, Budget((), 1, 0, 0, 1)),
        (Forgetful, Budget((), 2, 0, 0, 2)),
        (Silent, Budget((BOTH,), 1, 0, 0, 1)),
    ],
)
def test_a_wrong_barrier_is_caught(fault: type[Barrier], budget: Budget) -> None:
    kind = type("Wrong", (World,), {"barrier_type": fault})
    with pytest.raises(ViolationError):
        walk(kind, 2, budget)


def test_a_barrier_placed_too_early_is_caught() -> None:
    with pytest.raises(ViolationError):
        walk(Hasty, 2, Budget((BOTH,), 1, 0, 0, 0))
