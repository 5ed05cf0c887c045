"""The engine's own deciders as functions that can be called a million times: for tests/commit_model.py.

A state of `Commit` or `Shard` is interned: two that are equal get one number. A step is memoised: (number, event)
always gives the same next number and the same actions or answers, since both classes are pure. So a walk through all
states of a world runs the real code once per step that differs, and is as fast as a look into a dict elsewhere.
"""

from __future__ import annotations

import copy
from array import array
from collections.abc import Iterator, Set
from typing import Any, ClassVar, NamedTuple

import msgspec

from shardengine.engine.commit.actions import Action
from shardengine.engine.commit.table import Commit
from shardengine.engine.errors import CommitRuleError
from shardengine.shards import part as layout
from shardengine.shards import wire
from shardengine.shards.errors import StoreFullError
from shardengine.shards.machine import Context, Machine
from shardengine.shards.shard import Shard
from shardengine.shards.transaction import Record, Tx
from shardengine.shards.types import Limits, Position
from tests.commit_terms import term_of
from tests.explorer import ViolationError

PENDING, PUBLISHED, CANCELLED = range(3)
DEAD = -1
END = b""  # on a link: the peer is dead. As an order: try again what stalled
HALF_BYTES = 1024
CODES = 16  # what a half holds is group * CODES + item, negative once it is freed
OURS = 0x80  # marks what a command of the coordinator's left
KEY = b"log"


class Item(NamedTuple):
    """A chunk of the log: the shards that have commands of their own in it, and those of them that refuse it; the
    shards that a command of the coordinator's touches (`exchange`), those of them that have no room for what it writes
    (`full`), those that it asks `again`, and whether it fails."""

    shards: frozenset[int]
    noes: frozenset[int] = frozenset()
    exchange: frozenset[int] = frozenset()
    full: frozenset[int] = frozenset()
    again: frozenset[int] = frozenset()
    refused: bool = False

    @property
    def participants(self) -> frozenset[int]:
        return self.shards | self.exchange

    def trace(self, item: int, shard: int) -> bytes:
        """What it leaves on a shard: one byte for the shard's command, one for the coordinator's."""
        return bytes([item] * (shard in self.shards) + [OURS | item] * (shard in self.exchange))


class Issue(NamedTuple):
    """A numbered group: the item it carries, whether it is a solo, its half of the rings, what became of it. Of its
    exchange: the shards that have answered, whether a second question was asked, whether its writes are in the rings.
    """

    item: int
    solo: bool
    half: int
    fate: int = PENDING
    answered: frozenset[int] = frozenset()
    again: bool = False
    written: bool = False


class Side(NamedTuple):
    """One shard: what is durable (last group, applied items, the halves of the ring, what the coordinator's commands
    wrote behind the part in each, the term runs that came with the last commit), its process, its link.

    worker: the number of an interned state of Shard, or DEAD. up: its Hello was read, the end of its link was not.
    """

    group: int = 0
    content: bytes = b""
    ring: tuple[int, int] = (0, 0)
    writes: tuple[bytes, bytes] = (b"", b"")
    worker: int = 0
    up: bool = False
    inbox: tuple[bytes, ...] = ()
    outbox: tuple[bytes, ...] = ()
    runs: bytes = b""


def readable(message: bytes) -> str:
    """A message of `shards/wire.py` in a few words."""
    if message == END:
        return "(the end of the link)"
    kind, *fields = msgspec.msgpack.decode(message)
    if kind == "Part":
        asked = "" if fields[4] is None else f", question {fields[4][0]}"
        return f"Part({fields[0][0]}{', decided' * fields[2]}{', pause' * fields[3]}{asked})"
    if kind in ("Ask", "Values"):
        return f"{kind}({fields[0]}, question {fields[1][0] if kind == 'Ask' else fields[1]})"
    if kind == "Hello":
        return f"Hello(stands at {fields[1][0]})"
    if kind in ("Vote", "SoloDone"):
        return f"{kind}({fields[0]}, {'no' if fields[1] is None else 'yes'})"
    return f"{kind}({fields[0][0] if isinstance(fields[0], list) else fields[0]})"


def position_of(group: int, content: bytes) -> Position:
    """Where a shard stands whose last group is `group`; the log index is that of its last item, counted from 1."""
    return Position(group, (content[-1] & ~OURS) + 1, term_of(content[-1] & ~OURS)) if group else Position()


