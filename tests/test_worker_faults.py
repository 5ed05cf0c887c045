"""What workers do wrong, or are made to do wrong, in `apply`, in a commit, in a flush: named, bounded, and got over."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shardengine import ChunkFailedError, Engine, EngineConfig, Entry, LogId, Put, StoreError, WorkerFailedError, encode
from shardengine.engine.commit import coordinator
from shardengine.engine.commit.lives import LISTENED_S_MAX, Lives
from shardengine.engine.errors import EngineStoppedError
from shardengine.engine.run.processes import LOG_BYTES_MAX
from tests.conftest import end, halt
from tests.directories import folder_in, puts
from tests.inside import one_turn, shell_of, tick_often
from tests.misbehaving import ENVIRONMENT, Breaking, Wild

CONFIG = EngineConfig(map_bytes=16 << 20, ring_bytes=256 * 1024)


@pytest.fixture(autouse=True)
def tick(monkeypatch: pytest.MonkeyPatch) -> None:
    tick_often(monkeypatch)


@pytest.fixture
def faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return folder_in(monkeypatch, ENVIRONMENT, tmp_path / "faults")


def put(index: int, key: str, value: bytes = b"v") -> Entry:
    return Entry(index, 1, encode(Put(key.encode(), value)))


def restarts(db: Engine) -> list[int]:
    return [worker["restarts"] for worker in db.stats()["workers"]]


def impatient(**settings: int) -> EngineConfig:
    return msgspec.structs.replace(CONFIG, **settings)


# ---- apply -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("exits", "SystemExit: 3"),
        ("interrupts", "KeyboardInterrupt"),
        ("raises_what_cannot_be_printed", "Unprintable: an error that cannot be printed: SystemExit"),
        ("recurses", "RecursionError"),
        ("answers_with_itself", "RecursionError"),
        ("forks", "apply forked the worker's process"),
        ("forks_and_fails", "apply forked the worker's process"),
    ],
)
@pytest.mark.parametrize("others", [0, 1])
async def test_what_apply_raises_names_the_entry_and_ends_no_worker(
    tmp_path: Path, faults: Path, key: str, said: str, others: int
) -> None:
    async with Engine(tmp_path / "data", shards=2, machine=Wild, config=CONFIG) as db:
        await db.apply_chunk(puts(1, 10))
        chunk = [put(11, "k"), put(12, key), *(put(13 + n, f"other{n}") for n in range(20 * others))]
        with pytest.raises(ChunkFailedError, match=re.escape(said)) as caught:
            await db.apply_chunk(chunk)
        error = caught.value
        assert (error.index, error.keys, error.command) == (
            12,
            [key.encode()],
            f"Put(key={key.encode()!r}, value=b'v')",
        )
        assert said.partition(":")[0] in error.reason + error.traceback
        assert any("In the worker" in note for note in error.__notes__)
        assert db.last_applied() == LogId(10, 1)
        await db.apply_chunk([put(11, "k"), put(12, "l")])
        assert restarts(db) == [0, 0]


async def test_a_rejection_whose_reason_fails_is_a_rejection(tmp_path: Path, faults: Path) -> None:
    async with Engine(tmp_path / "data", shards=2, machine=Wild, config=CONFIG) as db:
        (result,) = await db.apply_chunk([put(1, "rejects_without_a_reason")])
        assert (result.succeeded, result.reason) == (False, "a reason that cannot be told: KeyError")
        assert db.get(b"rejects_without_a_reason") is None and restarts(db) == [0, 0]


async def test_a_child_that_apply_leaves_behind_keeps_no_link_open(tmp_path: Path, faults: Path) -> None:
    async with Engine(tmp_path / "data", shards=1, machine=Wild, config=CONFIG) as db:
        with pytest.raises(ChunkFailedError, match="forked"):
            await db.apply_chunk([put(1, "leaves_a_child")])
        await db.apply_chunk([put(1, "k")])
        os.kill(db.stats()["workers"][0]["pid"], signal.SIGKILL)
        await db.apply_chunk([put(2, "l")])
        assert restarts(db) == [1]
        os.kill(int((faults / "child").read_text()), signal.SIGKILL)


STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} shard [01] \[\d+\] ")


async def test_what_a_failing_apply_said_is_in_the_log_with_the_time(tmp_path: Path, faults: Path) -> None:
    async with Engine(tmp_path / "data", shards=2, machine=Wild, config=CONFIG) as db:
        with pytest.raises(ChunkFailedError):
            await db.apply_chunk([put(1, "recurses", b"x" * 5000), put(2, "k")])
        lines = (tmp_path / "data" / "worker.log").read_text().splitlines()
        assert all(map(STAMP.match, lines))
        text = "\n".join(lines)
        assert "entry 1 failed its chunk: command Put(key=b'recurses', value=b'xxx" in text
        assert "keys [b'recurses']" in text and "in recurses" in text and "RecursionError" in text
        assert len(text) < 40_000


async def test_the_log_of_workers_is_bounded_and_the_part_before_is_kept(tmp_path: Path, faults: Path) -> None:
    log = tmp_path / "data" / "worker.log"
    log.parent.mkdir()
    db = Engine(tmp_path / "data", shards=2, machine=Wild, config=CONFIG)
    db.start()
    db.stop()
    log.write_bytes(b"of long ago\n" * LOG_BYTES_MAX)
    db.start()
    assert log.stat().st_size < LOG_BYTES_MAX
    assert (log.parent / "worker.log.1").read_bytes().startswith(b"of long ago")
    await db.apply_chunk([put(1, "talks")])
    while log.stat().st_size > LOG_BYTES_MAX:
        await db.wait_applied(1)
        await asyncio.sleep(0)
    assert b"and another" in (log.parent / "worker.log.1").read_bytes()
    await db.aclose()


# ---- late ------------------------------------------------------------------------------------------------------------


async def test_a_worker_that_takes_too_long_is_said_to_have_taken_too_long(
    tmp_path: Path, faults: Path, caplog: pytest.LogCaptureFixture
) -> None:
    db = Engine(tmp_path / "data", shards=2, machine=Wild, config=impatient(worker_timeout_ms=600))
    db.start()
    await db.apply_chunk(puts(1, 10))
    with pytest.raises(WorkerFailedError, match="owed an answer for more than 600 ms and was killed") as caught:
        await db.apply_chunk([put(11, "hangs")])
    assert (caught.value.index, caught.value.last) == (11, 11)
    assert "raise worker_timeout_ms" in caught.value.hint
    assert "owed an answer for more than 600 ms" in caplog.text
    with pytest.raises(WorkerFailedError):
        await db.aclose()


async def test_a_worker_that_a_kill_does_not_end_fails_the_engine_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one does that waits inside the system for a disk: SIGKILL reaches it, and nothing comes of it."""
    db = Engine(tmp_path, shards=2, config=impatient(worker_timeout_ms=400))
    db.start()
    pid = db.stats()["workers"][1]["pid"]
    monkeypatch.setattr("shardengine.engine.commit.lives.DYING_S", 0.4)
    with monkeypatch.context() as patch:
        patch.setattr(subprocess.Popen, "kill", lambda process: None)
        halt(pid)
        with pytest.raises(WorkerFailedError, match=rf"shard 1 \(process {pid}\) has not ended 0 s after SIGKILL"):
            await db.apply_chunk(puts(1, 100))
        assert not db.is_running()
        with pytest.raises(WorkerFailedError):
            await db.aclose()
    end(pid)


