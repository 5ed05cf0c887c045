"""The commit protocol keeps its promises in every reachable state of small worlds; and the walk would notice if not.

See commit_model.py for what a world is, and commit_folded.py for the walk. Each test here explores one whole world, or
shows that a rule which is broken on purpose is caught there. `pytest -rP` shows how many states each of them visited.
"""

from __future__ import annotations

import itertools
import sys
import textwrap
from collections.abc import Sequence

import pytest

from shardengine.engine.commit.actions import Action, Group, Record, SendAbort, SendCommit, SendSolo
from shardengine.engine.commit.decision import Record as Decision
from shardengine.engine.commit.decision import Recovery, recover
from shardengine.engine.commit.state import Phase
from shardengine.engine.commit.table import Commit
from shardengine.shards.types import Standing
from tests.commit_folded import Walk, explore
from tests.commit_pieces import Item
from tests.commit_world import Setting
from tests.explorer import ViolationError
from tests.killing import DEEP

Script = tuple[str, ...]

PHASES = {phase.name for phase in Phase}
ACTIONS = {"SendPart", "SendSolo", "SendCommit", "SendAbort", "Record", "Publish", "Abandon"}
MARKS = {
    "death between commit and answer",
    "killer",
    "late answer",
    "redo",
    "solo ahead of the record",
    "staged killer",
    "staged no",
    "stalled",
    "torn record",
}


def items(script: Script) -> tuple[Item, ...]:
    """An item for each word: the shards it touches, after "+" those that a command of the coordinator's touches, after
    "?" those that this asks again, after "=" those without room for what it writes, and after "!" who refuses it, "c"
    is the coordinator. "01!1" touches two and is
    refused by the second; "0+01?1" has a command on the first and one over both, which asks the second again; "-"
    touches none, it is a no-op."""
    found = []
    for word in script:
        touched, _, noes = word.strip("-").partition("!")
        touched, _, full = touched.partition("=")
        touched, _, again = touched.partition("?")
        shards, _, exchange = touched.partition("+")
        parts = (shards, noes.strip("c"), exchange, full, again)
        own, refusing, spanned, full_ones, asked = (frozenset(map(int, digits)) for digits in parts)
        found.append(Item(own, refusing, spanned, full_ones, asked, "c" in noes))
    return tuple(found)


def walk(setting: Setting) -> Walk:
    found = explore(setting)
    sys.stdout.write(f"{found.states} states, {found.steps} steps; met: {', '.join(sorted(found.met))}\n")
    return found


def mirrored(script: Script) -> Script:
    """The same script with the names of two shards exchanged."""
    words = (word.translate(str.maketrans("01", "10")) for word in script)
    return tuple("!".join("".join(sorted(half)) for half in word.split("!")) for word in words)


def all_scripts() -> list[Script]:
    """Every script of three groups over two shards, one of two that are mirror images."""
    scripts = itertools.product(("-", "0", "1", "01"), repeat=3)
    return [script for script in scripts if script <= mirrored(script)]


def all_refusals() -> list[Script]:
    """Two groups over two shards, the first, the second or both refused, by either or both shards."""
    words = ("0", "01", "0!0", "1!1", "01!0", "01!1", "01!01")
    scripts = itertools.product(words, repeat=2)
    return [script for script in scripts if "!" in "".join(script) and script <= mirrored(script)]


@pytest.mark.parametrize("script", all_scripts(), ids=" ".join)
def test_three_groups_over_two_shards_survive_one_death_and_one_kill(script: Script) -> None:
    found = walk(Setting(2, items(script)))
    assert found.met >= {"torn record", "redo"} if "01" in script else found.met, found


@pytest.mark.parametrize("script", all_refusals(), ids=" ".join)
def test_a_refused_group_leaves_no_trace_and_the_next_goes_on(script: Script) -> None:
    found = walk(Setting(2, (*items(script), *items(("01",)))))
    assert found.met >= {"Abandon", "SendAbort", "redo"}, found


