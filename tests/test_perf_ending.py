"""How a command of `python -m perf` ends: what cannot be is refused first, and one that is stopped leaves nothing."""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from perf import options, peers
from perf.__main__ import main
from perf.report import ended, write
from perf.sides import feed
from shardengine import Engine, Entry, LogGapError, Put, encode
from tests.figures import USUAL, helper_ends, report_of
from tests.killing import ROOT, WATCHDOG_S, environment

SWEEP = ["sweep", "--entries", "400", "--chunk", "100", "--shards", "2"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_is_stopped_says_so_in_a_line_and_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "perf", *SWEEP, "--rounds", "100000", "--yes", "--dir", str(tmp_path)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            assert process.stderr is not None
            assert any(", 2 of 3: py-lmdb" in line for line in process.stderr)
            os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
            out, error = process.communicate(timeout=WATCHDOG_S)
        finally:
            process.kill()
    assert process.returncode == 128 + number and out == "" and list(tmp_path.iterdir()) == []
    lines = [line for line in error.splitlines() if not line.startswith(("round ", "about "))]
    assert lines == [f"stopped by {number.name}: there are no figures"]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ([*SWEEP, "--json", "/nowhere/it"], "there is no folder /nowhere"),
        ([*SWEEP, "--json", "/"], "/ is a folder"),
        ([*SWEEP, "--csv", "/nowhere/it"], "there is no folder /nowhere"),
        ([*SWEEP, "--dir", "/etc/passwd"], "there is no folder /etc/passwd"),
        ([*SWEEP, "--value-bytes", "1048577"], "1,048,577 is more than 1,048,576"),
        ([*SWEEP, "--entries", "1000000001"], "1,000,000,001 is more than 1,000,000,000"),
        ([*SWEEP, "--shards", "257"], "257 is more than 256"),
        ([*SWEEP, "--shards", ""], "invalid list value: ''"),
        (["latency", "--shards", "1"], "1 is less than 2"),
        (["report", "--out", "/etc/passwd/it"], "there is no folder /etc/passwd"),
        (["compare", "a", "b", "--fail-on-slower", "nan"], "nan is no percentage from 0 on"),
        (["smoke", "--tolerance", "-1"], "-1 is no percentage from 0 on"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_measured(
    asked: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(asked)
    assert left.value.code == 2 and said in capsys.readouterr().err


def test_a_file_that_may_not_be_written_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)  # root may write everywhere
    with pytest.raises(argparse.ArgumentTypeError, match="may not be written"):
        options.file_to_write(str(tmp_path / "it"))


@pytest.mark.parametrize(
    ("plot", "said"),
    [
        (["latency", "it.svg"], "no plot of latency: the report has reads"),
        (["reads", "/nowhere/it.svg"], "--plot: there is no folder /nowhere"),
    ],
)
def test_a_plot_that_cannot_be_is_refused_before_anything_is_measured(
    plot: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", "--only", "reads", "--out", str(tmp_path / "out"), "--plot", *plot]) == 2
    assert capsys.readouterr().err == f"{said}\n" and list(tmp_path.iterdir()) == []


def test_quick_writes_no_table_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SWEEP, "--quick", "--csv", str(tmp_path / "it")]) == 2
    assert "--csv is for the whole table" in capsys.readouterr().err


def test_what_was_there_stays_where_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, text: str) -> None:
        path.write_bytes(text[:3].encode())
        raise OSError(28, "No space left on device")

    write(tmp_path / "it", "before")
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}/it'"):
        write(tmp_path / "it", "after")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]


def test_what_is_written_goes_through_a_pipe_that_has_no_name() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading) as pipe:
        with os.fdopen(writing, "w"):
            write(Path(f"/dev/fd/{writing}"), "all of it")
        assert pipe.read() == "all of it"


def _raiser(error: Exception) -> Callable[[], int]:
    def work() -> int:
        raise error

    return work


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), LogGapError("a gap")])
def test_what_the_engine_or_a_file_could_not_is_a_line(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(_raiser(error)) == 3 and capsys.readouterr().err == f"{error}\n"
    with pytest.raises(KeyError):
        ended(_raiser(KeyError("a mistake of our own")))


def _interrupting(host: Connection[Any, Any]) -> None:
    """Interrupt who started this process, which is not interrupted with it, and wait for ever."""
    assert signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    os.kill(os.getppid(), signal.SIGINT)
    host.recv()


@helper_ends()
def test_writers_end_with_an_interrupt_that_is_not_theirs() -> None:
    with pytest.raises(KeyboardInterrupt):
        peers._race(_interrupting, [()])
    assert multiprocessing.active_children() == []


def test_smoke_measures_nothing_where_nothing_is_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["smoke", "--dir", str(tmp_path), "--recorded", str(tmp_path / "it")]
    assert main(asked) == 2 and "nothing is recorded for" in capsys.readouterr().err
    (tmp_path / "it").write_text("{}")
    assert main(asked) == 2 and "it cannot be read" in capsys.readouterr().err


def test_what_is_printed_says_that_the_machine_was_busy_as_the_page_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = report_of({"throughput": USUAL}, load_average=95, cores=2)
    (tmp_path / "it").write_text(json.dumps(report))
    assert main(["report", "--from", str(tmp_path / "it"), "--out", str(tmp_path / "out")]) == 0
    said = "The machine was busy: when the measurement began, 95.0 processes wanted its 2 cores."
    assert said in capsys.readouterr().out and said in (tmp_path / "out" / "report.html").read_text()


async def test_chunks_behind_one_that_failed_fail_silently(tmp_path: Path) -> None:
    chunks, told = [[Entry(index, 1, encode(Put(b"k", b"v")))] for index in (1, 3, 4, 5)], list[dict[str, object]]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    async with Engine(tmp_path / "data", shards=1) as db:
        with pytest.raises(LogGapError):
            await feed(db, chunks, window=4)
        gc.collect()
    assert told == []
