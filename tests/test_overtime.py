"""A command that runs in the engine's own process and does not come to an end is interrupted, and fails its chunk."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from shardengine import ChunkFailedError, Engine, EngineConfig, Entry, encode
from shardengine.engine.commit.host import OvertimeError
from shardengine.engine.run.overtime import Overtime
from shardengine.shards.placement import shard_of, slot_of
from tests.killing import WATCHDOG_S, environment
from tests.machines import Add, Cut, Endless, Looping
from tests.model import log_of

CONFIG = EngineConfig(worker_timeout_ms=400)


def key(shard: int) -> bytes:
    return next(name for name in (b"%d" % n for n in range(1_000)) if shard_of(slot_of(name), 2) == shard)


@pytest.mark.parametrize("stubborn", [0, 2, 10])
async def test_a_command_over_two_shards_that_loops_fails_its_chunk_by_name(tmp_path: Path, stubborn: int) -> None:
    async with Engine(tmp_path / "db", shards=2, machine=Looping, config=CONFIG) as db:
        chunk = [Add(key(0), 1), Endless(key(0), key(1), stubborn), Add(key(1), 1)]
        with pytest.raises(ChunkFailedError, match="worker_timeout_ms=400") as caught:
            await db.apply_chunk(log_of(map(encode, chunk)))
        assert caught.value.index == 2 and "in the engine's own process" in str(caught.value)
        assert (len(db), db.last_applied().index) == (0, 0)
        assert (await db.apply_chunk([Entry(1, 1, encode(Add(key(1), 5)))]))[0].succeeded
        assert db.get(key(1)) == b"5"
    for thread in threading.enumerate():
        if thread.name == "shardengine overtime":
            thread.join(60)
            assert not thread.is_alive()


async def test_a_command_that_makes_something_of_its_interruption_fails_all_the_same(tmp_path: Path) -> None:
    """Else it would be the clock that decides what it leaves."""
    async with Engine(tmp_path / "db", shards=2, machine=Looping, config=CONFIG) as db:
        for how in ("put", "reject", "return"):
            chunk = [encode(Cut(key(0), key(1), how))]
            with pytest.raises(ChunkFailedError, match="worker_timeout_ms=400") as caught:
                await db.apply_chunk(log_of(chunk))
            assert caught.value.index == 1 and db.is_empty()


async def test_where_no_thread_can_be_had_commands_run_unwatched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async with Engine(tmp_path / "db", shards=2, machine=Looping, config=CONFIG) as db:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            (result,) = await db.apply_chunk(log_of([encode(Cut(key(0), key(1), "quick"))]))
            assert result.succeeded
        with pytest.raises(ChunkFailedError, match="worker_timeout_ms=400"):
            await db.apply_chunk([Entry(2, 1, encode(Endless(key(0), key(1), 0)))])


def loop(seconds: float) -> int:
    """Run so long, in small steps."""
    end, steps = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        steps += 1
    return steps


def test_what_ends_in_time_is_not_interrupted_then_or_later() -> None:
    overtime = Overtime(0.05)
    try:
        for _ in range(20):
            with overtime.watched():
                loop(0.001)
        loop(0.2)
        with pytest.raises(OvertimeError), overtime.watched():
            loop(60)
        loop(0.2)
    finally:
        overtime.close()


@pytest.mark.parametrize("seconds", [0, 60])
def test_a_thread_that_was_watched_can_be_profiled(seconds: int) -> None:
    program = (
        "import sys\n"
        "from tests.test_overtime import Overtime, OvertimeError, loop\n"
        "overtime = Overtime(0.05)\n"
        "try:\n"
        f"    with overtime.watched(): loop({seconds})\n"
        "except OvertimeError: print('interrupted')\n"
        "overtime.close()\n"
        "sys.setprofile(lambda *event: None)\n"
        "loop(0.01)\n"
        "print('done')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=WATCHDOG_S,
        check=False,
    )
    assert (done.stdout.split(), done.stderr) == (["interrupted", "done"] if seconds else ["done"], "")


def test_what_ends_at_the_very_limit_is_interrupted_inside_or_not_at_all() -> None:
    overtime, switches_s = Overtime(0.02), sys.getswitchinterval()
    interrupted = step = 0
    sys.setswitchinterval(switches_s / 10)  # who watches looks when it means to
    try:
        while interrupted < 8:
            step += 1
            try:
                with overtime.watched():
                    loop(0.0005 * step)
            except OvertimeError:
                interrupted += 1
            loop(0.001)
    finally:
        sys.setswitchinterval(switches_s)
        overtime.close()
    assert step > 8