WORLDS: dict[str, tuple[Setting, set[str]]] = {
    "three shards, all in every group": (Setting(3, items(("012", "012", "012"))), {"redo"}),
    "three shards, groups that overlap": (Setting(3, items(("01", "12", "02"))), {"redo"}),
    "three shards, groups that do not": (Setting(3, items(("01", "2", "01"))), {"SendSolo", "redo"}),
    "three shards, ever fewer": (Setting(3, items(("012", "12", "2"))), {"solo ahead of the record"}),
    "three shards, ever more": (Setting(3, items(("0", "01", "012"))), {"solo ahead of the record", "redo"}),
    "three shards, a no-op between": (Setting(3, items(("012", "-", "12"))), {"redo"}),
    "three shards, the first group refused": (Setting(3, items(("012!1", "12", "0"))), {"Abandon"}),
    "three shards, the staged group refused": (Setting(3, items(("01", "2!2", "012"))), {"staged no", "SendAbort"}),
    "three shards, the last group refused": (Setting(3, items(("2", "01", "012!02"))), {"Abandon"}),
    "three shards, solos": (Setting(3, items(("0", "1", "2!2"))), {"SOLO", "Abandon"}),
    "a commit fails": (Setting(2, items(("01", "01", "0")), failures=1), {"stalled", "redo"}),
    "the commit of a solo fails": (Setting(2, items(("0", "01", "1")), failures=1), {"SendSolo", "Abandon"}),
    "two commits fail": (Setting(2, items(("01", "1")), failures=2), {"stalled", "redo"}),
    "two deaths and two kills": (Setting(2, items(("01", "01")), deaths=2, kills=2), {"redo"}),
    "two deaths and two kills of solos": (Setting(2, items(("0", "1")), deaths=2, kills=2), {"SendSolo"}),
    "four groups": (Setting(2, items(("01", "0", "1", "01"))), {"redo", "solo ahead of the record"}),
}

KILLERS: dict[str, tuple[int, Setting, set[str]]] = {
    "one death makes a killer": (1, Setting(2, items(("01", "1", "01"))), {"killer", "staged killer", "redo"}),
    "of three shards": (1, Setting(3, items(("01", "12"))), {"killer", "staged killer"}),
    "of a solo": (1, Setting(2, items(("0", "01")), deaths=2), {"killer", "SendSolo"}),
    "beside a refusal": (1, Setting(2, items(("01!1", "0!0"))), {"killer", "late answer"}),
    "two deaths make one": (2, Setting(2, items(("01", "1")), deaths=3), {"killer", "staged killer", "late answer"}),
    "in an exchange": (1, Setting(2, items(("01+01?1", "1"))), {"killer", "SendAsk"}),
    "in a staged exchange": (1, Setting(2, items(("0", "01+01"))), {"killer", "staged killer"}),
    "the real limit": (3, Setting(2, items(("01", "1")), deaths=4, kills=0), {"killer", "staged killer"}),
}


@pytest.mark.parametrize("name", WORLDS)
def test_the_promises_hold_in(name: str) -> None:
    setting, expected = WORLDS[name]
    found = walk(setting)
    assert found.met >= expected, found


