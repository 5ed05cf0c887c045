"""Real nodes and engines, used by many at once while workers die: what everybody saw is true of the log."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from shardengine import (
    BadEntryError,
    CompareAndSwap,
    Delete,
    Engine,
    Entry,
    LogFailedError,
    LogGapError,
    Machine,
    NodeStoppedError,
    OutcomeUnknownError,
    Put,
    encode,
)
from shardengine.adaptors import MemoryStateMachine
from shardengine.conformance import History
from shardengine.engine.conformance.operations import Read, Scan, Write
from shardengine.engine.conformance.recorded import RecordedEngine, RecordedNode, RecordedSyncNode
from shardengine.machines.bank import Bank, Open, Transfer
from shardengine.node import LocalLog, MemoryLog, Node, SyncNode, entries_of
from tests.nodes import CONFIG, SecondEnd, ToldLog, node_at, raising

KEYS = [b"a", b"b", b"c", b"d", b"e"]
CALLERS, TURNS = 12, 25


def command(rng: random.Random, number: int) -> Put | Delete | CompareAndSwap:
    key, value = rng.choice(KEYS), b"%d" % (number % 7)
    commands: list[Put | Delete | CompareAndSwap] = [Put(key, value), CompareAndSwap(key, b"1", value), Delete(key)]
    return rng.choice([commands[0], *commands])


async def call(node: RecordedNode, rng: random.Random, number: int) -> None:
    key, last = rng.choice(KEYS), node.last_applied().index
    match rng.randrange(11):
        case 0 | 1 | 2:
            await node.propose(command(rng, number))
        case 3:
            result = await node.propose_many([command(rng, number), command(rng, number + 1)])
            await node.get(key, at_least=result[1].index)
        case 4:
            await node.get(key)
        case 5:
            await node.get_multi(KEYS)
            assert (await node.barrier()).index >= last
        case 6:
            await node.get_multi(KEYS[:2], at_least=max(0, last - 1))
        case 7:
            await node.scan_prefix(b"", limit=rng.choice([None, 2]), reverse=rng.random() < 0.5)
        case 8:
            node.engine.get(key)
            node.engine.get_multi(KEYS)
            node.engine.scan_prefix(b"", at := rng.choice([None, 1]), start_after=b"a" if at else None)
        case 9:
            with await node.view() as view:
                before = view.get_multi(KEYS)
                await node.propose(command(rng, number))
                assert view.get_multi(KEYS) == before and view.get(KEYS[0]) == before[0]
                assert len(view) == len(view.scan_prefix(b"").entries)
        case _:
            with node.engine.view() as view:
                await asyncio.sleep(0)
                view.scan_prefix(b"", limit=1)


async def crowd(nodes: list[RecordedNode], seed: int, meanwhile: Callable[[int], object] = lambda number: None) -> None:
    numbers = count()

    async def caller(who: int) -> None:
        rng = random.Random(seed * 100 + who)
        for _ in range(TURNS):
            number = next(numbers)
            meanwhile(number)
            await call(rng.choice(nodes), rng, number)

    await asyncio.gather(*map(caller, range(CALLERS)))


def judged(history: History, log: list[Entry], machine: type[Machine] | None = None) -> None:
    verdict = history.check(log) if machine is None else history.check(log, machine)
    assert verdict.valid, verdict
    assert verdict.entries == len(log) > 0 and verdict.operations == len(history.operations)


async def test_callers_of_a_node_see_the_truth_while_its_workers_are_killed(tmp_path: Path) -> None:
    history, log = History(), LocalLog(tmp_path / "log")
    async with Node(tmp_path / "data", log=log, shards=2, config=CONFIG) as inner:
        node = history.node(inner)

        def kill(number: int) -> None:
            if number in (60, 150, 240):
                os.kill(inner.engine.stats()["workers"][number // 30 % 2]["pid"], signal.SIGKILL)

        await crowd([node], 1, kill)
        judged(history, await entries_of(log))
        assert {type(one) for one in history.operations} == {Write, Read, Scan}
        assert all(one.outcome == "ok" for one in history.operations)
        reads = [one for one in history.operations if isinstance(one, Read) and one.of_view is None]
        assert all(read.revision is not None for read in reads)


async def test_callers_of_two_nodes_on_one_log_see_one_order(tmp_path: Path) -> None:
    history, log = History(), ToldLog()
    async with node_at(tmp_path, log) as first, node_at(tmp_path / "other", SecondEnd(log)) as second:
        await crowd([history.node(first, "first"), history.node(second, "second")], 2)
        await first.barrier()
        judged(history, await entries_of(log.inner))


async def test_what_is_refused_or_stays_unknown_is_recorded_as_that(tmp_path: Path) -> None:
    history, log = History(), ToldLog()
    inner = node_at(tmp_path, log)
    async with inner:
        node = history.node(inner)
        await node.propose(Put(b"k", b"1"))
        with pytest.raises(BadEntryError):
            await node.propose(b"junk")
        log.gate.clear()
        with pytest.raises(TimeoutError):
            await node.propose(Put(b"k", b"2"), timeout=0)
        with pytest.raises(TimeoutError):
            await node.get(b"k", at_least=99, timeout=0)
        assert await node.propose_many([]) == [] and await node.get_multi([]) == []
        log.gate.set()
        assert await node.get(b"k", at_least=2) == b"2"
        entries = await entries_of(log.inner)
    with pytest.raises(NodeStoppedError):
        await node.propose(Put(b"k", b"3"))
    assert [one.outcome for one in history.operations] == ["ok", "fail", "info", "fail", "ok", "fail"]
    judged(history, entries)


async def test_a_machine_with_results_of_its_own_is_replayed_with_them(tmp_path: Path) -> None:
    history, log = History(), MemoryLog()
    async with node_at(tmp_path, log, machine=Bank) as inner:
        node = history.node(inner)
        await node.propose_many([Open(b"a", 10), Open(b"b", 10)])
        await asyncio.gather(*(node.propose(Transfer(b"a", b"b", 3)) for _ in range(8)))
        await node.scan_prefix(b"")
        entries = await entries_of(log)
        judged(history, entries, Bank)
        writes = [one for one in history.operations if isinstance(one, Write)]
        assert {one.results[0].succeeded for one in writes} == {True, False}
    (last,) = writes[-1].results
    writes[-1].results = [type(last)(last.index, True, "something else")]
    assert [finding.rule for finding in history.check(entries, Bank).findings] == ["result"]


def test_threads_that_share_a_node_see_the_truth(tmp_path: Path) -> None:
    history, log, numbers = History(), LocalLog(tmp_path / "log"), count()
    with SyncNode(tmp_path / "data", log=log, shards=2, config=CONFIG) as inner:
        node = history.sync_node(inner)

        def caller(who: int) -> None:
            rng = random.Random(who)
            for _ in range(TURNS):
                sync_call(node, rng, next(numbers))

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(caller, range(8)))
    judged(history, asyncio.run(read_again(tmp_path / "log")))


def sync_call(node: RecordedSyncNode, rng: random.Random, number: int) -> None:
    key = rng.choice(KEYS)
    match rng.randrange(8):
        case 0 | 1:
            node.propose(command(rng, number))
        case 2:
            results = node.propose_many([command(rng, number), command(rng, number + 1)])
            assert node.propose_many([]) == []
            node.get_multi(KEYS, at_least=results[-1].index)
        case 3:
            node.get(key)
        case 4:
            node.get_multi(KEYS)
            node.barrier()
        case 5:
            node.scan_prefix(b"", limit=3)
        case 6:
            node.engine.get(key)
            node.engine.get_multi(KEYS)
        case _:
            with node.view() as view:
                assert view.get(key) == view.get_multi([key])[0]


async def read_again(path: Path) -> list[Entry]:
    log = LocalLog(path)
    await log.open()
    try:
        return await entries_of(log)
    finally:
        await log.aclose()


@pytest.mark.parametrize("kind", ["engine", "memory"])
async def test_chunks_that_are_applied_are_recorded_too(tmp_path: Path, kind: str) -> None:
    history, rng = History(), random.Random(3)
    inner: Any = Engine(tmp_path / "data", shards=2, config=CONFIG) if kind == "engine" else MemoryStateMachine()
    log = [Entry(index, 1, encode(command(rng, index))) for index in range(1, 201)]
    async with inner:
        db = history.engine(inner)
        with pytest.raises(LogGapError):
            await db.apply_chunk(log[1:2])
        await asyncio.gather(*(feed(db, log[at : at + 20], rng) for at in range(0, 200, 10)))
        with db.view() as view:
            view.scan_prefix(b"a")
        assert await db.apply_chunk([]) == [] and len(db) == len(inner) and db.get_multi([]) == []
        judged(history, log)
        assert history.operations[0].outcome == "fail"
        results = await db.apply_chunk(log[-3:])
        assert all(result.already_applied for result in results)
        judged(history, log)


async def feed(db: RecordedEngine, entries: list[Entry], rng: random.Random) -> None:
    """Each chunk overlaps with the next."""
    await db.apply_chunk(entries)
    assert db.last_applied().index >= entries[-1].index
    db.get(rng.choice(KEYS))
    db.get_multi(KEYS)
    db.scan_prefix(b"")


@pytest.mark.parametrize("where", ["before", "after"])
async def test_a_log_that_fails_leaves_unknown_what_it_had_been_given(tmp_path: Path, where: str) -> None:
    """In the log or not: the history is true either way, and the next node shows which."""
    history, log = History(), ToldLog()
    node = history.node(node_at(tmp_path, log))
    await node.start()
    await node.propose(Put(b"k", b"1"))
    (log.before if where == "before" else log.after).append(raising(LogFailedError("no sync")))
    with pytest.raises(OutcomeUnknownError):
        await node.propose(Put(b"k", b"2"))
    await node.aclose()
    async with node_at(tmp_path, log) as again:
        await again.wait_ready()
        value = await history.node(again, "again").get(b"k")
        assert value == (b"1" if where == "before" else b"2")
        judged(history, await entries_of(log.inner))
    assert [one.outcome for one in history.operations] == ["ok", "info", "ok"]