def event_of(answer: wire.Answer) -> tuple[Any, ...]:
    """What an answer is to the table, without the shard; nothing, if it is none of its business."""
    match answer:
        case wire.Hello(_, position):
            return "hello", position.group
        case wire.Vote(group, results):
            return "vote", group, results is not None
        case wire.Values(group, number, values):
            return "values", group, number, *values
        case wire.Committed(group):
            return "committed", group
        case wire.SoloDone(group, results):
            return "solo_done", group, results is not None
        case _:
            return ()


class Table:
    """Commit as a function: (number of its state, event) -> (number of the next state, actions)."""

    def __init__(self, shards: int) -> None:
        self._shards = shards
        self._numbers: dict[tuple[Any, ...], int] = {}
        self._memo: dict[tuple[Any, ...], tuple[int, list[Action]]] = {}
        self.states: list[Commit] = []
        self.owing: list[frozenset[int]] = []  # for each state, the shards that owe an answer
        self.met: set[str] = set()

    def intern(self, commit: Commit) -> int:
        key = frozen(commit)
        number = self._numbers.get(key)
        if number is None:
            commit.check()
            number = self._numbers[key] = len(self.states)
            self.states.append(commit)
            self.owing.append(frozenset(shard for shard in range(self._shards) if commit.owes(shard)))
            self.met.add(commit.phase.name)
        return number

    def step(self, number: int, event: str, *arguments: Any) -> tuple[int, list[Action]]:
        key = (number, event, *arguments)
        found = self._memo.get(key)
        if found is None:
            found = self._memo[key] = self._run(self.states[number], event, arguments)
        return found

    def _run(self, commit: Commit, event: str, arguments: tuple[Any, ...]) -> tuple[int, list[Action]]:
        after = _cloned(commit)
        try:
            actions = getattr(after, event)(*arguments)
        except CommitRuleError as error:
            changed = "" if frozen(after) == frozen(commit) else ", and changed all the same"
            raise ViolationError(f"the table refused what happened{changed}: {error}") from error
        self.met.update(type(action).__name__ for action in actions)
        return self.intern(after), actions


def _slots(commit: Commit) -> list[str]:
    return [name for kind in type(commit).__mro__ for name in getattr(kind, "__slots__", ())]


def _cloned(commit: Commit) -> Commit:
    clone = object.__new__(type(commit))
    for name in _slots(commit):
        value = getattr(commit, name)
        setattr(clone, name, value.copy() if isinstance(value, (set, dict)) else value)
    return clone


def frozen(commit: Commit) -> tuple[Any, ...]:
    """All that `commit` knows, to be compared and hashed."""
    values = [getattr(commit, name) for name in _slots(commit)]
    return tuple(
        frozenset(v.items() if isinstance(v, dict) else v) if isinstance(v, (set, dict)) else v for v in values
    )


# A worker, interned and memoised


class Append(msgspec.Struct, frozen=True, array_like=True, tag=1):
    item: int
    fails: bool


class AppendLog(Machine):
    """Remembers which items were applied, in order."""

    name: ClassVar[str] = "log"
    command: ClassVar[Any] = Append

    def keys(self, command: Append) -> tuple[bytes]:
        return (KEY,)

    def apply(self, tx: Tx, command: Append, context: Context) -> None:
        if command.fails:
            raise ValueError("refused")
        tx.put(KEY, (tx.get(KEY) or b"") + bytes([command.item]))


Committed = tuple[int, bytes, bytes]
"""A group, the value behind it, and the runs that came with it."""


class MemoryStore:
    """A TransactionalStore of one value. `commits` lists what was committed. A `failing` commit is refused, unless it
    `lies`: then it is done, and said to be refused. There is no room for a value that ends with one of the bytes
    `full`."""

    def __init__(
        self, content: bytes, pending: bytes | None, failing: bool, lies: bool = False, full: bytes = b""
    ) -> None:
        self.full = full
        self.content = content
        self.pending = pending
        self.failing = failing
        self.lies = lies
        self.commits: list[Committed] = []

    def begin(self) -> None:
        assert self.pending is None, "a transaction is open already"
        self.pending = self.content

    def get(self, key: bytes) -> bytes | None:
        return self.pending

    def scan(self, prefix: bytes, partitions: Set[bytes], limit: int | None, reverse: bool) -> Iterator[Record]:
        raise AssertionError("nothing here scans")

    def put_sorted(self, pairs: list[tuple[bytes, bytes]], longest: int) -> None:
        self.write(dict(pairs))

    def write(self, writes: dict[bytes, bytes | None]) -> None:
        self.pending = writes.get(KEY, self.pending)
        if self.pending and self.pending[-1] in self.full:
            raise StoreFullError("write refused")

    def commit(self, position: Position, solo_results: bytes | None = None, solo_runs: bytes = b"") -> None:
        pending, self.pending = self.pending, None
        assert pending is not None, "no transaction to commit"
        if not self.failing or self.lies:
            self.content = pending
            self.commits.append((position.group, pending, solo_runs))
        if self.failing:
            raise StoreFullError("commit refused")

    def abort(self) -> None:
        self.pending = None

    def sync(self) -> None:
        pass


