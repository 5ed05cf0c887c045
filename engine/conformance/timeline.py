"""The log, replayed once: what became of every entry, and which value every key had at every index."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Literal

from shardengine.engine.adaptors.commands import Commands, failure_of, result_of
from shardengine.engine.adaptors.records import Records
from shardengine.engine.contract import ScanResult, scanned
from shardengine.engine.intake.tail import Tail, normalised
from shardengine.engine.run.launch import check_machine
from shardengine.engine.storage.placing import made
from shardengine.shards.machine import Machine
from shardengine.shards.part import Run
from shardengine.shards.running import ApplyError
from shardengine.shards.types import ApplyResult, Entry, Limits

_CHUNK = 1024


class Timeline:
    """Invariant: the indices of a key's writes rise; a deletion, whose value is None, stands behind a value."""

    def __init__(self) -> None:
        self.datas: list[bytes] = [b""]
        """Of each entry, at its index."""
        self._told: dict[int, ApplyResult] = {}
        self._writes: dict[bytes, tuple[list[int], list[bytes | None]]] = {}
        self._ordered: list[bytes] = []

    @property
    def last(self) -> int:
        """The index of the newest entry."""
        return len(self.datas) - 1

    def result(self, index: int) -> ApplyResult:
        """What became of an entry."""
        return self._told.get(index) or ApplyResult(index, True)

    # ---- reads ---------------------------------------------------------------------------------------------------

    def get(self, key: bytes, index: int) -> bytes | None:
        """The value of `key` behind the entry at `index`."""
        indices, values = self._writes.get(key, ((), ()))
        place = bisect_right(indices, index)
        return values[place - 1] if place else None

    def scan(
        self, prefix: bytes, limit: int | None, start_after: bytes | None, reverse: bool, index: int
    ) -> ScanResult:
        """As `Engine.scan_prefix`, behind the entry at `index`. Looks at keys that were deleted, too."""
        found = self._under(prefix, start_after, reverse)
        there = ((key, value) for key in found if (value := self.get(key, index)) is not None)
        return scanned(there, limit, index)

    def _under(self, prefix: bytes, start_after: bytes | None = None, reverse: bool = False) -> Iterator[bytes]:
        """All keys with `prefix` that were ever written, in order."""
        keys = self._ordered
        low = bisect_left(keys, prefix)
        high = bisect_left(keys, True, low, key=lambda key: not key.startswith(prefix))
        if start_after is not None and reverse:
            high = min(high, bisect_left(keys, start_after))
        elif start_after is not None:
            low = max(low, bisect_right(keys, start_after))
        return (keys[place] for place in (range(high - 1, low - 1, -1) if reverse else range(low, high)))

    def first(self, keys: Sequence[bytes], values: Sequence[bytes | None], low: int, high: int) -> int | None:
        """The first index from `low` to `high` behind which all keys have these values. Looks at each write between
        `low` and the answer once a key and round; a key that moves the answer on makes another round."""
        if low > high:
            return None
        index: int | None = low
        while index is not None:
            begun = index
            for key, value in zip(keys, values, strict=True):
                index = self._first(key, value, index, high)
                if index is None:
                    return None
            if index == begun:
                return index
        return None

    def _first(self, key: bytes, value: bytes | None, low: int, high: int) -> int | None:
        indices, values = self._writes.get(key, ((), ()))
        later = bisect_right(indices, low)
        if (values[later - 1] if later else None) == value:
            return low
        for place in range(later, len(indices)):
            if indices[place] > high:
                return None
            if values[place] == value:
                return indices[place]
        return None

    # ---- writes --------------------------------------------------------------------------------------------------

    def write(self, key: bytes, index: int) -> tuple[bytes | None, bytes | None] | None:
        """What the entry at `index` wrote to `key`: the value, None for a deletion, and the one before; None: nothing.
        To delete what is not there is to write nothing."""
        indices, values = self._writes.get(key, ((), ()))
        place = bisect_left(indices, index)
        if place == len(indices) or indices[place] != index:
            return None
        return values[place], values[place - 1] if place else None

    def written(self, key: bytes | None, prefix: bytes, low: int, high: int) -> Iterator[tuple[int, bytes]]:
        """Who wrote to `key`, or to keys with `prefix`: the entries from `low` to `high`, with the key."""
        for one in self._under(prefix) if key is None else (key,):
            indices, _ = self._writes.get(one, ((), ()))
            for place in range(bisect_left(indices, low), bisect_right(indices, high)):
                yield indices[place], one

    # ---- the replay ----------------------------------------------------------------------------------------------

    def add(self, index: int, data: bytes, result: ApplyResult | None, writes: dict[bytes, bytes | None]) -> None:
        """The next entry, and what came of it; None: it succeeded, and said nothing."""
        self.datas.append(data)
        if result is not None:
            self._told[index] = result
        for key, value in writes.items():
            indices, values = self._writes.setdefault(key, ([], []))
            if value is not None or (values and values[-1] is not None):
                indices.append(index)
                values.append(value)

    def close(self) -> None:
        """That was the last one."""
        self._ordered = sorted(self._writes)


def replayed(
    log: Iterable[Entry], machine: type[Machine], limits: Limits, bad_entry: Literal["fail", "reject"]
) -> Timeline:
    """Run a log, from entry 1 on, through its machine, one entry after the other.

    Raises MachineImportError; LogGapError, LogOrderError when it is no log; BadEntryError, UndeclaredKeyError or
    ChunkFailedError, which name the entry, when it cannot be applied.
    """
    check_machine(machine)
    commands = Commands(made(machine), limits, reject_bad=bad_entry == "reject")
    timeline, records, tail, entries = Timeline(), Records(), Tail(0, 0, 0, []), iter(log)
    while chunk := list(islice(entries, _CHUNK)):
        form = normalised(chunk, tail.clock)
        tail.check(form)
        rejected = commands.split(form).rejected
        clock = tail.clock
        for place, entry in enumerate(chunk):
            clock = max(clock, entry.time_ms)
            if place in rejected:
                timeline.add(entry.index, entry.data, ApplyResult(entry.index, False, reason=rejected[place]), {})
            else:
                timeline.add(entry.index, entry.data, *_run(commands, records, entry, clock))
        tail.extend(form)
        tail.forget_old_runs(tail.index)
    timeline.close()
    return timeline


def _run(
    commands: Commands, records: Records, entry: Entry, clock: int
) -> tuple[ApplyResult | None, dict[bytes, bytes | None]]:
    """What it says, if it says more than that it succeeded, and what it writes."""
    if not entry.data:
        return None, {}
    transaction = commands.runner.transaction(records)
    run = Run(entry.index, entry.term, clock)
    try:
        outcome = commands.runner.run_in_host(transaction, commands.decode(entry.data), entry.index, run)
    except ApplyError as error:
        raise failure_of(error) from error.__cause__
    if outcome.reason is not None:
        return result_of(entry.index, outcome), {}
    transaction.settle()
    records.write(transaction.writes)
    return None if outcome.value is None else result_of(entry.index, outcome), transaction.writes
