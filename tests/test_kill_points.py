"""Death at every step of the coordinator's work, one after the other: the steps are counted first, then each is fatal.

The script of tests/kill_child.py goes through votes and records, solos, a group of no-ops, staged and merged groups, a
flush and a stop. After each death the directory is opened, without re-delivery, and compared with the model.

Workers are forked (tests/nursery.py); in a redo, every fourth time, started. They all are with
`HYPOTHESIS_PROFILE=deep`.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from shardengine import Engine
from tests.kill_child import CONFIG, Acknowledged, Frame, Opened, Orders
from tests.killing import WATCHDOG_S, Judge, chosen, note, points_of, workers_forked

pytestmark = pytest.mark.usefixtures("forked_workers")
SCOPES = pytest.mark.parametrize("group", [False, True], ids=["the coordinator", "everything"])


def run_to_death(judge: Judge, orders: Orders) -> Sequence[Frame]:
    """One process that dies at the point that `orders` name; what it said is judged."""
    with judge.prey(orders) as prey:
        frames = judge.judge(prey.rest(), orders)
        assert prey.process.wait(WATCHDOG_S) == -signal.SIGKILL, f"{orders.fatal} was not reached: {prey.errors()}"
        prey.wait_for_workers()
    judge.crashed()
    return frames


def count_points(judge: Judge, orders: Orders) -> list[str]:
    """The first pass: nothing dies, every point has its name."""
    with judge.prey(orders) as prey:
        frames = judge.judge(prey.rest(), orders)
        assert prey.process.wait(WATCHDOG_S) == 0, prey.errors()
    return points_of(frames)


def taken(points: list[str], group: bool) -> list[tuple[int, str]]:
    """The points to die at, with their numbers."""
    return [(at, name) for at, name in enumerate(points, 1) if group or chosen(f"{at} {name}")]


@SCOPES
def test_death_at_any_step_of_the_script_leaves_the_models_state_at_a_chunks_end(tmp_path: Path, group: bool) -> None:
    """Of everything at each step; of the coordinator alone at half of them, always the same (`chosen`)."""
    judge = Judge(tmp_path / "data", 2, 0)
    points = count_points(judge, judge.orders("script", fatal=0))
    assert {"in the middle of a record", "before a publish", "before sending Solo to shard 0"} <= set(points)
    assert {"before sending Part to shard 1", "before renaming run-mark.new to run-mark"} <= set(points)
    for fatal, name in taken(points, group):
        note(f"{fatal} of {len(points)}: {name}")
        run_to_death(judge, judge.orders("script", fatal=fatal, group=group))
    judge.finish()


def decided_and_committed_nowhere(tmp_path: Path) -> Judge:
    """A directory that died behind its decision record, before any COMMIT; its model stands before that group."""
    judge = Judge(tmp_path / "data", 2, 0)
    points = count_points(judge, judge.orders("script", fatal=0))
    fatal = 1 + next(at for at, name in enumerate(points) if name.startswith("after writing the record"))
    run_to_death(judge, judge.orders("script", fatal=fatal, group=True))
    return judge


def copy(source: Path, target: Path) -> None:
    """Copy a directory whose files are mostly holes."""
    subprocess.run(["cp", "-r", "--sparse=always", source, target], check=True, timeout=WATCHDOG_S)


@SCOPES
def test_death_at_any_step_of_a_redo_leaves_it_to_be_redone(tmp_path: Path, group: bool) -> None:
    """Of everything at each step; of the coordinator alone at half of them, always the same (`chosen`)."""
    judge = decided_and_committed_nowhere(tmp_path)
    copy(judge.directory, tmp_path / "copy")
    points = count_points(judge, judge.orders("open", fatal=0))
    assert {"before starting worker 1", "before sending Part to shard 0", "before sending Part to shard 1"} <= set(
        points
    )
    redone = judge.model.index
    assert redone % 100 == 39, "the group of the script's first chunk"
    for fatal, name in taken(points, group):
        note(f"{fatal} of {len(points)}: {name}")
        shutil.rmtree(judge.directory)
        copy(tmp_path / "copy", judge.directory)
        run_to_death(judge, judge.orders("open", fatal=fatal, group=group, forked=workers_forked(fatal)))
        with Opening(judge.directory) as db:
            assert db.last_applied().index == redone
            assert dict(db.scan_prefix(b"").entries) == judge.model.records
    judge.verify()


def test_a_start_says_that_it_redid_a_group(tmp_path: Path) -> None:
    judge = decided_and_committed_nowhere(tmp_path)
    orders = judge.orders("open")
    with judge.prey(orders) as prey:
        opened = prey.opened()
        judge.judge([opened, *prey.rest()], orders)
    assert opened.outcome == "redone"


def test_death_at_any_step_of_making_a_directory_leaves_one_that_can_be_made_and_killed_again(tmp_path: Path) -> None:
    first = Judge(tmp_path / "counted" / "data", 2, 0)
    (tmp_path / "counted").mkdir()
    points = count_points(first, first.orders("open", fatal=0, files=True))
    points = points[: points.index("before starting worker 0")]
    assert {"after renaming config.new to config", "before renaming CURRENT.new to CURRENT"} <= set(points)
    for fatal, name in enumerate(points, 1):
        note(f"{fatal} of {len(points)}: {name}")
        place = tmp_path / str(fatal)
        place.mkdir()
        judge = Judge(place / "data", 2, 0)
        run_to_death(judge, judge.orders("open", fatal=fatal, files=True))
        again = judge.orders("script")
        with judge.prey(again) as prey:
            judge.check(prey.opened(), again)
            for index in prey.acknowledged(2):
                judge.acknowledged = index
            prey.kill_everything()
            judge.judge(prey.rest(), again)
        with Opening(judge.directory) as db:
            assert db.last_applied().index >= judge.acknowledged
        shutil.rmtree(place)


class Opening:
    """An engine on a directory that exists, for as long as the block lasts."""

    def __init__(self, directory: Path) -> None:
        self._db = Engine(directory, config=CONFIG)

    def __enter__(self) -> Engine:
        self._db.start()
        return self._db

    def __exit__(self, *_: object) -> None:
        self._db.stop()
        self._db.close_storage()


def test_the_script_is_acknowledged_chunk_by_chunk(tmp_path: Path) -> None:
    judge = Judge(tmp_path / "data", 2, 0)
    orders = judge.orders("script")
    with judge.prey(orders) as prey:
        frames = judge.judge(prey.rest(), orders)
    assert isinstance(frames[0], Opened) and frames[0].outcome == "created"
    acknowledged = [frame.index for frame in frames if isinstance(frame, Acknowledged)]
    assert acknowledged == [99, 139, 140, 142, 143, 155, 167, 179, 191, 195, 199]
