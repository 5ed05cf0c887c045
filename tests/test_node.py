"""A node over a log in memory: what is proposed is applied in the log's order, and told to who proposed it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from shardengine import (
    ApplyResult,
    BadEntryError,
    CompareAndSwap,
    ConfigError,
    Delete,
    Engine,
    EngineStateError,
    Entry,
    FrameTooLargeError,
    LogId,
    LogRegressedError,
    NodeStoppedError,
    Put,
    SnapshotPolicy,
    encode,
)
from shardengine.engine.node.frames import decode_frame
from shardengine.node import MemoryLog, NodePolicy
from tests.nodes import CONFIG, SecondEnd, ToldLog, frames_of, node_at, soon


async def test_a_proposal_is_in_the_log_applied_and_readable_when_its_result_comes(tmp_path: Path) -> None:
    log = MemoryLog()
    async with node_at(tmp_path, log) as node:
        assert await node.propose(Put(b"k", b"v")) == ApplyResult(1, True)
        assert node.engine.get(b"k") == b"v" and node.last_applied() == LogId(1, 1)
        assert await log.last() == 1
        assert (await node.propose(CompareAndSwap(b"k", b"other", b"w"))).succeeded is False
        assert (await node.propose(encode(Delete(b"k")))).succeeded
        assert await node.propose(b"") == ApplyResult(4, True), "a no-op moves the index"
        assert await node.get(b"k") is None and node.engine.is_empty()


async def test_proposals_of_one_moment_travel_in_one_frame_and_each_gets_its_own_result(tmp_path: Path) -> None:
    log = ToldLog()
    async with node_at(tmp_path, log) as node:
        calls = [node.propose(CompareAndSwap(b"k", b"%d" % i if i else None, b"%d" % (i + 1))) for i in range(1000)]
        results = await asyncio.gather(*calls)
        assert [result.index for result in results] == list(range(1, 1001))
        assert all(result.succeeded for result in results)
        assert sum(log.appends) <= 2 and await node.get(b"k") == b"1000"


async def test_what_is_proposed_while_an_append_is_under_way_travels_with_the_next_one(tmp_path: Path) -> None:
    log = ToldLog()
    async with node_at(tmp_path, log) as node:
        log.gate.clear()
        first = asyncio.ensure_future(node.propose(Put(b"first", b"")))
        await soon(lambda: log.appends == [1])
        others = [asyncio.ensure_future(node.propose(Put(b"%d" % i, b""))) for i in range(50)]
        await soon(lambda: node.status().proposed == 51)
        assert log.appends == [1]
        log.gate.set()
        await asyncio.gather(first, *others)
        assert log.appends == [1, 1]


async def test_many_stand_next_to_each_other_in_one_frame(tmp_path: Path) -> None:
    log = MemoryLog()
    async with node_at(tmp_path, log) as node:
        others = [node.propose(CompareAndSwap(b"o%d" % i, b"never", b"")) for i in range(20)]
        together = node.propose_many([Put(b"m%d" % i, b"") for i in range(300)])
        called = asyncio.gather(*others)
        many, last = await asyncio.gather(together, node.propose(CompareAndSwap(b"o", b"never", b"")))
        assert all(result.succeeded for result in many)
        assert not any(result.succeeded for result in [*await called, last])
        assert [result.index for result in many] == list(range(many[0].index, many[0].index + 300))
        assert len({node.engine.entry_term(result.index) for result in many}) == 1
        assert await node.propose_many([]) == []
        assert len(decode_frame((await frames_of(log))[0].frame, 1).datas) > 1


async def test_a_frame_is_no_longer_than_the_policy_says_unless_it_is_one_calls(tmp_path: Path) -> None:
    log = ToldLog()
    policy = NodePolicy(frame_entries_max=10, frame_bytes_max=2000)
    async with node_at(tmp_path, log, policy=policy) as node:
        await asyncio.gather(*(node.propose(Put(b"%d" % i, b"")) for i in range(95)))
        assert await log.last() == 10
        await asyncio.gather(*(node.propose(Put(b"%d" % i, b"x" * 900)) for i in range(4)))
        assert await log.last() == 12
        await node.propose_many([Put(b"%d" % i, b"x" * 900) for i in range(40)])
        assert await log.last() == 13


async def test_bad_commands_are_their_callers_error_and_nobody_elses(tmp_path: Path) -> None:
    log = MemoryLog()
    async with node_at(tmp_path, log) as node:
        limit = CONFIG.ring_bytes // 4
        calls = [
            node.propose(Put(b"a", b"1")),
            node.propose(b"\xc1"),
            node.propose(Put(b"k" * 481, b"")),
            node.propose(Put(b"b", b"2")),
            node.propose_many([Put(b"c", b"3"), b"junk"]),
            node.propose_many([Put(b"%d" % i, b"x" * 60_000) for i in range(limit // 60_000 + 1)]),
            node.propose(Put(b"d", b"4")),
        ]
        results = await asyncio.gather(*calls, return_exceptions=True)
        kinds = [type(result) for result in results]
        bad = BadEntryError
        assert kinds == [ApplyResult, bad, bad, ApplyResult, bad, FrameTooLargeError, ApplyResult]
        assert node.last_applied().index == 3 and await log.last() == 1
        assert [key for key, _ in node.engine.scan_prefix(b"").entries] == [b"a", b"b", b"d"]


async def test_reads_wait_for_what_was_acknowledged_or_for_an_index_or_for_nothing(tmp_path: Path) -> None:
    log = ToldLog()
    async with node_at(tmp_path, log) as node, node_at(tmp_path / "other", SecondEnd(log)) as other:
        result = await node.propose(Put(b"k", b""))
        for i in range(50):
            await node.propose(Put(b"k", b"%d" % i))
            assert await other.get(b"k") == b"%d" % i
            result = await node.propose(Put(b"k", b"%d+" % i))
            assert await other.get(b"k", at_least=result.index) == b"%d+" % i
        asked = log.asked
        assert await node.get(b"k", at_least=result.index) == b"49+" and log.asked == asked
        assert await node.get_multi([b"k", b"none"]) == [b"49+", None]
        assert (await node.scan_prefix(b"k")).entries == [(b"k", b"49+")]
        with await node.view() as view:
            await node.propose(Put(b"k", b"later"))
            assert view.get(b"k") == b"49+"
        with pytest.raises(TimeoutError, match=r"entry 5000 is not applied here yet after 0\.01 s"):
            await node.get(b"k", at_least=5000, timeout=0.01)


async def test_who_waits_for_a_barrier_at_the_same_time_shares_one(tmp_path: Path) -> None:
    log = ToldLog()
    async with node_at(tmp_path, log) as node:
        await node.propose(Put(b"k", b"v"))
        before = log.asked
        assert await asyncio.gather(*(node.get(b"k") for _ in range(500))) == [b"v"] * 500
        assert log.asked - before <= 2


async def test_callers_wait_in_order_when_too_much_is_proposed(tmp_path: Path) -> None:
    log = ToldLog()
    policy = NodePolicy(proposals_max=4)
    async with node_at(tmp_path, log, policy=policy) as node:
        log.gate.clear()
        calls = [asyncio.ensure_future(node.propose(Put(b"%d" % i, b""))) for i in range(12)]
        await soon(lambda: node.status().waiting == 8)
        assert node.status().proposed == 4
        calls[6].cancel()
        log.gate.set()
        done = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(done.pop(6), asyncio.CancelledError)
        indices = [result.index for result in done if isinstance(result, ApplyResult)]
        assert indices == list(range(1, 12))
        assert node.engine.get(b"6") is None, "it was withdrawn"
        large = await node.propose_many([Put(b"%d" % i, b"") for i in range(9)])
        assert len(large) == 9, "more than the bound goes alone"


async def test_a_time_out_bounds_the_wait_and_not_the_entry(tmp_path: Path) -> None:
    log = ToldLog()
    async with node_at(tmp_path, log) as node:
        log.gate.clear()
        with pytest.raises(TimeoutError, match=r"the proposal has no result yet, .* after 0\.01 s"):
            await node.propose(Put(b"k", b"v"), timeout=0.01)
        log.gate.set()
        assert (await node.propose(Put(b"l", b"w"))).index == 2
        assert await node.get(b"k") == b"v"


async def test_a_reopened_node_goes_on_where_it_was_whoever_closed_it(tmp_path: Path) -> None:
    log = ToldLog()
    async with node_at(tmp_path, log) as node:
        await node.propose_many([Put(b"%d" % i, b"1") for i in range(100)])
        digest = await node.engine.digest()
    async with node_at(tmp_path, log, shards=None) as node:
        await node.wait_ready()
        assert await node.engine.digest() == digest
        assert (await node.propose(Put(b"new", b""))).index == 101
    async with node_at(tmp_path, log) as node, node_at(tmp_path / "new", SecondEnd(log), shards=3) as fresh:
        await fresh.wait_ready(60)
        assert await node.engine.digest() == await fresh.engine.digest()


async def test_snapshots_by_policy_cut_the_log_behind_them(tmp_path: Path) -> None:
    log = ToldLog()
    policy = NodePolicy(snapshots=SnapshotPolicy(entries=50), keep_entries=20)
    async with node_at(tmp_path, log, policy=policy) as node:
        proposed = 0
        while not node.status().cut_before:
            await node.propose(Put(b"%d" % proposed, b""))
            proposed += 1
        *_, older, newest = node.engine.snapshots()
        assert newest.last_included.index >= older.last_included.index + 50
        assert node.status().cut_before == log.cut <= older.last_included.term - 19
    async with node_at(tmp_path, log, policy=policy) as node:
        await node.wait_ready()
        assert len(node.engine) == proposed


async def test_the_log_is_cut_no_further_than_what_is_durable_without_it(tmp_path: Path) -> None:
    log = ToldLog()
    policy = NodePolicy(snapshots=SnapshotPolicy(), keep_entries=20)
    async with node_at(tmp_path, log, policy=policy) as node:
        for i in range(50):
            await node.propose(Put(b"%d" % i, b""))
        assert await node.compact(0) == 0, "without a snapshot nothing is"
        assert (await node.snapshot()).last_included.index == 50 and log.cut == 0
        for i in range(50):
            await node.propose(Put(b"%d" % i, b"more"))
        assert (await node.snapshot()).last_included.index == 100 and log.cut == 31, "two snapshots hold what is cut"
        for i in range(50):
            await node.propose(Put(b"%d" % i, b"still more"))
        assert await node.compact() == 81 and await node.compact(0) == 100 == log.cut
        assert node.status().cut_before == 100 and node.status().durable == LogId(100, 100)
        with pytest.raises(ConfigError, match="keep_entries = -1"):
            await node.compact(-1)
    async with node_at(tmp_path, log, policy=policy) as node:
        await node.wait_ready()
        assert await node.compact(0) == 100


async def test_a_node_that_does_not_run_says_so(tmp_path: Path) -> None:
    node = node_at(tmp_path, MemoryLog())
    with pytest.raises(EngineStateError, match="the node does not run"):
        await node.propose(Put(b"k", b"v"))
    assert not node.is_running() and node.failure is None
    await node.start()
    with pytest.raises(EngineStateError, match="runs already"):
        await node.start()
    assert node.is_running()
    await node.aclose()
    await node.aclose()
    for call in (node.propose(Put(b"k", b"v")), node.barrier(), node.get(b"k"), node.wait_ready(), node.snapshot()):
        with pytest.raises(NodeStoppedError, match="it was closed"):
            await call
    with pytest.raises(NodeStoppedError):
        node.status()
    await node.start()
    assert (await node.propose(Put(b"k", b"v"))).index == 1
    await node.aclose()


async def test_a_node_that_closes_finishes_what_it_took(tmp_path: Path) -> None:
    log = ToldLog()
    node = node_at(tmp_path, log)
    await node.start()
    log.gate.clear()
    calls = [asyncio.ensure_future(node.propose(Put(b"%d" % i, b""))) for i in range(30)]
    await soon(lambda: len(log.appends) == 1)
    closing = asyncio.ensure_future(node.aclose())
    await asyncio.sleep(0)
    with pytest.raises(NodeStoppedError):
        await node.propose(Put(b"late", b""))
    log.gate.set()
    await closing
    assert [result.index for result in await asyncio.gather(*calls)] == list(range(1, 31))


async def test_the_time_of_entries_is_the_logs_stamp(tmp_path: Path) -> None:
    log = MemoryLog()
    async with node_at(tmp_path, log) as node:
        await node.propose(Put(b"k", b"v"))
        (logged,) = await frames_of(log)
        assert node.engine._shell.running().coordinator.applied.clock == logged.time_ms > 1_600_000_000_000


def test_a_policy_that_cannot_be_is_refused() -> None:
    for name, value in {"keep_entries": -1, "linger_ms": -0.5, "frame_entries_max": 0, "proposals_max": "many"}.items():
        with pytest.raises(ConfigError, match=rf"{name} = .* \(node policy\)"):
            NodePolicy(**{name: value})  # type: ignore[arg-type]


async def test_a_directory_that_was_fed_without_a_node_is_refused(tmp_path: Path) -> None:
    async with Engine(tmp_path / "data", shards=2, config=CONFIG) as db:
        await db.apply_chunk([Entry(1, 1, encode(Put(b"k", b"v")))])
    with pytest.raises(LogRegressedError, match="ends at position 0, and is applied up to position 1"):
        await node_at(tmp_path, MemoryLog()).start()
