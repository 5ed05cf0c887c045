"""How workers come to be: by which interpreter, with what on their command line and path, and what if they do not."""

from __future__ import annotations

import errno
import os
import shlex
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from shardengine import ConfigError, Engine, EngineConfig, EngineError, LogId, WorkerFailedError
from shardengine.engine.commit.lives import START_ATTEMPTS_MAX, Lives
from shardengine.shards.worker import _unready
from tests.directories import ROOT, applies_ten, contents, holds_ten, in_another_process, opened, puts
from tests.inside import tick_often

CONFIG = EngineConfig(map_bytes=16 << 20, ring_bytes=256 * 1024)


@pytest.fixture(autouse=True)
def tick(monkeypatch: pytest.MonkeyPatch) -> None:
    tick_often(monkeypatch)


# ---- what cannot be started ------------------------------------------------------------------------------------------


class Refusing:
    """The system's answer to so many attempts to start a worker."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, what: str, error: int) -> None:
        self.left = 0
        target = {"socketpair": socket, "Popen": subprocess}[what]
        original = getattr(target, what)

        def call(*arguments: Any, **options: Any) -> Any:
            if self.left > 0:
                self.left -= 1
                raise OSError(error, os.strerror(error))
            return original(*arguments, **options)

        monkeypatch.setattr(target, what, call)


REFUSALS = [
    ("socketpair", errno.EMFILE, "limit of open files"),
    ("Popen", errno.EAGAIN, "ulimit -u"),
    ("Popen", errno.ENOMEM, "no memory left"),
]


@pytest.mark.parametrize(("what", "number", "hint"), REFUSALS)
async def test_a_worker_that_can_never_be_started_again_fails_the_engine_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, number: int, hint: str
) -> None:
    refusing = Refusing(monkeypatch, what, number)
    db = Engine(tmp_path, shards=2, config=CONFIG)
    db.start()
    await db.apply_chunk(puts(1, 10))
    refusing.left = 1_000
    os.kill(db.stats()["workers"][1]["pid"], signal.SIGKILL)
    with pytest.raises(WorkerFailedError, match="shard 1 could not be started, 10 times") as caught:
        await db.apply_chunk(puts(11, 100))
    assert hint in caught.value.hint and caught.value.shard == 1
    assert not db.is_running()
    await holds_ten(db)
    refusing.left = 0
    with pytest.raises(WorkerFailedError):
        await db.aclose()
    async with Engine(tmp_path, config=CONFIG) as again:
        await holds_ten(again)


@pytest.mark.parametrize(("what", "number", "hint"), REFUSALS)
async def test_a_start_that_fails_some_times_is_a_delay_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, number: int, hint: str
) -> None:
    refusing = Refusing(monkeypatch, what, number)
    refusing.left = 3
    async with Engine(tmp_path, shards=2, config=CONFIG) as db:
        assert refusing.left == 0
        refusing.left = 3
        os.kill(db.stats()["workers"][0]["pid"], signal.SIGKILL)
        await db.apply_chunk(puts(1, 10))
        await holds_ten(db)
        assert refusing.left == 0


def test_a_start_without_any_worker_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(tmp_path, applies_ten, shards=2, config=CONFIG)
    before = contents(tmp_path)
    refusing = Refusing(monkeypatch, "Popen", errno.EAGAIN)
    refusing.left = 1_000
    db = Engine(tmp_path, config=CONFIG)
    with pytest.raises(WorkerFailedError, match="could not be started"):
        db.start()
    assert not db.is_running()
    after = contents(tmp_path)
    same = [name for name in before if not name.endswith(("LOCK", "owner", "lock.mdb", "worker.log"))]
    assert {name: before[name] for name in same} == {name: after[name] for name in same}
    refusing.left = 0
    assert opened(tmp_path, holds_ten, config=CONFIG).last_applied == LogId(10, 1)


def test_a_start_that_cannot_open_its_log_leaves_no_descriptor(tmp_path: Path) -> None:
    opened(tmp_path, applies_ten, shards=2, config=CONFIG)
    (tmp_path / "worker.log").unlink()
    (tmp_path / "worker.log").mkdir()
    for _ in range(2):
        with pytest.raises(EngineError, match=r"worker\.log"):
            Engine(tmp_path, config=CONFIG).start()
    (tmp_path / "worker.log").rmdir()
    opened(tmp_path, holds_ten, config=CONFIG)


async def test_an_interpreter_that_was_moved_away_fails_the_engine_by_name(tmp_path: Path) -> None:
    here = tmp_path / "python-here"
    here.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    here.chmod(0o700)
    db = Engine(tmp_path / "data", shards=2, config=EngineConfig(interpreter=str(here)))
    db.start()
    await db.apply_chunk(puts(1, 10))
    here.unlink()
    os.kill(db.stats()["workers"][1]["pid"], signal.SIGKILL)
    with pytest.raises(WorkerFailedError, match="could not be started") as caught:
        await db.apply_chunk(puts(11, 100))
    assert "set interpreter" in caught.value.hint and not db.is_running()
    with pytest.raises(WorkerFailedError):
        await db.aclose()


@pytest.mark.parametrize(("number", "hint"), [(errno.ENOENT, "set interpreter"), (errno.ENOMEM, "no memory left")])
def test_what_the_system_says_of_a_program_is_not_always_about_the_program(number: int, hint: str) -> None:
    lives = Lives(1)
    errors = [lives.refused(0, OSError(number, os.strerror(number), sys.executable)) for _ in range(START_ATTEMPTS_MAX)]
    assert errors[:-1] == [None] * (START_ATTEMPTS_MAX - 1)
    assert isinstance(errors[-1], WorkerFailedError) and hint in errors[-1].hint


# ---- which interpreter -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", [None, "", "/usr/sbin/uwsgi"])
def test_a_program_that_is_no_python_is_refused_before_it_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str | None
) -> None:
    monkeypatch.setattr(sys, "executable", program)
    with pytest.raises(ConfigError, match="workers cannot be started") as caught:
        Engine(tmp_path / "data", shards=2).start()
    assert caught.value.key == "interpreter" and "SHARDENGINE_INTERPRETER" in caught.value.hint
    assert not (tmp_path / "data").exists()


def test_a_frozen_program_is_refused_unless_it_names_an_interpreter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = sys.executable
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ConfigError, match="frozen"):
        Engine(tmp_path / "data", shards=2).start()
    with pytest.raises(ConfigError, match="no program that can be run"):
        Engine(tmp_path / "data", shards=2, config=EngineConfig(interpreter=str(tmp_path))).start()
    opened(tmp_path / "data", applies_ten, shards=2, config=EngineConfig(interpreter=python))


def test_a_program_that_is_no_python_is_named_as_the_cause(tmp_path: Path) -> None:
    with pytest.raises(WorkerFailedError, match="it said nothing") as caught:
        Engine(tmp_path / "data", shards=1, config=EngineConfig(interpreter="/bin/true")).start()
    assert "interpreter" in caught.value.hint


def test_a_module_with_a_machine_and_a_started_engine_is_no_fork_bomb(tmp_path: Path) -> None:
    (tmp_path / "bomb.py").write_text(
        textwrap.dedent(
            """
            import os, sys
            with open("count", "ab") as file:
                file.write(b".")
                if file.tell() > 40:
                    os._exit(1)
            from shardengine import Engine, KeyValue
            class Mine(KeyValue):
                name = "mine"
            db = Engine("data", shards=2, machine=Mine)
            db.start()
            """
        )
    )
    program = "import bomb"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "MachineImportError" in done.stderr and "no engine may be made or started" in done.stderr
    assert 2 <= (tmp_path / "count").stat().st_size <= 3, "the program, and a worker or two"


# ---- options, path and command line ----------------------------------------------------------------------------------


def test_workers_of_an_isolated_program_import_what_it_would_and_nothing_else(tmp_path: Path) -> None:
    evil, machines = tmp_path / "evil", tmp_path / "machines"
    for folder in (evil, machines):
        folder.mkdir()
    for name in ("json", "sitecustomize", "marshal", "msgspec", "socket"):
        (evil / f"{name}.py").write_text(f"open({str(tmp_path / 'hijacked')!r}, 'a').write({name!r})")
    (machines / "flagged.py").write_text(
        textwrap.dedent(
            f"""
            import sys
            from shardengine import KeyValue
            from shardengine.shards.worker import Process
            class Flagged(KeyValue):
                name = "flagged"
            if Process.is_worker:
                print(sys.flags.isolated, sys.flags.optimize, sys.warnoptions, sys._xoptions,
                      file=open({str(tmp_path / "flags")!r}, "w"))
            """
        )
    )
    program = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(machines)!r}]
from shardengine import Engine
from flagged import Flagged
db = Engine({str(tmp_path / "data")!r}, shards=1, machine=Flagged)
db.start(); db.stop(); db.close_storage()
"""
    subprocess.run(
        [sys.executable, "-I", "-OO", "-W", "error::BytesWarning", "-X", "utf8", "-c", program],
        cwd=evil,
        env={**os.environ, "PYTHONPATH": str(evil)},
        timeout=120,
        check=True,
    )
    assert not (tmp_path / "hijacked").exists()
    assert (tmp_path / "flags").read_text() == "1 2 ['error::BytesWarning'] {'utf8': True}\n"


