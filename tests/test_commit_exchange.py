"""The commit protocol keeps its promises where commands span shards; and the walk would notice if not.

See test_commit_model.py. In a world with an exchange the coordinator's command appends to what every shard of it
holds, so that what it was told, and what became of it, shows in what is committed.
"""

from __future__ import annotations

import sys
from typing import Any

import msgspec
import pytest

from shardengine.engine.commit.actions import Action, Group, RunCommands, SendAbort, SendPart, SendSolo, SendWrites
from shardengine.engine.commit.exchange import Exchange, Stage
from shardengine.engine.commit.state import Phase
from shardengine.engine.commit.table import Commit
from shardengine.shards import wire
from shardengine.shards.shard import Shard
from tests.commit_folded import explore
from tests.commit_world import Setting
from tests.explorer import ViolationError
from tests.test_commit_model import items, walk

EXCHANGES: dict[str, tuple[Setting, set[str]]] = {
    "a transfer": (Setting(2, items(("+01",))), {"redo", "torn record", "RunCommands", "SendWrites"}),
    "beside commands of the shards": (Setting(2, items(("01+01", "01"))), {"redo"}),
    "a group, then a transfer": (Setting(2, items(("01", "+01"))), {"redo"}),
    "a group of one shard, then a transfer": (Setting(2, items(("0", "+01"))), {"redo", "solo ahead of the record"}),
    "two transfers": (Setting(2, items(("0+01", "+01"))), {"redo"}),
    "three shards, two of them paused": (Setting(3, items(("2+01", "012"))), {"redo"}),
    "three shards, two transfers that overlap": (Setting(3, items(("+01", "+12")), deaths=0), {"redo"}),
    "one is asked again": (Setting(2, items(("+01?1",))), {"SendAsk", "redo"}),
    "both are asked again, staged": (Setting(2, items(("01", "0+01?01"))), {"SendAsk", "redo"}),
    "only one that fails": (Setting(2, items(("+01!c", "01"))), {"Abandon", "RunCommands"}),
    "one that fails after it asked again": (Setting(2, items(("0", "01+01?0!c", "1"))), {"Abandon", "SendAsk"}),
    "a shard that refuses its own": (Setting(2, items(("01+01!1", "01"))), {"Abandon", "SendAbort"}),
    "a shard beside the exchange refuses": (Setting(3, items(("2+01!2", "02"))), {"Abandon", "SendAbort"}),
    "a shard and the coordinator refuse": (Setting(3, items(("2+01!2c", "0"))), {"Abandon"}),
    "the group ahead is refused": (Setting(2, items(("0!0", "+01", "0"))), {"Abandon", "late answer"}),
    "a commit fails": (Setting(2, items(("0+01",)), failures=1), {"stalled", "redo"}),
    "a shard without room for the writes": (Setting(2, items(("+01=1", "01"))), {"Abandon", "SendWrites"}),
    "two deaths": (Setting(2, items(("+01?0",)), deaths=2), {"SendAsk", "redo"}),
}


@pytest.mark.parametrize("name", EXCHANGES)
def test_the_promises_hold_in(name: str) -> None:
    setting, expected = EXCHANGES[name]
    found = walk(setting)
    assert found.met >= expected, found


# Rules of shards, broken on purpose


class AnswersFirst(Shard):
    """Values are answered as the last commit left them, and the shard's own commands run after that."""

    def _begin(self, part: wire.Part) -> list[wire.Answer]:
        if part.question is None:
            return super()._begin(part)
        self._store.begin()
        early = [self._store.get(key) for key in part.question.keys]
        self._store.abort()
        return [
            msgspec.structs.replace(answer, values=early) if isinstance(answer, wire.Values) else answer
            for answer in super()._begin(part)
        ]


class OwnCommandsLast(Shard):
    """A shard's command comes after the coordinator has taken its partition."""

    def _go_on(self, part: wire.Part, order: wire.Ask | wire.Writes) -> list[wire.Answer]:
        answers = super()._go_on(part, order)
        if isinstance(order, wire.Writes) and part.extent.length:
            self._store.write(self._run(self._parts(part.extent)).transaction.writes)
        return answers


class PauseOutlivesAbort(Shard):
    """ABORT leaves what is paused."""

    def _abort(self, group: int) -> None:
        if self._current is None or self._paused is None:
            super()._abort(group)
        else:
            self._queue.clear()


class StaysOpenForTheNext(Shard):
    """A shard that only answers starts on the staged part beside its open transaction."""

    def _answer(self, part: wire.Part, paused: object, question: wire.Question) -> list[wire.Answer]:
        answers = super()._answer(part, paused, question)  # type: ignore[arg-type]
        self._current = None
        return answers


class ForgetsTheWrites(Shard):
    """A commit that failed is tried again with the shard's own commands alone."""

    def _go_on(self, part: wire.Part, order: wire.Ask | wire.Writes) -> list[wire.Answer]:
        answers = super()._go_on(part, order)
        if isinstance(order, wire.Writes):
            self._current = part
        return answers


