"""A node and its log belong together: each way in which they may not is named, and nothing is applied then."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shardengine import (
    Engine,
    EngineError,
    EngineLockedError,
    Entry,
    FormatError,
    FrameDamagedError,
    LogRegressedError,
    LogReplacedError,
    LogTruncatedError,
    MachineMismatchError,
    Put,
    encode,
)
from shardengine.engine.node.frames import Frame, FrameIds, decode_frame, encode_frame, frame_bytes
from shardengine.machines.bank import Bank
from shardengine.node import Logged, MemoryLog
from tests.nodes import CONFIG, ToldLog, node_at, soon

IDS = FrameIds()


async def filled(path: Path, frames: int = 5) -> ToldLog:
    """A log that a node has applied `frames` of, two entries each."""
    log = ToldLog()
    async with node_at(path, log) as node:
        for i in range(frames):
            await node.propose_many([Put(b"%d" % i, b""), Put(b"k", b"%d" % i)])
    return log


def a_frame(count: int) -> bytes:
    return encode_frame(Frame(next(IDS), [encode(Put(b"x%d" % i, b"")) for i in range(count)]))


async def refused(path: Path, log: ToldLog | MemoryLog, kind: type[EngineError], said: str) -> EngineError:
    """It is at the start, twice, and leaves everything free and closed."""
    with pytest.raises(kind, match=said):
        await node_at(path, log, shards=None).start()
    node = node_at(path, log, shards=None)
    with pytest.raises(kind, match=said) as caught:
        await node.start()
    assert not node.is_running() and caught.value.hint
    return caught.value


async def test_another_log_is_refused(tmp_path: Path) -> None:
    await filled(tmp_path)
    await refused(tmp_path, MemoryLog("another"), LogReplacedError, "and this is the log another")


async def test_a_log_that_lost_its_end_is_refused(tmp_path: Path) -> None:
    log = await filled(tmp_path)
    del log.inner._held.kept[-1]
    log.inner._held.last -= 1
    error = await refused(tmp_path, log, LogRegressedError, r"ends at position 4, and is applied up to position 5")
    assert error.last == 4 and error.applied.index == 10


async def test_a_log_that_was_cut_too_far_is_refused_and_a_snapshot_helps(tmp_path: Path) -> None:
    log = ToldLog()
    async with node_at(tmp_path, log) as node:
        for i in range(10):
            await node.propose(Put(b"%d" % i, b""))
        info = await node.snapshot()
        digest = await node.engine.digest()
        await node.propose(Put(b"last", b""))
    await log.open()
    await log.truncate_before(11)
    await log.aclose()
    await refused(tmp_path / "new", log, LogTruncatedError, "begins at position 11, and is applied up to position 0")
    async with Engine(tmp_path / "new" / "data", shards=None, config=CONFIG) as db:
        await db.restore(info.path)
        assert await db.digest() == digest
    async with node_at(tmp_path / "new", log, shards=None) as node:
        await node.wait_ready(60)
        assert len(node.engine) == 11


async def test_another_frame_where_the_applied_log_ends_is_refused(tmp_path: Path) -> None:
    log = await filled(tmp_path)
    kept = log.inner._held.kept
    last = kept[-1]
    kept[-1] = Logged(last.position, last.time_ms, a_frame(1))
    await refused(tmp_path, log, LogReplacedError, "2 entries were applied of the frame at position 5")
    kept[-1] = Logged(last.position, last.time_ms + 1, a_frame(2))
    await refused(tmp_path, log, LogReplacedError, "where the log holds a later frame of 2 entries")
    kept[-1] = Logged(6, last.time_ms, a_frame(2))
    log.inner._held.last = 6
    await refused(tmp_path, log, LogReplacedError, "where the log holds no frame")


@pytest.mark.parametrize("damage", ["a flipped bit", "another format", "cut off", "empty", "no frame"])
async def test_a_damaged_frame_ends_the_node_by_its_position(tmp_path: Path, damage: str) -> None:
    log = await filled(tmp_path)
    good = a_frame(3)
    frame = {
        "a flipped bit": good[:20] + bytes([good[20] ^ 1]) + good[21:],
        "another format": b"\x07" + good[1:],
        "cut off": good[:-1],
        "empty": b"",
        "no frame": b"{}",
    }[damage]
    async with node_at(tmp_path, log, shards=None) as node:
        await log.append([frame])
        await soon(lambda: node.failure is not None)
        assert isinstance(node.failure, FrameDamagedError) and node.failure.position == 6
        assert node.engine.get(b"k") == b"4"


async def test_a_node_that_was_closed_within_a_frame_goes_on_in_it(tmp_path: Path) -> None:
    """As a frame that is applied in pieces can leave it."""
    log = await filled(tmp_path)
    await log.open()
    await log.append([a_frame(5)])
    await log.aclose()
    async with Engine(tmp_path / "data", config=CONFIG) as db:
        datas = [encode(Put(b"x%d" % i, b"")) for i in range(2)]
        time_ms = log.inner._held.kept[-1].time_ms
        await db.apply_chunk([Entry(11 + i, 6, data, time_ms) for i, data in enumerate(datas)])
    async with node_at(tmp_path, log, shards=None) as node:
        await node.wait_ready(60)
        assert node.last_applied().index == 15 and node.status().position == 6
        assert len(node.engine.scan_prefix(b"x").entries) == 5
        assert (await node.propose(Put(b"y", b""))).index == 16


async def test_a_damaged_note_of_the_log_and_another_machine_are_refused(tmp_path: Path) -> None:
    log = await filled(tmp_path)
    with pytest.raises(MachineMismatchError):
        await node_at(tmp_path, log, shards=None, machine=Bank).start()
    note = tmp_path / "data" / "node"
    content = note.read_bytes()
    note.write_bytes(content.replace(b'"log"', b'"lag"'))
    await refused(tmp_path, log, FormatError, "does not match its checksum")
    note.write_bytes(content)
    async with node_at(tmp_path, log, shards=None) as node:
        with pytest.raises(EngineLockedError):
            await node_at(tmp_path, MemoryLog(), shards=None).start()
        assert (await node.propose(Put(b"k", b""))).index == 11


def test_a_frame_is_itself_again_and_every_changed_byte_of_it_is_noticed() -> None:
    frame = Frame(next(IDS), [b"", b"a", os.urandom(300)])
    data = encode_frame(frame)
    assert decode_frame(data, 1) == frame and len(data) <= frame_bytes(frame.datas)
    for at in range(len(data)):
        with pytest.raises(FrameDamagedError, match="position 77"):
            decode_frame(data[:at] + bytes([data[at] ^ 0x40]) + data[at + 1 :], 77)
        with pytest.raises(FrameDamagedError):
            decode_frame(data[:at], 77)
    for count in (0, 1, 1000):
        datas = [os.urandom(at % 70_000) for at in range(0, 70 * count, 70)]
        assert len(encode_frame(Frame(next(IDS), datas))) <= frame_bytes(datas)


def test_ids_are_unlike_each_other() -> None:
    others = FrameIds()
    ids = [next(IDS) for _ in range(100)] + [next(others) for _ in range(100)]
    assert len(set(ids)) == 200 and {len(one) for one in ids} == {16}