class Outcome(NamedTuple):
    """What an order did: the worker's next state, what it committed, which (group, half) it read, its answers."""

    worker: int
    commits: tuple[Committed, ...]
    reads: tuple[tuple[int, int], ...]
    answers: tuple[bytes, ...]


class Workers:
    """Shard as a function. State 0 is a fresh worker."""

    def __init__(self, items: tuple[Item, ...], *, lies: bool = False, kind: type[Shard] = Shard) -> None:
        self._items = items
        self._lies = lies
        self._kind = kind
        self._numbers: dict[tuple[Any, ...], int] = {}
        self._memo: dict[tuple[Any, ...], Outcome] = {}
        self.states: list[tuple[Shard, bytes | None]] = []
        self._intern(self._shard(), None)

    def stalled(self, worker: int) -> bool:
        return worker != DEAD and self.states[worker][0].stalled

    def handle(self, shard: int, side: Side, order: bytes, *, failing: bool = False) -> Outcome:
        """Have the worker of `side` carry out `order`, or try again what stalled (END)."""
        key = (shard, side.worker, side.content, side.ring, side.writes, order, failing)
        found = self._memo.get(key)
        if found is None:
            try:
                found = self._memo[key] = self._run(shard, side, order, failing)
            except AssertionError as error:
                raise ViolationError(f"worker {shard} breaks down over {readable(order)}: {error}") from error
        return found

    def part(self, shard: int, code: int, writes: bytes = b"") -> bytes:
        """The bytes of a part in the ring of `shard`, and of what the coordinator's commands wrote behind it."""
        item, part = code % CODES, b""
        if shard in self._items[item].shards:
            command = msgspec.msgpack.encode(Append(item, shard in self._items[item].noes))
            part = layout.pack(item + 1, layout.pack_runs([layout.Run(item + 1, 1, 0)]), array("I", [0]), [command])
        if not writes:
            return part
        return part + bytes(-len(part) % 8) + layout.pack_writes({KEY: writes})

    def _run(self, shard: int, side: Side, order: bytes, failing: bool) -> Outcome:
        prototype, pending = self.states[side.worker]
        worker = copy.copy(prototype)
        worker._queue = prototype._queue.copy()
        full = bytes(OURS | number for number, item in enumerate(self._items) if shard in item.full)
        store = worker._store = MemoryStore(side.content, pending, failing, self._lies, full)
        if prototype._paused is not None:
            worker._paused = prototype._paused._replace(transaction=Tx(store, Limits()))
            worker._paused.transaction.write_all(prototype._paused.transaction.writes.items())
        reads: list[tuple[int, int]] = []

        def view(offset: int, length: int) -> memoryview:
            half, part = offset // HALF_BYTES, worker._current or decoded
            assert isinstance(part, (wire.Part, wire.Solo))
            reads.append((part.position.group, half))
            held = self.part(shard, abs(side.ring[half]), side.writes[half]) if side.ring[half] else b""
            return memoryview(held[:length])

        worker._view = view
        decoded = wire.decode_order(order) if order else None
        assert not isinstance(decoded, wire.Stop)
        answers = list(worker.retry() if decoded is None else worker.handle(decoded))
        if not failing and any(isinstance(answer, wire.Stalled) for answer in answers):
            raise ViolationError(f"worker {shard} is to commit what it refuses")
        sent = tuple(wire.encode(answer) for answer in answers)
        return Outcome(self._intern(worker, store.pending), tuple(store.commits), tuple(reads), sent)

    def _shard(self) -> Shard:
        nothing = memoryview(b"")
        return self._kind(MemoryStore(b"", None, False), AppendLog(), Limits(), lambda *_: nothing, HALF_BYTES)

    def _intern(self, worker: Shard, pending: bytes | None) -> int:
        current, paused = worker._current, worker._paused
        waiting = paused and frozenset(paused.transaction.writes.items())
        key = (current and wire.encode(current), *map(wire.encode, worker._queue), worker.stalled, pending, waiting)
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self.states)
            self.states.append((worker, pending))
        return number