def test_time_in_which_nobody_listened_is_not_the_workers() -> None:
    lives = Lives(1)

    def late(now: float) -> dict[int, float]:
        return lives.tick(now, lambda shard: True, lambda shard: (10 * LISTENED_S_MAX, 10 * LISTENED_S_MAX))

    assert late(1_000_000.0) == late(2_000_000.0) == {}
    told = [late(2_000_000.0 + n * LISTENED_S_MAX) for n in range(1, 11)]
    assert told == [{}] * 9 + [{0: 10 * LISTENED_S_MAX}]


def test_who_says_that_it_is_alive_is_late_only_with_its_answer() -> None:
    lives = Lives(1)
    for n in range(10):
        assert lives.tick(n * LISTENED_S_MAX, lambda shard: True, lambda shard: (4.6, 1.1)) == {}
        lives.alive(0)
    assert lives.tick(10 * LISTENED_S_MAX, lambda shard: True, lambda shard: (4.6, 1.1)) == {0: 4.6}


# ---- flush, stop -----------------------------------------------------------------------------------------------------


async def flush(db: Engine) -> None:
    db.flush()


async def stop(db: Engine) -> None:
    db.stop()


LEAVING: dict[str, Callable[[Engine], Coroutine[Any, Any, None]]] = {
    "flush": flush,
    "stop": stop,
    "flush_async": Engine.flush_async,
    "aclose": Engine.aclose,
    "reset": Engine.reset,
}


