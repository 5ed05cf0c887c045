"""Terms in a world of the commit protocol: the engine's own `Tail`, and what is kept of it, as bytes that are quick to
compare and to hash. Item n of the log is entry n + 1."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache

import msgspec

from shardengine.engine.commit.decision import Recovery, encode_runs
from shardengine.engine.intake.tail import Mark, Tail, normalised
from shardengine.shards.types import Entry, LogId
from tests.explorer import ViolationError

NewRuns = Callable[[Tail, int, int], list[LogId]]
"""Which runs a solo takes along: those that begin behind the record's entry, up to the solo's."""


def term_of(item: int) -> int:
    """Most items begin a new term: 3, 5, 5, 7, 7, ..."""
    return 3 + 2 * ((item + 1) // 2)


@cache
def decoded(runs: bytes) -> list[LogId]:
    return msgspec.msgpack.decode(runs, type=list[LogId]) if runs else []


def _tail(runs: bytes) -> Tail:
    """One that remembers these runs; they say all but where it ends."""
    known = decoded(runs)
    return Tail(0, known[-1].term if known else 0, 0, known)


@cache
def accepted(runs: bytes, item: int) -> bytes:
    """What is remembered behind `item`."""
    tail = _tail(runs)
    tail.extend(normalised([Entry(item + 1, term_of(item), b"")], 0))
    return encode_runs(tail.term_runs)


@cache
def taken_back(runs: bytes, item: int) -> bytes:
    """What is remembered when `item` and all behind it is taken back."""
    tail = _tail(runs)
    tail.retreat(Mark(item, 0, 0))
    return encode_runs(tail.term_runs)


@cache
def recorded(runs: bytes, item: int) -> bytes:
    """What the record of a group that ends with `item` keeps."""
    return encode_runs(_tail(runs).kept_runs(item + 1))


@cache
def taken_along(rule: NewRuns, runs: bytes, record: int, item: int) -> bytes:
    """What a solo takes along; the record ends at entry `record`."""
    return encode_runs(rule(_tail(runs), record, item + 1))


def check_terms(recovery: Recovery, items: Iterable[int]) -> bytes:
    """Assert that a start knows the term of every item that is applied. Returns what it remembers."""
    tail = Tail(recovery.position.index, recovery.position.term, 0, recovery.term_runs)
    for item in items:
        found = tail.term_of(item + 1)
        if found != term_of(item):
            raise ViolationError(f"after the start entry {item + 1} has term {found}, not {term_of(item)}")
    return encode_runs(recovery.term_runs)
