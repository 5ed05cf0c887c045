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

The rules are those of the protocol's model: see tests/test_commit_model.py, which walks every reachable state of
small worlds against this very class.
"""

from __future__ import annotations

import enum
from collections.abc import Set

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
from shardengine.engine.errors import CommitRuleError

KILLS_MAX = 3


class Phase(enum.Enum):
    """Of the open group."""

    IDLE = "idle"
    SOLO = "solo"
    VOTING = "voting"
    RECORDING = "recording"
    COMMITTING = "committing"


class Commit:
    """The commit protocol of one generation.

    Every method takes one event and returns the actions to carry out, in order. An event that the state does not
    allow raises CommitRuleError and changes nothing. Answers to cancelled groups are ignored, by number.

    Invariants (`check`): a solo is open alone; votes and commits come from participants; a worker that is down has no
    vote; nothing is staged unless something is open; group numbers rise. Its attributes are the protocol's whole state.
    """

    __slots__ = (
        "_committed", "_held", "_kills", "_last", "_noes", "_open", "_phase", "_staged", "_staged_votes",
        "_stands", "_up", "_votes", "_withheld",
    )  # fmt: skip

    def __init__(self, shards: int, last: int = 0, redo: Group | None = None, committed: frozenset[int] = frozenset()):
        """`last`: the newest group number in use. `redo`: the recorded group, when some participants (those not in
        `committed`) have not committed it yet; it is opened as decided."""
        self._up: set[int] = set()
        self._open: Group | None = redo
        self._phase = Phase.IDLE if redo is None else Phase.COMMITTING
        self._votes: set[int] = set()
        self._noes: set[int] = set()
        self._committed = set(committed)
        self._staged: Group | None = None
        self._staged_votes: dict[int, bool] = {}
        self._kills: dict[tuple[int, int], int] = {}  # by group and shard
        self._withheld: set[int] = set()
        self._held = False
        self._last = last
        self._stands: dict[int, int] = {}  # by shard: the newest group it is known to have committed
        assert all(shard < shards for shard in (redo.participants if redo else ()))

    @property
    def phase(self) -> Phase:
        return self._phase

    @property
    def open(self) -> Group | None:
        return self._open

    @property
    def staged(self) -> Group | None:
        return self._staged

    @property
    def held(self) -> bool:
        return self._held

    @property
    def last(self) -> int:
        """The newest group number in use."""
        return self._last

    @property
    def up(self) -> Set[int]:
        """The shards whose workers have said Hello and live: those that can be sent to."""
        return self._up

    @property
    def idle(self) -> bool:
        return self._open is None

    @property
    def can_submit(self) -> bool:
        """True while a group may be opened or staged."""
        return self._open is None or (self._staged is None and self._phase is not Phase.SOLO)

    @property
    def can_solo(self) -> bool:
        """True while a solo may be opened."""
        return self._open is None and not self._held

    @property
    def quiet(self) -> bool:
        """True while every shard's last commit is published: nothing is decided, or may be, as a solo."""
        return self._phase in (Phase.IDLE, Phase.VOTING)

    def hold(self) -> None:
        """From now on decide nothing new: what is decided is finished, then the table stays `quiet` until `release`."""
        self._held = True

    def release(self) -> list[Action]:
        """Decide again, at once when all votes were in."""
        self._held = False
        return self._decide() if self._phase is Phase.VOTING else []

    def owes(self, shard: int) -> bool:
        """True while the worker of `shard` owes an answer: Hello when it is down, else to the part it works on."""
        return shard not in self._up or self._working_on(shard) is not None

    def kills(self, shard: int) -> int:
        """How often the worker of `shard` has died over the open group while it owed an answer to it."""
        return 0 if self._open is None else self._kills.get((self._open.number, shard), 0)

    def submit(self, group: Group) -> list[Action]:
        """Open `group`, or stage it behind the open one."""
        if not self.can_submit or group.number <= self._last:
            raise self._refusal("submit", group=group.number)
        if group.solo and not (self.can_solo and len(group.participants) == 1):
            raise self._refusal("submit solo", group=group.number)
        self._last = group.number
        if self._open is not None:
            self._staged, self._staged_votes = group, {}
            return self._send_parts(group)
        self._open = group
        if group.solo:
            self._phase = Phase.SOLO
            return [SendSolo(shard, group.number) for shard in group.participants & self._up]
        self._phase = Phase.VOTING
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
        if group is self._staged:
            if group is not self._working_on(shard):
                raise self._refusal("vote", shard=shard, group=number)
            self._staged_votes[shard] = yes
            return []
        if self._phase is not Phase.VOTING or shard in self._votes | self._noes:
            raise self._refusal("vote", shard=shard, group=number)
        (self._votes if yes else self._noes).add(shard)
        return self._decide()

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

    def check(self) -> None:
        """Assert the invariants."""
        if self._open is None:
            assert self._phase is Phase.IDLE and self._staged is None
            assert not (self._votes or self._noes or self._committed)
            return
        assert self._phase is not Phase.IDLE and self._open.solo is (self._phase is Phase.SOLO)
        assert not self._votes & self._noes
        assert self._votes | self._noes <= self._open.participants & self._up
        assert self._committed <= self._open.participants
        assert not self._committed or self._phase is Phase.COMMITTING
        assert self._phase in (Phase.VOTING, Phase.SOLO) or not self._noes
        if self._staged is not None:
            assert self._open.number < self._staged.number <= self._last and not self._open.solo
            assert self._staged_votes.keys() <= self._staged.participants & self._up
            assert self._withheld <= self._staged.participants & self._up

    def _find(self, shard: int, number: int, event: str) -> Group | None:
        """The live group with that number; None when it was cancelled. CommitRuleError when it cannot be."""
        for group in (self._open, self._staged):
            if group is not None and group.number == number:
                if shard not in group.participants or shard not in self._up:
                    raise self._refusal(event, shard=shard, group=number)
                return group
        if number > self._last:
            raise self._refusal(event, shard=shard, group=number)
        return None

    def _working_on(self, shard: int) -> Group | None:
        """The group that the living worker of `shard` owes its next answer to."""
        group, staged = self._open, self._staged
        if group is not None and shard in group.participants and shard not in self._committed:
            owes = self._phase in (Phase.SOLO, Phase.COMMITTING) or (
                self._phase is Phase.VOTING and shard not in self._votes | self._noes
            )
            return group if owes else None
        if staged is not None and shard in staged.participants - self._withheld - self._staged_votes.keys():
            return staged
        return None

    def _awaits_record(self, shard: int) -> bool:
        """True for a new worker that is to be sent its decided part before anything else, once the record is whole."""
        group = self._open
        return (
            group is not None
            and self._phase is Phase.RECORDING
            and shard in group.participants
            and shard not in self._votes
        )

    def _may_stand_at(self, shard: int, number: int) -> bool:
        """False for a group that the shard cannot stand at: all it may have committed beyond what is known of it is the
        open group."""
        group = self._open
        if group is not None and number == group.number:
            return shard in group.participants and self._phase in (Phase.SOLO, Phase.COMMITTING)
        if shard in self._stands:
            return number == self._stands[shard]
        return number <= self._last and (group is None or number < group.number)

    def _send_parts(self, group: Group) -> list[Action]:
        return [
            SendPart(shard, group.number)
            for shard in sorted(group.participants & self._up)
            if not self._awaits_record(shard)
        ]

    def _decide(self) -> list[Action]:
        """Once every participant's living process has voted: record, or abandon."""
        group = self._open
        assert group is not None
        if len(self._votes) + len(self._noes) != len(group.participants):
            return []
        if self._noes:
            return self._abandon(None)
        if self._held:
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
        self._staged, self._staged_votes = None, {}
        if self._withheld:
            return actions + self._abandon(min(self._withheld))
        return actions + self._decide()

    def _abandon(self, killer: int | None) -> list[Action]:
        group = self._open
        assert group is not None and self._phase in (Phase.VOTING, Phase.SOLO)
        told = group.participants | (self._staged.participants if self._staged else frozenset())
        aborts: list[Action] = [SendAbort(shard, group.number) for shard in sorted(told & self._up)]
        self._clear_open()
        self._staged, self._staged_votes = None, {}
        self._kills.clear()
        self._withheld.clear()
        return [*aborts, Abandon(group.number, killer)]

    def _clear_open(self) -> None:
        assert self._open is not None
        if self._kills:
            number = self._open.number
            self._kills = {key: count for key, count in self._kills.items() if key[0] != number}
        self._open, self._phase = None, Phase.IDLE
        self._votes, self._noes, self._committed = set(), set(), set()

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
        return [SendSolo(shard, group.number) if group.solo else SendPart(shard, group.number)]

    def _resend_staged(self, shard: int, staged: Group) -> list[Action]:
        """A killer is not sent again while it is staged; it is judged when its turn comes."""
        if self._awaits_record(shard):
            return []
        if staged is self._open:
            return self._resend(shard, staged)
        if self._kills.get((staged.number, shard), 0) >= KILLS_MAX:
            self._withheld.add(shard)
            return []
        return [SendPart(shard, staged.number)]

    def _refusal(self, event: str, **facts: int) -> CommitRuleError:
        return CommitRuleError(
            f"{event} {facts} does not fit the commit protocol: phase {self._phase.value}, open {self._open}, "
            f"staged {self._staged}, last {self._last}",
            hint="",
            **facts,
        )
