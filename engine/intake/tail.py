"""Where the accepted log ends, which term each of its entries has, and what may follow. No I/O."""

from __future__ import annotations

import reprlib
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from operator import attrgetter

import msgspec

from shardengine.engine.errors import BadEntryError, EngineError, LogConflictError, LogGapError, LogOrderError
from shardengine.shards.fast import Normal, normal_form
from shardengine.shards.types import U64_MAX, Entry, LogId

TERM_RUNS_MAX = 1024
"""So many of the newest runs of entries of one term are kept."""


_index_of = attrgetter("index")


class Mark(msgspec.Struct, frozen=True, gc=False):
    """A place to go back to: behind entry `last`."""

    last: int
    term: int
    clock: int


class Tail:
    """The end of the accepted log: index, term, clock, and the first index of each term.

    Invariant: `term_runs` ascends in index and term, and its last term is `term`, once anything was accepted.
    """

    def __init__(self, index: int, term: int, clock: int, term_runs: Sequence[LogId]) -> None:
        self.index = index
        self.term = term
        self.clock = clock
        self.term_runs = list(term_runs)

    def copy(self) -> Tail:
        return Tail(self.index, self.term, self.clock, self.term_runs)

    @property
    def mark(self) -> Mark:
        return Mark(self.index, self.term, self.clock)

    def term_of(self, index: int) -> int | None:
        """The term of an accepted entry; None beyond the tail, and before the oldest run that is kept."""
        if not 1 <= index <= self.index:
            return None
        at = bisect_right(self.term_runs, index, key=_index_of)
        return self.term_runs[at - 1].term if at else None

    def check(self, chunk: Normal) -> int:
        """How many entries of `chunk`, from the first, are already accepted. Changes nothing.

        Raises LogGapError, LogOrderError or LogConflictError, with the numbers.
        """
        first, term = chunk.first, chunk.terms[0][1]
        if first == self.index + 1 and term >= self.term:
            return 0
        if first > self.index + 1 or first < 1:
            raise LogGapError(
                f"the chunk starts at index {first}, the next index is {self.index + 1}",
                hint=f"feed the log from index {self.index + 1}"
                + (
                    f", or begin there: update_last_applied(LogId({first - 1}, term))"
                    if not self.index and first > 1
                    else ""
                ),
                expected=self.index + 1,
                got=first,
            )
        if first == self.index + 1:
            raise _falling(first, term, self.term)
        known = min(len(chunk.datas), self.index + 1 - first)
        for index in range(first, first + known):
            self._check_known(index, chunk.term_of(index))
        return known

    def _check_known(self, index: int, term: int) -> None:
        accepted = self.term_of(index)
        if accepted not in (None, term):
            raise LogConflictError(
                f"entry {index} has term {term}, but was accepted with term {accepted}",
                hint="committed entries never change: the host's log, or the choice of directory, is wrong",
                index=index,
                term=term,
                accepted=accepted,
            )

    def extend(self, chunk: Normal) -> None:
        """Accept `chunk`, which `check` has passed, and which begins behind the tail."""
        for index, term in chunk.terms:
            if term != self.term or not self.term_runs:
                self.term_runs.append(LogId(index, term))
                self.term = term
        self.index = chunk.last
        self.clock = chunk.clock

    def check_name(self, last: LogId) -> None:
        """Raise LogConflictError when the accepted entry at that index has another term, LogOrderError when `last` lies
        beyond the tail and its term falls."""
        if last.index > self.index and last.term < self.term:
            raise _falling(last.index, last.term, self.term)
        self._check_known(last.index, last.term)

    def pass_over(self, last: LogId) -> None:
        """The log goes on behind `last`, which `check_name` has passed, and which lies beyond the tail.

        Which terms the entries between have is known when they can have but one. Else no run would be true of them, and
        those before them are forgotten: a run reaches up to the next.
        """
        if not self.term_runs or (last.term > self.term and last.index > self.index + 1):
            self.term_runs = [last]
        elif last.term > self.term:
            self.term_runs.append(last)
        self.index, self.term = last.index, last.term

    def kept_runs(self, index: int) -> list[LogId]:
        """The term runs of entries up to `index`, the newest TERM_RUNS_MAX of them, as a record keeps them."""
        end = bisect_right(self.term_runs, index, key=_index_of)
        return self.term_runs[max(0, end - TERM_RUNS_MAX) : end]

    def runs_between(self, after: int, last: int) -> list[LogId]:
        """The term runs that begin behind entry `after`, up to entry `last`."""
        runs = self.term_runs
        if not runs or runs[-1].index <= after:
            return []
        return runs[bisect_right(runs, after, key=_index_of) : bisect_right(runs, last, key=_index_of)]

    def forget_old_runs(self, applied: int) -> None:
        """Of the term runs of entries up to `applied`, forget the oldest. Those of later ones are yet to be kept."""
        if len(self.term_runs) > 2 * TERM_RUNS_MAX:
            end = bisect_right(self.term_runs, applied, key=_index_of)
            del self.term_runs[: max(0, end - 2 * TERM_RUNS_MAX)]

    def retreat(self, mark: Mark) -> None:
        """Go back to `mark`: what was accepted after it is not any more."""
        self.index, self.term, self.clock = mark.last, mark.term, mark.clock
        while self.term_runs and self.term_runs[-1].index > mark.last:
            self.term_runs.pop()