def once_told(db: Engine, times: int) -> asyncio.Event:
    """Set when workers have said Alive so often."""
    runtime, told, later = db._running(), 0, asyncio.Event()
    alive = runtime.coordinator.lives.alive

    def heard(shard: int) -> None:
        nonlocal told
        told += 1
        alive(shard)
        if told == times:
            later.set()

    runtime.coordinator.lives.alive = heard  # type: ignore[method-assign]
    return later


def open_gate(gate: Path) -> None:
    """Let who waits at a FIFO, and who would, go on."""
    descriptor = os.open(gate, os.O_WRONLY)
    gate.unlink()
    os.close(descriptor)


async def test_a_flush_that_takes_longer_than_other_answers_may_is_no_hang(tmp_path: Path, faults: Path) -> None:
    os.mkfifo(faults / "sync")
    async with Engine(tmp_path / "data", shards=1, machine=Breaking, config=impatient(worker_timeout_ms=1500)) as db:
        await db.apply_chunk(puts(1, 10))
        later = once_told(db, 10)  # two seconds of the worker's clock
        flushing = asyncio.create_task(db.flush_async())
        await later.wait()
        open_gate(faults / "sync")
        await flushing
        assert restarts(db) == [0]


SLOW = {"durability": "power", "worker_timeout_ms": 1500}


@pytest.mark.parametrize(("count", "workers"), [(1, 1), (20, 2)], ids=["a solo", "a vote"])
async def test_a_commit_that_waits_longer_for_the_disk_than_other_answers_may_take_is_no_hang(
    tmp_path: Path, faults: Path, count: int, workers: int
) -> None:
    config = msgspec.structs.replace(CONFIG, **SLOW)
    async with Engine(tmp_path / "data", shards=2, machine=Breaking, config=config) as db:
        await db.apply_chunk(puts(1, 10))
        os.mkfifo(faults / "slow")
        later = once_told(db, 10 * workers)  # two seconds of the clock of each
        applying = asyncio.create_task(db.apply_chunk(puts(11, count)))
        await later.wait()
        open_gate(faults / "slow")
        await applying
        assert restarts(db) == [0, 0] and db.last_applied().index == 10 + count


async def test_a_commit_that_is_late_all_the_same_names_the_setting(
    tmp_path: Path, faults: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordinator, "DECIDED_KILLS_MAX", 2)
    config = msgspec.structs.replace(CONFIG, **SLOW | {"worker_timeout_ms": 400, "flush_timeout_ms": 600})
    db = Engine(tmp_path / "data", shards=1, machine=Breaking, config=config)
    db.start()
    os.mkfifo(faults / "slow")
    with pytest.raises(WorkerFailedError, match=r"was not done with the chunk .* for more than 600 ms") as caught:
        await db.apply_chunk(puts(1, 10))
    assert "raise flush_timeout_ms" in caught.value.hint
    with pytest.raises(WorkerFailedError):
        await db.aclose()


