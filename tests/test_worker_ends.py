"""When workers end, and when they do not: signals, the death of the host, a loop that is stopped."""

from __future__ import annotations

import asyncio
import os
import resource
import select
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from shardengine import Engine, EngineConfig
from shardengine.engine.commit.lives import Patience
from shardengine.engine.run.processes import Workers
from shardengine.shards.worker import IGNORED_SIGNALS
from tests.directories import applies_ten, holds_ten, in_another_process, opened, puts

CONFIG = EngineConfig(map_bytes=16 << 20, ring_bytes=256 * 1024)
WATCHDOG_MS = 60_000


def ends(pid: int) -> bool:
    """Wait for the end of a process that is no child of ours."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    try:
        return bool(poller.poll(WATCHDOG_MS))
    finally:
        os.close(descriptor)


async def test_signals_to_the_whole_group_end_no_worker(tmp_path: Path) -> None:
    expected = {signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGQUIT, signal.SIGTSTP, signal.SIGHUP}
    assert expected <= IGNORED_SIGNALS
    async with Engine(tmp_path, shards=2, config=CONFIG) as db:
        before = db.stats()["workers"]
        for worker in before:
            for number in sorted(IGNORED_SIGNALS):
                os.kill(worker["pid"], number)
        await db.apply_chunk(puts(1, 10))
        await holds_ten(db)
        assert db.stats()["workers"] == before


def test_signals_that_come_while_a_worker_starts_do_not_end_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = Workers.start

    def starting(workers: Workers, shard: int) -> Any:
        link = start(workers, shard)
        for number in sorted(IGNORED_SIGNALS):
            os.kill(workers.pid(shard) or 0, number)
        return link

    monkeypatch.setattr(Workers, "start", starting)
    db = Engine(tmp_path, shards=2, config=CONFIG)
    db.start()
    assert [worker["restarts"] for worker in db.stats()["workers"]] == [0, 0]
    db.stop()
    db.close_storage()


HOST_THAT_DIES = """
import resource, signal
resource.setrlimit(resource.RLIMIT_NOFILE, (2048, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
PREPARE

async def main():
    db = Engine(sys.argv[1], shards=2, config=config("process"))
    db.start()
    await db.apply_chunk(puts(1, 10))
    child = os.fork()
    if child == 0:
        os.close(0), os.close(1), os.close(2)
        while True:
            signal.pause()
    os.write(1, " ".join(map(str, [child, *(worker["pid"] for worker in db.stats()["workers"])])).encode())
    os.kill(os.getpid(), signal.SIGKILL)
run(main)
"""


@pytest.mark.parametrize(
    "prepare",
    [
        "for _ in range(1100): os.open('/dev/null', os.O_RDONLY)",
        "def refused(*_): raise PermissionError(1, 'by seccomp')\nos.pidfd_open = refused",
    ],
    ids=["more than 1024 descriptors", "no pidfd"],
)
def test_workers_end_with_their_host_though_a_child_of_it_holds_the_links(tmp_path: Path, prepare: str) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2048:
        pytest.skip(f"the hard limit for open files is {hard}")
    told = in_another_process(HOST_THAT_DIES.replace("PREPARE", prepare), tmp_path)
    child, *workers = map(int, told.split())
    try:
        assert len(workers) == 2 and all(map(ends, workers))
        assert "Traceback" not in (tmp_path / "worker.log").read_text()
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_worker_that_waits_for_its_shard_ends_with_its_host(tmp_path: Path) -> None:
    """The new workers wait for a stopped one of the run before, and their host is killed meanwhile."""
    opened(tmp_path, applies_ten, shards=1)
    told = in_another_process(
        """
        import fcntl, signal, subprocess
        from shardengine.engine.run.launch import launch_of
        from shardengine.engine.run.opening import open_directory
        from shardengine.engine.run.processes import Workers
        from shardengine.engine.run.runtime import Runtime
        directory = open_directory(Path(sys.argv[1]), KeyValue, EngineConfig())
        owner = next(Path(sys.argv[1]).glob("gen-*/shard-000/owner"))
        holds = "import fcntl, sys, time; f = open(sys.argv[1], 'r+'); fcntl.lockf(f, fcntl.LOCK_EX); "
        holds += "print('held', flush=True); time.sleep(600)"
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        holder = subprocess.Popen([sys.executable, "-c", holds, owner], **pipes)
        holder.stdout.readline()
        runtime = Runtime(directory, KeyValue, EngineConfig())
        workers = Workers([runtime._spec(0)], runtime.launch, Path(sys.argv[1]))
        workers.start(0)
        os.write(1, f"{holder.pid} {workers.pid(0)}".encode())
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        tmp_path,
    )
    holder, worker = map(int, told.split())
    try:
        assert ends(worker)
    finally:
        os.kill(holder, signal.SIGKILL)
    shutil.rmtree(tmp_path)


def test_a_stopped_loop_is_no_fault_of_the_workers(tmp_path: Path) -> None:
    """A timer that fires before what workers said long ago is read: the time between is not theirs."""

    async def use(db: Engine) -> None:
        await db.apply_chunk(puts(1, 10))
        runtime = db._running()
        call = asyncio.ensure_future(db.apply_chunk(puts(11, 10)))
        await asyncio.sleep(0)
        coordinator, now = runtime.coordinator, 1_000.0
        for _ in range(3):
            now += 1_000.0
            coordinator.tick(now, Patience(2.0, 2.0, 2.0))
        await call
        assert [worker["restarts"] for worker in db.stats()["workers"]] == [0, 0]

    opened(tmp_path, use, shards=2, config=CONFIG)