def can_be_runs(runs: Sequence[LogId], last: LogId) -> bool:
    """Whether these can be the term runs of a log that ends with `last`."""
    rise = all(one.index < two.index and one.term < two.term for one, two in pairwise([LogId(-1, -1), *runs]))
    return rise and (not runs or (runs[-1].index <= last.index and runs[-1].term == last.term))


def normalised(entries: Sequence[Entry], clock: int) -> Normal:
    """The normal form of a chunk that is not empty; the log clock stands at `clock` before it.

    Raises LogGapError, LogOrderError or BadEntryError, which say what is wrong with the chunk in itself.
    """
    found = normal_form(entries, clock)
    if found is None:
        raise _fault_of(entries)
    return found


def _fault_of(entries: Sequence[Entry]) -> EngineError:
    """Why a chunk has no normal form: the first reason that there is."""
    before: Entry | None = None
    for place, entry in enumerate(entries):
        fault = _odd(place, entry)
        if fault is not None:
            return fault
        if before is not None and entry.index != before.index + 1:
            return _disorder(before.index, entry.index)
        if before is not None and entry.term < before.term:
            return _falling(entry.index, entry.term, before.term)
        before = entry
    raise AssertionError("a chunk that nothing is wrong with has a normal form")


def _odd(place: int, entry: Entry) -> EngineError | None:
    for name in ("index", "term", "time_ms"):
        number = getattr(entry, name, None)
        if type(number) is not int or not 0 <= number <= U64_MAX:
            return LogOrderError(
                f"number {place} of the chunk, {reprlib.repr(entry)}: its {name} is {number!r}, "
                f"no plain int of at most {U64_MAX}",
                hint="index, term and time_ms are unsigned 64-bit numbers; convert what goes into an Entry",
                got=number,
                limit=U64_MAX,
            )
    if type(getattr(entry, "data", None)) is not bytes:
        kind = type(getattr(entry, "data", None)).__name__
        return BadEntryError(
            f"entry {entry.index}: its data is of type {kind}, not bytes",
            hint="encode(command) makes bytes of a command",
            index=entry.index,
        )
    return None


def _falling(index: int, term: int, before: int) -> LogOrderError:
    return LogOrderError(
        f"entry {index} has term {term}, after an entry of term {before}",
        hint="terms never fall along a log",
        index=index,
        term=term,
        before=before,
    )


def _disorder(before: int, index: int) -> LogGapError | LogOrderError:
    facts = {"expected": before + 1, "got": index}
    if index > before:
        return LogGapError(f"inside the chunk, index {index} follows {before}", hint="a log has no gaps", **facts)
    return LogOrderError(f"inside the chunk, index {index} follows {before}", hint="indices rise by one", **facts)
