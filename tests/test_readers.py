"""The slots in the readers' tables: what a fork, a copy of the directory, or a stranger does to them."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import lmdb
import pytest

from shardengine import (
    Delete,
    Engine,
    EngineConfig,
    EngineError,
    Entry,
    ForkedError,
    Put,
    View,
    ViewClosedError,
    encode,
    run,
)
from shardengine.shards.placement import SLOTS
from shardengine.shards.store import Identity, ReadStore, Store
from tests.inside import one_turn, reads_of
from tests.model import log_of
from tests.test_reads import finished

KEYS = [b"key%d" % number for number in range(400)]


def puts(round_: int) -> list[Entry]:
    """Chunk number `round_`, which sets every key to its number."""
    return log_of([encode(Put(key, b"%d" % round_ * 50)) for key in KEYS], first=len(KEYS) * (round_ - 1) + 1)


def check(view: View, round_: int) -> None:
    assert {view.get(key) for key in KEYS} == {b"%d" % round_ * 50}
    assert {value for _, value in view.scan_prefix(b"key").entries} == {b"%d" % round_ * 50}


async def kill_worker(db: Engine, shard: int) -> None:
    """Kill it, and return when its successor is up."""
    runtime = db._running()
    starts, pid = runtime.workers.starts[shard], runtime.workers.pid(shard)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    while (runtime.workers.starts[shard] == starts or shard not in runtime.coordinator.up) and db.is_running():
        await one_turn()


@pytest.mark.parametrize("how", ["sys.exit", "collected"])
def test_a_forked_child_that_runs_its_finalisers_takes_nothing_from_its_parent(tmp_path: Path, how: str) -> None:
    program = f"""
import asyncio, gc, os, sys
from pathlib import Path
from shardengine import Engine
from tests.test_readers import KEYS, check, puts, kill_worker

loop = asyncio.new_event_loop()
db = Engine(Path(sys.argv[1]), shards=2)
db.start()
loop.run_until_complete(db.apply_chunk(puts(1)))
view = db.view()
loop.run_until_complete(db.apply_chunk(puts(2)))
pid = os.fork()
if pid == 0:
    if {how!r} == "collected":
        view._held.clear()
        db._readside.reads = db._shell.runtime = None
        gc.collect()
    sys.exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
assert all(store.keeps_slots() for store in db._readside.reads._stores)
for round_ in range(3, 8):
    loop.run_until_complete(db.apply_chunk(puts(round_)))
    check(view, 1)
assert db.get(KEYS[0]) == b"7" * 50
loop.run_until_complete(kill_worker(db, 0))
loop.run_until_complete(db.apply_chunk(puts(8)))
check(view, 1)
loop.run_until_complete(db.aclose())
loop.close()
print("whole")
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "db")], capture_output=True, text=True, timeout=100, check=False
    )
    assert (done.stdout, done.returncode) == ("whole\n", 0), done.stderr


