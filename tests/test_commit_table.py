"""The commit table, walked pair by pair: what each event does in each phase, and that every other one is refused.

The group that is open is 5, over shards 0 and 1 (a solo: over shard 1); the staged one is 6, over shards 1 and 2.
Group 3 was cancelled long ago.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from shardengine.engine.commit.actions import (
    Abandon,
    Action,
    Group,
    Publish,
    Record,
    SendAbort,
    SendCommit,
    SendPart,
    SendSolo,
)
from shardengine.engine.commit.state import Phase
from shardengine.engine.commit.table import KILLS_MAX, Commit
from shardengine.engine.errors import CommitRuleError
from tests.commit_pieces import frozen

Event = Callable[[Commit], list[Action]]

OPEN = Group(5, frozenset({0, 1}))
STAGED = Group(6, frozenset({1, 2}))


def table() -> Commit:
    """Nothing open, everybody up, group 4 committed."""
    commit = Commit(3, last=4)
    for shard in range(3):
        commit.hello(shard, 4)
    return commit


def voting() -> Commit:
    commit = table()
    commit.submit(OPEN)
    commit.vote(0, 5, True)
    return commit


def recording() -> Commit:
    commit = voting()
    commit.vote(1, 5, True)
    return commit


def committing() -> Commit:
    commit = recording()
    commit.recorded(5)
    commit.committed(0, 5)
    return commit


def solo() -> Commit:
    commit = table()
    commit.submit(Group(5, frozenset({1}), solo=True))
    return commit


def and_staged(commit: Commit) -> Commit:
    commit.submit(STAGED)
    return commit


def and_down(commit: Commit) -> Commit:
    """The worker of shard 1 has died."""
    commit.link_end(1)
    return commit


SITUATIONS: dict[str, Callable[[], Commit]] = {
    "idle": table,
    "idle, 1 down": lambda: and_down(table()),
    "solo": solo,
    "solo, 1 down": lambda: and_down(solo()),
    "voting": voting,
    "voting, staged": lambda: and_staged(voting()),
    "voting, 1 down": lambda: and_down(voting()),
    "recording": recording,
    "recording, staged": lambda: and_staged(recording()),
    "recording, staged, 1 down": lambda: and_down(and_staged(recording())),
    "committing": committing,
    "committing, staged": lambda: and_staged(committing()),
    "committing, staged, 1 down": lambda: and_down(and_staged(committing())),
}

EVENTS: dict[str, Event] = {
    "submit": lambda c: c.submit(Group(9, frozenset({0, 1}))),
    "submit solo": lambda c: c.submit(Group(9, frozenset({2}), solo=True)),
    "submit no-op": lambda c: c.submit(Group(9, frozenset())),
    "submit a solo over two": lambda c: c.submit(Group(9, frozenset({0, 2}), solo=True)),
    "submit an old number": lambda c: c.submit(Group(4, frozenset({0}))),
    "hello of 1, below": lambda c: c.hello(1, 4),
    "hello of 1, below its last commit": lambda c: c.hello(1, 3),
    "hello of 1, at": lambda c: c.hello(1, 5),
    "hello of 1, beyond": lambda c: c.hello(1, 6),
    "hello of 2, which is up": lambda c: c.hello(2, 4),
    "end of 1": lambda c: c.link_end(1),
    "end of 2": lambda c: c.link_end(2),
    "yes of 1": lambda c: c.vote(1, 5, True),
    "no of 1": lambda c: c.vote(1, 5, False),
    "yes of 0, again": lambda c: c.vote(0, 5, True),
    "yes of 2, no participant": lambda c: c.vote(2, 5, True),
    "staged yes of 2": lambda c: c.vote(2, 6, True),
    "staged no of 2": lambda c: c.vote(2, 6, False),
    "staged yes of 1, too early": lambda c: c.vote(1, 6, True),
    "staged yes of 0, no participant": lambda c: c.vote(0, 6, True),
    "late vote": lambda c: c.vote(1, 3, False),
    "vote on what was never sent": lambda c: c.vote(1, 99, True),
    "recorded": lambda c: c.recorded(5),
    "recorded another": lambda c: c.recorded(6),
    "committed by 1": lambda c: c.committed(1, 5),
    "committed by 0, again": lambda c: c.committed(0, 5),
    "committed by 2, no participant": lambda c: c.committed(2, 5),
    "staged committed by 2": lambda c: c.committed(2, 6),
    "late committed": lambda c: c.committed(1, 3),
    "committed what was never sent": lambda c: c.committed(1, 99),
    "solo done": lambda c: c.solo_done(1, 5, True),
    "solo undone": lambda c: c.solo_done(1, 5, False),
    "solo done by 0": lambda c: c.solo_done(0, 5, True),
    "late solo": lambda c: c.solo_done(1, 3, False),
}

_STAGING: dict[str, list[Action]] = {"submit": [SendPart(0, 9), SendPart(1, 9)], "submit no-op": []}
_STAGED_VOTES: dict[str, list[Action]] = {"staged yes of 2": [], "staged no of 2": []}
_ALWAYS: dict[str, list[Action]] = {
    name: [] for name in ("end of 1", "end of 2", "late vote", "late committed", "late solo")
}

LEGAL: dict[str, dict[str, list[Action]]] = {
    "idle": {
        "submit": [SendPart(0, 9), SendPart(1, 9)],
        "submit solo": [SendSolo(2, 9)],
        "submit no-op": [Record(9)],
    },
    "idle, 1 down": {
        "submit": [SendPart(0, 9)],
        "submit solo": [SendSolo(2, 9)],
        "submit no-op": [Record(9)],
        "hello of 1, below": [],
    },
    "solo": {"solo done": [Publish(5)], "solo undone": [SendAbort(1, 5), Abandon(5, None)]},
    "solo, 1 down": {"hello of 1, below": [SendSolo(1, 5)], "hello of 1, at": [Publish(5)]},
    "voting": _STAGING | {"yes of 1": [Record(5)], "no of 1": [SendAbort(0, 5), SendAbort(1, 5), Abandon(5, None)]},
    "voting, staged": _STAGED_VOTES
    | {
        "yes of 1": [Record(5)],
        "no of 1": [SendAbort(0, 5), SendAbort(1, 5), SendAbort(2, 5), Abandon(5, None)],
    },
    "voting, 1 down": {
        "submit": [SendPart(0, 9)],
        "submit no-op": [],
        "hello of 1, below": [SendPart(1, 5)],
    },
    "recording": _STAGING | {"recorded": [SendCommit(0, 5), SendCommit(1, 5)]},
    "recording, staged": _STAGED_VOTES | {"recorded": [SendCommit(0, 5), SendCommit(1, 5)]},
    "recording, staged, 1 down": _STAGED_VOTES | {"recorded": [SendCommit(0, 5)], "hello of 1, below": []},
    "committing": _STAGING | {"committed by 1": [Publish(5)]},
    "committing, staged": _STAGED_VOTES | {"committed by 1": [Publish(5)]},
    "committing, staged, 1 down": _STAGED_VOTES
    | {
        "hello of 1, below": [SendPart(1, 5, decided=True), SendPart(1, 6)],
        "hello of 1, at": [Publish(5), SendPart(1, 6)],
    },
}

OWING: dict[str, set[int]] = {
    "idle": set(),
    "idle, 1 down": {1},
    "solo": {1},
    "solo, 1 down": {1},
    "voting": {1},
    "voting, staged": {1, 2},
    "voting, 1 down": {1},
    "recording": set(),
    "recording, staged": {2},
    "recording, staged, 1 down": {1, 2},
    "committing": {1},
    "committing, staged": {1, 2},
    "committing, staged, 1 down": {1, 2},
}


def outcome(commit: Commit, event: Event) -> list[Action] | str:
    """The actions of an event, or that it is refused, and then nothing has changed."""
    before = frozen(commit)
    try:
        actions = event(commit)
    except CommitRuleError as error:
        return "refused" if frozen(commit) == before else f"refused, but not unchanged: {error}"
    commit.check()
    return actions


@pytest.mark.parametrize("situation", SITUATIONS)
def test_each_event_in_each_phase_does_what_is_documented_or_is_refused_and_changes_nothing(situation: str) -> None:
    legal = _ALWAYS | LEGAL[situation]
    expected = {name: legal.get(name, "refused") for name in EVENTS}
    assert {name: outcome(SITUATIONS[situation](), event) for name, event in EVENTS.items()} == expected


def test_the_pairs_cover_every_phase_and_every_event() -> None:
    assert {situation().phase for situation in SITUATIONS.values()} == set(Phase)
    assert SITUATIONS.keys() == LEGAL.keys() == OWING.keys()
    assert set().union(*LEGAL.values()) <= EVENTS.keys()


@pytest.mark.parametrize("situation", SITUATIONS)
def test_who_owes_an_answer(situation: str) -> None:
    commit = SITUATIONS[situation]()
    assert {shard for shard in range(3) if commit.owes(shard)} == OWING[situation]


@pytest.mark.parametrize("situation", SITUATIONS)
def test_a_group_can_be_submitted_unless_one_is_staged_or_a_solo_is_open(situation: str) -> None:
    assert SITUATIONS[situation]().can_submit == ("staged" not in situation and "solo" not in situation)


def test_a_staged_group_takes_its_votes_along_when_its_turn_comes() -> None:
    commit = committing()
    commit.submit(Group(6, frozenset({0, 2})))
    commit.vote(0, 6, True)
    commit.vote(2, 6, True)
    assert commit.committed(1, 5) == [Publish(5), Record(6)]
    assert commit.phase is Phase.RECORDING


def test_a_staged_group_that_was_voted_down_is_abandoned_when_its_turn_comes() -> None:
    commit = committing()
    commit.submit(Group(6, frozenset({2})))
    commit.vote(2, 6, False)
    assert commit.committed(1, 5) == [Publish(5), SendAbort(2, 6), Abandon(6, None)]
    assert commit.idle


def test_the_votes_of_a_process_end_with_its_link() -> None:
    commit = voting()
    commit.link_end(0)
    assert commit.vote(1, 5, True) == []
    assert commit.hello(0, 4) == [SendPart(0, 5)]
    assert commit.vote(0, 5, True) == [Record(5)]


def test_a_worker_that_is_new_while_the_record_is_written_gets_its_parts_in_order_once_it_is() -> None:
    for commit in (and_down(and_staged(recording())), and_down(recording())):
        commit.hello(1, 4)
        if commit.staged is None:
            assert commit.submit(STAGED) == [SendPart(2, 6)]
        assert not commit.owes(1)
        assert commit.recorded(5) == [SendCommit(0, 5), SendPart(1, 5, decided=True), SendPart(1, 6)]
        assert commit.owes(1)


def test_a_redo_is_open_as_decided_and_sent_to_those_that_lack_it() -> None:
    commit = Commit(2, last=5, redo=OPEN, committed=frozenset({0}))
    assert commit.phase is Phase.COMMITTING
    assert commit.hello(0, 5) == []
    assert commit.hello(1, 4) == [SendPart(1, 5, decided=True)]
    assert commit.committed(1, 5) == [Publish(5)]


def kill(commit: Commit, shard: int, times: int) -> None:
    """Have the worker of `shard` die so often over what it works on; the last time nobody has taken its place yet."""
    for count in range(times):
        if count:
            commit.hello(shard, 4)
        commit.link_end(shard)


def test_a_killer_is_taken_back_at_the_next_hello() -> None:
    commit = and_staged(voting())
    kill(commit, 1, KILLS_MAX)
    assert commit.hello(1, 4) == [SendAbort(0, 5), SendAbort(1, 5), SendAbort(2, 5), Abandon(5, 1)]


def test_a_killer_is_named_after_the_shard_whose_worker_it_killed() -> None:
    commit = voting()
    kill(commit, 1, KILLS_MAX)
    commit.link_end(0)  # it had voted: not the group's doing
    assert commit.hello(0, 4) == [SendPart(0, 5)]
    assert commit.hello(1, 4) == [SendAbort(0, 5), SendAbort(1, 5), Abandon(5, 1)]


def test_a_solo_that_killed_its_worker_after_its_commit_is_no_killer() -> None:
    commit = solo()
    kill(commit, 1, KILLS_MAX)
    assert commit.hello(1, 5) == [Publish(5)]


def test_a_decided_group_is_no_killer() -> None:
    commit = committing()
    kill(commit, 1, KILLS_MAX)
    assert commit.hello(1, 4) == [SendPart(1, 5, decided=True)]


def test_a_staged_killer_is_withheld_and_judged_when_its_turn_comes() -> None:
    commit = and_staged(committing())
    kill(commit, 2, KILLS_MAX)
    assert commit.hello(2, 4) == []
    assert not commit.owes(2)
    assert commit.committed(1, 5) == [Publish(5), SendAbort(1, 6), SendAbort(2, 6), Abandon(6, 2)]


def test_a_death_that_the_group_was_not_worked_on_does_not_count_against_it() -> None:
    commit = voting()
    kill(commit, 1, KILLS_MAX - 1)
    commit.hello(1, 4)
    commit.link_end(2)
    assert commit.hello(2, 4) == []
    assert commit.vote(1, 5, True) == [Record(5)]
