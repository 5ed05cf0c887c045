"""Death at every step of an exchange, of the coordinator and of everything; of a worker at every step of either side.

The script of tests/logs.py goes through a group that asks twice with nothing behind it, one that asks with another
staged behind it, that one, which names all its keys, and a solo.
"""

from __future__ import annotations

from pathlib import Path

from tests.kill_child import Opened
from tests.killing import Judge, note
from tests.test_kill_points import SCOPES, copy, count_points, run_to_death

STEPS = {
    "before sending asking Part to shard 0",
    "before taking Values of shard 1",
    "before sending Ask to shard 1",
    "before running entry 2",
    "before running entry 3",
    "after running entry 3",
    "before laying writes behind the parts",
    "after laying writes behind the parts",
    "before sending Writes to shard 0",
    "before sending Writes to shard 1",
    "before taking Vote of shard 0",
    "in the middle of a record",
    "before sending Commit to shard 1",
    "before taking Committed of shard 0",
    "before a publish",
    "after a publish",
    "before sending Solo to shard 0",
}


@SCOPES
def test_death_at_any_step_of_an_exchange_leaves_the_models_state_at_a_chunks_end(tmp_path: Path, group: bool) -> None:
    judge = Judge(tmp_path / "data", 2, 0, "wander")
    points = count_points(judge, judge.orders("script", fatal=0, exchanges=True))
    assert set(points) >= STEPS, STEPS - set(points)
    for fatal, name in enumerate(points, 1):
        note(f"{fatal} of {len(points)}: {name}")
        run_to_death(judge, judge.orders("script", fatal=fatal, group=group, exchanges=True))
    judge.finish()
    assert judge.redone >= 3, "each group of the script, between its record and its last commit"


@SCOPES
def test_death_at_any_step_of_the_redo_of_an_exchange_leaves_it_to_be_redone_and_nobody_is_asked(
    tmp_path: Path, group: bool
) -> None:
    judge = Judge(tmp_path / "data", 2, 0, "wander")
    points = count_points(judge, judge.orders("script", fatal=0, exchanges=True))
    fatal = 1 + next(at for at, name in enumerate(points) if name.startswith("after writing the record"))
    run_to_death(judge, judge.orders("script", fatal=fatal, group=True, exchanges=True))
    copy(judge.directory, tmp_path / "copy")
    before = judge.model.index
    points = count_points(judge, judge.orders("open", fatal=0))
    assert [name for name in points if "sending Part" in name] == [
        "before sending Part to shard 0",
        "before sending Part to shard 1",
    ]
    assert judge.model.index == before + 4 and judge.redone == 1
