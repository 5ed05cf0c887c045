"""The snapshot barrier, walked pair by pair: what each event does in each stage, and that every other one is refused.

The barrier is number 2, over three shards; number 1 was given up long ago.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from shardengine.engine.commit.actions import Abandoned, Complete, Kill, Resume, SendCopy, SendPin, SendUnpin
from shardengine.engine.commit.barrier import Barrier, Stage
from shardengine.engine.errors import CommitRuleError, SnapshotAbortedError
from shardengine.shards import wire

Event = Callable[[Barrier], list[Any]]

PROBLEM = wire.Problem("StoreError", "no room", "", {})


def part(number: int, shard: int) -> wire.Copied:
    return wire.Copied(number, 100 + shard, shard, b"checksum", None)


def failed(number: int) -> wire.Copied:
    return wire.Copied(number, 0, 0, b"", PROBLEM)


def waiting() -> Barrier:
    barrier = Barrier(3)
    barrier.begin()
    barrier.abort("the first one")
    barrier.begin()
    return barrier


def idle() -> Barrier:
    barrier = waiting()
    barrier.abort("the second one")
    return barrier


def pinning(*pinned: int) -> Barrier:
    barrier = waiting()
    barrier.place()
    for shard in pinned:
        barrier.pinned(shard, 2, None)
    return barrier


def copying(*copied: int) -> Barrier:
    barrier = pinning(0, 1, 2)
    for shard in copied:
        barrier.copied(shard, 2, part(2, shard))
    return barrier


def releasing(*released: int) -> Barrier:
    barrier = pinning(0)
    barrier.abort("for the test")
    for shard in released:
        barrier.unpinned(shard, 2)
    return barrier


SITUATIONS: dict[str, Callable[[], Barrier]] = {
    "idle": idle,
    "waiting": waiting,
    "pinning": pinning,
    "pinning, 1 is the last": lambda: pinning(0, 2),
    "copying": copying,
    "copying, 1 is the last": lambda: copying(0, 2),
    "releasing": releasing,
    "releasing, 1 is the last": lambda: releasing(0, 2),
}

EVENTS: dict[str, Event] = {
    "begin": lambda b: [b.begin()][1:],
    "place": lambda b: b.place(),
    "pinned by 1": lambda b: b.pinned(1, 2, None),
    "pinned by 0": lambda b: b.pinned(0, 2, None),
    "1 cannot pin": lambda b: b.pinned(1, 2, "no room"),
    "late pinned by 1": lambda b: b.pinned(1, 1, None),
    "copied by 1": lambda b: b.copied(1, 2, part(2, 1)),
    "copied by 0": lambda b: b.copied(0, 2, part(2, 0)),
    "1 cannot copy": lambda b: b.copied(1, 2, failed(2)),
    "late copied by 1": lambda b: b.copied(1, 1, part(1, 1)),
    "unpinned by 1": lambda b: b.unpinned(1, 2),
    "late unpinned by 1": lambda b: b.unpinned(1, 1),
    "end of 1": lambda b: b.link_end(1),
    "end of 0": lambda b: b.link_end(0),
    "abort": lambda b: b.abort("told to"),
    "expire": lambda b: b.expire("too long"),
}

_LATE: dict[str, list[Any]] = {name: [] for name in EVENTS if name.startswith("late")}
_UNPIN = [SendUnpin(0, 2), SendUnpin(1, 2), SendUnpin(2, 2)]
_COPY = [SendCopy(0, 2), SendCopy(1, 2), SendCopy(2, 2)]
_QUIET: dict[str, list[Any]] = {"pinned by 1": [], "pinned by 0": [], "1 cannot pin": [], "unpinned by 1": []}
GIVEN_UP = "Abandoned"

LEGAL: dict[str, dict[str, list[Any]]] = {
    "idle": _QUIET | {"begin": [], "end of 1": [], "end of 0": [], "abort": [], "expire": []},
    "waiting": _QUIET
    | {
        "place": [SendPin(0, 2), SendPin(1, 2), SendPin(2, 2)],
        "end of 1": [],
        "end of 0": [],
        "abort": [Resume(), GIVEN_UP],
        "expire": [Resume(), GIVEN_UP],
    },
    "pinning": {
        "pinned by 1": [],
        "pinned by 0": [],
        "1 cannot pin": [Resume(), *_UNPIN],
        "unpinned by 1": [],
        "end of 1": [Resume(), SendUnpin(0, 2), SendUnpin(2, 2)],
        "end of 0": [Resume(), SendUnpin(1, 2), SendUnpin(2, 2)],
        "abort": [Resume(), *_UNPIN],
        "expire": [Resume(), *_UNPIN],
    },
    "pinning, 1 is the last": {
        "pinned by 1": [Resume(), *_COPY],
        "1 cannot pin": [Resume(), *_UNPIN],
        "unpinned by 1": [],
        "end of 1": [Resume(), SendUnpin(0, 2), SendUnpin(2, 2)],
        "end of 0": [Resume(), SendUnpin(1, 2), SendUnpin(2, 2)],
        "abort": [Resume(), *_UNPIN],
        "expire": [Resume(), *_UNPIN],
    },
    "copying": _QUIET
    | {
        "copied by 1": [],
        "copied by 0": [],
        "1 cannot copy": [SendUnpin(0, 2), SendUnpin(2, 2)],
        "end of 1": [SendUnpin(0, 2), SendUnpin(2, 2)],
        "end of 0": [SendUnpin(1, 2), SendUnpin(2, 2)],
        "abort": _UNPIN,
        "expire": _UNPIN,
    },
    "copying, 1 is the last": _QUIET
    | {
        "copied by 1": [Complete({shard: part(2, shard) for shard in range(3)})],
        "1 cannot copy": [GIVEN_UP],
        "end of 1": [GIVEN_UP],
        "end of 0": [],
        "abort": [SendUnpin(1, 2)],
        "expire": [SendUnpin(1, 2)],
    },
    "releasing": _QUIET
    | {
        "copied by 1": [],
        "copied by 0": [],
        "1 cannot copy": [],
        "end of 1": [],
        "end of 0": [],
        "abort": [],
        "expire": [Kill(0), Kill(1), Kill(2)],
    },
    "releasing, 1 is the last": _QUIET
    | {
        "unpinned by 1": [GIVEN_UP],
        "copied by 1": [GIVEN_UP],
        "1 cannot copy": [GIVEN_UP],
        "copied by 0": [],
        "end of 1": [GIVEN_UP],
        "end of 0": [],
        "abort": [],
        "expire": [Kill(1)],
    },
}

AFTER: dict[tuple[str, str], Stage] = {
    ("idle", "begin"): Stage.WAITING,
    ("waiting", "place"): Stage.PINNING,
    ("pinning, 1 is the last", "pinned by 1"): Stage.COPYING,
    ("copying, 1 is the last", "copied by 1"): Stage.IDLE,
}


def frozen(barrier: Barrier) -> dict[str, Any]:
    return {name: value.copy() if isinstance(value, (set, dict)) else value for name, value in vars(barrier).items()}


def outcome(barrier: Barrier, event: Event) -> list[Any] | str:
    """The actions of an event, or that it is refused, and then nothing has changed."""
    before = frozen(barrier)
    try:
        actions = event(barrier)
    except CommitRuleError as error:
        return "refused" if frozen(barrier) == before else f"refused, but not unchanged: {error}"
    return [GIVEN_UP if isinstance(action, Abandoned) else action for action in actions]


@pytest.mark.parametrize("situation", SITUATIONS)
def test_each_event_in_each_stage_does_what_is_documented_or_is_refused_and_changes_nothing(situation: str) -> None:
    legal = _LATE | LEGAL[situation]
    expected = {name: legal.get(name, "refused") for name in EVENTS}
    assert {name: outcome(SITUATIONS[situation](), event) for name, event in EVENTS.items()} == expected


@pytest.mark.parametrize("situation", SITUATIONS)
def test_each_event_leads_to_the_stage_that_the_picture_shows(situation: str) -> None:
    for name, event in EVENTS.items():
        barrier = SITUATIONS[situation]()
        before = barrier.stage
        actions = outcome(barrier, event)
        if isinstance(actions, str):
            continue
        expected = AFTER.get((situation, name), before)
        if any(isinstance(action, SendUnpin) for action in actions):
            expected = Stage.RELEASING
        if GIVEN_UP in actions:
            expected = Stage.IDLE
        assert barrier.stage is expected, name
        if barrier.stage is Stage.IDLE:
            barrier.begin()  # whatever happened, the next one can begin
            assert barrier.place() == [SendPin(shard, barrier.number) for shard in range(3)]


def test_the_pairs_cover_every_stage_and_name_nothing_else() -> None:
    assert {situation().stage for situation in SITUATIONS.values()} == set(Stage)
    assert SITUATIONS.keys() == LEGAL.keys()
    assert set().union(*LEGAL.values()) <= EVENTS.keys()


@pytest.mark.parametrize("situation", SITUATIONS)
def test_who_is_waited_for(situation: str) -> None:
    barrier = SITUATIONS[situation]()
    found = {shard for shard in range(3) if barrier.awaits(shard)}
    if "last" in situation:
        assert found == {1}
    else:
        assert found == (set() if situation in ("idle", "waiting") else {0, 1, 2})


@pytest.mark.parametrize(
    ("make", "event", "reason"),
    [
        (lambda: pinning(0, 1), "end of 1", "the worker of shard 1 died"),
        (lambda: pinning(0, 2), "1 cannot pin", "shard 1 could not pin: no room"),
        (lambda: copying(0, 2), "1 cannot copy", "the copy of shard 1 failed: no room"),
        (waiting, "expire", "too long"),
    ],
)
def test_why_it_was_given_up_is_told_once_everybody_has_let_go(
    make: Callable[[], Barrier], event: str, reason: str
) -> None:
    barrier = make()
    actions = EVENTS[event](barrier)
    for shard in range(3):
        actions += barrier.unpinned(shard, 2)
    (error,) = [action.error for action in actions if isinstance(action, Abandoned)]
    assert isinstance(error, SnapshotAbortedError) and error.reason == reason
    assert str(error).startswith(f"the snapshot was given up: {reason}")


def test_a_snapshot_that_is_given_up_for_a_reason_of_its_own_says_that() -> None:
    barrier = waiting()
    error = SnapshotAbortedError("of my own")
    assert barrier.abort("whatever", error=error) == [Resume(), Abandoned(error)]
