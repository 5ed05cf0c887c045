"""How a node begins and ends, whoever ends it: nobody waits for ever, and nothing is left half open."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shardengine import (
    ApplyResult,
    ConfigError,
    EngineError,
    EngineStateError,
    LogFailedError,
    LogReplacedError,
    NodeStoppedError,
    Put,
    SnapshotPolicy,
    StoreFullError,
    WrongLoopError,
    WrongThreadError,
)
from shardengine.engine.node import feeding
from shardengine.engine.storage import runmark
from shardengine.node import LocalLog, Node, NodePolicy
from tests.nodes import CONFIG, ToldLog, node_at, raising, soon

Call = Callable[[Node], Awaitable[Any]]
WAITING: dict[str, Call] = {
    "a proposal": lambda node: node.propose(Put(b"late", b"")),
    "a proposal in time": lambda node: node.propose(Put(b"late", b""), timeout=60),
    "a read at an index": lambda node: node.get(b"k", at_least=1_000),
    "a scan at an index in time": lambda node: node.scan_prefix(b"", at_least=1_000, timeout=60),
}


@pytest.mark.parametrize("what", WAITING)
@pytest.mark.parametrize("end", ["closed", "failed", "cancelled by somebody"])
async def test_who_waits_is_told_when_the_node_ends(tmp_path: Path, what: str, end: str) -> None:
    log = ToldLog()
    policy = NodePolicy(proposals_max=1)
    node = node_at(tmp_path, log, policy=policy)
    await node.start()
    log.gate.clear()
    log.before = [raising(LogFailedError("its sync failed"))] if end == "failed" else []
    first = asyncio.ensure_future(node.propose(Put(b"first", b"")))
    await soon(lambda: len(log.appends) == 1)
    waits = asyncio.ensure_future(WAITING[what](node))
    await soon(lambda: node.status().waiting == 1 or "index" in what)
    if end == "cancelled by somebody":
        run = node._run
        assert run is not None
        for task in run._tasks:
            task.cancel()
    closing = asyncio.ensure_future(node.aclose()) if end == "closed" else None
    await asyncio.sleep(0)
    log.gate.set()
    with pytest.raises(EngineError) as told:
        await waits
    assert isinstance(told.value, NodeStoppedError | LogFailedError)
    if closing is not None:
        assert (await first).succeeded
        await closing
    else:
        with pytest.raises(EngineError):
            await first
        assert not node.is_running() and node.failure is not None
        await node.aclose()


async def test_a_caller_whose_turn_comes_as_the_node_closes_is_told(tmp_path: Path) -> None:
    node = node_at(tmp_path, ToldLog(), policy=NodePolicy(proposals_max=1))
    await node.start()

    async def propose_and_close() -> None:
        await node.propose(Put(b"a", b""))
        await node.aclose()

    closer = asyncio.ensure_future(propose_and_close())
    await asyncio.sleep(0)
    others = [asyncio.ensure_future(node.propose(Put(b"b", b""))) for _ in range(3)]
    async with asyncio.timeout(60):
        await closer
        told = await asyncio.gather(*others, return_exceptions=True)
    assert {type(one) for one in told} <= {NodeStoppedError, ApplyResult} and type(told[-1]) is NodeStoppedError


async def test_closing_at_once_from_several_places_is_closing_once(tmp_path: Path) -> None:
    log = ToldLog()
    node = node_at(tmp_path, log)
    await node.start()
    log.gate.clear()
    call = asyncio.ensure_future(node.propose(Put(b"k", b"v")))
    await soon(lambda: len(log.appends) == 1)
    closings = [asyncio.ensure_future(node.aclose()) for _ in range(3)]
    await asyncio.sleep(0)
    closings[0].cancel()
    await asyncio.sleep(0)
    log.gate.set()
    ended = await asyncio.gather(*closings, return_exceptions=True)
    assert isinstance(ended[0], asyncio.CancelledError) and ended[1:] == [None, None]
    assert (await call).index == 1
    await node.start()
    assert await node.get(b"k") == b"v"
    await node.aclose()


async def test_a_node_that_is_closed_while_it_starts_does_not_run(tmp_path: Path) -> None:
    log = ToldLog()
    node = node_at(tmp_path, log)
    log.opening.clear()
    starting = asyncio.ensure_future(node.start())
    await asyncio.sleep(0)
    closing = asyncio.ensure_future(node.aclose())
    await asyncio.sleep(0)
    log.opening.set()
    await closing
    with pytest.raises(EngineError):
        await starting
    assert not node.is_running()
    await node.start()
    assert (await node.propose(Put(b"k", b"v"))).index == 1
    await node.aclose()


async def test_a_start_that_fails_late_leaves_nothing_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = node_at(tmp_path, ToldLog())

    def fail() -> dict[str, Any]:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(node.engine, "stats", fail)
        with pytest.raises(OSError, match="Input/output"):
            await node.start()
    await node.start()
    await node.aclose()


async def test_another_thread_may_not_close_it(tmp_path: Path) -> None:
    node = node_at(tmp_path, ToldLog())
    await node.start()
    said: list[BaseException] = []

    def close() -> None:
        try:
            asyncio.run(node.aclose())
        except EngineError as error:
            said.append(error)

    thread = threading.Thread(target=close)
    thread.start()
    await asyncio.to_thread(thread.join)
    assert [type(error) for error in said] == [WrongThreadError]
    assert (await node.propose(Put(b"k", b"v"))).index == 1
    await node.aclose()


def test_a_node_belongs_to_the_loop_that_started_it(tmp_path: Path) -> None:
    node = Node(tmp_path / "data", shards=1, config=CONFIG)

    async def begin() -> None:
        await node.start()
        await node.propose(Put(b"k", b"v"))

    asyncio.run(begin())
    for call in (lambda: node.propose(Put(b"l", b"")), lambda: node.get(b"k"), node.barrier):
        with pytest.raises(WrongLoopError):
            asyncio.run(call())
    assert node.engine.get(b"k") == b"v"
    asyncio.run(node.aclose())

    async def again() -> None:
        async with node:
            assert await node.get(b"k") == b"v"

    asyncio.run(again())


# ---- what others do to its engine, its log and its files ------------------------------------------------------------


async def test_an_engine_whose_state_was_replaced_under_the_node_is_not_read_as_if_nothing_were(tmp_path: Path) -> None:
    log = ToldLog()
    node = node_at(tmp_path, log)
    await node.start()
    await node.propose_many([Put(b"k", b"v"), Put(b"l", b"w")])
    await node.engine.reset()
    with pytest.raises(LogReplacedError, match="its state was replaced under the node"):
        await node.get(b"k")
    await node.aclose()
    async with node:
        await node.wait_ready(60)
        assert await node.get(b"k") == b"v" and len(node.engine) == 2


async def test_a_log_whose_cut_fails_ends_no_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = ToldLog()
    async with node_at(tmp_path, log, policy=NodePolicy(snapshots=SnapshotPolicy(), keep_entries=0)) as node:
        await node.propose(Put(b"k", b"v"))
        await node.engine.create_snapshot()
        await node.propose(Put(b"k", b"v"))
        await node.engine.create_snapshot()
        failed: list[int] = []

        async def truncate_before(position: int) -> None:
            failed.append(position)
            raise ConnectionResetError("the peer is gone")

        monkeypatch.setattr(log, "truncate_before", truncate_before)
        await soon(lambda: bool(failed))
        assert (await node.propose(Put(b"k", b"w"))).succeeded and node.is_running()


async def test_an_outcome_that_cannot_be_found_out_shows_in_the_status(tmp_path: Path) -> None:
    log = ToldLog()
    async with node_at(tmp_path, log) as node:
        log.before = [raising(ConnectionResetError("the peer is gone"))] * 4
        call = asyncio.ensure_future(node.propose(Put(b"k", b"v")))
        await soon(lambda: node.status().stalled is not None)
        assert "the peer is gone" in (node.status().stalled or "")
        with pytest.raises(EngineError):
            await call
        assert node.status().stalled is None and (await node.propose(Put(b"k", b"v"))).succeeded


async def test_frames_are_no_longer_than_the_log_takes(tmp_path: Path) -> None:
    log = LocalLog(tmp_path / "log", segment_bytes=8 << 10)
    async with Node(tmp_path / "data", log=log, shards=1, config=CONFIG) as node:
        results = await asyncio.gather(*(node.propose(Put(b"%d" % i, b"x" * 100)) for i in range(200)))
        assert all(result.succeeded for result in results) and node.status().position > 10


async def test_what_is_under_way_is_bounded_by_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, most = ToldLog(), [0]
    async with node_at(tmp_path, log) as node:
        for i in range(40):
            await node.propose(Put(b"%d" % i, b"x" * 50_000))
    monkeypatch.setattr(feeding, "IN_FLIGHT_BYTES", 200_000)
    async with node_at(tmp_path / "other", log) as node:
        run = node._run
        assert run is not None
        while node.status().position < node.status().ready_at:
            most[0] = max(most[0], sum(fed.size for fed in run.feeder._window))
            await asyncio.sleep(0)
        assert 0 < most[0] <= 200_000 and run.feeder._window_bytes == 0


async def test_runs_that_are_shorter_than_the_policy_add_up_to_a_snapshot(tmp_path: Path) -> None:
    log = ToldLog()
    policy = NodePolicy(snapshots=SnapshotPolicy(entries=100), keep_entries=10)
    for turn in range(3):
        async with node_at(tmp_path, log, policy=policy, shards=None if turn else 1) as node:
            for i in range(40):
                await node.propose(Put(b"%d" % i, b""))
            if turn == 2:
                await soon(lambda: bool(node.engine.snapshots()))
            else:
                assert node.engine.snapshots() == []


# ---- power loss, once more ------------------------------------------------------------------------------------------


async def test_a_log_that_was_cut_in_mode_power_is_no_trap_for_mode_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = ToldLog()
    policy = NodePolicy(snapshots=SnapshotPolicy(), keep_entries=2)
    power = msgspec.structs.replace(CONFIG, durability="power")
    async with node_at(tmp_path, log, policy=policy, config=power) as node:
        for i in range(10):
            await node.propose(Put(b"%d" % i, b""))
        await node.compact()
        assert log.cut == 9 and node.engine.snapshots() == []
    node = node_at(tmp_path, log, policy=policy)
    await node.start()
    assert [info.last_included.index for info in node.engine.snapshots()] == [10]
    await node.propose(Put(b"last", b""))
    await lose_power(node, monkeypatch)
    async with node_at(tmp_path, log, policy=policy) as node:
        await node.wait_ready(60)
        assert len(node.engine) == 11


async def test_a_newest_snapshot_that_is_damaged_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = ToldLog()
    policy = NodePolicy(snapshots=SnapshotPolicy(), keep_entries=0)
    node = node_at(tmp_path, log, policy=policy)
    await node.start()
    for snapshot in range(3):
        for i in range(10):
            await node.propose(Put(b"%d-%d" % (snapshot, i), b""))
        await node.snapshot()
    assert log.cut == 20
    await node.propose(Put(b"last", b""))
    await lose_power(node, monkeypatch)
    newest = max((tmp_path / "data" / "snapshots").iterdir())
    part = next(newest.glob("shard-*.mdb"))
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    async with node_at(tmp_path, log, policy=policy, shards=None) as node:
        await node.wait_ready(60)
        assert len(node.engine) == 31


async def test_a_snapshot_of_a_log_before_a_reset_does_not_count_for_what_is_cut(tmp_path: Path) -> None:
    log = ToldLog()
    policy = NodePolicy(snapshots=SnapshotPolicy(), keep_entries=0)
    node = node_at(tmp_path, log, policy=policy)
    await node.start()
    for number in range(20):
        await node.propose(Put(b"%d" % number, b""))
    await node.snapshot()
    await node.engine.reset()
    await node.aclose()
    async with node:
        await node.wait_ready(60)
        await node.propose(Put(b"more", b""))
        await node.snapshot()
        assert log.cut == 0, "one snapshot of this lineage, and no second"
        await node.propose(Put(b"more", b""))
        await node.snapshot()
        assert log.cut == 21


def test_a_node_that_could_never_cut_its_log_is_refused(tmp_path: Path) -> None:
    one = msgspec.structs.replace(CONFIG, snapshots_keep=1)
    with pytest.raises(ConfigError, match="snapshots_keep = 1"):
        node_at(tmp_path, ToldLog(), config=one)
    node_at(tmp_path, ToldLog(), config=msgspec.structs.replace(one, durability="power"))


async def test_a_start_beside_one_that_is_being_closed_changes_nothing(tmp_path: Path) -> None:
    log = ToldLog()
    node = node_at(tmp_path, log)
    log.opening.clear()
    first = asyncio.ensure_future(node.start())
    await asyncio.sleep(0)
    closing = asyncio.ensure_future(node.aclose())
    await asyncio.sleep(0)
    with pytest.raises(EngineStateError):
        await node.start()
    log.opening.set()
    await closing
    with pytest.raises(EngineError):
        await first
    assert not node.is_running()


async def test_a_snapshot_that_cannot_be_taken_keeps_no_node_from_its_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = ToldLog()
    power = msgspec.structs.replace(CONFIG, durability="power")
    async with node_at(tmp_path, log, policy=NodePolicy(keep_entries=1), config=power) as node:
        for number in range(5):
            await node.propose(Put(b"%d" % number, b""))
        await node.compact()

    async def refuse() -> None:
        raise StoreFullError("no room", hint="make some")

    node = node_at(tmp_path, log)
    monkeypatch.setattr(node.engine, "create_snapshot", refuse)
    async with node:
        assert len(node.engine) == 5 and "no snapshot holds what the log has lost" in caplog.text


async def lose_power(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine goes down, as far as the engine's files tell: they were not made clean, and there is another boot."""
    mark = node.engine._shell.running().mark
    monkeypatch.setattr(mark, "_write", lambda *, clean: None)
    await node.aclose()
    monkeypatch.setattr(runmark, "_boot_id", lambda: "another boot")


async def test_who_starts_a_failed_node_is_told_to_close_it(tmp_path: Path) -> None:
    log = ToldLog()
    node = node_at(tmp_path, log)
    await node.start()
    log.before = [raising(LogFailedError("its sync failed"))]
    with pytest.raises(EngineError):
        await node.propose(Put(b"k", b"v"))
    with pytest.raises(EngineStateError, match="the node has failed"):
        await node.start()
    await node.aclose()
