"""What commands over several shards add to a group's commit, as a table: events in, no I/O, no clock.

Such commands are run by the coordinator. The shards whose partitions it has taken over run their own commands, then
pause: they answer what the coordinator's commands need, and vote when they have been given what those wrote. A group
has at most one exchange, of any number of questions; all shards that are asked in a *round* are asked together:

                 last answer           lacks something
    ASKED ------------------> RUNNING -----------------> ASKED, the next round
                                 | done                     all writes voted on: see table.py
                                 +------------> SENT
                                 | a command fails
                                 +------------> REFUSED

An answer outlives the process that gave it: it was computed on the last commit, which no death moves.
"""

from __future__ import annotations

import enum
from typing import NamedTuple


class Stage(enum.Enum):
    """Of an exchange."""

    ASKED = "asked"
    RUNNING = "running"
    SENT = "sent"
    REFUSED = "refused"


class Exchange(NamedTuple):
    """One group's exchange; a value. `unanswered` are those of its `shards` that have not answered in this `round`.

    An event that it does not allow gives None.
    """

    shards: frozenset[int]
    unanswered: frozenset[int]
    stage: Stage = Stage.ASKED
    round: int = 0

    def owes(self, shard: int) -> bool:
        """True while the worker of `shard`, which has not voted, has something to do."""
        return shard in self.unanswered or self.stage is Stage.SENT

    def question_for(self, shard: int) -> int | None:
        """The round whose question a new worker of `shard` is sent along with its part."""
        return self.round if shard in self.unanswered else None

    def answered(self, shard: int, number: int) -> Exchange | None:
        if shard not in self.unanswered or number != self.round:
            return None
        left = self.unanswered - {shard}
        return self._replace(unanswered=left, stage=self.stage if left else Stage.RUNNING)

    def asked(self, shards: frozenset[int]) -> Exchange | None:
        if self.stage is not Stage.RUNNING or not shards or not shards <= self.shards:
            return None
        return self._replace(unanswered=shards, stage=Stage.ASKED, round=self.round + 1)

    def ended(self, stage: Stage) -> Exchange | None:
        """SENT or REFUSED."""
        return self._replace(stage=stage) if self.stage is Stage.RUNNING else None


def begun(shards: frozenset[int]) -> Exchange | None:
    """The exchange of a group over `shards`; None: it has none."""
    return Exchange(shards, shards) if shards else None
