"""What a reader has in the readers' tables of a directory, and what it does where it may have nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shardengine import Engine, EngineConfig, EngineStateError, NoCutError, Reader, StoreError
from shardengine.engine.read import follow
from shardengine.engine.run.recovering import reader_slots
from tests.directories import contents, opened, puts
from tests.disks import in_a_file_system, needs_file_systems
from tests.killing import ROOT, environment
from tests.writing import CONFIG, KEYS, Writer

COUNT = 300


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with `COUNT` records on three shards; only read from."""
    path = tmp_path_factory.mktemp("stopped") / "db"

    async def fill(db: Engine) -> None:
        await db.apply_chunk(puts(1, COUNT))

    opened(path, fill, shards=3, config=CONFIG)
    return path


# ---- where nothing can be written ------------------------------------------------------------------------------------

READ_ONLY = """
import sys
from pathlib import Path
from shardengine import EngineError, Reader
try:
    with Reader(sys.argv[1]) as reader:
        print(len(reader), reader.get(b"k7"), reader.stats()["engine"])
except EngineError as error:
    print(type(error).__name__, error)
"""


def read_only(path: Path, tmp_path: Path) -> str:
    """What a process says that sees `path` on a mount that cannot be written."""
    place = tmp_path / "mount"
    place.mkdir(exist_ok=True)
    mount = f"mkdir '{place}/db' && mount --bind '{path}' '{place}/db' && mount -o remount,bind,ro '{place}/db'"
    done = in_a_file_system(place, sys.executable, "-c", READ_ONLY, str(place / "db"), size="1m", prepare=mount)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_medium_that_cannot_be_written_is_read_unless_an_engine_lives_there(stopped: Path, tmp_path: Path) -> None:
    needs_file_systems(tmp_path)
    before = contents(stopped)
    assert read_only(stopped, tmp_path) == f"{COUNT} b'v7' stopped"
    assert contents(stopped) == before
    with Writer(tmp_path / "live") as writer:
        assert writer.ask("flip", 1, 1) == "64"
        assert read_only(tmp_path / "live", tmp_path).startswith("EngineStateError an engine runs on ")


def test_a_reader_without_slots_reads_no_more_once_an_engine_has_come(
    stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "db"
    shutil.copytree(stopped, path)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with Reader(path) as reader:
        assert reader.get(b"k1") == b"v1"
        with Writer(path):
            for _ in range(2):
                with pytest.raises(EngineStateError, match="an engine runs on"):
                    reader.get(b"k1")
        assert reader.get(b"k1") == b"v1"


def test_an_engine_that_writes_no_page_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "TRIES_MAX", 12)
    with Writer(tmp_path / "db") as writer:
        (page,) = (tmp_path / "db").glob("gen-*/control")
        page.unlink()
        with pytest.raises(NoCutError, match="shows nothing to other processes"):
            Reader(tmp_path / "db")
        assert writer.ask("restart") == "0"
        with Reader(tmp_path / "db") as reader:
            assert reader.age() is None


# ---- the readers' tables ---------------------------------------------------------------------------------------------

READING = """
import sys
from shardengine import Reader
reader = Reader(sys.argv[1])
views = [reader.view()]
print(reader.get(b"key-00"), flush=True)
sys.stdin.read()
"""


def reading(path: Path) -> subprocess.Popen[str]:
    """A process that has read, and keeps what it read until its standard input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", READING, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment(),
    )
    assert process.stdout is not None and process.stdout.readline().startswith("b'")
    return process


def test_the_slots_of_a_reader_that_is_killed_are_free_again_while_the_engine_runs(tmp_path: Path) -> None:
    with Writer(tmp_path / "db", shards=1) as writer:
        assert writer.ask("flip", 1, 1) == "64"
        readers = [reading(tmp_path / "db") for _ in range(3)]
        with Reader(tmp_path / "db") as reader:
            pids = {str(process.pid) for process in readers}
            assert pids <= holders_of(reader)
            for process in readers:
                process.kill()
                process.wait(60)
                assert process.stdin is not None and process.stdout is not None
                process.stdin.close()
                process.stdout.close()
            while pids & holders_of(reader):  # a tick of the engine
                writer.ask("noop")


def holders_of(reader: Reader) -> set[str]:
    """Pids that have slots."""
    with reader.view() as view:
        return {line.split()[0] for store in view.cut().reads.stores for line in store._env.readers().splitlines()[1:]}


def test_a_full_readers_table_is_named_with_the_settings_to_raise(stopped: Path, tmp_path: Path) -> None:
    taken = """
import os, sys, lmdb
env = lmdb.open(sys.argv[1], readonly=True, max_dbs=3, map_size=1 << 30, lib_version=0)
held = []
try:
    while True: held.append(env.begin())
except lmdb.ReadersFullError: print(len(held), flush=True)
sys.stdin.read()
"""
    (shard,) = stopped.glob("gen-*/shard-001")
    with subprocess.Popen(
        [sys.executable, "-c", taken, str(shard)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as stranger:
        assert stranger.stdout is not None
        count = int(stranger.stdout.readline())
        with pytest.raises(StoreError, match="READERS_FULL") as caught:
            Reader(stopped)
        assert "raise readers_max" in caught.value.hint
        stranger.kill()
    assert count > reader_slots(EngineConfig()), "a table has room for every reader that the defaults allow"
    with Reader(stopped) as reader:  # LMDB clears what the dead have left when a table is full
        assert len(reader) == COUNT


def test_a_reader_takes_no_more_slots_than_are_counted_for_it(tmp_path: Path) -> None:
    with Writer(tmp_path / "db", shards=2) as writer, Reader(tmp_path / "db") as reader:
        for version in range(1, 30):
            views = [reader.view()]
            writer.ask("flip", version, 1)
            views.append(reader.view())
            assert reader.get(KEYS[0]) == b"%d" % version
            for view in views:
                view.close()
        with reader.view() as view:
            for store in view.cut().reads.stores:
                ours = [line for line in store._env.readers().splitlines() if line.split()[0] == str(os.getpid())]
                assert len(ours) <= 8, ours
