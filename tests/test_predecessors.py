"""A start beside what its predecessor left dying: workers that still hold a shard, and workers that come too late."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from shardengine import Engine, EngineConfig, EngineLockedError, LogId, StartReport
from shardengine.engine.run.opening import open_directory
from shardengine.engine.run.processes import Workers
from shardengine.engine.run.runtime import Runtime
from shardengine.engine.verify import verify_directory
from shardengine.ipc.errors import LinkClosedError
from shardengine.shards.kv import KeyValue
from tests.directories import applies_ten, contents, holds_ten, in_another_process, opened

WATCHDOG_MS = 60_000


@pytest.fixture
def stopped_worker(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """The pid and a pidfd of a worker of a generation that CURRENT does not name yet; its coordinator is dead."""
    told = in_another_process(
        """
        import signal
        from tests.conftest import halt
        from shardengine.engine.run.processes import Workers
        from shardengine.engine.storage.generations import Directory
        started, start = [], Workers.start

        def starting(workers, shard):
            link = start(workers, shard)
            started.append(workers.pid(shard))
            return link

        def dies(directory, generation):
            halt(started[-1])
            os.write(1, b"%d" % started[-1])
            os.kill(os.getpid(), signal.SIGKILL)

        async def main():
            db = Engine(sys.argv[1], shards=2, config=config("process"))
            db.start()
            await db.apply_chunk(puts(1, 10))
            Workers.start, Directory.make_current = starting, dies
            await db.reset()
        run(main)
        """,
        tmp_path / "data",
    )
    pid = int(told)
    descriptor = os.pidfd_open(pid)
    yield pid, descriptor
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    os.close(descriptor)


def ended(descriptor: int) -> bool:
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    return bool(poller.poll(WATCHDOG_MS))


def test_a_start_removes_nothing_while_a_predecessors_worker_lives_in_it(
    tmp_path: Path, stopped_worker: tuple[int, int]
) -> None:
    path = tmp_path / "data"
    pid, descriptor = stopped_worker
    left = contents(path).keys()
    assert {name.split("/")[0] for name in left if "/" in name} == {"gen-000001", "gen-000002"}
    with pytest.raises(EngineLockedError, match=f"gen-000002.* is held by process {pid}"):
        opened(path, config=EngineConfig(start_timeout_ms=50))
    assert contents(path).keys() == left
    signal.pidfd_send_signal(descriptor, signal.SIGCONT)
    assert opened(path, holds_ten) == StartReport("opened", LogId(10, 1))
    assert ended(descriptor) and not (path / "gen-000002").exists()


def test_a_verification_waits_for_a_predecessors_workers(
    tmp_path: Path, stopped_worker: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("shardengine.engine.verify.PREDECESSORS_MS", 50)
        with pytest.raises(EngineLockedError, match=f"held by process {stopped_worker[0]}"):
            verify_directory(tmp_path / "data")
    signal.pidfd_send_signal(stopped_worker[1], signal.SIGCONT)
    assert verify_directory(tmp_path / "data") == []


def test_a_worker_that_comes_after_its_coordinators_death_touches_nothing(tmp_path: Path) -> None:
    opened(tmp_path, applies_ten, shards=1)
    before = contents(tmp_path)
    directory = open_directory(tmp_path, KeyValue, EngineConfig())
    runtime = Runtime(directory, KeyValue, EngineConfig())
    late = msgspec.structs.replace(runtime._spec(0), coordinator=os.getppid())
    workers = Workers([late], runtime.launch, tmp_path)
    link = workers.start(0)
    poller = select.poll()
    poller.register(link.fileno(), select.POLLIN)
    assert poller.poll(WATCHDOG_MS)
    with pytest.raises(LinkClosedError):
        assert link.receive() is None, "it said a word"
    workers.close()
    directory.lock.close()
    after = contents(tmp_path)
    assert {name: data for name, data in after.items() if name != "LOCK"} == {
        name: data for name, data in before.items() if name != "LOCK"
    }


def test_a_held_shard_names_the_worker_that_holds_it(tmp_path: Path) -> None:
    db = Engine(tmp_path, shards=2)
    db.start()
    pids = [str(worker["pid"]) for worker in db.stats()["workers"]]
    assert [owner.read_text() for owner in sorted(tmp_path.glob("gen-*/shard-*/owner"))] == pids
    db.stop()
    db.close_storage()
