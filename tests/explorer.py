"""Walks a model breadth first through every state it can be in, and tells the shortest way to a broken promise.

A model has a start, the steps that are possible in a state, what must hold in each state, and what must hold where
nothing more happens. Some steps are faults: they may happen, but nobody may wait for them, so from every state the
other steps must lead to an end.
"""

from __future__ import annotations

import gc
from array import array
from collections.abc import Hashable, Iterable
from typing import Protocol, TypeVar


class ViolationError(AssertionError):
    """The model broke a promise."""


class Label(Protocol):
    """What a step is called; `str` of it is for people."""

    @property
    def fault(self) -> bool: ...


State = TypeVar("State", bound=Hashable)


class Model(Protocol[State]):
    """Raises AssertionError, best a ViolationError, in any of these when a promise is broken."""

    @property
    def trying(self) -> Label | None:
        """The step that is being worked out, or None."""

    def start(self) -> State: ...
    def steps(self, state: State) -> Iterable[tuple[Label, State]]: ...
    def check(self, state: State) -> None: ...
    def check_end(self, state: State) -> None: ...


class Explorer:
    """The walk through one model. `states` and `steps` count what was visited."""

    def __init__(self) -> None:
        self._parents = [0]
        self._labels: list[Label | None] = [None]
        self._sources, self._targets = array("I"), array("I")  # of the steps that are no faults
        self._ends: list[int] = []
        self.states = self.steps = 0

    def walk(self, model: Model[State]) -> None:
        """Visit every state. Raises ViolationError, with a shortest trace, at the first that breaks a promise."""
        collecting = gc.isenabled()
        gc.disable()  # nothing here is garbage, and there is a lot of it
        try:
            self._walk(model)
        finally:
            if collecting:
                gc.enable()

    def _walk(self, model: Model[State]) -> None:
        start = model.start()
        numbers, states = {start: 0}, [start]
        for number, _ in enumerate(states):  # grows while it is walked
            try:
                self._visit(model, number, numbers, states)
            except AssertionError as error:
                what = str(error) or "an assertion fails"
                raise ViolationError(self._story(what, number, model.trying)) from error
        self.states = len(states)
        self._check_ends_in_reach()

    def _visit(self, model: Model[State], number: int, numbers: dict[State, int], states: list[State]) -> None:
        model.check(states[number])
        at_end = True
        for label, after in model.steps(states[number]):
            self.steps += 1
            target = numbers.setdefault(after, len(states))
            if target == len(states):
                states.append(after)
                self._parents.append(number)
                self._labels.append(label)
            if not label.fault:
                at_end = False
                self._sources.append(number)
                self._targets.append(target)
        if at_end:
            model.check_end(states[number])
            self._ends.append(number)

    def _check_ends_in_reach(self) -> None:
        reaches = bytearray(self.states)
        for end in self._ends:
            reaches[end] = 1
        left, before = self._unresolved(zip(reversed(self._sources), reversed(self._targets), strict=True), reaches), 0
        while len(left) != before:
            left, before = self._unresolved(left, reaches), len(left)
        if not all(reaches):
            raise ViolationError(self._story("from here on no end can be reached", reaches.index(0), None))

    @staticmethod
    def _unresolved(steps: Iterable[tuple[int, int]], reaches: bytearray) -> list[tuple[int, int]]:
        """Mark where one of these steps comes from that leads to what is marked. Returns those that are open yet."""
        left = []
        for source, target in steps:
            if reaches[target]:
                reaches[source] = 1
            elif not reaches[source]:
                left.append((source, target))
        return left

    def _story(self, what: str, number: int, trying: Label | None) -> str:
        lines = [] if trying is None else [str(trying)]
        while number:
            lines.append(str(self._labels[number]))
            number = self._parents[number]
        return what + "".join(f"\n  {count:3}  {line}" for count, line in enumerate(reversed(lines), 1))
