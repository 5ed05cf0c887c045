"""What the commit table knows, and what follows from it."""

from __future__ import annotations

import enum
from collections.abc import Set

from shardengine.engine.commit.actions import Group
from shardengine.engine.commit.exchange import Exchange, Stage
from shardengine.engine.errors import CommitRuleError


class Phase(enum.Enum):
    """Of the open group."""

    IDLE = "idle"
    SOLO = "solo"
    VOTING = "voting"
    RECORDING = "recording"
    COMMITTING = "committing"


class State:
    """Questions to the table; none of them changes it.

    Invariants (`check`): a solo is open alone; votes and commits come from participants; a worker that is down has no
    vote, nor has one a yes before it was given the coordinator's writes; nothing is staged unless something is open;
    group numbers rise. Its attributes are the protocol's whole state.
    """

    __slots__ = (
        "_committed", "_exchange", "_held", "_kills", "_last", "_noes", "_open", "_phase", "_staged",
        "_staged_exchange", "_staged_votes", "_stands", "_up", "_votes", "_withheld",
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
        self._exchange: Exchange | None = None
        self._staged: Group | None = None
        self._staged_votes: dict[int, bool] = {}
        self._staged_exchange: Exchange | None = None
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

    def owes(self, shard: int) -> bool:
        """True while the worker of `shard` owes an answer: Hello when it is down, else to the part it works on."""
        return shard not in self._up or self._working_on(shard) is not None

    def kills(self, shard: int) -> int:
        """How often the worker of `shard` has died over the open group while it owed an answer to it."""
        return 0 if self._open is None else self._kills.get((self._open.number, shard), 0)

    def check(self) -> None:
        """Assert the invariants."""
        if self._open is None:
            assert self._phase is Phase.IDLE and self._staged is None
            assert not (self._votes or self._noes or self._committed or self._exchange)
            return
        assert self._phase is not Phase.IDLE and self._open.solo is (self._phase is Phase.SOLO)
        assert not self._votes & self._noes
        assert self._votes | self._noes <= self._open.participants & self._up
        assert self._committed <= self._open.participants
        assert not self._committed or self._phase is Phase.COMMITTING
        assert self._phase in (Phase.VOTING, Phase.SOLO) or not self._noes
        assert _fits(self._exchange, self._votes)
        if self._staged is not None:
            assert self._open.number < self._staged.number <= self._last and not self._open.solo
            assert self._staged_votes.keys() <= self._staged.participants & self._up
            assert self._withheld <= self._staged.participants & self._up
            assert _fits(self._staged_exchange, {shard for shard, yes in self._staged_votes.items() if yes})

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

    def _exchange_of(self, group: Group) -> Exchange | None:
        return self._exchange if group is self._open else self._staged_exchange

    def _working_on(self, shard: int) -> Group | None:
        """The group that the living worker of `shard` owes its next answer to."""
        group, staged = self._open, self._staged
        if not self._is_done_with_open(shard):
            owes = self._phase in (Phase.SOLO, Phase.COMMITTING) or (
                self._phase is Phase.VOTING
                and shard not in self._votes | self._noes
                and not _pauses(self._exchange, shard)
            )
            return group if owes else None
        if staged is not None and shard in staged.participants - self._withheld - self._staged_votes.keys():
            return None if _pauses(self._staged_exchange, shard) else staged
        return None

    def _is_done_with_open(self, shard: int) -> bool:
        """True when nothing of the open group keeps the worker of `shard` from what is staged."""
        return self._open is None or shard not in self._open.participants or shard in self._committed

    def _may_vote(self, shard: int, group: Group, yes: bool) -> bool:
        exchange = self._exchange_of(group)
        voted = self._votes | self._noes if group is self._open else self._staged_votes.keys() | self._withheld
        if shard in voted or (yes and exchange and shard in exchange.shards and exchange.stage is not Stage.SENT):
            return False
        return self._phase is Phase.VOTING if group is self._open else self._is_done_with_open(shard)

    def _has_more_to_say(self, shard: int) -> bool:
        """True when the worker of `shard`, a participant of the open group, has not voted, and will say something."""
        return shard not in self._votes | self._noes and not _pauses(self._exchange, shard)

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

    def _refusal(self, event: str, **facts: int) -> CommitRuleError:
        return CommitRuleError(
            f"{event} {facts} does not fit the commit protocol: phase {self._phase.value}, open {self._open}, "
            f"exchange {self._exchange}, staged {self._staged}, exchange {self._staged_exchange}, last {self._last}",
            hint="",
            **facts,
        )


def _pauses(exchange: Exchange | None, shard: int) -> bool:
    """True when the worker of `shard`, which has not voted, waits for the coordinator."""
    return exchange is not None and shard in exchange.shards and not exchange.owes(shard)


def _fits(exchange: Exchange | None, votes: Set[int]) -> bool:
    return exchange is None or exchange.stage is Stage.SENT or not exchange.shards & votes
