"""How a local log writes: what goes together, when it is told, and what becomes of it when that fails."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import sys
import threading
import time
from collections.abc import Awaitable
from pathlib import Path

import pytest

from shardengine import (
    LogFailedError,
    LogFullError,
)
from shardengine.engine.node import segments
from shardengine.engine.node.log import Logged
from shardengine.engine.node.opening import CLOSED
from shardengine.engine.node.tail import Tail
from tests.disks import in_a_file_system, needs_file_systems
from tests.killing import WATCHDOG_S
from tests.local_logs import frames, opened, small
from tests.syncs import Syncs, ends_with


async def test_what_comes_while_a_sync_runs_goes_with_one_write_and_one_sync_and_is_not_read_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path / "log") as log:
        await log.append([b"before"])
    async with opened(tmp_path / "log") as log:
        begun, go, calls = threading.Event(), threading.Event(), list[str]()
        sync, write = os.fdatasync, os.pwrite

        def slow(descriptor: int) -> None:
            calls.append("sync")
            begun.set()
            assert go.wait(WATCHDOG_S)
            sync(descriptor)

        def noted(descriptor: int, data: bytes, at: int) -> int:
            calls.append("write")
            return write(descriptor, data, at)

        monkeypatch.setattr(os, "fdatasync", slow)
        monkeypatch.setattr(os, "pwrite", noted)
        first = asyncio.create_task(log.append([b"first"]))
        await asyncio.to_thread(begun.wait, WATCHDOG_S)
        others = [asyncio.create_task(log.append([b"other %d" % number])) for number in range(30)]
        await asyncio.sleep(0)
        reading = log.read(0)
        assert (await anext(reading)).frame == b"before"
        following = asyncio.ensure_future(anext(reading))
        await asyncio.sleep(0)
        assert await log.last() == 1 and not following.done()
        go.set()
        assert await first == [2] and (await following).frame == b"first"
        assert [await other for other in others] == [[3 + number] for number in range(30)]
        assert calls == ["write", "sync"] * 2


async def test_times_do_not_fall_with_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def times() -> list[int]:
        log = small(tmp_path / "log")
        state = await log.open()
        await log.append([b"frame"])
        reading = log.read(0)
        found = [(await anext(reading)).time_ms for _ in range(state.last + 1)]
        await log.aclose()
        return found

    (first,) = await times()
    monkeypatch.setattr(time, "time_ns", lambda: 5_000_000)
    assert await times() == [first, first]


def test_the_newest_frames_are_kept_in_memory_up_to_a_limit() -> None:
    tail = Tail(4, bytes_max=10_000)
    for position in range(5, 200):
        tail.extend([Logged(position, 0, bytes(300))])
        after = max(4, position - 5)
        assert [logged.position for logged in tail.behind(after)] == list(range(after + 1, position + 1))
        assert tail.last == position
    assert tail.behind(10) == [] and tail.behind(199) == [] and len(tail._frames) <= 20
    tail.extend([Logged(200, 0, bytes(20_000))])
    assert tail.last == 200 and tail.behind(199) == []


async def test_after_a_failed_sync_what_is_durable_can_be_read_and_nothing_is_taken_any_more(
    tmp_path: Path, syncs: Syncs
) -> None:
    async with opened(tmp_path / "log") as log:
        await log.append([b"durable"])
        waiting = asyncio.ensure_future(anext(log.read(1)))
        await asyncio.sleep(0)
        syncs.fails = ends_with(segments.name_of(1))
        calls = [asyncio.create_task(log.append([b"doubtful"])) for _ in range(3)]
        await asyncio.wait(calls)
        refused: list[Awaitable[object]] = [*calls, waiting, log.append([b"x"]), log.last()]
        for call in refused:
            with pytest.raises(LogFailedError) as failed:
                await call
            assert failed.value.errno == errno.EIO and failed.value.path == str(tmp_path / "log" / segments.name_of(1))
        with pytest.raises(LogFailedError):
            await log.truncate_before(1)
        reading = log.read(0)
        assert (await anext(reading)).frame == b"durable"
        with pytest.raises(LogFailedError):
            await anext(reading)
    assert not (tmp_path / "log" / CLOSED).exists()
    async with opened(tmp_path / "log") as log:
        assert (await anext(log.read(0))).frame == b"durable"


class Lacking:
    """The next `times` writes lack room, when they have written everything."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.times = 0
        self._write = os.pwrite
        monkeypatch.setattr(os, "pwrite", self)

    def __call__(self, descriptor: int, data: bytes, at: int) -> int:
        written = self._write(descriptor, data, at)
        if self.times:
            self.times -= 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return written


async def test_what_lacked_room_is_undone_to_its_last_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(tmp_path / "log") as log:
        await log.append([b"first"])
        lacking = Lacking(monkeypatch)
        for size in (10, 1000):  # the second goes into new segments, and lacks room for the head of one
            lacking.times = 1
            with pytest.raises(LogFullError) as refused:
                await log.append([bytes([number]) * size for number in (1, 2, 3, 4)])
            assert refused.value.size >= 4 * size
        await log.append([b"other" * 2])
    (tmp_path / "log" / CLOSED).unlink()
    assert await frames(tmp_path / "log") == [b"first", b"other" * 2]


async def test_what_lacked_room_and_cannot_be_undone_ends_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path / "log") as log:
        await log.append([b"first"])
        Lacking(monkeypatch).times = 2
        for _ in range(2):
            with pytest.raises(LogFailedError) as failed:
                await log.append([b"doubtful"])
            assert failed.value.errno == errno.ENOSPC
    assert (await frames(tmp_path / "log"))[0] == b"first"


FULL = """
import asyncio, os, sys
from pathlib import Path
from shardengine import LogFullError, run
from shardengine.node import LocalLog

async def main():
    log = LocalLog(Path(sys.argv[1]) / "log", segment_bytes=64 << 10)
    await log.open()
    taken, refused = 0, None
    while refused is None:
        try:
            await log.append([bytes([taken % 251]) * 15_000])
            taken += 1
        except LogFullError as error:
            refused = error
    await log.append([b"fits"])
    await log.truncate_before(taken)
    await log.append([b"room again" * 1000, bytes(15_000)])
    await log.aclose()
    state = await log.open()
    print(taken > 20, refused.size, state.last - taken, state.first > 1, [x.name for x in log.directory.glob("spare*")])
    await log.aclose()

run(main)
"""


def test_a_full_disk_refuses_what_has_no_room_and_takes_it_when_there_is_some(tmp_path: Path) -> None:
    needs_file_systems(tmp_path)
    ran = in_a_file_system(tmp_path, sys.executable, "-c", FULL, str(tmp_path), size="600k")
    assert re.sub(r"\s+", " ", ran.stdout) == "True 15040 3 True [] ", ran.stderr
    assert LogFullError.__name__ not in ran.stderr
