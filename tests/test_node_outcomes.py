"""Appends that fail, logs that end, engines that cannot go on: who proposed is told what is known, and no more."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shardengine import (
    ChunkFailedError,
    EngineError,
    EngineStateError,
    LogClosedError,
    LogFailedError,
    LogFullError,
    NodeStoppedError,
    NotAppendedError,
    OutcomeUnknownError,
    Put,
    StoreFullError,
    WorkerFailedError,
    encode,
)
from shardengine.engine.node.frames import Frame, FrameIds, encode_frame
from tests.machines import Add, Bloat, Fail, Ledger, Move
from tests.nodes import CONFIG, ToldLog, frames_of, node_at, raising, soon


async def outcomes(*calls: Any) -> list[Any]:
    return await asyncio.gather(*calls, return_exceptions=True)


async def test_a_full_log_refuses_and_takes_again_once_there_is_room(tmp_path: Path) -> None:
    log = ToldLog()
    async with node_at(tmp_path, log) as node:
        log.before = [raising(LogFullError("no room", hint="make some"))]
        refused = await outcomes(node.propose(Put(b"a", b"")), node.propose(Put(b"b", b"")))
        assert [type(one) for one in refused] == [LogFullError, LogFullError]
        assert (await node.propose(Put(b"c", b""))).index == 1
        assert node.is_running() and node.engine.get(b"a") is None


@pytest.mark.parametrize("error", [LogFailedError("its sync failed"), LogClosedError("the log is not open")])
async def test_a_log_that_takes_nothing_any_more_ends_the_node_which_reads_on(
    tmp_path: Path, error: EngineError
) -> None:
    log = ToldLog()
    async with node_at(tmp_path, log) as node:
        await node.propose(Put(b"k", b"v"))
        log.gate.clear()
        log.before = [raising(error)]
        first = asyncio.ensure_future(node.propose(Put(b"a", b"")))
        await soon(lambda: len(log.appends) == 2)
        second = asyncio.ensure_future(node.propose(Put(b"b", b"")))
        barrier = asyncio.ensure_future(node.propose(Put(b"c", b""), timeout=60))
        await soon(lambda: node.status().proposed == 3)
        log.gate.set()
        sent, queued, _ = await outcomes(first, second, barrier)
        assert type(sent) is (OutcomeUnknownError if isinstance(error, LogFailedError) else LogClosedError)
        assert type(queued) is NodeStoppedError
        assert not node.is_running() and isinstance(node.failure, type(error))
        assert node.engine.get(b"k") == b"v" and node.status().failure
        for call in (node.get(b"k"), node.barrier(), node.wait_ready(), node.compact()):
            with pytest.raises(type(error)):
                await call
        with pytest.raises(NodeStoppedError):
            await node.propose(Put(b"d", b""))
        with pytest.raises(EngineStateError, match="aclose"):
            await node.start()


@pytest.mark.parametrize("where", ["before", "after"])
async def test_an_unknown_outcome_is_found_out_by_reading_on(tmp_path: Path, where: str) -> None:
    log = ToldLog()
    async with node_at(tmp_path, log) as node:
        getattr(log, where).append(raising(ConnectionResetError("the peer is gone")))
        log.after.extend([raising(TimeoutError("no answer"))] * 2)  # of the frames that are to find out, too
        (result,) = await outcomes(node.propose(Put(b"k", b"v")))
        if where == "after":
            assert result.succeeded and result.index == 1
        else:
            assert type(result) is NotAppendedError and "ConnectionResetError" in str(result)
        assert node.engine.get(b"k") == (b"v" if where == "after" else None)
        assert (await node.propose(Put(b"l", b"w"))).succeeded and node.is_running()


async def test_a_node_that_closes_before_an_outcome_is_known_says_that(tmp_path: Path) -> None:
    log = ToldLog()
    node = node_at(tmp_path, log, config=msgspec.structs.replace(CONFIG, stop_timeout_ms=300))
    await node.start()
    log.gate.clear()
    call = asyncio.ensure_future(node.propose(Put(b"k", b"v")))
    await soon(lambda: len(log.appends) == 1)
    await node.aclose()
    with pytest.raises(OutcomeUnknownError, match="what became of it is not known") as caught:
        await call
    assert len(caught.value.id) == 16


async def test_a_command_that_fails_ends_the_node_by_name_and_what_is_before_it_is_applied(tmp_path: Path) -> None:
    log = ToldLog()
    async with node_at(tmp_path, log, machine=Ledger) as node:
        assert (await node.propose(Add(b"n", 1))).value == 1
        log.gate.clear()
        good = asyncio.ensure_future(node.propose(Add(b"n", 1)))
        await soon(lambda: len(log.appends) == 2)
        bad = asyncio.ensure_future(node.propose(Fail(b"n")))
        behind = asyncio.ensure_future(node.propose_many([Add(b"n", 1)]))
        log.gate.set()
        good_, bad_, behind_ = await outcomes(good, bad, behind)
        assert good_.value == 2
        assert type(bad_) is OutcomeUnknownError and type(behind_) is OutcomeUnknownError
        assert isinstance(node.failure, ChunkFailedError) and node.failure.index == 3
        assert not node.is_running()
    with pytest.raises(ChunkFailedError):
        async with node_at(tmp_path, log, machine=Ledger, shards=None) as node:
            await node.wait_ready(60)


async def test_where_the_disk_is_full_the_node_waits_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = ToldLog()
    async with node_at(tmp_path, log) as node:
        original, left = node.engine.apply_chunk, [3]

        async def apply_chunk(entries: Any) -> Any:
            if left[0]:
                left[0] -= 1
                raise StoreFullError("shard 0: no room", hint="free disk space")
            return await original(entries)

        monkeypatch.setattr(node.engine, "apply_chunk", apply_chunk)
        call = asyncio.ensure_future(node.propose(Put(b"k", b"v")))
        await soon(lambda: node.status().stalled is not None)
        assert node.is_running() and "no room" in (node.status().stalled or "")
        assert (await call).index == 1 and node.status().stalled is None
        assert left == [0]


async def test_a_frame_whose_commands_write_more_than_a_group_takes_is_applied_in_pieces(tmp_path: Path) -> None:
    """The values that its commands over several shards write are much longer than the frame."""
    log = ToldLog()
    async with node_at(tmp_path, log, machine=Ledger) as node:
        names = [b"p%d" % i for i in range(80)]
        moves = [Move(one + b"/n", other + b"/n", 0) for one, other in zip(names, names[1:] + names[:1], strict=True)]
        large = [Bloat(name + b"/large", 20_000) for name in names]
        before = node.propose(Add(b"p0/n", 1))
        frame = node.propose_many([*moves, *large, Add(b"p0/n", 1)])
        first, results, last = await asyncio.gather(before, frame, node.propose(Add(b"p0/n", 1)))
        assert [first.value, results[-1].value, last.value] == [1, 2, 3]
        assert [result.index for result in results] == list(range(2, 163))
        assert node.is_running() and len(node.engine) == 160


async def test_frames_of_others_without_entries_and_of_one_id_are_no_trouble(tmp_path: Path) -> None:
    log, ids = ToldLog(), FrameIds()
    async with node_at(tmp_path, log) as node:
        put = encode(Put(b"k", b"v"))
        await log.append([encode_frame(Frame(next(ids), [])), encode_frame(Frame(next(ids), [put]))])
        await log.append([encode_frame(Frame(next(ids), []))])
        await node.barrier()
        assert node.status().position == 3 and node.last_applied().index == 1
        assert (await node.propose(Put(b"l", b"w"))).index == 2
    async with node_at(tmp_path, log, shards=None) as node:
        assert node.status().position == 4
        assert len(await frames_of(log)) == 4


async def test_an_engine_that_fails_ends_the_node(tmp_path: Path) -> None:
    log = ToldLog()
    node = node_at(tmp_path, log)
    await node.start()
    await node.propose(Put(b"k", b"v"))
    node.engine._shell.running().fail(WorkerFailedError("no worker can be had"))
    assert not node.is_running()
    await soon(lambda: node.failure is not None)
    assert isinstance(node.failure, WorkerFailedError) and node.engine.get(b"k") == b"v"
    with pytest.raises(WorkerFailedError):
        await node.aclose()
    assert not node.is_running()


async def test_workers_that_are_killed_cost_nobody_an_answer(tmp_path: Path) -> None:
    log = ToldLog()
    async with node_at(tmp_path, log) as node:
        calls = []
        for i in range(300):
            calls.append(asyncio.ensure_future(node.propose(Put(b"%d" % (i % 10), b"%d" % i))))
            if i % 100 == 50:
                os.kill(node.engine.stats()["workers"][i % 2]["pid"], signal.SIGKILL)
            await asyncio.sleep(0)
        assert [result.index for result in await asyncio.gather(*calls)] == list(range(1, 301))