def test_no_descriptor_of_an_environment_is_inherited(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    with closing(store), closing(lmdb.open(str(tmp_path / "other"), create=True)):
        ours = [name for name in os.listdir("/proc/self/fd") if str(tmp_path / "s") in link_of(name)]
        assert len(ours) == 3
        assert not [name for name in ours if os.get_inheritable(int(name))]


def link_of(name: str) -> str:
    try:
        return str(Path(f"/proc/self/fd/{name}").readlink())
    except FileNotFoundError:
        return ""


def store_at(path: Path) -> Store:
    (path / "s").mkdir()
    return Store(path / "s", Identity("g", 0, 1, SLOTS, "m"), map_bytes=64 << 20, readers_max=8, sync=False)


async def test_views_are_right_though_the_directory_is_copied_and_workers_die(tmp_path: Path) -> None:
    async with Engine(tmp_path / "db", shards=2) as db:
        await db.apply_chunk(puts(1))
        view = db.view()
        for round_ in range(2, 6):
            await db.apply_chunk(puts(round_))
            for table in tmp_path.glob("db/gen-*/shard-*/lock.mdb"):
                shutil.copyfile(table, tmp_path / "copy")
            await kill_worker(db, round_ % 2)
            check(view, 1)
            assert db.get(KEYS[0]) == b"%d" % round_ * 50
        assert all(store.keeps_slots() for store in reads_of(db)._stores)


async def test_views_end_by_name_when_a_successor_has_emptied_the_readers_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Engine(tmp_path / "db", shards=2) as db:
        await db.apply_chunk(puts(1))
        view, digest = db.view(), db.digest()
        digest.send(None)  # it has read a slice
        await db.apply_chunk(puts(2))
        newest = db.view()
        before = await db.digest()
        (table,) = tmp_path.glob("db/gen-*/shard-001/lock.mdb")
        start = db._running().workers.start

        def lose_and_start(shard: int) -> object:
            table.open().close()
            return start(shard)

        monkeypatch.setattr(db._running().workers, "start", lose_and_start)
        monkeypatch.setattr(ReadStore, "keep_locks", lambda store: None)  # not taken again in time
        await kill_worker(db, 1)
        for ended in (view, newest):
            with pytest.raises(ViewClosedError, match="the readers' table of shard 1 was reset"):
                ended.get(KEYS[0])
        with pytest.raises(ViewClosedError, match="was reset"):
            digest.send(None)
        view.close()
        assert await db.digest() == before
        again = db.view()
        for round_ in range(3, 9):
            await db.apply_chunk(puts(round_))
            check(again, 2)
            assert db.get(KEYS[1]) == b"%d" % round_ * 50
        assert db.stats()["pinned_cuts"] == 1
        assert all(store.keeps_slots() for store in reads_of(db)._stores)


STRANGER = """
import lmdb, sys
env = lmdb.open(sys.argv[1], readonly=True, max_dbs=3, map_size=64 << 20, max_readers=2000)
held = []
try:
    while True:
        held.append(env.begin())
except lmdb.ReadersFullError:
    print("full", flush=True)
sys.stdin.read()
"""


def stranger_at(path: Path) -> subprocess.Popen[str]:
    """A process that has taken every free slot of the shard at `path`."""
    stranger = subprocess.Popen(
        [sys.executable, "-c", STRANGER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert stranger.stdout is not None and stranger.stdout.readline() == "full\n"
    return stranger


def view_or_refusal(db: Engine, kept: list[View]) -> EngineError | None:
    try:
        kept.append(db.view())
    except EngineError as error:
        return error
    return None


async def test_a_stranger_that_takes_every_slot_stops_views_and_nothing_else(tmp_path: Path) -> None:
    async with Engine(tmp_path / "db", shards=2, config=EngineConfig(map_bytes=64 << 20)) as db:
        await db.apply_chunk(puts(1))
        view = db.view()
        shards = sorted(tmp_path.glob("db/gen-*/shard-*"))
        strangers = [stranger_at(path) for path in shards]
        for round_ in range(2, 6):
            await db.apply_chunk(puts(round_))
            assert db.get(KEYS[0]) == b"%d" % round_ * 50
            check(view, 1)
        round_, kept = 6, [view]
        while (refused := view_or_refusal(db, kept)) is None and round_ < 20:
            await db.apply_chunk(puts(round_))
            round_ += 1
        assert "READERS_FULL" in str(refused) and "raise views_max, or see who else reads" in str(refused)
        with pytest.raises(EngineError, match="READERS_FULL"):
            await db.create_snapshot()
        kept.clear()
        await kill_worker(db, 0)
        await db.apply_chunk(puts(round_))
        for stranger in strangers:
            stranger.kill()
            stranger.communicate()
        for reads in reads_of(db)._stores:
            reads.clear_dead_readers()
        with db.view() as again:
            check(again, round_)
            check(view, 1)
        view.close()


async def test_a_view_that_is_closed_elsewhere_dropped_or_closed_twice_lets_its_state_go(tmp_path: Path) -> None:
    async with Engine(tmp_path / "db", shards=2, config=EngineConfig(views_max=3)) as db:
        dropper = threading.Thread()
        for round_ in range(1, 12):
            await db.apply_chunk(puts(round_))
            view, kept = db.view(), db.view()
            closers = [threading.Thread(target=kept.close) for _ in range(4)]
            for closer in closers:
                closer.start()
            for closer in closers:
                closer.join()
            kept.close()
            with pytest.raises(ViewClosedError, match="it was closed"):
                kept.get(KEYS[0])
            dropper = threading.Thread(target=lambda held: held.clear(), args=([view],))
            del view
            dropper.start()
            dropper.join()
            assert db.stats()["views"] == 0
            assert db.stats()["pinned_cuts"] == 0
        del dropper
        gc.collect()
        await db.apply_chunk(log_of([encode(Delete(key)) for key in KEYS], first=len(KEYS) * 11 + 1))
        assert db.is_empty()
        assert [len(store._open) for store in reads_of(db)._stores] == [1, 1]


async def test_a_digest_takes_as_long_as_it_takes(tmp_path: Path) -> None:
    async with Engine(tmp_path / "db", shards=2, config=EngineConfig(view_age_max_ms=1, views_max=1)) as db:
        await db.apply_chunk(log_of([encode(Put(b"%d" % number, b"")) for number in range(3_000)]))
        expected = await db.digest()
        with db.view():
            digest = db.digest()
            digest.send(None)
            db._on_tick(float("inf"))
            assert finished(digest) == expected
        dropped = db.digest()
        dropped.send(None)
        assert reads_of(db)._pinned
        dropped.close()
        assert db.stats()["pinned_cuts"] == 0 and not reads_of(db)._pinned


def _refused(view: View, go_on: Callable[[], object], *, digest_ended: bool) -> int:
    """In a forked child: the calls that are refused, a bit each."""
    refused = 0
    calls: list[Callable[[], object]] = [
        lambda: view.get(KEYS[1]),
        lambda: view.get_multi([KEYS[1]]),
        lambda: view.scan_prefix(b"key"),
        lambda: len(view),
        go_on,
        view.close,
        lambda: view.get(KEYS[1]),
    ]
    for number, call in enumerate(calls):
        try:
            call()
        except ForkedError:
            refused |= 1 << number
        except RuntimeError:  # the digest was ended before
            refused |= digest_ended << number
    return refused


@pytest.mark.parametrize("engine", ["runs", "is gone"])
def test_a_forked_child_cannot_read_a_view_nor_go_on_with_a_digest_and_takes_neither_from_its_parent(
    tmp_path: Path, engine: str
) -> None:
    """Nothing would keep pages for it: it would see other records once the parent has let go, and no error."""
    runner = asyncio.Runner()
    db: Engine | None = Engine(tmp_path, shards=2)
    assert db is not None
    db.start()
    runner.run(db.apply_chunk(puts(1)))
    view, digest = db.view(), db.digest()
    digest.send(None)  # it has read a shard
    if engine == "is gone":
        digest.close()
        db.stop()
        db = None
        gc.collect()
    pid = os.fork()
    if pid == 0:
        signal.alarm(30)
        os._exit(_refused(view, lambda: digest.send(None), digest_ended=engine == "is gone"))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0b1011111
    if db is None:
        with pytest.raises(ViewClosedError, match="engine was stopped"):
            check(view, 1)
    else:
        check(view, 1)
        for round_ in range(2, 7):
            runner.run(db.apply_chunk(puts(round_)))
        check(view, 1)
        digest.close()
        view.close()
        db.stop()
        db.close_storage()
    view.close()
    runner.close()


def test_a_view_ends_as_its_engine_stops_and_outlives_it_without_harm(tmp_path: Path) -> None:
    db = Engine(tmp_path, shards=2)
    db.start()
    run(db.apply_chunk(puts(1)))
    view = db.view()
    check(view, 1)
    db.stop()
    del db
    gc.collect()
    successor = Engine(tmp_path)
    successor.start()
    with pytest.raises(ViewClosedError, match="engine was stopped"):
        view.get(KEYS[0])
    successor.stop()
    successor.close_storage()