@pytest.mark.parametrize("how", ["flush", "flush_async"])
async def test_a_flush_has_a_deadline_of_its_own_and_a_name(tmp_path: Path, faults: Path, how: str) -> None:
    os.mkfifo(faults / "sync")
    config = impatient(flush_timeout_ms=600)
    async with Engine(tmp_path / "data", shards=2, machine=Breaking, config=config) as db:
        await db.apply_chunk(puts(1, 10))
        with pytest.raises(WorkerFailedError, match=r"600 ms") as caught:
            await LEAVING[how](db)
        assert "raise flush_timeout_ms" in caught.value.hint
        (faults / "sync").unlink()
        await db.apply_chunk(puts(11, 10))
        await db.flush_async()
        assert restarts(db) == [1, 1]


@pytest.mark.parametrize("leave", ["aclose", "stop", "flush_async", "reset"])
async def test_nobody_waits_for_ever_behind_a_group_that_stalls(tmp_path: Path, faults: Path, leave: str) -> None:
    config = impatient(stop_timeout_ms=400, flush_timeout_ms=400, snapshot_timeout_ms=400)
    db = Engine(tmp_path / "data", shards=2, machine=Breaking, config=config)
    db.start()
    (faults / "full").touch()
    call = asyncio.create_task(db.apply_chunk(puts(1, 10)))
    runtime = db._running()
    while not runtime.coordinator.lives.stalled:
        await one_turn()
    with pytest.raises(WorkerFailedError, match=r"after 400 ms; stalled shards: .*told to be full") as caught:
        await LEAVING[leave](db)
    assert "make room, or raise" in caught.value.hint
    (faults / "full").unlink()
    if leave in ("aclose", "stop"):
        with pytest.raises(EngineStoppedError):
            await call
        db.close_storage()
        assert db.start().outcome == "redone"
    else:
        await call
    assert db.last_applied() == LogId(10, 1)
    await db.aclose()


async def test_a_thread_that_cannot_be_had_is_an_error_and_stop_does_not_wait_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Engine(tmp_path, shards=2, config=CONFIG) as db:
        await db.apply_chunk(puts(1, 10))

        def refused(thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refused)
            with pytest.raises(StoreError, match="no thread can be had") as caught:
                await db.create_snapshot()
        assert "ulimit -u" in caught.value.hint
        assert (await db.create_snapshot()).last_included.index == 10


async def test_what_goes_wrong_as_time_passes_stops_the_engine_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    db = Engine(tmp_path, shards=2, config=CONFIG)
    db.start()
    await db.apply_chunk(puts(1, 10))
    monkeypatch.setattr(shell_of(db), "_on_tick", lambda now: 1 // 0)
    with pytest.raises(WorkerFailedError, match="ZeroDivisionError"):
        await db.wait_applied(11)
    assert not db.is_running()
    with pytest.raises(WorkerFailedError):
        await db.aclose()


# ---- commit ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("count", [1, 20], ids=["a solo", "a vote"])
async def test_a_commit_that_failed_is_settled_by_another_worker_which_sees_what_is_committed(
    tmp_path: Path, faults: Path, when: str, count: int
) -> None:
    async with Engine(tmp_path / "data", shards=2, machine=Breaking, config=CONFIG) as db:
        await db.apply_chunk(puts(1, 10))
        (faults / when).touch()
        results: Any = await db.apply_chunk(puts(11, count))
        assert [result.succeeded for result in results] == [True] * count
        assert not (faults / when).exists() and sum(restarts(db)) == 1
        assert f"told to fail {when}" in (tmp_path / "data" / "worker.log").read_text()
        await db.apply_chunk(puts(11 + count, 10))
        assert len(db) == 20 + count