@pytest.mark.parametrize("name", KILLERS)
def test_a_group_that_kills_its_workers_is_taken_back(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kills_max, setting, expected = KILLERS[name]
    monkeypatch.setattr("shardengine.engine.commit.table.KILLS_MAX", kills_max)
    found = walk(setting)
    assert found.met >= expected, found


def test_the_worlds_show_every_phase_every_action_and_everything_of_note(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting(2, items(("01", "0!0", "1")), failures=1)
    monkeypatch.setattr("shardengine.engine.commit.table.KILLS_MAX", 1)
    found = walk(setting)
    assert found.met == PHASES | ACTIONS | MARKS, found


FOLDS = {
    "all may go wrong": (1, Setting(2, items(("01", "0!0")), failures=1)),
    "three shards": (3, Setting(3, items(("01", "12")), deaths=0)),
    "an exchange": (1, Setting(2, items(("01+01?1", "1")), kills=0)),
    **{name: (3, setting) for name, (setting, _) in WORLDS.items() if DEEP},
    **{name: (kills_max, setting) for name, (kills_max, setting, _) in KILLERS.items() if DEEP},
}


@pytest.mark.parametrize("name", FOLDS)
def test_worlds_folded_to_numbers_are_walked_as_they_are(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kills_max, setting = FOLDS[name]
    monkeypatch.setattr("shardengine.engine.commit.table.KILLS_MAX", kills_max)
    assert walk(setting) == explore(setting, folded=False)


# Rules broken on purpose


class CommitBeforeAllVotes(Commit):
    """The first yes decides, and COMMIT goes to every participant."""

    __slots__ = ()

    def vote(self, shard: int, number: int, yes: bool) -> list[Action]:
        if self._phase in (Phase.RECORDING, Phase.COMMITTING) and self._open and self._open.number == number:
            return []
        return super().vote(shard, number, yes)

    def _decide(self) -> list[Action]:
        if not self._votes or self._open is None:
            return super()._decide()
        self._phase = Phase.RECORDING
        return [Record(self._open.number)]

    def recorded(self, number: int) -> list[Action]:
        super().recorded(number)
        assert self._open is not None
        return [SendCommit(shard, number) for shard in sorted(self._open.participants & self._up)]

    def check(self) -> None:
        pass


class CommitBeforeRecord(Commit):
    """COMMIT goes out beside the record instead of after it."""

    __slots__ = ()

    def _decide(self) -> list[Action]:
        actions = super()._decide()
        if self._phase is Phase.RECORDING and self._open is not None:
            return [*(SendCommit(shard, self._open.number) for shard in self._open.participants), *actions]
        return actions


class PublishAtFirstCommit(Commit):
    """Readers are shown a group as soon as one shard has it."""

    __slots__ = ()

    def committed(self, shard: int, number: int) -> list[Action]:
        if self._open is None or self._open.number != number:
            return []
        return self._publish()


class VotesOutliveTheirProcess(Commit):
    """The end of a link leaves the votes that came over it."""

    __slots__ = ()

    def link_end(self, shard: int) -> list[Action]:
        votes = set(self._votes)
        actions = super().link_end(shard)
        self._votes = votes
        return actions

    def vote(self, shard: int, number: int, yes: bool) -> list[Action]:
        known = self._open is not None and self._open.number == number and shard in self._votes
        return [] if known else super().vote(shard, number, yes)

    def check(self) -> None:
        pass


class SoloBesideOpenGroup(Commit):
    """A solo need not wait until nothing is open."""

    __slots__ = ("_beside",)

    def __init__(
        self, shards: int, last: int = 0, redo: Group | None = None, committed: frozenset[int] = frozenset()
    ) -> None:
        super().__init__(shards, last, redo, committed)
        self._beside = 0

    def submit(self, group: Group) -> list[Action]:
        if not group.solo or self._open is None:
            return super().submit(group)
        self._last = self._beside = group.number
        return [SendSolo(shard, group.number) for shard in group.participants & self._up]

    def solo_done(self, shard: int, number: int, yes: bool) -> list[Action]:
        return [] if number == self._beside else super().solo_done(shard, number, yes)


class AbortForgetsTheStaged(Commit):
    """ABORT goes only to the participants of the group that was voted down."""

    __slots__ = ()

    def _abandon(self, killer: int | None) -> list[Action]:
        group = self._open
        assert group is not None
        told = super()._abandon(killer)
        return [a for a in told if not isinstance(a, SendAbort) or a.shard in group.participants]


class HelloSaysNothing(Commit):
    """A new worker is sent what its predecessor was, wherever the shard stands."""

    __slots__ = ()

    def hello(self, shard: int, stands_at: int) -> list[Action]:
        return super().hello(shard, 0)


def redo_up_to(record: Decision, standings: Sequence[Standing]) -> Recovery:
    """Whoever stands below the record redoes what its ring holds up to that number."""
    recovery = recover(record, standings)
    behind = {shard for shard, found in enumerate(standings) if found.position.group < record.position.group}
    if not behind:
        return recovery
    shards = frozenset(record.participants) | behind
    return recovery._replace(redo=Group(record.position.group, shards), committed=shards - behind)


def redo_nothing(record: Decision, standings: Sequence[Standing]) -> Recovery:
    """A start takes the newest position and leaves the shards as they are."""
    return recover(record, standings)._replace(redo=None, committed=frozenset())


MISTAKES: dict[str, tuple[Setting, str]] = {
    "COMMIT before all votes": (
        Setting(2, items(("01!1",)), deaths=0, kills=0, commit=CommitBeforeAllVotes, deadlines=False),
        r"worker 1 breaks down over Commit\(1\): no transaction to commit",
    ),
    "COMMIT before the record": (
        Setting(2, items(("01",)), deaths=0, commit=CommitBeforeRecord),
        r"shard \d commits group 1, which is not decided",
    ),
    "redo by at most the recorded group": (
        Setting(2, items(("01!1", "1")), deaths=0, recover=redo_up_to),
        r"worker 0 reads freed bytes of group 1 as its part of group 2",
    ),
    "redo of nothing": (
        Setting(2, items(("01",)), deaths=0, recover=redo_nothing),
        r"group 1 is not on shards \[\d",
    ),
    "a solo beside an open group": (
        Setting(2, items(("0", "1")), deaths=0, commit=SoloBesideOpenGroup, solo_beside=True, deadlines=False),
        r"after the start group 1 is not on shards \[0\], and will not be",
    ),
    "votes of a dead process": (
        Setting(2, items(("01",)), kills=0, commit=VotesOutliveTheirProcess, deadlines=False),
        r"worker \d breaks down over Commit\(1\)",
    ),
    "rings freed at the decision": (
        Setting(2, items(("01",)), kills=0, frees_early=True),
        r"worker \d reads freed bytes of group 1 as its part of group 1",
    ),
    "publish at the first commit": (
        Setting(2, items(("01",)), deaths=0, kills=0, commit=PublishAtFirstCommit),
        r"readers see items \[\] on shard \d, not \[0\]",
    ),
    "ABORT for the first group only": (
        Setting(2, items(("0!0", "01")), deaths=0, kills=0, commit=AbortForgetsTheStaged, deadlines=False),
        r"nothing more can happen, but not all is done",
    ),
    "a Hello that is not read as an answer": (
        Setting(2, items(("01",)), kills=0, commit=HelloSaysNothing),
        r"shard \d commits group 1 after group 1",
    ),
    "a commit that is done and said to be refused": (
        Setting(2, items(("0", "01")), kills=0, failures=1, lies=True),
        r"shard 0 commits group 1 after group 1",
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
    setting = MISTAKES[name][0]
    walk(
        setting._replace(
            commit=Commit, recover=recover, solo_beside=False, frees_early=False, lies=False, deadlines=True
        )
    )


def test_a_trace_is_shortest_and_readable() -> None:
    with pytest.raises(ViolationError) as caught:
        explore(MISTAKES["publish at the first commit"][0])
    assert str(caught.value) == textwrap.dedent("""\
        readers see items [] on shard 1, not [0]
            1  submit group 1 over [0, 1]
            2  worker 0 carries out Part(1)
            3  from worker 0: Vote(1, yes)
            4  worker 1 carries out Part(1)
            5  from worker 1: Vote(1, yes)
            6  the record of group 1 is written
            7  worker 0 carries out Commit(1)
            8  from worker 0: Committed(1)""")
