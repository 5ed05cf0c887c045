"""Rounds of many cells, in turn, so that what drifts hits all of them alike."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from perf.cells import Cell
from perf.streams import Made, made

T = TypeVar("T")
Measure = Callable[[Path, Cell, Made], T]


def say(text: str) -> None:
    """What is going on, a line each, for somebody who waits. No figure: those come when all states were right."""
    print(text, file=sys.stderr, flush=True)


class Rounds(Generic[T]):
    """Rounds of `cells`, each measured in a new directory with entries made beforehand; every other round from the
    last cell to the first. `found` is what was measured, round by round."""

    def __init__(self, directory: Path, cells: Sequence[Cell], measure: Measure[T], entries: int, seed: int) -> None:
        self._directory = directory
        self._cells = cells
        self._measure = measure
        self._entries = entries
        self._seed = seed
        self._made: Made | None = None
        self.found: dict[Cell, list[T]] = {cell: [] for cell in cells}

    def run(self, rounds: int, within_s: float = float("inf")) -> None:
        """Warm up, then measure so many rounds; fewer, but one, when another one would end after `within_s` seconds.
        Raises CheckError at the first wrong state."""
        began = time.monotonic()
        say(f"warm-up: {self._cells[0].told()}")
        self._one(self._cells[0])
        for number in range(1, rounds + 1):
            before = time.monotonic()
            self._round(number, rounds)
            took = time.monotonic() - before
            if time.monotonic() + took - began > within_s:
                return
            if number == 1 < rounds:
                say(f"about {min(took * (rounds - 1), within_s):.0f} s to go")

    def _round(self, number: int, rounds: int) -> None:
        for place, cell in enumerate(self._cells[:: 1 if number % 2 else -1], 1):
            say(f"round {number} of {rounds}, {place} of {len(self._cells)}: {cell.told()}")
            self.found[cell].append(self._one(cell))

    def _one(self, cell: Cell) -> T:
        stream = cell.stream(self._entries, self._seed)
        if self._made is None or self._made.stream != stream:
            self._made = None  # two at once would be too many to hold
            self._made = made(stream)
        place = self._directory / "place"
        place.mkdir()
        os.sync()  # what is written while the clock runs slows a run down to half of its speed
        try:
            return self._measure(place, cell, self._made)
        finally:
            shutil.rmtree(place)
