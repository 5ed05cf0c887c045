"""Runs the exchanges of groups: from what the commit table asks to what the coordinator's own commands wrote.

Its rings apart, it does no I/O. What is to be done next, it returns.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from shardengine.engine.commit import actions
from shardengine.engine.commit.actions import Action
from shardengine.engine.commit.host import Host, OvertimeError
from shardengine.engine.commit.inflight import OURS, Batch
from shardengine.engine.commit.packing import Packed, Packing
from shardengine.engine.commit.table import Commit
from shardengine.engine.commit.takeover import Takeover
from shardengine.engine.errors import disk_error
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
        return Takeover(self._splitter, packed.spanning, self._packing.half_bytes)

    def take(self, shard: int, answer: wire.Values, batch: Batch | None) -> Sequence[Action]:
        """A shard has answered. `batch` is its group, None when that was cancelled."""
        asked = self._commit.values(shard, answer.group, answer.number)
        if batch is not None:
            assert batch.takeover is not None
            batch.takeover.take(shard, answer)
        return asked

    def run(self, group: int, batch: Batch) -> Iterable[Action]:
        """Run its commands, as far as they come. Raises KeyboardInterrupt, behind all that is to be done, when that is
        what ended one."""
        takeover = batch.takeover
        assert takeover is not None
        try:
            with self._host.watched() as interruption:
                lacking = takeover.run(interruption)
            if lacking:
                return self._commit.asked(group, lacking)
            batch.extents = self._packing.append(batch.half, batch.extents, takeover.writes())
        except ApplyError as error:
            return self._failed(group, batch, error)
        except OSError as error:
            batch.noes[OURS] = (None, problem_of(disk_error("a ring cannot be written", error)))
        except (Exception, OvertimeError) as error:  # a machine's partition_key, for one, and we do not know whose
            batch.noes[OURS] = (None, problem_of(error))
        if OURS in batch.noes:
            return self._commit.refused(group)
        batch.results[OURS] = takeover.results
        return self._commit.computed(group)

    def _failed(self, group: int, batch: Batch, error: ApplyError) -> Iterable[Action]:
        """A command failed. Where it was interrupted, the others of its group may have had all the time: they are tried
        again, chunk by chunk, before one of them is blamed."""
        together = isinstance(error.__cause__, OvertimeError) and len(batch.chunks) > 1
        interrupted = isinstance(error.__cause__, KeyboardInterrupt)
        batch.noes[OURS] = (None if together or interrupted else error.index, error.problem)
        yield from self._commit.refused(group)
        if interrupted:
            assert error.__cause__ is not None
            raise error.__cause__


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