def test_a_long_path_with_relative_entries_outlives_a_change_of_directory(tmp_path: Path) -> None:
    (tmp_path / "relative").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "relative" / "mymachine.py").write_text(
        "from shardengine import KeyValue\nclass Mine(KeyValue): name='m'\n"
    )
    told = in_another_process(
        """
        import signal
        os.chdir(sys.argv[1])
        sys.path[:0] = ["relative", "", Path("relative"), 7, b"bytes"]
        sys.path += [f"/not/there/{number:0100}" for number in range(1700)]
        from mymachine import Mine

        async def main():
            async with Engine(Path(sys.argv[1], "data"), shards=2, machine=Mine) as db:
                os.chdir("elsewhere")
                await db.apply_chunk(puts(1, 10))
                for worker in db.stats()["workers"]:
                    os.kill(worker["pid"], signal.SIGKILL)
                await db.apply_chunk(puts(11, 10))
                await db.reset()
                await db.apply_chunk(puts(1, 10))
                print(len(db))
        run(main)
        """,
        tmp_path,
    )
    assert told == "10\n"


async def test_a_workers_command_line_shows_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "data directory"
    async with Engine(path, shards=2, config=CONFIG) as db:
        for worker in db.stats()["workers"]:
            line = Path(f"/proc/{worker['pid']}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            assert line.endswith(f"shardengine worker shard {worker['shard']} of 2: {path} ")
            assert "{" not in line and len(line) < 1500


def test_what_the_system_says_to_a_worker_before_it_is_ready_gets_home_after_the_last_attempt() -> None:
    lives = Lives(1)
    for _ in range(START_ATTEMPTS_MAX - 1):
        lives.said_last(0, _unready(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
        assert lives.ended(0, was_up=False) is None
    lives.said_last(0, _unready(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
    error = lives.ended(0, was_up=False)
    assert error is not None and "No space left" in error.message and error.hint == "free disk space"