class VotesInThePause(Shard):
    """A shard votes when its own commands are done, and takes the writes as they come."""

    def _begin(self, part: wire.Part) -> list[wire.Answer]:
        answers = super()._begin(part)
        if self._paused is not None:
            answers.append(wire.Vote(part.position.group, wire.PartResults({}, {}), None, None))
        return answers


# Rules of the table, broken on purpose


class AnswersAreVotes(Commit):
    """COMMIT goes out when all have answered, and does not wait for votes on the writes."""

    __slots__ = ()

    def computed(self, number: int) -> list[Action]:
        actions = super().computed(number)
        if self._open is not None and self._open.number == number and self._exchange is not None:
            self._votes |= self._exchange.shards & self._up
            actions += self._decide()
        return actions

    def vote(self, shard: int, number: int, yes: bool) -> list[Action]:
        return [] if shard in self._votes else super().vote(shard, number, yes)


class RunsAtTheFirstAnswer(Commit):
    """The coordinator's commands run when the first shard has answered."""

    __slots__ = ()

    def values(self, shard: int, number: int, question: int) -> list[Action]:
        group = self._find(shard, number, "values")
        if group is None:
            return []
        exchange = self._exchange_of(group)
        assert exchange is not None
        self._keep("values", group, exchange._replace(unanswered=frozenset(), stage=Stage.RUNNING))
        return [RunCommands(number)]


class RedoAsksAgain(Commit):
    """A decided part is sent with a pause."""

    __slots__ = ()

    def recorded(self, number: int) -> list[Action]:
        return [
            msgspec.structs.replace(action, decided=False, pause=True)
            if isinstance(action, SendPart) and action.decided and self._exchange
            else action
            for action in super().recorded(number)
        ]


class RedoWithoutWrites(Commit):
    """A new worker is sent its part of a group that is voted on as if the exchange had not been."""

    __slots__ = ()

    def _part(self, shard: int, group: Group) -> SendPart:
        return SendPart(shard, group.number)


class AnswersDieWithTheirProcess(Commit):
    """The end of a link voids an answer, and the new worker is not asked for it."""

    __slots__ = ()

    def _part(self, shard: int, group: Group) -> SendPart:
        part = super()._part(shard, group)
        known = self._stands.get(shard, 0) and part.question is not None
        return msgspec.structs.replace(part, question=None) if known else part


class AsksAgainAfterWrites(Commit):
    """A new worker pauses though the coordinator's writes are there."""

    __slots__ = ()

    def _part(self, shard: int, group: Group) -> SendPart:
        part = super()._part(shard, group)
        spanned = self._exchange_of(group) is not None and shard in group.exchange
        return msgspec.structs.replace(part, pause=True) if spanned else part


class WaitsForThosePausing(Commit):
    """A group with a no is abandoned when everybody has voted."""

    __slots__ = ()

    def _has_more_to_say(self, shard: int) -> bool:
        return shard not in self._votes | self._noes


class DeadlineInThePause(Commit):
    """A worker that waits for the coordinator owes an answer."""

    __slots__ = ()

    def owes(self, shard: int) -> bool:
        group = self._open
        waits = group is not None and self._phase is Phase.VOTING and shard in group.exchange - self._votes - self._noes
        return waits or super().owes(shard)


class AbortForgetsThosePausing(Commit):
    """ABORT goes to those that have voted."""

    __slots__ = ()

    def _abandon(self, killer: int | None) -> list[Action]:
        voted = self._votes | self._noes
        spanned = self._exchange.shards if self._exchange else frozenset()
        told = super()._abandon(killer)
        return [a for a in told if not isinstance(a, SendAbort) or a.shard in voted or a.shard not in spanned]


class WritesGoToThoseWhoWrote(Commit):
    """A shard whose new worker has not said Hello is not sent the writes later."""

    __slots__ = ()

    def computed(self, number: int) -> list[Action]:
        return [action for action in super().computed(number) if isinstance(action, SendWrites) and action.shard == 0]


class SoloBesideAPause(Commit):
    """A solo need not wait for a group that pauses."""

    __slots__ = ("_beside",)

    def __init__(
        self, shards: int, last: int = 0, redo: Group | None = None, committed: frozenset[int] = frozenset()
    ) -> None:
        super().__init__(shards, last, redo, committed)
        self._beside = 0

    def submit(self, group: Group) -> list[Action]:
        if not group.solo or self._exchange is None:
            return super().submit(group)
        self._last = self._beside = group.number
        return [SendSolo(shard, group.number) for shard in group.participants & self._up]

    def solo_done(self, shard: int, number: int, yes: bool) -> list[Action]:
        return [] if number == self._beside else super().solo_done(shard, number, yes)


