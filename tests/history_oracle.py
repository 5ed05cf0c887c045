"""A second checker, for tiny histories: it tries every order in which things may have happened.

There is a log of which a prefix is *decided*, and each session stands somewhere in it. Between two moments of the
history the decided prefix may grow by an entry that somebody has asked for by then, a session may go on by such an
entry, and an operation that goes on may look where these two stand, once each. An end of an operation may come when
what it says fits what it looked at. The history is true if some order reaches its last end.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations

import msgspec

from shardengine import ApplyResult, Entry
from shardengine.conformance import Event, History
from shardengine.engine.conformance.operations import Operation, Read, Scan, Watch, Write
from tests.history_world import scan_of
from tests.model import Model

SESSION, DECIDED = "session", "decided"
Looks = frozenset[tuple[int, str, int]]
"""Which operation has seen where its session, or the decided prefix, ends."""
State = tuple[int, int, tuple[int, ...], Looks]


class Oracle:
    def __init__(self, history: History, log: list[Entry]) -> None:
        self.log = log
        self.states: list[dict[bytes, bytes]] = [{}]
        self.results = [ApplyResult(0, True)]
        model = Model()
        for entry in log:
            self.results += model.apply([entry])
            self.states.append(dict(model.data))
        self.operations = history.operations
        self.moments = sorted(
            [(one.begun, one) for one in self.operations]
            + [(one.ended, one) for one in self.operations if one.ended is not None],
            key=lambda moment: moment[0],
        )
        self.sessions = sorted({one.session for one in self.operations})
        self.began: dict[int, int] = {}

    def true(self) -> bool:
        writes = [one for one in self.operations if isinstance(one, Write)]
        told = [result for one in writes if one.outcome == "ok" for result in one.results]
        mine = [data for one in writes if one.outcome == "ok" for data in one.datas]
        indices = [result.index for result in told]
        if len(set(indices)) < len(indices):
            return False
        for result, data in zip(told, mine, strict=True):
            if not 1 <= result.index <= len(self.log) or self.log[result.index - 1].data != data:
                return False
            if result != self.results[result.index]:
                return False
        for one in writes:
            own = [result.index for result in one.results]
            if own and own != list(range(own[0], own[0] + len(own))):
                return False
        if not all(self._view_fits(one) for one in self.operations):
            return False
        return any(self._watches_fit() and self._some_order() for _ in self._owners(writes))

    # ---- who brought what ----------------------------------------------------------------------------------------

    def _owners(self, writes: list[Write]) -> Iterator[None]:
        """Every way to say whose the entries are that nobody was told of."""
        known = {result.index: one.begun for one in writes if one.outcome == "ok" for result in one.results}
        rest = [entry for entry in self.log if entry.index not in known]
        maybe = [(one.begun, data) for one in writes if one.outcome in ("open", "info") for data in one.datas]
        for chosen in permutations(maybe, len(rest)):
            if all(data == entry.data for (_, data), entry in zip(chosen, rest, strict=True)):
                found = {entry.index: begun for (begun, _), entry in zip(chosen, rest, strict=True)}
                self.began = known | found
                yield

    # ---- what needs no order -------------------------------------------------------------------------------------

    def _view_fits(self, one: Operation) -> bool:
        if not isinstance(one, Read | Scan) or one.of_view is None or one.outcome != "ok":
            return True
        return one.of_view <= len(self.log) and self._saw(one, one.of_view)

    def _saw(self, one: Read | Scan, index: int) -> bool:
        if one.revision is not None and one.of_view is None and one.revision != index:
            return False
        if isinstance(one, Scan):
            found = scan_of(self.states[index], one, index)
            return (found.entries, found.more) == (one.entries, one.more)
        return [self.states[index].get(key) for key in one.keys] == one.values

    def _watches_fit(self) -> bool:
        return all(self._watch_fits(one) for one in self.operations if isinstance(one, Watch))

    def _watch_fits(self, watch: Watch) -> bool:
        expected = []
        for index in range(max(1, watch.since), len(self.log) + 1):
            before, after = self.states[index - 1], self.states[index]
            key = self._key_written(index)
            if key is None or not key.startswith(watch.prefix):
                continue
            previous = before.get(key) if watch.previous else None
            if key in after:
                expected.append(Event("put", key, after[key], previous, index))
            elif key in before:
                expected.append(Event("deleted", key, None, previous, index))
        told = [event for event in watch.events if event.kind in ("put", "deleted")]
        waited = max([watch.through, *(event.revision for event in watch.events if event not in told)])
        if told != expected[: len(told)] or any(event.revision <= waited for event in expected[len(told) :]):
            return False
        for place, event in enumerate(watch.events):
            later = [one.revision for one in watch.events[place:] if one in told]
            if event not in told and (event.revision > len(self.log) or event.revision >= min(later, default=99)):
                return False
        return all(
            self.began[index] < at
            for event, at in zip(watch.events, watch.at, strict=True)
            for index in range(1, event.revision + 1)
        )

    def _key_written(self, index: int) -> bytes | None:
        key: bytes = msgspec.msgpack.decode(self.log[index - 1].data)[1]
        return key if self.results[index].succeeded else None

    # ---- every order ---------------------------------------------------------------------------------------------

    def _some_order(self) -> bool:
        first: State = (0, 0, tuple(0 for _ in self.sessions), frozenset())
        seen, todo = {first}, [first]
        while todo:
            state = todo.pop()
            if state[0] == len(self.moments):
                return True
            for later in self._next(state):
                if later not in seen:
                    seen.add(later)
                    todo.append(later)
        return False

    def _next(self, state: State) -> Iterator[State]:
        at, decided, stands, looks = state
        now, operation = self.moments[at]
        if now == operation.begun or self._may_end(operation, decided, stands, looks):
            gone = looks if now == operation.begun else frozenset(one for one in looks if one[0] != operation.begun)
            yield at + 1, decided, stands, gone
        if self._may_come(decided + 1, now):
            yield at, decided + 1, stands, looks
        for place, stand in enumerate(stands):
            if self._may_come(stand + 1, now):
                yield at, decided, (*stands[:place], stand + 1, *stands[place + 1 :]), looks
        looked = {(number, kind) for number, kind, _ in looks}
        for one in self._looking(at):
            for kind, index in ((SESSION, stands[self.sessions.index(one.session)]), (DECIDED, decided)):
                if (one.begun, kind) not in looked and index >= one.at_least and self._saw(one, index):
                    yield at, decided, stands, looks | {(one.begun, kind, index)}

    def _looking(self, at: int) -> Iterator[Read | Scan]:
        """The reads that have begun before a moment, and end then, or later."""
        now = self.moments[at][0]
        for moment, one in self.moments[:at]:
            if moment == one.begun and isinstance(one, Read | Scan) and one.of_view is None and (one.ended or 0) >= now:
                yield one

    def _may_come(self, index: int, now: int) -> bool:
        return index <= len(self.log) and self.began[index] < now

    def _may_end(self, one: Operation, decided: int, stands: tuple[int, ...], looks: Looks) -> bool:
        if one.outcome != "ok" or isinstance(one, Watch):
            return True
        if isinstance(one, Write):
            index = one.results[-1].index
            return decided >= index and stands[self.sessions.index(one.session)] >= index
        assert isinstance(one, Read | Scan)
        if one.of_view is not None:
            return True
        found = {kind: index for number, kind, index in looks if number == one.begun}
        return SESSION in found and (not one.linearizable or found.get(DECIDED) == found[SESSION])
