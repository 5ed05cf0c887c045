"""A node's program is killed, again and again: nothing acknowledged is lost, nothing is there twice."""

from __future__ import annotations

import os
import random
import select
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from tests.forking import fork
from tests.kill_node import ANOTHER_BOOT
from tests.killing import DEEP, WATCHDOG_S, environment, note, seeded

ROUNDS = 100 if DEEP else 16
LATEST_S = {False: 0.08, True: 0.3}


class Program:
    """One run of tests/kill_node.py in a process group of its own."""

    def __init__(self, directory: Path, first: str, cut: bool) -> None:
        reading, writing = os.pipe()
        self._said = os.fdopen(reading, "rb", buffering=0)
        with (directory / "errors").open("ab") as errors:
            arguments = [str(directory), first, "cut" if cut else "keep"]
            self.process = fork("tests.kill_node", arguments, environment(), writing, errors.fileno())
        os.close(writing)

    def close(self) -> None:
        """Whatever of it still lives is killed."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(WATCHDOG_S)
        self.process.close()
        self._said.close()

    def lines(self, first_within: float) -> Iterator[str]:
        """What it says until it ends; a line cut off by its death is left out."""
        pipe, buffer, patience = self._said.fileno(), b"", first_within
        while select.select([pipe], [], [], patience)[0]:
            data = os.read(pipe, 1 << 16)
            if not data:
                return
            *whole, buffer = (buffer + data).split(b"\n")
            yield from (line.decode() for line in whole)
        raise AssertionError("it says nothing")


def kill_once(directory: Path, first: int, cut: bool, rng: random.Random) -> set[int]:
    """The numbers that were acknowledged before it was killed, at a random moment; its workers with it, or not."""
    with closing(Program(directory, str(first), cut)) as run:
        lines = run.lines(WATCHDOG_S)
        assert next(lines, None) == "open", (directory / "errors").read_text()[-3000:]
        end = time.monotonic() + rng.random() * LATEST_S[cut]
        while (left := end - time.monotonic()) > 0:
            select.select([], [], [], left)
        (os.killpg if rng.random() < 0.5 else os.kill)(run.process.pid, signal.SIGKILL)
        return {int(line) for line in lines}


def numbers_in(directory: Path, cut: bool) -> dict[int, int]:
    with closing(Program(directory, "-", cut)) as run:
        (line,) = run.lines(WATCHDOG_S)
        assert run.process.wait(WATCHDOG_S) == 0
    return {int(key): int(value) for key, value in msgspec.json.decode(line, type=dict[str, str]).items()}


@pytest.mark.parametrize("cut", [False, True], ids=["the whole log is kept", "the log is cut"])
def test_nothing_acknowledged_is_lost_and_nothing_is_there_twice(tmp_path: Path, cut: bool) -> None:
    rng, acknowledged = seeded(), set[int]()
    for turn in range(ROUNDS):
        acknowledged |= kill_once(tmp_path, turn * 100_000_000, cut, rng)
    found = numbers_in(tmp_path, cut)
    note(f"{ROUNDS} kills, {len(acknowledged)} acknowledged, {len(found)} found")
    assert acknowledged <= found.keys() and set(found.values()) == {1}
    assert len(acknowledged) > ROUNDS
    first = min(int(file.name.partition(".")[0]) for file in (tmp_path / "log").glob("0*"))
    assert (first > 1) is cut


@pytest.mark.parametrize("cut", [False, True], ids=["the whole log is kept", "the log is cut"])
def test_a_power_loss_in_mode_process_costs_nothing_and_nobody_decides_anything(
    tmp_path: Path, cut: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was not synced is gone: pages of the engine's files, and what the log has behind its last sync."""
    rng, acknowledged, losses = seeded(), set[int](), 0
    for turn in range(4):
        answered = kill_once(tmp_path, turn * 100_000_000, cut, rng)
        acknowledged |= answered
        if answered:  # else it may have written nothing yet, and what it found was synced
            losses += 1
            for file in (tmp_path / "data").glob("gen-*/shard-*/data.mdb"):
                lose(file, rng)
        monkeypatch.setenv(ANOTHER_BOOT, str(turn))
    found = numbers_in(tmp_path, cut)
    assert acknowledged <= found.keys() and set(found.values()) == {1}
    assert len(list((tmp_path / "data").glob("set-aside-*"))) >= losses


def lose(file: Path, rng: random.Random) -> None:
    """Some of its pages were not written."""
    size = file.stat().st_blocks * 512
    with file.open("r+b") as pages:
        for at in range(0, min(size, file.stat().st_size), 4096):
            if rng.random() < 0.3:
                pages.seek(at)
                pages.write(bytes(4096))
