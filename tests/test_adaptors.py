"""The state machines without worker processes: each answers as the one in memory does, through restarts, views, resets
and snapshots, and refuses what is not its own.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardengine import (
    ConfigError,
    DamagedError,
    Delete,
    DirectoryChangedError,
    Engine,
    EngineError,
    EngineLockedError,
    EngineStoppedError,
    Entry,
    FileRefusedError,
    ForkedError,
    FormatError,
    HardState,
    KeyValue,
    LogId,
    Machine,
    MachineMismatchError,
    SnapshotMetadata,
    StateMachine,
    StoreDamagedError,
    ViewClosedError,
    encode,
)
from shardengine.adaptors import MemoryStateMachine
from shardengine.engine.adaptors.durable import InDirectory
from shardengine.engine.adaptors.home import Kind
from shardengine.engine.storage.files import read_checked, write_checked
from shardengine.shards.types import Limits
from tests.adaptors import DURABLE, KINDS, durable, entries, judge, made
from tests.directories import puts
from tests.killing import ROOT, WATCHDOG_S, environment
from tests.machines import Add, LaterLedger, Ledger
from tests.model import log_of
from tests.test_memory import KV, LEDGER, VALUE_BYTES, Chunk, chunks_with, told


def as_contracts(machine: InDirectory) -> StateMachine:
    """For the type checker."""
    return machine


# ---- as in memory ----------------------------------------------------------------------------------------------------


class Twins:
    """One in a directory and one in memory, which are told the same and must answer alike."""

    def __init__(self, kind: str, path: Path, machine: type[Machine]) -> None:
        options: dict[str, Any] = {"checkpoint_bytes": 500} if kind == "file" else {}
        limits = Limits(value_bytes_max=VALUE_BYTES)
        self.make: Callable[[], InDirectory] = lambda: durable(kind, path, machine, limits=limits, **options)
        self.durable = self.make()
        self.memory = MemoryStateMachine(machine, limits=limits)

    async def run(self, chunks: list[Chunk], again: list[bool]) -> None:
        self.memory.start()
        self.durable.start()
        try:
            for chunk, anew in zip(chunks, again, strict=False):
                if anew:
                    self.durable.stop()
                    self.durable = self.make()
                    assert self.durable.start().outcome == "opened"
                given = self.entries(chunk)
                assert await told(self.durable.apply_chunk(given)) == await told(self.memory.apply_chunk(given))
            await self.equal()
        finally:
            self.durable.stop()

    def entries(self, chunk: Chunk) -> list[Entry]:
        term_of, last = self.memory.entry_term, self.memory.last_applied()
        first = max(0, last.index + 1 - chunk.back)
        term, found = term_of(first) or last.term or 1, list[Entry]()
        for index, step in enumerate(chunk.steps, first):
            term = max(0, term + step.rise)
            found.append(Entry(index, term_of(index) or term, step.data, step.time_ms))
        return found

    async def equal(self) -> None:
        one, other = self.durable, self.memory
        assert one.last_applied() == other.last_applied()
        assert (len(one), one.is_empty(), await one.digest()) == (len(other), other.is_empty(), await other.digest())
        keys = [b"a", b"b", b"c/1", b"none"]
        assert one.get_multi(keys) == other.get_multi(keys)
        for reverse in (False, True):
            for prefix, after in ((b"", None), (b"", b"b"), (b"c", b"c/1"), (b"c/", b"a"), (b"\xff", None)):
                found = [each.scan_prefix(prefix, 3, after, reverse) for each in (one, other)]
                assert found[0] == found[1]
        last = other.last_applied().index
        for index in (0, 1, last // 2, last, last + 1):
            assert one.entry_term(index) == other.entry_term(index)


@pytest.mark.parametrize(("machine", "commands"), [(KeyValue, KV), (Ledger, LEDGER)], ids=["plain", "ledger"])
@pytest.mark.parametrize("kind", DURABLE)
def test_each_answers_as_in_memory_whatever_restarts_between(
    kind: str, machine: type[Machine], commands: Any, tmp_path: Path
) -> None:
    places = count()

    @given(chunks=chunks_with(commands), again=st.lists(st.sampled_from([False, False, True]), min_size=8, max_size=8))
    @settings(max_examples=20)
    def check(chunks: list[Chunk], again: list[bool]) -> None:
        asyncio.run(Twins(kind, tmp_path / str(next(places)), machine).run(chunks, again))

    check()


@pytest.mark.parametrize("kind", KINDS)
async def test_views_stay_as_they_were_while_applies_go_on_and_end_with_the_state(kind: str, tmp_path: Path) -> None:
    async with made(kind, tmp_path / "db") as machine:
        await machine.apply_chunk(puts(1, 300))
        views = [machine.view(), machine.view()]
        digest = machine.scan_prefix(b"")
        for first in range(301, 601, 50):
            await machine.apply_chunk(puts(first, 50))
            await machine.apply_chunk(log_of([encode(Delete(b"k%d" % (first - 290)))], first=first + 50, term=1)[:0])
        await machine.apply_chunk(log_of([encode(Delete(b"k%d" % n)) for n in range(1, 601)], first=601))
        machine.flush()
        for view in views:
            assert (view.revision, len(view), view.get(b"k7"), view.get(b"k301")) == (300, 300, b"v7", None)
            assert view.scan_prefix(b"") == digest
            assert view.scan_prefix(b"k1", limit=2, start_after=b"k11", reverse=True).entries == [
                (b"k109", b"v109"), (b"k108", b"v108")
            ]  # fmt: skip
        assert (machine.is_empty(), len(machine)) == (True, 0)
        views[0].close()
        with pytest.raises(ViewClosedError, match="it was closed"):
            views[0].get(b"k7")
        await machine.reset()
        with pytest.raises(ViewClosedError, match="state was replaced"):
            views[1].get(b"k7")
        later = machine.view()
    with pytest.raises(ViewClosedError, match="was stopped"):
        later.get(b"k7")


@pytest.mark.parametrize("kind", KINDS)
async def test_snapshots_of_each_are_installed_in_all_others_and_in_an_engine(kind: str, tmp_path: Path) -> None:
    log = log_of([encode(Add(b"%d" % (n % 300), n)) for n in range(1_000)])
    async with made(kind, tmp_path / "db", Ledger, limits=Limits(value_bytes_max=99)) as machine:
        await machine.apply_chunk(log)
        metadata = SnapshotMetadata(LogId(1_000, 1), await machine.generate_snapshot_data(tmp_path / "s"))
        digest = await machine.digest()
        for other in KINDS:
            async with made(other, tmp_path / f"from-{other}", Ledger) as one:
                await one.apply_chunk(log[:10])
                await one.apply_snapshot_from_file(metadata, tmp_path / "s")
                assert (one.last_applied(), await one.digest(), len(one)) == (LogId(1_000, 1), digest, 300)
                assert one.snapshot_metadata() == metadata
                await one.apply_chunk(log_of([encode(Add(b"new", 1))], first=1_001))
                assert len(one) == 301
        async with Engine(tmp_path / "engine", shards=2, machine=Ledger) as db:
            await db.apply_snapshot_from_file(metadata, tmp_path / "s")
            assert await db.digest() == digest
            await db.apply_chunk(log_of([encode(Add(b"new", 1))], first=1_001))
            checksum = await db.generate_snapshot_data(tmp_path / "back")
            await machine.apply_snapshot_from_file(SnapshotMetadata(LogId(1_001, 1), checksum), tmp_path / "back")
            assert (await machine.digest(), len(machine)) == (await db.digest(), 301)
        await machine.restore(tmp_path / "s", force=True)
        assert (machine.last_applied(), await machine.digest()) == (LogId(1_000, 1), digest)


# ---- what outlives a run ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", DURABLE)
async def test_a_directory_keeps_state_votes_limits_and_the_last_snapshot(kind: str, tmp_path: Path) -> None:
    path, named = tmp_path / "a" / "db", SnapshotMetadata(LogId(2, 1), bytes(16))
    machine = durable(kind, path, limits=Limits(value_bytes_max=50), bad_entry="reject")
    assert machine.start().outcome == "created"
    await machine.apply_chunk(entries(1, 40))
    machine.save_hard_state(HardState(3, "a"))
    machine.persist_last_snapshot_metadata(named)
    machine.persist_last_applied(LogId(50, 9))
    machine.stop()
    with pytest.raises(EngineStoppedError):
        machine.get(b"k1")
    with pytest.raises(ConfigError, match="value_bytes_max=51, but the directory was created with 50"):
        durable(kind, path, limits=Limits(value_bytes_max=51)).start()
    again = durable(kind, path)
    report = again.start()
    assert (report.outcome, report.last_applied, again.durable()) == ("opened", LogId(50, 9), LogId(50, 9))
    assert (again.hard_state(), again.snapshot_metadata()) == (HardState(3, "a"), named)
    assert [one.succeeded for one in await again.apply_chunk(log_of([b"\xc1", b""], first=51, term=9))] == [False, True]
    assert again.entry_term(50) == 9
    await again.reset()
    again.stop()
    machine.start()
    assert (machine.last_applied(), machine.is_empty(), machine.hard_state()) == (LogId(0, 0), True, HardState(3, "a"))
    machine.stop()


@pytest.mark.parametrize("kind", DURABLE)
async def test_durable_tells_how_far_a_power_loss_leaves_it_and_does_not_fall(kind: str, tmp_path: Path) -> None:
    async with durable(kind, tmp_path / "db", durability="power") as machine:
        await machine.apply_chunk(entries(1, 5))
        assert machine.durable() == LogId(5, 1)
        machine.update_last_applied(LogId(7, 1))
        assert machine.durable() == LogId(7, 1)
    async with durable(kind, tmp_path / "db") as machine:
        assert machine.durable() == LogId(7, 1)
        await machine.apply_chunk(log_of([b""], first=8))
        assert machine.durable() == LogId(7, 1)
        await machine.flush_async()
        assert machine.durable() == LogId(8, 1)
        await machine.reset()
        assert machine.durable() == LogId(0, 0)


@pytest.mark.parametrize("kind", DURABLE)
async def test_one_at_a_time_uses_a_directory_and_only_as_what_it_is(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "db"
    async with durable(kind, path, LaterLedger) as machine:
        await machine.apply_chunk(log_of([encode(Add(b"a", 1))]))
        with pytest.raises(EngineLockedError):
            durable(kind, path).start()
    wrong: list[tuple[type[EngineError], Callable[[], Any]]] = [
        (MachineMismatchError, durable(kind, path, KeyValue).start),
        (MachineMismatchError, durable(kind, path, Ledger).start),
        (FormatError, Engine(path, shards=1, machine=Ledger).start),
        *((FormatError, durable(other, path, LaterLedger).start) for other in DURABLE if other != kind),
    ]
    for error, start in wrong:
        with pytest.raises(error):
            start()
    content = read_checked(path / "adaptor", Kind)
    (path / "adaptor").unlink()
    with pytest.raises(DamagedError, match="'adaptor' is missing, but entries up to 1 were applied here"):
        durable(kind, path, LaterLedger).start()
    write_checked(path / "adaptor", content)
    async with durable(kind, path, LaterLedger) as machine:
        assert len(machine) == 1
    (path / "adaptor").write_bytes((path / "adaptor").read_bytes().replace(b'"format": 1', b'"format": 2', 1))
    with pytest.raises(FormatError, match="does not match its checksum"):
        durable(kind, path, LaterLedger).start()


async def test_a_later_version_of_a_machine_takes_over_when_it_applies(tmp_path: Path) -> None:
    for kind in DURABLE:
        async with durable(kind, tmp_path / kind, Ledger) as machine:
            await machine.apply_chunk(log_of([encode(Add(b"a", 1))]))
        async with durable(kind, tmp_path / kind, LaterLedger):
            pass
        async with durable(kind, tmp_path / kind, Ledger):
            pass
        async with durable(kind, tmp_path / kind, LaterLedger) as machine:
            await machine.apply_chunk(log_of([b""], first=2))
        with pytest.raises(MachineMismatchError, match="version 2"):
            durable(kind, tmp_path / kind, Ledger).start()


@pytest.mark.parametrize("kind", DURABLE)
def test_what_is_no_directory_of_ours_is_refused_and_left_as_it_is(kind: str, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a file").write_text("of somebody")
    with pytest.raises(FormatError, match="it holds 'a file'"):
        durable(kind, tmp_path / "full").start()
    assert (tmp_path / "full" / "a file").read_text() == "of somebody"
    with pytest.raises(ConfigError, match="durability"):
        durable(kind, tmp_path / "db", durability="never")
    if kind == "file":
        with pytest.raises(ConfigError, match="checkpoint_bytes=0"):
            durable(kind, tmp_path / "db", checkpoint_bytes=0)
    assert not (tmp_path / "db").exists()
    machine = durable(kind, tmp_path / "db")
    machine.start()
    machine.stop()
    (name,) = [path for path in (tmp_path / "db").iterdir() if path.name in ("state", "sqlite", "rocksdb")]
    name.rename(tmp_path / "moved")
    with pytest.raises(DamagedError, match="there was a state, and now there is none"):
        machine.start()
    name.symlink_to(tmp_path / "moved")
    with pytest.raises(FileRefusedError, match="symbolic link"):
        machine.start()


async def test_files_of_another_program_are_named(tmp_path: Path) -> None:
    for kind, name, said in (("file", "state", "no file of a state"), ("sqlite", "sqlite", "not a database")):
        async with durable(kind, tmp_path / kind) as machine:
            await machine.apply_chunk(puts(1, 3))
        (tmp_path / kind / name).write_bytes(b"something else" * 1000)
        with pytest.raises((FormatError, StoreDamagedError), match=said):
            durable(kind, tmp_path / kind).start()
    (tmp_path / "sqlite" / "sqlite").unlink()
    other = sqlite3.connect(tmp_path / "sqlite" / "sqlite")
    other.execute("CREATE TABLE theirs (a)")
    other.close()
    with pytest.raises(FormatError, match="another program"):
        durable("sqlite", tmp_path / "sqlite").start()
    async with durable("rocksdb", tmp_path / "rocksdb") as machine:
        await machine.apply_chunk(puts(1, 3))
    (tmp_path / "rocksdb" / "rocksdb" / "CURRENT").write_text("something else")
    with pytest.raises(StoreDamagedError, match="RocksDB says"):
        durable("rocksdb", tmp_path / "rocksdb").start()


def test_a_forked_child_cannot_use_it(tmp_path: Path) -> None:
    machine = durable("file", tmp_path / "db")
    machine.start()
    child = os.fork()
    if child == 0:
        try:
            machine.get(b"k1")
        except ForkedError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert machine.get(b"k1") is None
    machine.stop()


@pytest.mark.parametrize("kind", ["sqlite", "rocksdb", "file"])
async def test_a_directory_that_moved_takes_no_chunk_and_no_vote_until_it_is_back(kind: str, tmp_path: Path) -> None:
    async with durable(kind, tmp_path / "db") as machine:
        await machine.apply_chunk(entries(1, 5))
        (tmp_path / "db").rename(tmp_path / "elsewhere")
        calls: list[Callable[[], Any]] = [
            lambda: machine.save_hard_state(HardState(1, "a")),
            lambda: machine.update_last_applied(LogId(9, 1)),
            machine.view,
            machine.flush,
        ]
        for call in calls:
            with pytest.raises(DirectoryChangedError):
                call()
        with pytest.raises(DirectoryChangedError):
            await machine.apply_chunk(entries(6, 5))
        (tmp_path / "elsewhere").rename(tmp_path / "db")
        await machine.apply_chunk(entries(6, 5))
        await judge(machine, 10, 10)


def test_the_end_of_the_interpreter_flushes_and_closes(tmp_path: Path) -> None:
    program = (
        "import asyncio, os, sys\n"
        "from shardengine.adaptors import FileStateMachine\n"
        "from tests.directories import puts\n"
        "machine = FileStateMachine(sys.argv[1])\n"
        "machine.start()\n"
        "asyncio.run(machine.apply_chunk(puts(1, 3)))\n"
        "os.fdatasync = lambda descriptor: print('synced')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "db"], cwd=ROOT, env=environment(), capture_output=True, text=True,
        check=True, timeout=WATCHDOG_S,
    )  # fmt: skip
    assert done.stdout == "synced\n"


def test_without_rocksdict_the_extra_is_named() -> None:
    program = (
        "import sys; sys.modules['rocksdict'] = None\n"
        "from shardengine.adaptors import FileStateMachine, SQLiteStateMachine\n"
        "try: from shardengine.adaptors import RocksDBStateMachine\n"
        "except ImportError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment(), capture_output=True, text=True,
        check=True, timeout=WATCHDOG_S,
    )  # fmt: skip
    assert "pip install 'shardengine[rocksdb]'" in done.stdout
