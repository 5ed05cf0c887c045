"""Two-phase group commit as a table: events in, actions out, no I/O, no clock.

A *group* goes through these phases; one group is open, and one more may be staged behind it:

                    submit                    all yes              recorded            all committed
    (nothing open) -------> VOTING ---------------------> RECORDING --------> COMMITTING ---------> published
          |                   | any no, or a killer                                                      ^
          |                   +-----> abandoned, with what is staged                                     |
          |  submit, solo                                                  done                          |
          +--------------> SOLO -------------------------------------------------------------------------+
          |                  +-----> abandoned (a no, or a killer)

From the first byte of its record on, a group is decided: it is never voted on again, and a worker that lost it gets
its part marked decided. The end of a link voids the votes of that process. A group that kills workers of one shard
(`KILLS_MAX` times while they owed it an answer) is abandoned as a *killer*, which is no fault of its entries.

While it is voted on, a group may have an exchange (see exchange.py): a shard in it votes yes only upon what the
coordinator's commands wrote. When somebody votes no, those who pause are not waited for.

The rules are those of the protocol's model: see tests/test_commit_model.py, which walks every reachable state of
small worlds against this very class.
"""

from __future__ import annotations

from shardengine.engine.commit.actions import (
    Abandon,
    Action,
    Group,
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
from shardengine.engine.commit.exchange import Exchange, Stage, begun
from shardengine.engine.commit.state import Phase, State

KILLS_MAX = 3


class Commit(State):
    """The commit protocol of one generation.

    Every method takes one event and returns the actions to carry out, in order. An event that the state does not
    allow raises CommitRuleError and changes nothing. Answers to cancelled groups are ignored, by number.
    """

    __slots__ = ()

    def hold(self) -> None:
        """From now on decide nothing new: what is decided is finished, then the table stays `quiet` until `release`."""
        self._held = True

    def release(self) -> list[Action]:
        """Decide again, at once when all votes were in."""
        self._held = False
        return self._decide() if self._phase is Phase.VOTING else []

    def submit(self, group: Group) -> list[Action]:
        """Open `group`, or stage it behind the open one."""
        if not self.can_submit or group.number <= self._last:
            raise self._refusal("submit", group=group.number)
        if not group.exchange <= group.participants or (group.solo and group.exchange):
            raise self._refusal("submit exchange", group=group.number)
        if group.solo and not (self.can_solo and len(group.participants) == 1):
            raise self._refusal("submit solo", group=group.number)
        self._last = group.number
        if self._open is not None:
            self._staged, self._staged_votes, self._staged_exchange = group, {}, begun(group.exchange)
            return self._send_parts(group)
        self._open = group
        if group.solo:
            self._phase = Phase.SOLO
            return [SendSolo(shard, group.number) for shard in group.participants & self._up]
        self._phase, self._exchange = Phase.VOTING, begun(group.exchange)
        return self._send_parts(group) + self._decide()

    def hello(self, shard: int, stands_at: int) -> list[Action]:
        """The new worker of `shard` has said where the shard stands: its last committed group."""
        if shard in self._up or not self._may_stand_at(shard, stands_at):
            raise self._refusal("hello", shard=shard, stands_at=stands_at)
        self._up.add(shard)
        self._stands[shard] = stands_at
        staged = self._staged
        actions = self._welcome_open(shard, stands_at)
        if staged is not None and staged in (self._staged, self._open) and shard in staged.participants:
            actions += self._resend_staged(shard, staged)
        return actions

    def link_end(self, shard: int) -> list[Action]:
        """The worker of `shard` is dead and reaped; another will say hello."""
        if shard not in self._up:
            return []  # it died before its Hello
        working_on = self._working_on(shard)
        if working_on is not None:
            key = working_on.number, shard
            self._kills[key] = self._kills.get(key, 0) + 1
        self._up.discard(shard)
        self._votes.discard(shard)
        self._noes.discard(shard)
        self._staged_votes.pop(shard, None)
        self._withheld.discard(shard)
        return []

    def vote(self, shard: int, number: int, yes: bool) -> list[Action]:
        """The worker of `shard` votes on group `number`."""
        group = self._find(shard, number, "vote")
        if group is None:
            return []
        if not self._may_vote(shard, group, yes):
            raise self._refusal("vote", shard=shard, group=number)
        if group is self._staged:
            self._staged_votes[shard] = yes
            return []
        (self._votes if yes else self._noes).add(shard)
        return self._decide()

    def values(self, shard: int, number: int, question: int) -> list[Action]:
        """The worker of `shard` has answered a question of group `number`."""
        group = self._find(shard, number, "values")
        if group is None:
            return []
        exchange = self._exchange_of(group)
        after = exchange.answered(shard, question) if exchange and self._may_vote(shard, group, False) else None
        self._keep("values", group, after, shard=shard)
        if after is not None and after.stage is Stage.RUNNING:
            return [RunCommands(number)]
        return self._decide() if group is self._open else []

    def asked(self, number: int, shards: frozenset[int]) -> list[Action]:
        """The coordinator's commands of group `number` need something more of `shards`."""
        group, exchange = self._run_by_us(number, "asked")
        after = exchange.asked(shards)
        self._keep("asked", group, after)
        told = [shard for shard in sorted(shards & self._up) if self._has_part(shard, group)]
        return [SendAsk(shard, number, exchange.round + 1) for shard in told]

    def computed(self, number: int) -> list[Action]:
        """The coordinator's commands of group `number` are done, and what they wrote is where it belongs."""
        group, exchange = self._run_by_us(number, "computed")
        self._keep("computed", group, exchange.ended(Stage.SENT))
        told = [shard for shard in sorted(exchange.shards & self._up) if self._has_part(shard, group)]
        return [SendWrites(shard, number) for shard in told]

    def refused(self, number: int) -> list[Action]:
        """A command of the coordinator's, of group `number`, failed: that is a no."""
        group, exchange = self._run_by_us(number, "refused")
        self._keep("refused", group, exchange.ended(Stage.REFUSED))
        return self._decide() if group is self._open else []

    def recorded(self, number: int) -> list[Action]:
        """The decision record of group `number` is written."""
        group = self._open
        if group is None or self._phase is not Phase.RECORDING or group.number != number:
            raise self._refusal("recorded", group=number)
        self._phase = Phase.COMMITTING
        sends: list[Action] = []
        for shard in sorted(group.participants & self._up):
            if shard in self._votes:
                sends.append(SendCommit(shard, number))
                continue
            sends.append(SendPart(shard, number, decided=True))
            if self._staged is not None and shard in self._staged.participants:
                sends += self._resend_staged(shard, self._staged)
        return sends + self._publish_when_committed()

    def committed(self, shard: int, number: int) -> list[Action]:
        """The worker of `shard` has committed group `number`."""
        group = self._find(shard, number, "committed")
        if group is None:
            return []
        if group is not self._open or self._phase is not Phase.COMMITTING or shard in self._committed:
            raise self._refusal("committed", shard=shard, group=number)
        self._committed.add(shard)
        self._stands[shard] = number
        return self._publish_when_committed()

    def solo_done(self, shard: int, number: int, yes: bool) -> list[Action]:
        """The worker of `shard` has committed the solo `number`, or rolled it back."""
        group = self._find(shard, number, "solo_done")
        if group is None:
            return []
        if group is not self._open or self._phase is not Phase.SOLO:
            raise self._refusal("solo_done", shard=shard, group=number)
        if not yes:
            return self._abandon(None)
        self._stands[shard] = number
        return self._publish()

    def _run_by_us(self, number: int, event: str) -> tuple[Group, Exchange]:
        """The live group `number` and its exchange."""
        for group in (self._open, self._staged):
            if group is not None and group.number == number and (exchange := self._exchange_of(group)) is not None:
                return group, exchange
        raise self._refusal(event, group=number)

    def _keep(self, event: str, group: Group, exchange: Exchange | None, **facts: int) -> None:
        """Its exchange is another from now on. CommitRuleError when there is none: the event does not fit."""
        if exchange is None or (group is self._open and self._phase is not Phase.VOTING):
            raise self._refusal(event, group=group.number, **facts)
        if group is self._open:
            self._exchange = exchange
        else:
            self._staged_exchange = exchange

    def _has_part(self, shard: int, group: Group) -> bool:
        """False for a living worker that is to be sent its part later."""
        return not self._awaits_record(shard) and not (group is self._staged and shard in self._withheld)

    def _part(self, shard: int, group: Group) -> SendPart:
        """Its part of a group that is voted on, as the exchange stands."""
        exchange = self._exchange_of(group)
        if exchange is None or shard not in exchange.shards or exchange.stage is Stage.SENT:
            return SendPart(shard, group.number)
        return SendPart(shard, group.number, pause=True, question=exchange.question_for(shard))

    def _send_parts(self, group: Group) -> list[Action]:
        return [
            self._part(shard, group)
            for shard in sorted(group.participants & self._up)
            if not self._awaits_record(shard)
        ]

    def _decide(self) -> list[Action]:
        """Once every participant's living process has voted: record. Abandon, once somebody has said no and nobody has
        more to say."""
        group = self._open
        assert group is not None
        if self._noes or (self._exchange is not None and self._exchange.stage is Stage.REFUSED):
            waits = any(map(self._has_more_to_say, group.participants))
            return [] if waits else self._abandon(None)
        if len(self._votes) != len(group.participants) or self._held:
            return []
        self._phase = Phase.RECORDING
        return [Record(group.number)]

    def _publish_when_committed(self) -> list[Action]:
        assert self._open is not None
        return self._publish() if self._committed == self._open.participants else []

    def _publish(self) -> list[Action]:
        """The open group is done; the staged one takes its place, with the votes it has."""
        assert self._open is not None
        actions: list[Action] = [Publish(self._open.number)]
        self._clear_open()
        if self._staged is None:
            return actions
        self._open, self._phase = self._staged, Phase.VOTING
        self._votes = {shard for shard, yes in self._staged_votes.items() if yes}
        self._noes = {shard for shard, yes in self._staged_votes.items() if not yes}
        self._exchange = self._staged_exchange
        self._staged, self._staged_votes, self._staged_exchange = None, {}, None
        if self._withheld:
            return actions + self._abandon(min(self._withheld))
        return actions + self._decide()

    def _abandon(self, killer: int | None) -> list[Action]:
        group = self._open
        assert group is not None and self._phase in (Phase.VOTING, Phase.SOLO)
        told = group.participants | (self._staged.participants if self._staged else frozenset())
        aborts: list[Action] = [SendAbort(shard, group.number) for shard in sorted(told & self._up)]
        self._clear_open()
        self._staged, self._staged_votes, self._staged_exchange = None, {}, None
        self._kills.clear()
        self._withheld.clear()
        return [*aborts, Abandon(group.number, killer)]

    def _clear_open(self) -> None:
        assert self._open is not None
        if self._kills:
            number = self._open.number
            self._kills = {key: count for key, count in self._kills.items() if key[0] != number}
        self._open, self._phase = None, Phase.IDLE
        self._votes, self._noes, self._committed, self._exchange = set(), set(), set(), None

    def _welcome_open(self, shard: int, stands_at: int) -> list[Action]:
        group = self._open
        if group is None or shard not in group.participants or shard in self._committed:
            return []
        if self._phase is Phase.SOLO:
            return self._publish() if stands_at == group.number else self._resend(shard, group)
        if self._phase is Phase.VOTING:
            return self._resend(shard, group)
        if self._phase is Phase.COMMITTING and stands_at == group.number:
            self._committed.add(shard)
            return self._publish_when_committed()
        if self._phase is Phase.COMMITTING:
            return [SendPart(shard, group.number, decided=True)]
        return []  # RECORDING: `recorded` sends it

    def _resend(self, shard: int, group: Group) -> list[Action]:
        if self._kills.get((group.number, shard), 0) >= KILLS_MAX:
            return self._abandon(shard)
        return [SendSolo(shard, group.number) if group.solo else self._part(shard, group)]

    def _resend_staged(self, shard: int, staged: Group) -> list[Action]:
        """A killer is not sent again while it is staged; it is judged when its turn comes."""
        if self._awaits_record(shard):
            return []
        if staged is self._open:
            return self._resend(shard, staged)
        if self._kills.get((staged.number, shard), 0) >= KILLS_MAX:
            self._withheld.add(shard)
            return []
        return [self._part(shard, staged)]
