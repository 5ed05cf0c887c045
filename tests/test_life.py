"""From start to stop and again: one thread, one loop, one process, one engine a directory."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest
import uvloop

from shardengine import (
    ConfigError,
    Engine,
    EngineConfig,
    EngineLockedError,
    EngineStateError,
    EngineStoppedError,
    ForkedError,
    FormatError,
    KeyValue,
    LogId,
    MachineImportError,
    MachineMismatchError,
    ShardCountMismatchError,
    WrongLoopError,
    WrongThreadError,
    run,
)
from shardengine.engine.run.resources import check_resource_limits
from shardengine.engine.run.shell import make_way
from shardengine.engine.storage.files import read_sealed, write_sealed
from shardengine.engine.storage.generations import DirectoryConfig
from tests.directories import (
    applies_ten,
    contents,
    holds_ten,
    in_another_process,
    mark_of,
    opened,
    puts,
    refused_unchanged,
)
from tests.machines import LaterLedger, Ledger, Other
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
        with pytest.raises(EngineStateError, match="does not run"):
            db.flush()
    assert len(db) == 30
    db.close_storage()


async def _applies(db: Engine, first: int) -> None:
    await db.apply_chunk(puts(first, 10))
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


def test_another_thread_is_refused_everything(tmp_path: Path) -> None:
    db = Engine(tmp_path, shards=2)
    db.start()
    run(db.apply_chunk(puts(1, 10)))
    view = db.view()
    calls: list[Callable[[], Any]] = [
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
        lambda: db.entry_term(1),
        lambda: asyncio.run(db.apply_chunk(puts(11, 1))),
        lambda: asyncio.run(db.wait_applied(11)),
        lambda: asyncio.run(db.flush_async()),
        lambda: asyncio.run(db.digest()),
        lambda: asyncio.run(db.aclose()),
    ]
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
            make_way(other._path)
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


# ---- refused with a clear error --------------------------------------------------------------------------------------


def test_another_shard_count_is_refused_with_the_way_to_convert(tmp_path: Path) -> None:
    opened(tmp_path, applies_ten, shards=2)
    refused_unchanged(tmp_path, ShardCountMismatchError, "2 shards, not 3.*reshard", shards=3)
    assert opened(tmp_path, holds_ten, shards=2).outcome == "opened"


def test_a_directory_of_another_format_is_refused(tmp_path: Path) -> None:
    opened(tmp_path, applies_ten, shards=2)
    known = read_sealed(tmp_path / "config", DirectoryConfig)
    write_sealed(tmp_path / "config", msgspec.structs.replace(known, format=99))
    refused_unchanged(tmp_path, FormatError, "format 99.*this version reads format 2")
    (tmp_path / "config").write_bytes(b"not json")
    refused_unchanged(tmp_path, FormatError, "not readable")


def test_a_directory_of_another_machine_or_a_later_version_is_refused(tmp_path: Path) -> None:
    opened(tmp_path, applies_ten, shards=2)
    refused_unchanged(tmp_path, MachineMismatchError, "'shardengine.kv' version 1, not 'test.other'", machine=Other)
    ledger = tmp_path / "ledger"
    opened(ledger, shards=2, machine=Ledger)
    opened(ledger, machine=LaterLedger)
    refused_unchanged(ledger, MachineMismatchError, "version 2, not 'test.ledger' version 1", machine=Ledger)


@pytest.mark.parametrize(
    ("created", "asked"),
    [
        ({"key_bytes_max": 64}, {"key_bytes_max": 65}),
        ({"value_bytes_max": 64}, {"value_bytes_max": 65}),
        ({}, {"bad_entry": "reject"}),
    ],
)
def test_limits_are_fixed_when_a_directory_is_created(
    tmp_path: Path, created: dict[str, Any], asked: dict[str, Any]
) -> None:
    opened(tmp_path, applies_ten, shards=2, config=EngineConfig(**created))
    refused_unchanged(tmp_path, ConfigError, "cannot change; leave the setting out", config=EngineConfig(**asked))
    assert opened(tmp_path, holds_ten, config=EngineConfig(**created)).outcome == "opened"
    assert opened(tmp_path, holds_ten).outcome == "opened"


def test_a_wrong_setting_is_refused_when_the_engine_is_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="shards = 0"):
        Engine(tmp_path / "db", shards=0)
    with pytest.raises(ConfigError, match="shards=2, but config says 3"):
        Engine(tmp_path / "db", shards=2, config=EngineConfig(shards=3))
    assert not (tmp_path / "db").exists()


def test_a_process_that_may_not_map_or_write_that_much_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda which: (1 << 30, 1 << 30))
    with pytest.raises(ConfigError, match=r"map_bytes=68719476736 .*RLIMIT_AS allows this process 1073741824"):
        Engine(tmp_path / "db").start()
    assert not (tmp_path / "db").exists()
    with monkeypatch.context() as unlimited:
        unlimited.setattr("resource.getrlimit", lambda which: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        opened(tmp_path / "db", applies_ten, shards=2)
    with pytest.raises(ConfigError, match="over 2 shards"):
        Engine(tmp_path / "db").start()
    check_resource_limits(EngineConfig(map_bytes=(1 << 29) - (32 << 20)), 2)
    with pytest.raises(ConfigError, match="over 3 shards"):
        check_resource_limits(EngineConfig(map_bytes=(1 << 29) - (32 << 20)), 3)


def test_a_machine_that_workers_cannot_import_is_refused(tmp_path: Path) -> None:
    class Local(KeyValue):
        pass

    with pytest.raises(MachineImportError, match="importable module"):
        Engine(tmp_path / "db", machine=Local)
    main = type("Main", (KeyValue,), {"__module__": "__main__"})
    with pytest.raises(MachineImportError, match=r"__main__\.Main"):
        Engine(tmp_path / "db", machine=main)
    assert not (tmp_path / "db").exists()


def test_a_machine_in_a_module_that_workers_do_not_find_fails_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ghost = ModuleType("ghost")
    machine = type("Ghost", (KeyValue,), {"__module__": "ghost", "name": "test.ghost"})
    monkeypatch.setitem(sys.modules, "ghost", ghost)
    for _ in range(2):
        with pytest.raises(MachineImportError, match=r"cannot import ghost:Ghost.*top level") as caught:
            Engine(tmp_path / "db", shards=2, machine=machine).start()
        assert caught.value.machine == "ghost:Ghost"
    assert "set-aside" not in " ".join(contents(tmp_path / "db"))


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
