"""Whatever dies while a hard state is saved, the next start finds the one before it or the new one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from shardengine import HardState
from shardengine.engine import slots
from shardengine.engine.storage import files, hardstate
from tests.hardstates import NEW, OLD, found, saved
from tests.killing import ROOT, WATCHDOG_S, environment, seeded

SAVES = """
import os, sys
from shardengine import *
from tests.directories import config

db = Engine(sys.argv[1], shards=1, config=config("process"))
db.start()
term = 0 if db.hard_state() is None else db.hard_state().term
while True:
    term += 1
    db.save_hard_state(HardState(term, "n" * (term % 700)))
    os.write(1, b"%d\\n" % term)
"""


def killed_saving(directory: Path, after: int) -> int:
    """Start a process that saves one state after another, and kill it once it has told of `after` of them. Returns the
    last one it told of."""
    process = subprocess.Popen(
        [sys.executable, "-c", SAVES, str(directory)], stdout=subprocess.PIPE, cwd=ROOT, env=environment()
    )
    watchdog = threading.Timer(WATCHDOG_S, process.kill)
    watchdog.start()
    assert process.stdout is not None
    with process.stdout as out:
        told = [out.readline() for _ in range(after)]
        process.kill()
        told += out.readlines()
    process.wait()
    watchdog.cancel()
    return int([line for line in told if line.endswith(b"\n")][-1])


def test_a_kill_leaves_the_state_that_was_told_last_or_the_one_behind_it(tmp_path: Path) -> None:
    chance = seeded()
    for _ in range(8):
        told = killed_saving(tmp_path, 1 + chance.randrange(40))
        assert found(tmp_path) in [HardState(term, "n" * (term % 700)) for term in (told, told + 1)]


DIED = 9


def save_until(directory: Path, fatal: int) -> None:
    """Save NEW, in this process, which ends at the `fatal` step of it."""
    steps = count(1)

    def step() -> None:
        if next(steps) == fatal:
            os._exit(DIED)

    def dies(module: Any, name: str, half: Callable[..., object]) -> None:
        real = getattr(module, name)

        def call(*args: Any, **options: Any) -> Any:
            step()
            half(*args, **options)
            step()
            result = real(*args, **options)
            step()
            return result

        setattr(module, name, call)

    file = hardstate.HardStateFile(directory)
    file.start()
    dies(slots, "write_all", lambda descriptor, data, at: os.pwrite(descriptor, data[: len(data) // 2], at))
    for module, name in ((hardstate, "sync"), (files, "sync"), (hardstate, "sync_directory"), (Path, "rename")):
        dies(module, name, lambda *args, **options: None)
    file.save(NEW)


def died_saving(directory: Path, fatal: int) -> bool:
    """Whether a forked process, which saves, came to the `fatal` step, and died there."""
    child = os.fork()
    if child == 0:
        signal.alarm(int(WATCHDOG_S))
        code = 1
        try:
            save_until(directory, fatal)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, DIED)
    return code == DIED


@pytest.mark.parametrize("before", [None, OLD])
def test_a_death_at_any_step_of_a_save_leaves_the_one_or_the_other(tmp_path: Path, before: HardState | None) -> None:
    left = list[HardState | None]()
    for fatal in count(1):
        place = tmp_path / str(fatal)
        saved(place, *([before] if before else []))
        died = died_saving(place, fatal)
        left.append(found(place))
        if not died:
            break
    assert len(left) > 5
    assert left == sorted(left, key=[before, NEW].index) and {before, NEW} == set(left)
