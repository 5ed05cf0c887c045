"""Runs the exchanges of groups: from what the commit table asks to what the coordinator's own commands wrote.

Its rings apart, it does no I/O. What is to be done next, it returns.
"""

from __future__ import annotations

from collections.abc import Sequence

from shardengine.engine.commit import actions
from shardengine.engine.commit.actions import Action
from shardengine.engine.commit.host import Host, OvertimeError
from shardengine.engine.commit.inflight import OURS, Batch
from shardengine.engine.commit.packing import Packed, Packing
from shardengine.engine.commit.table import Commit
from shardengine.engine.commit.takeover import Takeover
from shardengine.engine.errors import EngineError, disk_error
from shardengine.engine.intake.split import Splitter
from shardengine.shards import wire
from shardengine.shards.running import ApplyError, problem_of


class Exchanging:
    """The coordinator's own commands of every group that has some."""

    def __init__(self, host: Host, commit: Commit, packing: Packing, splitter: Splitter) -> None:
        self._host = host
        self._commit = commit
        self._packing = packing
        self._splitter = splitter

    @property
    def machine_version(self) -> int:
        """Of the commands' meaning."""
        return self._splitter.machine.version

    def begin(self, packed: Packed) -> Takeover | None:
        """What is to be run for a group that is packed."""
        if not packed.spanning:
            return None
        splitter = self._splitter
        return Takeover(splitter.machine, splitter.limits, splitter.place, packed.spanning, self._packing.half_bytes)

    def take(self, shard: int, answer: wire.Values, batch: Batch | None) -> Sequence[Action]:
        """A shard has answered. `batch` is its group, None when that was cancelled."""
        asked = self._commit.values(shard, answer.group, answer.number)
        if batch is not None:
            assert batch.takeover is not None
            batch.takeover.take(shard, answer)
        return asked

    def run(self, group: int, batch: Batch) -> Sequence[Action]:
        """Run its commands, as far as they come."""
        takeover = batch.takeover
        assert takeover is not None
        try:
            with self._host.watched():
                lacking = takeover.run()
            if lacking:
                return self._commit.asked(group, lacking)
            batch.extents = self._packing.append(batch.half, batch.extents, takeover.writes())
        except ApplyError as error:
            batch.noes[OURS] = (error.index, error.problem)
        except (EngineError, OvertimeError) as error:
            batch.noes[OURS] = (None, problem_of(error))
        except OSError as error:
            batch.noes[OURS] = (None, problem_of(disk_error("a ring cannot be written", error)))
        if OURS in batch.noes:
            return self._commit.refused(group)
        batch.results[OURS] = takeover.results
        return self._commit.computed(group)


def order_of(action: actions.SendPart | actions.SendAsk | actions.SendWrites, batch: Batch) -> wire.Order:
    """What a shard is sent of a group that is voted on, or decided."""
    extent, question = batch.extents[action.shard], None
    if not isinstance(action, actions.SendWrites) and action.question is not None:
        assert batch.takeover is not None
        question = batch.takeover.questions[action.shard]
        assert question.number == action.question
    match action:
        case actions.SendAsk(group=group):
            assert question is not None
            return wire.Ask(group, question)
        case actions.SendWrites(group=group):
            return wire.Writes(group, extent)
        case actions.SendPart(decided=decided, pause=pause):
            return wire.Part(batch.position, extent, decided, pause, question)
