"""A local log among others: its directory, its lock, its loop and its end."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from shardengine import (
    ConfigError,
    EngineStateError,
    ForkedError,
    FormatError,
    LogClosedError,
    LogFailedError,
    LogLockedError,
    WrongLoopError,
    run,
)
from shardengine.engine.node import segments
from shardengine.engine.node.opening import CLOSED
from shardengine.engine.storage import files
from shardengine.node import LocalLog
from tests.directories import in_another_process
from tests.killing import ROOT, WATCHDOG_S, environment
from tests.local_logs import SEGMENT, frames, opened, small

# ---- files -----------------------------------------------------------------------------------------------------------


async def test_making_one_opens_nothing_and_takes_every_kind_of_path(tmp_path: Path) -> None:
    for path in (str(tmp_path / "log"), os.fsencode(tmp_path / "log"), tmp_path / "log"):
        log = LocalLog(path, segment_bytes=SEGMENT)
        assert log.directory == tmp_path / "log"
    assert not list(tmp_path.iterdir())
    async with opened(tmp_path / "log"):
        assert (tmp_path / "log").stat().st_mode & 0o777 == 0o700
        assert {file.stat().st_mode & 0o777 for file in (tmp_path / "log").iterdir()} == {0o600}


@pytest.mark.parametrize("size", [0, -1, SEGMENT - 1, (1 << 30) + 1, 1e6, True])
def test_a_segment_size_that_cannot_be_is_refused(tmp_path: Path, size: int) -> None:
    with pytest.raises(ConfigError, match="segment_bytes"):
        LocalLog(tmp_path, segment_bytes=size)
    with pytest.raises(ConfigError, match="no path"):
        LocalLog(7)  # type: ignore[arg-type]


async def test_a_frame_never_spans_segments_and_the_next_segment_is_made_before_it_is_needed(tmp_path: Path) -> None:
    spares = []
    async with opened(tmp_path / "log") as log:
        for _ in range(24):
            await log.append([bytes(600)])
            spares.append(len(list((tmp_path / "log").glob("spare-*"))))
    names = sorted(file.name for file in (tmp_path / "log").glob("*.log"))
    assert names == [segments.name_of(first) for first in (1, 7, 13, 19)]
    assert {file.stat().st_size for file in (tmp_path / "log").glob("*.log")} == {SEGMENT}
    assert spares[5::6] == [1] * 4 and spares[:4] == [0] * 4
    assert not list((tmp_path / "log").glob("spare-*"))


async def test_a_log_may_be_opened_with_segments_of_another_size(tmp_path: Path) -> None:
    async with opened(tmp_path / "log") as log:
        await log.append([b"small"])
    larger = LocalLog(tmp_path / "log", segment_bytes=1 << 20)
    state = await larger.open()
    assert state.frame_bytes_max == 1 << 18
    await larger.append([bytes(1 << 18)] * 5)
    await larger.aclose()
    async with opened(tmp_path / "log") as log:
        assert await log.append([b"small again"]) == [7]
        assert [len((await anext(reading)).frame) for reading in [log.read(0)] for _ in range(7)] == [
            *(5, 1 << 18, 1 << 18, 1 << 18, 1 << 18, 1 << 18, 11)
        ]


async def test_a_clean_close_is_marked_and_the_mark_is_gone_while_the_log_is_open(tmp_path: Path) -> None:
    log = small(tmp_path / "log")
    for _ in range(3):
        await log.open()
        assert not (tmp_path / "log" / CLOSED).exists()
        await log.append([b"frame"])
        await log.aclose()
        assert (tmp_path / "log" / CLOSED).exists()


async def test_a_network_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "filesystem_of", lambda path: "nfs4")
    with pytest.raises(FormatError, match="nfs4"):
        await small(tmp_path / "log").open()
    assert not (tmp_path / "log").exists()


async def test_a_directory_that_is_moved_away_ends_the_log_and_nothing_lands_elsewhere(tmp_path: Path) -> None:
    async with opened(tmp_path / "log") as log:
        await log.append([b"first"])
        (tmp_path / "log").rename(tmp_path / "moved")
        (tmp_path / "log").mkdir()
        with pytest.raises(LogFailedError, match="moved"):
            await log.append([bytes(1000)] * 5)
    assert not list((tmp_path / "log").iterdir())
    assert await frames(tmp_path / "moved") == [b"first"]


# ---- who may use it --------------------------------------------------------------------------------------------------


async def test_a_second_opener_is_told_the_pid_of_the_first(tmp_path: Path) -> None:
    async with opened(tmp_path / "log") as log:
        with pytest.raises(LogLockedError) as refused:
            await small(tmp_path / "log").open()
        assert refused.value.pid == os.getpid()
        other = """
            from shardengine.node import LocalLog
            async def main():
                try:
                    await LocalLog(sys.argv[1]).open()
                except LogLockedError as error:
                    print(error.pid)
            run(main)
        """
        assert in_another_process(other, tmp_path / "log") == f"{os.getpid()}\n"
        with pytest.raises(EngineStateError, match="open already"):
            await log.open()
        assert await log.append([b"still"]) == [1]
    async with opened(tmp_path / "log"):
        pass


async def test_it_belongs_to_the_loop_that_opened_it(tmp_path: Path) -> None:
    async with opened(tmp_path / "log") as log:
        told = list[str]()

        async def elsewhere() -> None:
            for call in (log.append([b"x"]), log.last(), anext(log.read(0)), log.aclose()):
                with pytest.raises(WrongLoopError):
                    await call
                told.append("refused")

        await asyncio.to_thread(lambda: asyncio.run(elsewhere()))
        assert len(told) == 4 and await log.last() == 0


def in_a_forked_child(log: LocalLog) -> str:
    """The name of the error that an append raises there."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            log.append([b"child"]).send(None)
        except BaseException as error:
            os.write(writing, type(error).__name__.encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    said = os.read(reading, 100).decode()
    os.close(reading)
    return said


async def test_a_forked_child_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path / "log") as log:
        await log.append([b"before"])
        assert in_a_forked_child(log) == ForkedError.__name__
        await log.append([b"after"])
    assert await frames(tmp_path / "log") == [b"before", b"after"]


