"""Logs for engines that are killed, by name, each with its machine, and the model of what it leads to.

A log is determined by its name, a seed and a shard count: the process that is killed and the one that kills know it.
"""

from __future__ import annotations

from collections.abc import Coroutine, Iterator, Sequence
from typing import Any, ClassVar, Protocol, TypeVar

from shardengine import ApplyResult, Entry, KeyValue, Machine, Put, encode
from shardengine.adaptors import MemoryStateMachine
from shardengine.engine.commit.decision import SOLO_RUNS_MAX
from shardengine.shards.placement import shard_of, slot_of
from tests.banking import Banking
from tests.streams import Follower, chunk_ends, ends_of, entries, script_ends, term_at
from tests.wander import LETTERS, Wander, Wanderer

T = TypeVar("T")


class Log(Protocol):
    """What there is to apply."""

    machine: ClassVar[type[Machine]]

    def entries(self, first: int, last: int) -> list[Entry]: ...

    def ends(self, sizes_seed: str, start: int, largest: int) -> Iterator[int]:
        """Where the chunks end that a feeder sends from `start` on, for ever."""
        ...

    def script(self, start: int) -> list[list[int]]:
        """Where a script's chunks end, those in flight together in one list; the first reaches its starting place."""
        ...


class Plain:
    """The log of tests/streams.py."""

    machine: ClassVar[type[Machine]] = KeyValue

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def entries(self, first: int, last: int) -> list[Entry]:
        return entries(self._seed, first, last)

    def ends(self, sizes_seed: str, start: int, largest: int) -> Iterator[int]:
        return chunk_ends(sizes_seed, start, largest)

    def script(self, start: int) -> list[list[int]]:
        return script_ends(start)


class Wandering:
    """A script of commands over several shards, those behind them in the same partitions, and a shard's own: a group
    that asks twice; one that asks once, with another staged behind it, which names its keys."""

    machine: ClassVar[type[Machine]] = Wanderer
    PERIOD = 16
    CHUNKS = ((4,), (3, 3))

    def __init__(self, shards: int) -> None:
        places = {shard_of(slot_of(bytes([letter])), shards): bytes([letter]) for letter in LETTERS}
        assert len(places) == shards
        self.names = [places[shard] + b"0" for shard in range(shards)]

    def entries(self, first: int, last: int) -> list[Entry]:
        return [Entry(index, term_at(index), encode(self._command_at(index))) for index in range(first, last + 1)]

    def _command_at(self, index: int) -> Wander:
        names = self.names
        own, other = [names[index % len(names)]], [names[(index + 1) % len(names)]]
        match index % self.PERIOD:
            case 2 | 5 as place:
                scans = [("scan", at) for at in range(1 + (place == 2))]
                return Wander(names, [*scans, ("put found", 1), ("take first", 0), ("reject", 0), ("put found", 0)])
            case 8:
                return Wander(names, [*(("get", at) for at in range(len(names))), ("put", 0), ("put", 1)])
            case 3 | 6 | 9:
                return Wander(other, [("get", 0), ("put found", 0)])
            case _:
                return Wander(own, [("get", 0), ("put", 0), ("put found", 0)])

    def ends(self, sizes_seed: str, start: int, largest: int) -> Iterator[int]:
        return chunk_ends(sizes_seed, start, largest)

    def script(self, start: int) -> list[list[int]]:
        return ends_of(self.CHUNKS, self.PERIOD, start)


class Framed:
    """Puts in turn to every shard, each entry of a term of its own, as where a term is a frame's place in a log. The
    script has one by one, then more of them together than a solo may take along, then one by one again."""

    machine: ClassVar[type[Machine]] = KeyValue
    PERIOD = 80
    CHUNKS = ((1,), (1,), (SOLO_RUNS_MAX + 1,), (1,))

    def __init__(self, shards: int) -> None:
        names = [b"key-%d" % n for n in range(self.PERIOD)]
        self._names = [[name for name in names if shard_of(slot_of(name), shards) == shard] for shard in range(shards)]

    def entries(self, first: int, last: int) -> list[Entry]:
        return [Entry(index, 3 * index, encode(self._command_at(index))) for index in range(first, last + 1)]

    def _command_at(self, index: int) -> Put:
        names = self._names[index % len(self._names)]
        return Put(names[index % self.PERIOD % len(names)], b"value-%d" % index)

    def ends(self, sizes_seed: str, start: int, largest: int) -> Iterator[int]:
        return chunk_ends(sizes_seed, start, largest)

    def script(self, start: int) -> list[list[int]]:
        return ends_of(self.CHUNKS, self.PERIOD, start)


class Model(Protocol):
    """What a log leads to."""

    @property
    def index(self) -> int: ...
    @property
    def records(self) -> dict[bytes, bytes]: ...
    def advance(self, index: int) -> list[ApplyResult]: ...
    def digest(self) -> bytes: ...


class Oracle:
    """The memory machine, led along a log."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._db = MemoryStateMachine(log.machine)
        self._db.start()

    @property
    def index(self) -> int:
        return self._db.last_applied().index

    @property
    def records(self) -> dict[bytes, bytes]:
        return dict(self._db.scan_prefix(b"").entries)

    def advance(self, index: int) -> list[ApplyResult]:
        """Apply everything up to `index`. Returns the results of what this call applied."""
        if index <= self.index:
            return []
        return list(at_once(self._db.apply_chunk(self._log.entries(self.index + 1, index))))

    def digest(self) -> bytes:
        return at_once(self._db.digest())


def at_once(coroutine: Coroutine[Any, Any, T]) -> T:
    """What a coroutine returns that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as ended:
        result: T = ended.value
        return result
    raise AssertionError("it waits")


def log_named(name: str, seed: int, shards: int) -> Log:
    """`plain`, `wander`, `framed`, or `bank` with how many of a hundred transfers are over two shards: `bank 10`."""
    kind, _, percent = name.partition(" ")
    match kind:
        case "plain":
            return Plain(seed)
        case "wander":
            return Wandering(shards)
        case "framed":
            return Framed(shards)
        case _:
            return Banking(seed, shards, int(percent))


def model_of(name: str, seed: int, shards: int) -> Model:
    return Follower(seed) if name == "plain" else Oracle(log_named(name, seed, shards))


def told(results: Sequence[ApplyResult]) -> list[ApplyResult]:
    """Those that say more than that the entry succeeded."""
    return [result for result in results if not result.succeeded or result.value is not None]
