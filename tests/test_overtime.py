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
from tests.machines import Add, Endless, Looping
from tests.model import log_of

CONFIG = EngineConfig(worker_timeout_ms=1_000)


def key(shard: int) -> bytes:
    return next(name for name in (b"%d" % n for n in range(1_000)) if shard_of(slot_of(name), 2) == shard)


@pytest.mark.parametrize("stubborn", [0, 2])
async def test_a_command_over_two_shards_that_loops_fails_its_chunk_by_name(tmp_path: Path, stubborn: int) -> None:
    async with Engine(tmp_path / "db", shards=2, machine=Looping, config=CONFIG) as db:
        chunk = [Add(key(0), 1), Endless(key(0), key(1), stubborn), Add(key(1), 1)]
        with pytest.raises(ChunkFailedError, match="worker_timeout_ms=1000") as caught:
            await db.apply_chunk(log_of(map(encode, chunk)))
        assert caught.value.index == 2 and "in the engine's own process" in str(caught.value)
        assert (len(db), db.last_applied().index) == (0, 0)
        assert (await db.apply_chunk([Entry(1, 1, encode(Add(key(1), 5)))]))[0].succeeded
        assert db.get(key(1)) == b"5"
    for thread in threading.enumerate():
        if thread.name == "shardengine overtime":
            thread.join(60)
            assert not thread.is_alive()


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
    overtime = Overtime(0.004)
    interrupted = 0
    try:
        for step in range(150):
            try:
                with overtime.watched():
                    loop(0.003 + 0.00003 * step)
            except OvertimeError:
                interrupted += 1
            loop(0.001)
    finally:
        overtime.close()
    assert 0 < interrupted < 150
