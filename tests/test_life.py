"""From start to stop and again: one thread, one loop, one process, one engine a directory."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import uvloop

from shardengine import (
    Engine,
    EngineConfig,
    EngineLockedError,
    EngineStateError,
    EngineStoppedError,
    ForkedError,
    LogId,
    View,
    WrongLoopError,
    WrongThreadError,
    run,
)
from shardengine.engine.run.shell import shells
from tests.directories import holds_ten, in_another_process, mark_of, opened, puts
from tests.model import chunks_of

# ---- stop ------------------------------------------------------------------------------------------------------------


def test_one_engine_starts_and_stops_again_and_again(tmp_path: Path) -> None:
    db = Engine(tmp_path, shards=2)
    assert not db.is_running()
    for round_ in range(3):
        assert db.start().last_applied.index == 10 * round_
        with pytest.raises(EngineStateError, match="runs already"):
            db.start()
        assert db.is_running() and bool(db)
        asyncio.run(_applies(db, 10 * round_ + 1))
        db.stop()
        db.stop()
        assert not db.is_running()
        with pytest.raises(EngineStoppedError, match="does not run"):
            db.flush()
    db.close_storage()


async def _applies(db: Engine, first: int) -> None:
    await db.apply_chunk(puts(first, 10))
    assert len(db) == first + 9
    db.stop()


@pytest.mark.parametrize("leave", ["aclose", "stop"])
async def test_leaving_finishes_what_is_in_flight_and_turns_away_who_waits(tmp_path: Path, leave: str) -> None:
    db = Engine(tmp_path / "db", shards=2, config=EngineConfig(in_flight_chunks_max=4))
    db.start()
    tasks = [asyncio.ensure_future(db.apply_chunk(chunk)) for chunk in chunks_of(puts(1, 60), 10)]
    waiter = asyncio.ensure_future(db.wait_applied(1_000))
    await asyncio.sleep(0)
    if leave == "aclose":
        await db.aclose()
    else:
        db.stop()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(result, EngineStoppedError) for result in results] == [False] * 4 + [True] * 2
    assert all(isinstance(result, Sequence) and len(result) == 10 for result in results[:4])
    with pytest.raises(EngineStoppedError):
        await waiter
    with pytest.raises(EngineStateError):
        await db.apply_chunk(puts(41, 1))
    db.close_storage()
    async with Engine(tmp_path / "db") as again:
        assert again.last_applied() == LogId(40, 1)


async def test_leaving_a_block_by_an_exception_stops_the_engine(tmp_path: Path) -> None:
    db = Engine(tmp_path / "db", shards=2)

    async def use() -> None:
        async with db:
            await db.apply_chunk(puts(1, 10))
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await use()
    assert not db.is_running()
    assert mark_of(tmp_path / "db").clean


async def test_an_aclose_that_is_cancelled_stops_the_engine_all_the_same(tmp_path: Path) -> None:
    db = Engine(tmp_path / "db", shards=2)
    db.start()
    applying = asyncio.gather(*map(db.apply_chunk, chunks_of(puts(1, 2_000), 100)))
    await asyncio.sleep(0)
    closing = asyncio.ensure_future(db.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert not db.is_running()
    await asyncio.gather(applying, return_exceptions=True)
    assert mark_of(tmp_path / "db").clean


def test_leaving_the_interpreter_without_stop_leaves_a_clean_mark(tmp_path: Path) -> None:
    printed = in_another_process(
        """
        async def main():
            db = Engine(sys.argv[1], shards=2)
            db.start()
            await db.apply_chunk(puts(1, 10))
            return db
        db = run(main)
        print(db.is_running())
        """,
        tmp_path,
    )
    assert printed == "True\n"
    assert mark_of(tmp_path).clean
    assert opened(tmp_path, holds_ten).last_applied == LogId(10, 1)


# ---- loop, thread, process -------------------------------------------------------------------------------------------


def test_an_engine_belongs_to_one_loop_until_it_stops(tmp_path: Path) -> None:
    db = Engine(tmp_path, shards=2)
    db.start()
    first, second = uvloop.new_event_loop(), asyncio.new_event_loop()
    first.run_until_complete(db.apply_chunk(puts(1, 10)))
    for call in (db.apply_chunk(puts(11, 1)), db.flush_async(), db.wait_applied(11), db.aclose()):
        with pytest.raises(WrongLoopError, match="another event loop"):
            second.run_until_complete(call)
    assert db.get(b"k1") == b"v1"
    first.run_until_complete(db.apply_chunk(puts(11, 1)))
    db.stop()
    db.start()
    second.run_until_complete(db.apply_chunk(puts(12, 1)))
    assert db.last_applied() == LogId(12, 1)
    second.run_until_complete(db.aclose())
    first.close()
    second.close()


def test_an_engine_whose_loop_is_gone_still_stops(tmp_path: Path) -> None:
    db = Engine(tmp_path, shards=2)
    db.start()
    run(db.apply_chunk(puts(1, 10)))
    db.stop()
    db.close_storage()
    assert opened(tmp_path, holds_ten).outcome == "opened"


def _every_call(db: Engine, view: View) -> list[Callable[[], Any]]:
    return [
        db.start,
        db.stop,
        db.flush,
        db.close_storage,
        db.stats,
        db.last_applied,
        db.durable,
        db.view,
        db.is_empty,
        lambda: view.get(b"k1"),
        lambda: len(db),
        lambda: db.get(b"k1"),
        lambda: db.get_multi([b"k1"]),
        lambda: db.scan_prefix(b""),
        lambda: db.check(b""),
        db.hard_state,
        db.save_hard_state,
        lambda: db.persist_last_applied(LogId(10, 1)),
        lambda: asyncio.run(db.lease_background_cleanup()),
        lambda: db.entry_term(1),
        lambda: asyncio.run(db.apply_chunk(puts(11, 1))),
        lambda: asyncio.run(db.wait_applied(11)),
        lambda: asyncio.run(db.flush_async()),
        lambda: asyncio.run(db.digest()),
        lambda: asyncio.run(db.aclose()),
    ]


def test_another_thread_is_refused_everything(tmp_path: Path) -> None:
    db = Engine(tmp_path, shards=2)
    db.start()
    run(db.apply_chunk(puts(1, 10)))
    calls = _every_call(db, db.view())
    outcomes: list[Any] = []

    def use() -> None:
        for call in calls:
            try:
                outcomes.append(call())
            except Exception as error:
                outcomes.append(type(error))

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert outcomes == [WrongThreadError] * len(calls)
    assert (db.is_running(), db.get(b"k1"), db.last_applied()) == (True, b"v1", LogId(10, 1))
    db.stop()
    db.close_storage()


def test_a_forked_child_cannot_use_the_engine_and_does_it_no_harm(tmp_path: Path) -> None:
    db = Engine(tmp_path, shards=2)
    db.start()
    run(db.apply_chunk(puts(1, 10)))
    pid = os.fork()
    if pid == 0:
        signal.alarm(30)  # a child that is not refused may wait for ever
        refused = 0
        for call in (lambda: db.get(b"k1"), db.stop, db.view, lambda: asyncio.run(db.apply_chunk(puts(11, 1)))):
            try:
                call()
            except ForkedError:
                refused += 1
        try:
            Engine(tmp_path).start()
        except EngineLockedError as error:
            refused += error.pid == os.getppid()
        os._exit(refused)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5
    assert db.get(b"k1") == b"v1"
    db.stop()
    db.close_storage()
    assert opened(tmp_path, holds_ten).outcome == "opened"


def test_an_engine_starts_while_other_threads_make_engines(tmp_path: Path) -> None:
    ended, interval = threading.Event(), sys.getswitchinterval()

    def make() -> None:
        kept = []
        while not ended.is_set():
            kept.append(Engine(tmp_path / "other"))

    threads = [threading.Thread(target=make) for _ in range(2)]
    made = [Engine(tmp_path / "data", shards=1) for _ in range(200)]
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for other in made:
            assert any(shell.readside.path == other._path for shell in shells())
        made[0].start()
    finally:
        ended.set()
        sys.setswitchinterval(interval)
        for thread in threads:
            thread.join()
    made[0].stop()
    made[0].close_storage()


@pytest.mark.parametrize("where", ["in this process", "in another process"])
def test_a_second_engine_on_a_live_directory_is_refused_with_the_holders_pid(tmp_path: Path, where: str) -> None:
    db = Engine(tmp_path, shards=2)
    db.start()
    for _ in range(2):  # the first refusal does not loosen the lock
        if where == "in this process":
            with pytest.raises(EngineLockedError, match=str(os.getpid())) as caught:
                Engine(tmp_path / ".." / tmp_path.name).start()
            assert caught.value.pid == os.getpid()
        program = """
        try:
            Engine(sys.argv[1]).start()
        except EngineLockedError as error:
            print(error.pid)
        """
        assert in_another_process(program, tmp_path) == f"{os.getpid()}\n"
    run(db.apply_chunk(puts(1, 10)))
    db.stop()
    db.close_storage()
    assert opened(tmp_path, holds_ten).outcome == "opened"


# ---- what is said of it ----------------------------------------------------------------------------------------------


async def test_what_happens_in_an_engines_life_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="shardengine")
    async with Engine(tmp_path / "data", shards=2) as db:
        await db.apply_chunk(puts(1, 10))
        info = await db.create_snapshot()
        await db.restore(info.path, force=True)
    said = [record.getMessage().removeprefix(f"{tmp_path / 'data'}: ") for record in caplog.records]
    expected = ["started (created) at index 0", "snapshot taken at index 10", "another state is installed, at index 10"]
    positions = [next(at for at, text in enumerate(said) if text.startswith(one)) for one in [*expected, "stopped at"]]
    assert positions == sorted(positions)