def quiet(script: str, **facts: Any) -> Setting:
    """A world without deaths, and without deadlines."""
    base = Setting(2, items(tuple(script.split())), deaths=0, kills=0, deadlines=False)
    return base._replace(**facts)


MISTAKES: dict[str, tuple[Setting, str]] = {
    "values answered before the shard's own commands are done": (
        quiet("01+01", shard=AnswersFirst),
        r"group 1 runs on \[\] of shard \d, not \[0\]",
    ),
    "a shard's command after its partition was taken": (
        quiet("0+01", shard=OwnCommandsLast),
        r"shard 0 commits group 1 as \[0, 128, 0\] upon \[\]",
    ),
    "a pause that outlives its ABORT": (
        quiet("01+01!1 01", shard=PauseOutlivesAbort),
        r"nothing more can happen, but not all is done",
    ),
    "a staged part beside a pause": (
        quiet("+01 01", shard=StaysOpenForTheNext),
        r"worker \d breaks down over Part\(2\): a transaction is open already",
    ),
    "a failed commit that is tried again without the writes": (
        quiet("0+01", shard=ForgetsTheWrites, failures=1),
        r"shard 0 commits group 1 as \[0\] upon \[\]",
    ),
    "a vote before the writes": (
        quiet("+01", shard=VotesInThePause),
        r"the table refused what happened: vote",
    ),
    "COMMIT before the writes are voted on": (
        quiet("+01=1", commit=AnswersAreVotes),
        r"worker 1 breaks down over Commit\(1\): no transaction to commit",
    ),
    "commands that run when the first shard has answered": (
        quiet("+01", commit=RunsAtTheFirstAnswer),
        r"group 1 is computed before shards \{\d\} answer",
    ),
    "a redo that asks again": (
        quiet("+01", commit=RedoAsksAgain, deaths=1),
        r"nothing more can happen, but not all is done",
    ),
    "a new worker that does not pause": (
        quiet("+01", commit=RedoWithoutWrites, deaths=1),
        r"table refused what happened: vote",
    ),
    "a question that is lost with its worker": (
        quiet("01 +01", commit=AnswersDieWithTheirProcess, deaths=1),
        r"nothing more can happen, but not all is done",
    ),
    "a new worker that pauses behind the writes": (
        quiet("+01", commit=AsksAgainAfterWrites, deaths=1),
        r"nothing more can happen, but not all is done",
    ),
    "an abandoned group that waits for those who pause": (
        quiet("01+01!1 01", commit=WaitsForThosePausing),
        r"nothing more can happen, but not all is done",
    ),
    "a deadline in the pause": (
        quiet("+01", commit=DeadlineInThePause, deadlines=True),
        r"worker \d is said to owe an answer, and has nothing to do",
    ),
    "ABORT for those who have voted": (
        quiet("01+01!1 01", commit=AbortForgetsThosePausing),
        r"nothing more can happen, but not all is done",
    ),
    "writes for one shard only": (
        quiet("+01", commit=WritesGoToThoseWhoWrote),
        r"nothing more can happen, but not all is done",
    ),
    "a solo beside a pause": (
        quiet("+01 0", commit=SoloBesideAPause, solo_beside=True),
        r"worker 0 breaks down over Solo\(2\)",
    ),
    "a second run that sees the first run's writes": (
        quiet("+01?0", reruns_dirty=True),
        r"shard \d commits group 1 as \[128, 128\] upon \[\]",
    ),
    "a record of the parts alone": (
        quiet("0+01", records_parts_only=True, kills=1),
        r"shard 0 commits group 1 as \[0\] upon \[\]",
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
    walk(
        MISTAKES[name][0]._replace(
            commit=Commit,
            shard=Shard,
            solo_beside=False,
            reruns_dirty=False,
            records_parts_only=False,
            deadlines=True,
        )
    )


def test_an_event_that_an_exchange_does_not_allow_is_none_of_it() -> None:
    asked = Exchange(frozenset((0, 1)), frozenset((0, 1)))
    assert (
        asked.answered(2, 0) is asked.answered(0, 1) is asked.asked(frozenset((0,))) is asked.ended(Stage.SENT) is None
    )
    one = asked.answered(0, 0)
    assert one is not None and one.stage is Stage.ASKED and one.answered(0, 0) is None
    assert (one.owes(0), one.owes(1), one.question_for(0), one.question_for(1)) == (False, True, None, 0)
    both = one.answered(1, 0)
    assert both is not None and both.stage is Stage.RUNNING and both.answered(1, 0) is None
    assert both.asked(frozenset()) is both.asked(frozenset((2,))) is None
    again = both.asked(frozenset((1,)))
    assert again == Exchange(frozenset((0, 1)), frozenset((1,)), Stage.ASKED, 1)
    sent = both.ended(Stage.SENT)
    assert sent is not None and sent.owes(0) and sent.ended(Stage.SENT) is None and sent.asked(frozenset((0,))) is None
