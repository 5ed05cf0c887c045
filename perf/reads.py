"""`python -m perf reads`: what a get takes, in the engine's thread, in any thread and in another process, beside
py-lmdb's `txn.get` on the same environments."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from perf.elsewhere import elsewhere
from perf.facts import machine
from perf.gets import Gets, Timer, check, each, in_a_thread, in_threads
from perf.load import KEY_BYTES, Load
from perf.report import carry_out, progress, show_machine
from shardengine import Engine, Put, SyncEngine
from shardengine.node import SyncNode

_TOGETHER = 1_000  # puts that are proposed together


class Plan(msgspec.Struct, frozen=True):
    """What is measured: batches of `gets` of random keys, for each of `shards`, and with each of `threads`."""

    shards: list[int]
    threads: list[int]
    keys: int
    value_bytes: int
    gets: int
    rounds: int
    seed: int


class Timed(msgspec.Struct, frozen=True):
    """Nanoseconds of a get, batch by batch, and of a bare `txn.get`, whose batches came in turn with those."""

    shards: int
    read: str
    threads: int
    ns: list[float]
    txn_ns: list[float]

    def facts(self) -> dict[str, Any]:
        get, txn = median(self.ns), median(self.txn_ns)
        return {**msgspec.to_builtins(self), "get_ns": get, "txn_get_ns": txn, "over_txn_get": get / txn}


# ---- who reads -------------------------------------------------------------------------------------------------------


@contextmanager
def _engine(path: Path, gets: Gets) -> Iterator[Timer]:
    db = Engine(path)
    db.start()
    try:
        check("Engine.get", db.get, gets)
        yield in_a_thread(each(db.get), gets)
    finally:
        db.stop()


@contextmanager
def _sync_engine(path: Path, gets: Gets, threads: int) -> Iterator[Timer]:
    with SyncEngine(path) as db:
        check("SyncEngine.get", db.get, gets)
        yield in_threads(each(db.get), threads, gets)


@contextmanager
def _sync_node(path: Path, gets: Gets) -> Iterator[Timer]:
    """Own writes: what was proposed is known to be applied, and nobody is asked."""
    with SyncNode(path) as node:
        index = node.last_applied().index

        def read(keys: Sequence[bytes]) -> None:
            for key in keys:
                node.get(key, at_least=index)

        check("SyncNode.get", lambda key: node.get(key, at_least=index), gets)
        yield in_a_thread(read, gets)


@contextmanager
def _reader(path: Path, gets: Gets) -> Iterator[Timer]:
    """Beside an engine that runs, in another process."""
    with SyncEngine(path), elsewhere("Reader.get", path, gets) as timer:
        yield timer


def _sides(threads: Sequence[int]) -> Iterator[tuple[str, int, Callable[[Path, Gets], AbstractContextManager[Timer]]]]:
    """Each with its name and how many threads it reads in."""
    yield "Engine.get", 1, _engine
    for count in threads:
        yield "SyncEngine.get", count, partial(_sync_engine, threads=count)
    yield "SyncNode.get, at_least", 1, _sync_node
    yield "Reader.get", 1, _reader


# ---- the measurement -------------------------------------------------------------------------------------------------


def measure(directory: Path, plan: Plan) -> Iterator[Timed]:
    """All reads of one directory after the other. Raises CheckError when one finds something else than was put."""
    gets = Gets(Load(plan.keys, plan.value_bytes, _TOGETHER, plan.seed), plan.gets, plan.rounds)
    for shards in plan.shards:
        path = directory / str(shards)
        with SyncNode(path, shards=shards) as node:
            for pairs in gets.load.chunks():
                node.propose_many([Put(key, value) for key, value in pairs])
        with elsewhere("txn.get", path, gets) as bare:
            for read, threads, opener in _sides(plan.threads):
                progress(f"{shards} shards: {read}, {threads} threads")
                with opener(path, gets) as timer:
                    yield Timed(shards, read, threads, *_in_turn(timer, bare, plan.rounds))
    progress("")


def _in_turn(timer: Timer, bare: Timer, rounds: int) -> tuple[list[float], list[float]]:
    found: dict[Timer, list[float]] = {timer: [], bare: []}
    for number in range(rounds):
        for one in (timer, bare) if number % 2 else (bare, timer):
            found[one].append(one(number))
    return found[timer], found[bare]


def measured(directory: Path, plan: Plan) -> dict[str, Any]:
    """All figures. Raises CheckError when an answer is wrong."""
    rows = [timed.facts() for timed in measure(directory, plan)]
    return {"machine": machine(), "plan": msgspec.to_builtins(plan), "durability": "process", "reads": rows}


def run_reads(plan: Plan, *, parent: Path | None, output: Path | None) -> int:
    """Measure, check, then print, and write `output`. Returns the exit code."""
    return carry_out(partial(measured, plan=plan), show, parent=parent, output=output)


_ROW = "{:<8}{:<26}{:>8}{:>12}{:>14}{:>12}"


def show(facts: dict[str, Any]) -> None:
    plan = facts["plan"]
    show_machine(facts)
    print(
        f"{plan['keys']:,} records of {KEY_BYTES} + {plan['value_bytes']} bytes, median of {plan['rounds']} batches of "
        f"{plan['gets']:,} random ones, in turn with as many by txn.get\n"
    )
    print(_ROW.format("shards", "read", "threads", "ns a get", "ns, txn.get", "/ txn.get"))
    for row in facts["reads"]:
        times = f"{row['get_ns']:,.0f}", f"{row['txn_get_ns']:,.0f}", f"{row['over_txn_get']:.2f}"
        print(_ROW.format(row["shards"], row["read"], row["threads"], *times))
    print("\nchecked: every read finds every record as it was put")
