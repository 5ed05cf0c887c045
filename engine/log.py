"""Where the accepted log ends, and which term each of its entries has. No I/O."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

import msgspec

from engine.decision import TERM_RUNS_MAX
from engine.errors import LogConflictError, LogGapError, LogOrderError
from shards.part import Run
from shards.puts import Columns
from shards.types import U64_MAX, Entry, LogId


class Mark(msgspec.Struct, frozen=True, gc=False):
    """A place to go back to: behind entry `last`."""

    last: int
    term: int
    clock: int


class Tail:
    """The end of the accepted log: index, term, clock, and the first index of each term.

    Invariant: `term_runs` ascends in index and term, and its last term is `term`.
    """

    def __init__(self, index: int, term: int, clock: int, term_runs: Sequence[LogId]) -> None:
        self.index = index
        self.term = term
        self.clock = clock
        self.term_runs = list(term_runs)

    @property
    def mark(self) -> Mark:
        return Mark(self.index, self.term, self.clock)

    def term_of(self, index: int) -> int | None:
        """The term of an accepted entry; None beyond the tail, and before the oldest run that is kept."""
        if not 1 <= index <= self.index:
            return None
        at = bisect_right(self.term_runs, index, key=lambda run: run.index)
        return self.term_runs[at - 1].term if at else None

    def check(self, entries: Sequence[Entry], columns: Columns | None) -> int:
        """How many of `entries`, from the first, are already accepted. Changes nothing. `columns` are theirs, if they
        are regular.

        Raises LogGapError, LogOrderError or LogConflictError, with the numbers.
        """
        if columns is not None and columns[0] == self.index + 1 and columns[1] >= self.term:
            return 0
        if columns is None:
            _check_numbers(entries)
        first = entries[0].index
        indices = [entry.index for entry in entries]
        if indices != list(range(first, first + len(entries))):
            raise _disorder(indices)
        if first > self.index + 1 or first < 1:
            raise LogGapError(
                f"the chunk starts at index {first}, the next index is {self.index + 1}",
                hint=f"feed the log from index {self.index + 1}",
                expected=self.index + 1,
                got=first,
            )
        known = min(len(entries), self.index + 1 - first)
        for entry in entries[:known]:
            term = self.term_of(entry.index)
            if term is not None and term != entry.term:
                raise LogConflictError(
                    f"entry {entry.index} has term {entry.term}, but was accepted with term {term}",
                    hint="committed entries never change: the host's log, or the choice of directory, is wrong",
                    index=entry.index,
                    term=entry.term,
                    accepted=term,
                )
        self._check_terms(entries, known)
        return known

    def _check_terms(self, entries: Sequence[Entry], known: int) -> None:
        terms = [entry.term for entry in entries]
        if known == len(entries) or (len(set(terms)) == 1 and terms[0] >= self.term):
            return
        before = terms[known - 1] if known else self.term
        for offset, term in enumerate(terms[known:], known):
            if term < before:
                raise LogOrderError(
                    f"entry {entries[offset].index} has term {term}, after an entry of term {before}",
                    hint="terms never fall along a log",
                    index=entries[offset].index,
                    term=term,
                    before=before,
                )
            before = term

    def extend(self, entries: Sequence[Entry], columns: Columns | None) -> list[Run]:
        """Accept `entries`, which `check` has passed. Returns where term or clock change among them."""
        if columns is not None and (columns[2] <= self.clock or len(entries) == 1):
            first, term, latest, _ = columns
            runs = [Run(first, term, max(self.clock, latest))]
        else:
            runs = _runs(entries, self.clock)
        for run in runs:
            if run.term != self.term:
                self.term_runs.append(LogId(run.first, run.term))
                self.term = run.term
        self.index = entries[-1].index
        self.clock = runs[-1].clock
        return runs

    def kept_runs(self, index: int) -> list[LogId]:
        """The term runs of entries up to `index`, the newest TERM_RUNS_MAX of them, as a record keeps them."""
        return [run for run in self.term_runs[-2 * TERM_RUNS_MAX :] if run.index <= index][-TERM_RUNS_MAX:]

    def forget_old_runs(self) -> None:
        del self.term_runs[: -2 * TERM_RUNS_MAX]

    def retreat(self, mark: Mark) -> None:
        """Go back to `mark`: what was accepted after it is not any more."""
        self.index, self.term, self.clock = mark.last, mark.term, mark.clock
        while self.term_runs and self.term_runs[-1].index > mark.last:
            self.term_runs.pop()


def _runs(entries: Sequence[Entry], clock: int) -> list[Run]:
    runs: list[Run] = []
    for entry in entries:
        clock = max(clock, entry.time_ms)
        if not runs or runs[-1].term != entry.term or runs[-1].clock != clock:
            runs.append(Run(entry.index, entry.term, clock))
    return runs


def _check_numbers(entries: Sequence[Entry]) -> None:
    for entry in entries:
        for number in (entry.index, entry.term, entry.time_ms):
            if type(number) is not int or not 0 <= number <= U64_MAX:
                raise LogOrderError(
                    f"entry {entry.index}, of term {entry.term} and time_ms {entry.time_ms}: "
                    f"{number!r} is no plain int of at most {U64_MAX}",
                    hint="index, term and time_ms are unsigned 64-bit numbers; convert what goes into an Entry",
                    got=number,
                    limit=U64_MAX,
                )


def _disorder(indices: list[int]) -> LogGapError | LogOrderError:
    before, index = next((a, b) for a, b in pairwise(indices) if b != a + 1)
    facts = {"expected": before + 1, "got": index}
    if index > before:
        return LogGapError(f"inside the chunk, index {index} follows {before}", hint="a log has no gaps", **facts)
    return LogOrderError(f"inside the chunk, index {index} follows {before}", hint="indices rise by one", **facts)
