"""Tiny histories at random, of which many are true and many are not."""

from __future__ import annotations

import random
from collections.abc import Callable

import msgspec

from shardengine import ApplyResult, CompareAndSwap, Delete, Entry, Put, encode
from shardengine.conformance import Event, History
from shardengine.engine.conformance.operations import Read, Scan, Watch, Write
from tests.history_world import scan_of
from tests.model import Model

COMMANDS = [
    *(encode(Put(key, value)) for key in (b"a", b"b") for value in (b"1", b"2")),
    encode(Delete(b"a")),
    encode(CompareAndSwap(b"a", b"1", b"2")),
]
Act = Callable[[], None]


class Tiny:
    """One history and its log. Every operation is answered with the truth of some index, at about the time when that
    was the newest, now and then far from it; and some answers are no truth at all."""

    def __init__(self, rng: random.Random) -> None:
        self.history = History()
        self.rng = rng
        self.log = [Entry(index, 1, rng.choice(COMMANDS)) for index in range(1, rng.choice([1, 2, 2, 3]) + 1)]
        model = Model()
        self._states: list[dict[bytes, bytes]] = [{}]
        self._results = [ApplyResult(0, True)]
        for entry in self.log:
            self._results += model.apply([entry])
            self._states.append(dict(model.data))
        self._wide, plain = rng.choice([0.4, 0.8, 1.6]), rng.random() < 0.4
        self._acts: list[tuple[float, Act]] = []
        index = 1
        while index <= len(self.log):
            index += self._write(index)
        for _ in range(4 if plain else 0):
            self._read()
        for _ in range(0 if plain else rng.choice([2, 3, 3, 4])):
            rng.choice(
                [self._read, self._read, self._read, self._read, self._scan, self._view, self._watch, self._stray]
            )()
        for _, act in sorted(self._acts, key=lambda act: act[0]):
            act()

    def _around(self, at: float, begin: Act, end: Act) -> None:
        if self.rng.random() < 0.12:
            at += self.rng.uniform(-2, 2)
        self._acts.append((at - self.rng.random() * self._wide, begin))
        self._acts.append((at + self.rng.random() * self.rng.choice([self._wide, self._wide, 3]), end))

    def _session(self) -> str:
        return self.rng.choice(["s", "t"])

    def _odd(self) -> bool:
        return self.rng.random() < 0.04

    # ---- writes --------------------------------------------------------------------------------------------------

    def _write(self, first: int) -> int:
        """Who brought the entry at `first`, and perhaps the next one; returns how many."""
        many = 2 if first < len(self.log) and self.rng.random() < 0.2 else 1
        datas = [entry.data for entry in self.log[first - 1 : first - 1 + many]]
        results = self._results[first : first + many]
        if self._odd():
            results = [ApplyResult(result.index, not result.succeeded) for result in results]
        if self._odd():
            results = [msgspec.structs.replace(result, index=result.index + 1) for result in results]
        if not self._odd():
            self._proposed(first, datas, results)
        return many

    def _proposed(self, at: float, datas: list[bytes], results: list[ApplyResult] | None) -> None:
        ends = self.rng.choice(["ok"] * 6 + ["info", "info", "open"]) if results else self.rng.choice(["info", "fail"])
        if self._odd():
            ends = "fail"
        made: list[Write] = []
        session = self._session()

        def begin() -> None:
            made.append(self.history.begin_propose(datas, session=session))

        def end() -> None:
            if ends == "ok" and results is not None:
                made[0].ok(results)
            elif ends == "info":
                made[0].unknown("late")
            elif ends == "fail":
                made[0].failed("full")

        self._around(at, begin, end)

    def _stray(self) -> None:
        """A proposal that is not in the log, though one like it may be."""
        self._proposed(self.rng.random() * 3, [self.rng.choice(COMMANDS)], None)

    # ---- reads ---------------------------------------------------------------------------------------------------

    def _how(self) -> dict[str, object]:
        level = self.rng.choice(["linearizable", "linearizable", "local", "at_least"])
        at_least = self.rng.randint(0, len(self.log)) if level == "at_least" else 0
        return {"linearizable": level == "linearizable", "at_least": at_least, "session": self._session()}

    def _read(self) -> None:
        index, keys = self.rng.randint(0, len(self.log)), self.rng.choice([[b"a"], [b"b"], [b"a", b"b"]])
        values = [self._states[index].get(key) for key in keys]
        if self._odd():
            values[0] = self.rng.choice([b"1", b"2", b"3", None])
        revision = index if self.rng.random() < 0.4 else None
        self._answered(index, keys, values, revision, self._how())

    def _view(self) -> None:
        index = self.rng.randint(0, len(self.log))
        self._answered(index, [], [], index, self._how())
        wrong = self._states[self.rng.randint(0, len(self.log)) if self._odd() else index]
        self._answered(index, [b"a"], [wrong.get(b"a")], None, {"of_view": index})

    def _answered(
        self, at: int, keys: list[bytes], values: list[bytes | None], revision: int | None, how: dict[str, object]
    ) -> None:
        made: list[Read] = []
        self._around(
            at + 0.5,
            lambda: made.append(self.history.begin_get(keys, **how)),  # type: ignore[arg-type]
            lambda: made[0].ok(values, revision),
        )

    def _scan(self) -> None:
        index, how = self.rng.randint(0, len(self.log)), self._how()
        asked = (b"", self.rng.choice([None, 1]), self.rng.choice([None, b"a"]), self.rng.random() < 0.3)
        made: list[Scan] = []
        state = self._states[self.rng.randint(0, len(self.log)) if self._odd() else index]
        self._around(
            index + 0.5,
            lambda: made.append(self.history.begin_scan(*asked, **how)),  # type: ignore[arg-type]
            lambda: made[0].ok(scan_of(state, made[0], index)),
        )

    # ---- events --------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        since, prefix, previous = self.rng.choice([1, 1, 2]), self.rng.choice([b"", b"a"]), self.rng.random() < 0.5
        made: list[Watch] = []
        self._acts.append((0, lambda: made.append(self.history.begin_watch(since, prefix=prefix, previous=previous))))
        events = [event for index in range(since, len(self.log) + 1) for event in self._event(index, prefix, previous)]
        if events and self.rng.random() < 0.3:
            place = self.rng.randrange(len(events))
            progress = Event("progress", b"", None, None, self.rng.randint(0, len(self.log)))
            events = self.rng.choice(
                [
                    events[:place] + events[place + 1 :],
                    [*events[: place + 1], events[place], *events[place + 1 :]],
                    events[::-1],
                    [*events[:place], msgspec.structs.replace(events[place], value=b"9"), *events[place + 1 :]],
                    [*events, progress],
                    [*events[:place], progress, *events[place:]],
                ]
            )
        last = 0.0
        for event in events:
            last = max(last + 0.01, event.revision - 0.2 + self.rng.random() * 1.5)
            self._acts.append((last, lambda event=event: made[0].saw(event)))  # type: ignore[misc]
        through = self.rng.choice([0, 0, len(self.log)])
        self._acts.append((last + 5, lambda: made[0].ok(through)))

    def _event(self, index: int, prefix: bytes, previous: bool) -> list[Event]:
        key: bytes = msgspec.msgpack.decode(self.log[index - 1].data)[1]
        before, after = self._states[index - 1].get(key), self._states[index].get(key)
        if not key.startswith(prefix) or not self._results[index].succeeded or (before is None and after is None):
            return []
        kind = "deleted" if after is None else "put"
        return [Event(kind, key, after, before if previous else None, index)]
