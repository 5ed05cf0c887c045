"""Whatever dies, a start knows the terms of what is applied, also of what solos left no record of; and the walk would
notice if not. In every world of tests/commit_model.py terms rise along the log, and every start is asked for them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import pytest

from shardengine.engine.commit.decision import Record as Decision
from shardengine.engine.commit.decision import Recovery, recover
from shardengine.engine.intake.tail import Tail
from shardengine.shards.types import LogId, Standing
from tests.commit_folded import explore
from tests.commit_world import Setting
from tests.explorer import ViolationError
from tests.test_commit_model import items, walk

WORLDS = {
    "solos of one shard": Setting(1, items(("0", "0", "0!0", "0")), deaths=2, kills=2),
    "solos of two shards": Setting(2, items(("0", "1", "0", "1")), kills=2),
    "solos of two shards behind a record": Setting(2, items(("01", "1", "0", "0")), kills=2),
    "solos of three shards": Setting(3, items(("0", "1", "2")), kills=2),
    "a solo that is refused, and others": Setting(2, items(("0", "1!1", "1", "0")), failures=1),
}


@pytest.mark.parametrize("name", WORLDS)
def test_every_start_knows_every_term_in_a_world_of(name: str) -> None:
    found = walk(WORLDS[name])
    assert found.met >= {"SendSolo", "solo ahead of the record"}, found


# Rules broken on purpose


def terms_of_the_record(record: Decision, standings: Sequence[Standing]) -> Recovery:
    """A start knows the terms that are in the record."""
    return recover(record, standings)._replace(term_runs=record.term_runs)


def terms_of_the_oldest(record: Decision, standings: Sequence[Standing]) -> Recovery:
    """A start takes the terms that any shard has which is ahead of the record."""
    recovery = recover(record, standings)
    ahead = [found for found in standings if found.position.group > record.position.group]
    if not ahead:
        return recovery
    oldest = min(ahead, key=lambda found: found.position.group)
    return recovery._replace(term_runs=recover(record, [oldest]).term_runs)


def no_runs(tail: Tail, after: int, last: int) -> list[LogId]:
    """A solo takes no terms along."""
    return []


def its_own_runs(tail: Tail, after: int, last: int) -> list[LogId]:
    """A solo takes along the terms that begin in it."""
    return tail.runs_between(last - 1, last)


def all_runs(tail: Tail, after: int, last: int) -> list[LogId]:
    """A solo takes along what the record has, too."""
    return tail.runs_between(0, last)


MISTAKES: dict[str, tuple[Setting, str]] = {
    "a solo's runs are not kept": (
        Setting(2, items(("01", "0")), deaths=0, new_runs=no_runs),
        r"the start finds damage: shard 0 ends at .* do not go on from",
    ),
    "the runs of an earlier solo on another shard are lost": (
        Setting(2, items(("0", "1")), deaths=0, new_runs=its_own_runs),
        r"after the start entry 1 has term None",
    ),
    "the runs are not cleared by a record": (
        Setting(2, items(("01", "0")), deaths=0, new_runs=all_runs),
        r"the start finds damage: shard 0 ends at .* do not go on from",
    ),
    "a start that looks for terms in the record only": (
        Setting(2, items(("01", "0")), deaths=0, recover=terms_of_the_record),
        r"after the start entry 2 has term 3, not 5",
    ),
    "a start that takes the terms of an older solo": (
        Setting(2, items(("01", "-", "0", "1")), deaths=0, recover=terms_of_the_oldest),
        r"after the start entry 4 has term 5, not 7",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_the_walk_catches(name: str) -> None:
    setting, complaint = MISTAKES[name]
    with pytest.raises(ViolationError, match=complaint) as caught:
        explore(setting)
    sys.stdout.write(f"{caught.value}\n")
    with pytest.raises(ViolationError) as plainly:
        explore(setting, folded=False)
    assert str(caught.value) == str(plainly.value)


@pytest.mark.parametrize("name", MISTAKES)
def test_the_world_of_each_mistake_is_sound_without_it(name: str) -> None:
    walk(MISTAKES[name][0]._replace(recover=recover, new_runs=Tail.runs_between))
