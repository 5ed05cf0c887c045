"""The coordinator's own commands of a group: those over several shards, and those behind them in the same partitions.

They are run in log order by the very same `apply`, over what the shards answer. Where one lacks a key or a range, that
is asked for, and the command runs again from its start when it is there: `apply` is pure. Commands that share no
partition with one that waits go on meanwhile, so what is lacking is asked for together. No I/O.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Set
from operator import itemgetter
from typing import NamedTuple

import msgspec

from shardengine.engine.intake.split import Spanning, Splitter
from shardengine.shards import wire
from shardengine.shards.errors import ChunkTooLargeError
from shardengine.shards.part import pack_writes
from shardengine.shards.running import ApplyError, Runner
from shardengine.shards.transaction import MissingError, Record

_ITEM_BYTES = 64  # what a key that is asked for costs beside its bytes, at least


def asked_bytes(commands: Iterable[Spanning]) -> int:
    """What the keys that commands name cost, of those bytes that a group may ask for: their values come on top."""
    return sum(_ITEM_BYTES + len(key) for command in commands for key in command.keys)


class _Lacking:
    """What is to be asked of one shard: keys, and ranges with how many records of each (None: all)."""

    def __init__(self) -> None:
        self.keys: dict[bytes, None] = {}
        self.ranges: dict[_Range, int | None] = {}


class _Range(NamedTuple):
    prefix: bytes
    partitions: frozenset[bytes]
    reverse: bool


class _Told:
    """What the shards have answered: the base that the commands run over.

    Invariant: `missing` is set once something was looked for that nobody has answered yet; it is in `lacking` then.
    """

    def __init__(self, splitter: Splitter, bytes_max: int) -> None:
        self._splitter = splitter
        self._bytes_max = self._bytes_left = bytes_max
        self._values: dict[bytes, bytes | None] = {}
        self._ranges: dict[tuple[int, _Range], wire.Found] = {}
        self.lacking: dict[int, _Lacking] = {}
        self.missing = False

    def get(self, key: bytes) -> bytes | None:
        try:
            return self._values[key]
        except KeyError:
            self.want(key)
            raise self._miss() from None

    def scan(self, prefix: bytes, partitions: Set[bytes], limit: int | None, reverse: bool) -> Iterator[Record]:
        by_shard: dict[int, set[bytes]] = {}
        for partition in partitions:
            by_shard.setdefault(self._splitter.place(partition), set()).add(partition)
        ranges = {shard: _Range(prefix, frozenset(held), reverse) for shard, held in by_shard.items()}
        unknown = [shard for shard, range_ in ranges.items() if (shard, range_) not in self._ranges]
        for shard in unknown:
            self._of(shard).ranges[ranges[shard]] = limit
        if unknown:
            raise self._miss()
        found = [self._records(shard, range_, limit) for shard, range_ in ranges.items()]
        return heapq.merge(*found, key=itemgetter(0), reverse=reverse)

    def _records(self, shard: int, range_: _Range, limit: int | None) -> Iterator[Record]:
        found = self._ranges[shard, range_]
        yield from found.records
        if not found.whole:  # what is hidden, or left out, was not counted
            self._of(shard).ranges[range_] = None if limit is None else max(limit, 2 * len(found.records))
            raise self._miss()

    def _of(self, shard: int) -> _Lacking:
        return self.lacking.setdefault(shard, _Lacking())

    def _miss(self) -> MissingError:
        self.missing = True
        return MissingError()

    def want(self, key: bytes) -> None:
        """Have `key` asked for."""
        self._of(self._splitter.owner(key)).keys[key] = None

    def take(self, shard: int, question: wire.Question, answer: wire.Values) -> None:
        """Know what a shard has answered."""
        for key, value in zip(question.keys, answer.values, strict=True):
            self._know(key, value)
        for asked, found in zip(question.ranges, answer.ranges, strict=True):
            self._ranges[shard, _Range(asked.prefix, frozenset(asked.partitions), asked.reverse)] = found
            for key, value in found.records:
                self._know(key, value)

    def _know(self, key: bytes, value: bytes | None) -> None:
        self._values[key] = value
        self._bytes_left -= _ITEM_BYTES + len(key) + (0 if value is None else len(value))

    def check(self) -> None:
        """Raise ChunkTooLargeError when that is more than it may be."""
        if self._bytes_left < 0:
            raise ChunkTooLargeError(
                f"commands over several shards ask for more than {self._bytes_max} bytes in one chunk",
                hint="send smaller chunks, scan with a limit, or raise ring_bytes (a chunk may ask for half of it)",
                limit=self._bytes_max,
            )


class Takeover:
    """The coordinator's commands of one group, from the first question to what they write."""

    def __init__(self, splitter: Splitter, commands: list[Spanning], bytes_max: int) -> None:
        self._runner = Runner(splitter.machine, splitter.limits)
        self._splitter = splitter
        self._told = _Told(splitter, bytes_max)
        self._transaction = self._runner.transaction(self._told)
        self._left = commands
        self._failed: tuple[int, wire.Problem] | None = None
        self._round = 0
        self.results = wire.PartResults({}, {})
        self.questions: dict[int, wire.Question] = {}
        """By shard, those of this round."""
        for command in commands:
            for key in command.keys:
                self._told.want(key)
        self._ask()

    def take(self, shard: int, answer: wire.Values) -> None:
        """Know what a shard has answered."""
        self._told.take(shard, self.questions[shard], answer)

    def run(self, interruption: Callable[[], BaseException | None]) -> frozenset[int]:
        """Run what can be run. Returns the shards that have to be asked, the `questions` for them are ready; none: all
        is done. `interruption` is what interrupted the last command: it fails, whatever it made of it.

        Raises ApplyError of the first entry that fails, when those before it are done, and of one that was interrupted
        at once; ChunkTooLargeError when the shards answered too much.
        """
        self._told.check()
        waiting: list[Spanning] = []
        held: set[bytes] = set()
        for spanning in self._left:
            if self._failed is not None and spanning.entry > self._failed[0]:
                break
            if not held.isdisjoint(spanning.partitions) or not self._attempt(spanning, interruption):
                held |= spanning.partitions
                waiting.append(spanning)
        self._left = waiting
        if waiting:
            self._ask()
            return frozenset(self.questions)
        if self._failed is not None:
            raise ApplyError(*self._failed)
        return frozenset()

    def _attempt(self, spanning: Spanning, interruption: Callable[[], BaseException | None]) -> bool:
        """Run one. False: something has to be asked for first."""
        self._told.missing = False
        command, outcome = self._splitter.decode(spanning.data), None
        try:
            outcome = self._runner.run_in_host(self._transaction, command, spanning.entry, spanning.run)
        except MissingError:
            pass
        except ApplyError as error:
            if isinstance(error.__cause__, KeyboardInterrupt):
                raise
            self._failed = self._failed if self._told.missing else (spanning.entry, error.problem)
        if (interrupted := interruption()) is not None:
            raise ApplyError(spanning.entry, self._runner.problem(interrupted, command)) from interrupted
        if self._told.missing:  # whatever `apply` made of it
            self._transaction.drop()
            return False
        if outcome is None:
            self._transaction.drop()
        elif outcome.reason is not None:
            self._transaction.drop()
            self.results.rejected[spanning.entry] = outcome.reason
        else:
            self._transaction.settle()
            if outcome.value is not None:
                self.results.values[spanning.entry] = msgspec.msgpack.decode(outcome.value)
        return True

    def _ask(self) -> None:
        """Make the next round's questions of what is lacking."""
        lacking, self._told.lacking = self._told.lacking, {}
        number, self._round = self._round, self._round + 1
        self.questions = {
            shard: wire.Question(
                number,
                list(asked.keys),
                [
                    wire.Range(prefix, sorted(partitions), limit, reverse)
                    for (prefix, partitions, reverse), limit in asked.ranges.items()
                ],
            )
            for shard, asked in lacking.items()
        }

    def writes(self) -> dict[int, bytes]:
        """By shard, the last write of every key, as it lies in a ring."""
        found: dict[int, dict[bytes, bytes | None]] = {}
        for key, value in self._transaction.writes.items():
            found.setdefault(self._splitter.owner(key), {})[key] = value
        return {shard: pack_writes(writes) for shard, writes in found.items()}
