"""Death at every step of an exchange, of the coordinator and of everything.

The script of tests/logs.py goes through a group that asks twice with nothing behind it, one that asks with another
staged behind it, and that one, which names all its keys. Workers are forked (tests/nursery.py), but in "deep".
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.killing import Judge, chosen, note
from tests.test_kill_points import SCOPES, count_points, run_to_death

STEPS = {
    "before sending asking Part to shard 0",
    "before taking Values of 1",
    "before sending Ask to shard 1",
    "before running entry 2",
    "before running entry 3",
    "before laying writes behind the parts",
    "after laying writes behind the parts",
    "before sending Writes to shard 0",
    "before sending Writes to shard 1",
    "before taking Vote of 0",
    "in the middle of a record",
    "before sending Commit to shard 1",
    "before taking Committed of 0",
    "before a publish",
    "after a publish",
}
SLICES = 5  # so that no test takes long


def exchange_points(judge: Judge) -> list[str]:
    """Those of the script, up to its last publish."""
    points = count_points(judge, judge.orders("script", fatal=0, exchanges=True))
    assert set(points) >= STEPS, STEPS - set(points)
    return points[: len(points) - points[::-1].index("after a publish")]


def decided(points: list[str], at: int) -> bool:
    """Whether what is in the rings, or in the record, matters at this point."""
    laid = [name.startswith("after laying") for name in points[:at]]
    return points[:at].count("after a publish") < sum(laid)


def fatal_for(group: bool, decides: bool, point: str) -> bool:
    return decides if group else not decides or chosen(point)


@pytest.mark.parametrize("part", range(SLICES))
@SCOPES
def test_death_at_any_step_of_an_exchange_leaves_the_models_state_at_a_chunks_end(
    tmp_path: Path, group: bool, part: int
) -> None:
    """Of everything where something is decided, at each step; of the coordinator alone at each step before, and at half
    of those, always the same (`chosen`)."""
    judge = Judge(tmp_path / "data", 2, 0, "wander")
    points = exchange_points(judge)
    fatal = [at for at, name in enumerate(points, 1) if fatal_for(group, decided(points, at), f"{at} {name}")]
    fatal = fatal[part::SLICES]
    for number in fatal:
        note(f"{number} of {len(points)}: {points[number - 1]}")
        run_to_death(judge, judge.orders("script", fatal=number, group=group, exchanges=True))
    judge.finish()
    decisions = sum(points[number - 1].startswith("after writing the record") for number in fatal)
    assert judge.crashes == len(fatal) > 5 and judge.redone >= decisions


def test_what_an_exchange_wrote_is_redone_without_asking_anybody(tmp_path: Path) -> None:
    judge = Judge(tmp_path / "data", 2, 0, "wander")
    points = exchange_points(judge)
    fatal = 1 + next(at for at, name in enumerate(points) if name.startswith("after writing the record"))
    run_to_death(judge, judge.orders("script", fatal=fatal, group=True, exchanges=True))
    before = judge.model.index
    points = count_points(judge, judge.orders("open", fatal=0))
    sent = [name for name in points if "sending" in name and "Flush" not in name and "Stop" not in name]
    assert sorted(sent) == ["before sending Part to shard 0", "before sending Part to shard 1"]
    assert judge.redone == 1 and judge.model.index % 16 == 3 and judge.model.index > before
