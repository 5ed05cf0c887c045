"""A world in which nothing goes wrong, though much is late: callers, places that apply one log, each in its own time,
and a history of what they see. It knows no rule of the check."""

from __future__ import annotations

import random
from collections.abc import Callable

import msgspec

from shardengine import ApplyResult, CompareAndSwap, Delete, Entry, Put, ScanResult, encode
from shardengine.conformance import Event, History
from shardengine.engine.conformance.operations import Read, Scan, Watch, Write
from tests.model import Model

KEYS = [b"a", b"ab", b"b", b"c"]
Step = Callable[[], bool]
"""Does one thing, if it can be done now."""


class Place:
    """A node: what it has applied, and the events that it has told nobody yet."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.applied = 0
        self.watches: list[tuple[Watch, list[Event]]] = []


class World:
    """`log`, with the state behind each entry and its result; and what goes on, in the other attributes."""

    def __init__(self, rng: random.Random, *, operations: int, places: int = 2, callers: int = 5) -> None:
        self.history = History()
        self.rng = rng
        self.log: list[Entry] = []
        self.states: list[dict[bytes, bytes]] = [{}]
        self.results: list[ApplyResult] = [ApplyResult(0, True)]
        self._model = Model()
        self._places = [Place(f"place {number}") for number in range(places)]
        self._queue: list[Write] = []
        self._index: dict[int, int] = {}
        self._left = operations
        self._values = 0
        self._views: list[int] = []
        self._callers: list[Step | None] = [None] * callers

    def run(self) -> None:
        """To the end: every operation has ended, was given up, or is left open."""
        while self._left or any(self._callers):
            self._turn()
        for place in self._places:
            for watch, waiting in place.watches:
                if self.rng.random() < 0.5:
                    while waiting:
                        watch.saw(waiting.pop(0))
                    watch.ok(through=place.applied)

    def _turn(self) -> None:
        chance = self.rng.random()
        if chance < 0.25:
            self._append()
        elif chance < 0.5:
            self._apply(self.rng.choice(self._places))
        elif chance < 0.55:
            self._tell(self.rng.choice(self._places))
        else:
            at = self.rng.randrange(len(self._callers))
            caller = self._callers[at]
            if caller is not None:
                if caller():
                    self._callers[at] = None
            elif self._left:
                self._left -= 1
                self._callers[at] = self._begin()

    # ---- the log and the places ----------------------------------------------------------------------------------

    def _append(self) -> None:
        if not self._queue:
            return
        write = self._queue.pop(self.rng.randrange(len(self._queue)))
        self._index[write.begun] = len(self.log) + 1
        for data in write.datas:
            entry = Entry(len(self.log) + 1, 1, data)
            self.log.append(entry)
            self.results += self._model.apply([entry])
            self.states.append(dict(self._model.data))

    def _apply(self, place: Place) -> None:
        if place.applied == len(self.log):
            return
        before, after = self.states[place.applied], self.states[place.applied + 1]
        place.applied += 1
        for watch, waiting in place.watches:
            kind, key, *_ = self._command(place.applied)
            if not self.results[place.applied].succeeded or not key.startswith(watch.prefix):
                continue
            previous = before.get(key) if watch.previous else None
            if kind != 2:
                waiting.append(Event("put", key, after[key], previous, place.applied))
            elif key in before:
                waiting.append(Event("deleted", key, None, previous, place.applied))

    def _command(self, index: int) -> tuple[int, bytes]:
        kind, key, *_ = msgspec.msgpack.decode(self.log[index - 1].data)
        return kind, key

    def _tell(self, place: Place) -> None:
        for watch, waiting in place.watches:
            for _ in range(min(len(waiting), self.rng.randrange(3))):
                watch.saw(waiting.pop(0))
            if not waiting and self.rng.random() < 0.3:
                watch.saw(Event("progress", b"", None, None, place.applied))

    # ---- the callers ---------------------------------------------------------------------------------------------

    def _begin(self) -> Step:
        place = self.rng.choice(self._places)
        chance = self.rng.random()
        if chance < 0.45:
            return self._propose(place)
        if chance < 0.8:
            return self._read(place)
        if chance < 0.9 and self._views:
            return self._read_view(self.rng.choice(self._views))
        if chance < 0.95:
            prefix = self.rng.choice([b"", b"a"])
            watch = self.history.begin_watch(place.applied + 1, prefix=prefix, previous=self.rng.random() < 0.5)
            place.watches.append((watch, []))
            return lambda: True
        return self._open_view(place)

    def _propose(self, place: Place) -> Step:
        datas = [self._data() for _ in range(self.rng.choice([1, 1, 1, 2, 3]))]
        write = self.history.begin_propose(datas, session=place.name)
        self._queue.append(write)
        ends = self.rng.choice(["ok"] * 6 + ["unknown", "refused", "open"])

        def step() -> bool:
            if ends == "open":
                return True
            if ends == "unknown":
                write.unknown("no answer")
                return True
            if ends == "refused" and write in self._queue:
                self._queue.remove(write)
                write.failed("no room")
                return True
            index = self._index.get(write.begun)
            if index is None or place.applied < index + len(datas) - 1:
                return False
            write.ok(self.results[index : index + len(datas)])
            return True

        return step

    def _data(self) -> bytes:
        key, self._values = self.rng.choice(KEYS), self._values + 1
        value = b"%d" % (self._values if self.rng.random() < 0.5 else self.rng.randrange(3))
        kind = self.rng.randrange(6)
        if kind == 0:
            return encode(Delete(key))
        if kind == 1:
            return encode(CompareAndSwap(key, self.states[-1].get(key), value))
        return encode(Put(key, value))

    def _read(self, place: Place) -> Step:
        level = self.rng.choice(["linearizable", "local", "at_least"])
        how = {"linearizable": level == "linearizable", "session": place.name}
        at_least = self.rng.randint(0, len(self.log)) if level == "at_least" else 0
        if self.rng.random() < 0.3:
            limit, reverse = self.rng.choice([None, 0, 1, 2]), self.rng.random() < 0.5
            start = self.rng.choice([None, b"a", b"ab", b"zz"])
            asked = (self.rng.choice([b"", b"a"]), limit, start, reverse)
            operation: Read | Scan = self.history.begin_scan(*asked, at_least=at_least, **how)  # type: ignore[arg-type]
        else:
            keys = self.rng.sample([*KEYS, b"none"], self.rng.choice([1, 1, 2, 3]))
            operation = self.history.begin_get(keys, at_least=at_least, **how)  # type: ignore[arg-type]
        return self._answering(place, operation)

    def _open_view(self, place: Place) -> Step:
        return self._answering(place, self.history.begin_view(session=place.name, linearizable=self.rng.random() < 0.5))

    def _answering(self, place: Place, operation: Read | Scan) -> Step:
        """In three turns: what must be seen is found out, it is read, the answer comes."""
        must: int | None = None
        index: int | None = None

        def step() -> bool:
            nonlocal must, index
            if must is None:
                must = max(operation.at_least, len(self.log) if operation.linearizable else 0)
            elif index is None and place.applied >= must:
                index = place.applied
            elif index is not None:
                if isinstance(operation, Read) and not operation.keys:
                    self._views.append(index)
                self._answer(operation, index)
                return True
            return False

        return step

    def _answer(self, operation: Read | Scan, index: int) -> None:
        state = self.states[index]
        if isinstance(operation, Scan):
            operation.ok(scan_of(state, operation, index))
        else:
            known = not operation.keys or self.rng.random() < 0.5
            operation.ok([state.get(key) for key in operation.keys], index if known else None)

    def _read_view(self, revision: int) -> Step:
        operation = self.history.begin_get(self.rng.sample(KEYS, 2), of_view=revision)

        def step() -> bool:
            operation.ok([self.states[revision].get(key) for key in operation.keys])
            return True

        return step


def scan_of(state: dict[bytes, bytes], scan: Scan, index: int) -> ScanResult:
    """What a scan must see, by going through everything."""
    found = sorted(pair for pair in state.items() if pair[0].startswith(scan.prefix))
    if scan.reverse:
        found.reverse()
    if scan.start_after is not None:
        start = scan.start_after
        found = [pair for pair in found if (pair[0] < start if scan.reverse else pair[0] > start)]
    limit = len(found) if scan.limit is None else scan.limit
    return ScanResult(found[:limit], index, len(found) > limit)
