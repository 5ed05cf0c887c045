"""Data directories for tests: opened and used, left by a death, looked at, and refused."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest

from shardengine import Engine, EngineConfig, EngineError, Entry, LogId, Put, StartReport, encode, run
from shardengine.engine.storage.files import read_checked, write_checked
from shardengine.engine.storage.runmark import NAME, Boot, Mark
from tests.forking import forked
from tests.model import Model, log_of

ROOT = Path(__file__).resolve().parent.parent


def puts(first: int, count: int, term: int = 1) -> list[Entry]:
    return log_of([encode(Put(b"k%d" % index, b"v%d" % index)) for index in range(first, first + count)], first, term)


def config(durability: Literal["process", "power"]) -> EngineConfig:
    """Small files: even after a kill, when they are as large as the map, they can be read whole."""
    return EngineConfig(durability=durability, map_bytes=16 << 20, ring_bytes=256 * 1024)


def folder_in(monkeypatch: pytest.MonkeyPatch, variable: str, path: Path) -> Path:
    """A new folder that processes which start later find by an environment variable."""
    path.mkdir()
    monkeypatch.setenv(variable, str(path))
    return path


def in_another_process(program: str, *args: object) -> str:
    """Run a program that may use everything that is here. Returns what it prints."""
    lines = [textwrap.dedent(program), *map(str, args)]
    done = forked("tests.program_child", lines, {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"})
    assert b"Traceback" not in done.errors, done.errors.decode()
    return done.out.decode()


def die_in_mid_run(path: Path, entries: int = 10, durability: str = "process") -> None:
    """Leave a directory as the death of all processes leaves it."""
    in_another_process(
        """
        async def main():
            db = Engine(sys.argv[1], shards=2, config=config(sys.argv[3]))
            db.start()
            await db.apply_chunk(puts(1, int(sys.argv[2])))
            os._exit(0)
        run(main)
        """,
        path,
        entries,
        durability,
    )


def die_after_deciding(path: Path) -> None:
    """Leave a group of entries 11 to 20 that is decided and committed nowhere."""
    in_another_process(
        """
        from shardengine.engine.commit.table import Commit
        async def main():
            db = Engine(sys.argv[1], shards=2, config=config("process"))
            db.start()
            await db.apply_chunk(puts(1, 10))
            Commit.recorded = lambda self, number: os._exit(0)
            await db.apply_chunk(puts(11, 10))
        run(main)
        """,
        path,
    )


def reboot(path: Path) -> None:
    """Make the directory look as after a restart of the machine."""
    mark = mark_of(path)
    change_mark(path, boot=Boot("another boot", mark.boot.time - 60))


def change_mark(path: Path, **changes: object) -> None:
    write_checked(path / NAME, msgspec.structs.replace(mark_of(path), **changes))


def mark_of(path: Path) -> Mark:
    return read_checked(path / NAME, Mark)


def contents(path: Path) -> dict[str, bytes]:
    """Every file below `path`."""
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def opened(path: Path, use: Callable[[Engine], Coroutine[Any, Any, None]] | None = None, **options: Any) -> StartReport:
    """Open, use, stop and close. Returns what the start reported."""
    db = Engine(path, **options)
    report = db.start()
    try:
        if use is not None:
            run(use(db))
    finally:
        db.stop()
        db.close_storage()
    return report


async def holds_ten(db: Engine) -> None:
    model = Model()
    model.apply(puts(1, 10))
    assert (db.last_applied(), await db.digest()) == (LogId(10, 1), model.digest())


async def applies_ten(db: Engine) -> None:
    await db.apply_chunk(puts(1, 10))


def refused_unchanged(path: Path, error: type[EngineError], match: str, **options: Any) -> None:
    """A start fails with that error, twice, and changes no file but the lock's and the workers' log."""
    before = contents(path)
    for _ in range(2):
        with pytest.raises(error, match=match):
            opened(path, **options)
    after = contents(path)
    for name in ("LOCK", "worker.log"):
        before.pop(name, None)
        after.pop(name, None)
    ours = {name for name in after if name.endswith(("owner", "lock.mdb"))}
    assert {name: data for name, data in after.items() if name not in ours} == {
        name: data for name, data in before.items() if name not in ours
    }
