"""Whatever dies while a hard state is saved, the next start finds the one before it or the new one."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from shardengine import HardState
from tests.directories import in_another_process
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


STEPS = """
from shardengine.engine import slots
from shardengine.engine.storage import files, hardstate

step, seen = int(sys.argv[2]), 0

def dies(module, name, before=lambda *args: None):
    real = getattr(module, name)
    def call(*args, **options):
        global seen
        for act in (before, real):
            seen += 1
            if seen == step:
                os._exit(9)
            result = act(*args, **options)
        seen += 1
        if seen == step:
            os._exit(9)
        return result
    setattr(module, name, call)

file = hardstate.HardStateFile(Path(sys.argv[1]))
file.start()
half = lambda descriptor, data, at: os.pwrite(descriptor, data[: len(data) // 2], at)
dies(slots, "write_all", half)
for module, name in ((hardstate, "sync"), (files, "sync"), (hardstate, "sync_directory"), (Path, "rename")):
    dies(module, name, lambda *args, **options: None)
file.save(HardState(7, "node-b"))
print("saved")
"""


@pytest.mark.parametrize("before", [None, OLD])
def test_a_death_at_any_step_of_a_save_leaves_the_one_or_the_other(tmp_path: Path, before: HardState | None) -> None:
    left, printed = list[HardState | None](), ""
    for step in range(1, 40):
        place = tmp_path / str(step)
        saved(place, *([before] if before else []))
        printed = in_another_process(STEPS, place, step)
        left.append(found(place))
        if printed:
            break
    assert printed == "saved\n" and len(left) > 5
    assert left == sorted(left, key=[before, NEW].index) and {before, NEW} == set(left)
