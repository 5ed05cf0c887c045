"""Runs the commands of chunks over records, one after the other, in log order."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from shardengine.engine.adaptors.store import Reads
from shardengine.engine.errors import BadEntryError, EngineError
from shardengine.engine.intake.chunks import error_of
from shardengine.engine.intake.split import Split, Splitter
from shardengine.shards.fast import Normal
from shardengine.shards.machine import Machine
from shardengine.shards.part import Run
from shardengine.shards.running import ApplyError, Outcome, Runner
from shardengine.shards.transaction import Tx
from shardengine.shards.types import ApplyResult, Entry, Limits

_ANY_SIZE = 1 << 62  # no ring has to take a part


class Commands:
    """What the commands of one machine mean. Keeps nothing of a chunk."""

    def __init__(self, machine: Machine, limits: Limits, *, reject_bad: bool, shards: int = 1) -> None:
        self.machine = machine
        self.runner = Runner(machine, limits)
        self._splitter = Splitter(machine, shards, limits, reject_bad=reject_bad, part_bytes_max=_ANY_SIZE)
        self.check, self.decode = self._splitter.check, self._splitter.decode

    def split(self, form: Normal) -> Split:
        """A chunk, taken apart as by an engine with so many shards. Raises BadEntryError as it does."""
        return self._splitter.split(form)

    def fault(self, data: bytes) -> str | None:
        """Why `data` must not enter the log, or None."""
        try:
            self.check([data])
        except BadEntryError as error:
            return str(error.reason)
        return None

    def apply(
        self, entries: Sequence[Entry], form: Normal, clock: int, records: Reads
    ) -> tuple[dict[int, ApplyResult], dict[bytes, bytes | None]]:
        """Run a chunk, `form` in its normal form, before which the log clock stands at `clock`. Writes nothing.

        Returns the results that say more than "succeeded", by index, and the last write of each key. Raises
        BadEntryError as a split does, or what an engine raises for the entry whose `apply` fails.
        """
        told = {
            form.first + at: ApplyResult(form.first + at, False, reason=why)
            for at, why in self.split(form).rejected.items()
        }
        transaction = self.runner.transaction(records)
        for entry in entries:
            clock = max(clock, entry.time_ms)
            if entry.data and entry.index not in told:
                outcome = self._run(transaction, entry, clock)
                if outcome.reason is not None or outcome.value is not None:
                    told[entry.index] = result_of(entry.index, outcome)
        return told, transaction.writes

    def _run(self, transaction: Tx, entry: Entry, clock: int) -> Outcome:
        run = Run(entry.index, entry.term, clock)
        try:
            outcome = self.runner.run_in_host(transaction, self.decode(entry.data), entry.index, run)
        except ApplyError as error:
            raise failure_of(error) from error.__cause__
        if outcome.reason is None:
            transaction.settle()
        else:
            transaction.drop()
        return outcome


def result_of(index: int, outcome: Outcome) -> ApplyResult:
    """What the caller is told, its value as it comes from a worker."""
    if outcome.reason is not None:
        return ApplyResult(index, False, reason=outcome.reason)
    return ApplyResult(index, True, None if outcome.value is None else msgspec.msgpack.decode(outcome.value))


def failure_of(error: ApplyError) -> EngineError:
    """What an engine raises when that entry fails its chunk. Raises KeyboardInterrupt when that is all it was."""
    if isinstance(error.__cause__, KeyboardInterrupt):
        raise error.__cause__
    return error_of(error.problem, error.index, here=True)