LEAVES = """
import sys
from shardengine import run
from shardengine.node import LocalLog

async def main():
    log = LocalLog(sys.argv[1], segment_bytes=4096)
    await log.open()
    for _ in range(10):
        await log.append([bytes(700)])
    waiting = asyncio.ensure_future(anext(log.read(10)))
    others = [asyncio.ensure_future(log.append([b"late"])) for _ in range(5)]
    await asyncio.sleep(0)

import asyncio
(run if sys.argv[2] == "uvloop" else lambda main: asyncio.run(main()))(main)
"""


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_an_interpreter_that_ends_without_closing_says_nothing_and_loses_nothing(tmp_path: Path, loop: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", LEAVES, str(tmp_path / "log"), loop],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=WATCHDOG_S,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    assert asyncio.run(frames(tmp_path / "log"))[:10] == [bytes(700)] * 10


def test_a_log_is_closed_in_any_loop_when_its_own_is_gone(tmp_path: Path) -> None:
    log = small(tmp_path / "log")

    async def begin() -> None:
        await log.open()
        await log.append([b"frame"])

    run(begin)
    run(log.aclose)
    assert (tmp_path / "log" / CLOSED).exists()
    assert asyncio.run(frames(tmp_path / "log")) == [b"frame"]


def test_a_log_is_closed_while_its_loop_is_torn_down(tmp_path: Path) -> None:
    written = asyncio.Event()
    tasks = []

    async def works() -> None:
        async with opened(tmp_path / "log") as log:
            await log.append([b"frame"])
            written.set()
            await asyncio.get_running_loop().create_future()

    async def main() -> None:
        tasks.append(asyncio.ensure_future(works()))
        await written.wait()

    run(main)  # which cancels what still runs
    assert (tmp_path / "log" / CLOSED).exists()


async def test_an_opening_that_is_cancelled_leaves_nothing_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go = threading.Event(), threading.Event()
    original = segments.Segments.make_spare

    def slow(self: segments.Segments) -> None:
        begun.set()
        assert go.wait(WATCHDOG_S)
        original(self)

    monkeypatch.setattr(segments.Segments, "make_spare", slow)
    log = small(tmp_path / "log")
    opening = asyncio.create_task(log.open())
    await asyncio.to_thread(begun.wait, WATCHDOG_S)
    opening.cancel()
    await asyncio.sleep(0)
    assert not opening.done()
    go.set()
    await asyncio.wait([opening])
    assert opening.cancelled()
    await log.open()
    assert await log.append([b"frame"]) == [1]
    await log.aclose()


async def test_a_close_that_is_cancelled_closes_all_the_same(tmp_path: Path) -> None:
    log = small(tmp_path / "log")
    await log.open()
    appending = asyncio.create_task(log.append([b"frame"]))
    await asyncio.sleep(0)
    closing = asyncio.create_task(log.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(LogClosedError):
        await log.append([b"late"])
    await log.aclose()
    assert await appending == [1] and (tmp_path / "log" / CLOSED).exists()
