"""Death at every step of a snapshot, an install, a reset and a reshard: the old state or the new one, and nothing else.

A child opens the directory as the death before left it, judges it, begins the work and dies at its first step, the next
child at the second, and so on, until one has lived through all of them. So every next attempt is on what a death left.
The workers of every fourth child are started, those of the others forked (`workers_forked`).
"""

from __future__ import annotations

import shutil
import signal
from itertools import count
from pathlib import Path

import msgspec
import pytest

from shardengine import Engine, run
from shardengine.engine.snapshot.folder import valid_snapshots
from shardengine.engine.snapshot.manifest import read_manifest
from shardengine.engine.verify import verify_snapshot
from tests.forking import forked
from tests.killing import DEEP, chosen, environment, note, workers_forked
from tests.snapshot_child import CONFIG, EARLY, LATE, SEED, Orders
from tests.streams import Follower
from tests.taking import Feeder, holds_exactly

SCOPES = pytest.mark.parametrize("group", [False, True], ids=["the coordinator", "everything"])
STEPS = {
    "create": {"before Pin to shard 1", "before Copy to shard 0"},
    "install": {"after copying shard-001.mdb", "after finishing a shard", "before renaming CURRENT.new to CURRENT"},
    "reset": {"before renaming CURRENT.new to CURRENT", "before making the decision record"},
    "reshard": {"before renaming CURRENT.new to CURRENT", "before loading"},
}


def lived(orders: Orders) -> tuple[int, list[str]]:
    """How a child ended, and what it said."""
    done = forked("tests.snapshot_child", [msgspec.json.encode(orders).decode()], environment())
    note(done.errors.decode())
    return done.code, done.out.decode().splitlines()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of two shards at LATE, which took snapshots at EARLY and LATE for others to install."""
    path = tmp_path_factory.mktemp("base")

    async def make() -> None:
        async with Engine(path / "data", shards=2, config=CONFIG) as db:
            feeder = Feeder(db, SEED)
            await feeder.feed(EARLY)
            await db.generate_snapshot_data(path / str(EARLY), None)
            await feeder.feed(LATE - EARLY)
            await db.generate_snapshot_data(path / str(LATE), None)

    run(make)
    return path


@SCOPES
@pytest.mark.parametrize("what", STEPS)
def test_death_at_any_step_leaves_the_old_state_or_the_new_one_and_the_next_attempt_works(
    tmp_path: Path, base: Path, what: str, group: bool
) -> None:
    """Of everything at each step; of the coordinator alone at half of them, always the same (`chosen`)."""
    path = tmp_path / "data"
    shutil.copytree(base / "data", path)
    orders = Orders(what, str(path), str(base), group=group)
    fatal, status, names = 0, -signal.SIGKILL, [""]
    while status != 0:
        fatal = next(number for number in count(fatal + 1) if group or chosen(f"{what} {number}"))
        status, names = lived(msgspec.structs.replace(orders, fatal=fatal, forked=workers_forked(fatal)))
        assert status in (0, -signal.SIGKILL), f"at step {fatal}: {names[-3:]}"
        for info in valid_snapshots(path / "snapshots"):
            holds_exactly(Path(info.path), Follower(SEED))
    assert STEPS[what] <= set(names) and len(names) < fatal


def test_the_death_of_a_worker_at_any_step_costs_an_attempt_at_most(tmp_path: Path, base: Path) -> None:
    """At half of them, always the same (`chosen`)."""
    path = tmp_path / "data"
    shutil.copytree(base / "data", path)
    status, names = lived(Orders("workers", str(path), str(base), forked=not DEEP))
    assert status == 0, names[-3:]
    outcomes = [name.split() for name in names if name.endswith((" True", " False"))]
    assert {what for what, _, _ in outcomes} == {"create", "install", "reset"}
    assert "False" in {done for what, _, done in outcomes if what == "create"}
    assert "False" not in {done for what, _, done in outcomes if what != "create"}
    for info in valid_snapshots(path / "snapshots"):
        assert verify_snapshot(Path(info.path), deep=True) == read_manifest(Path(info.path))
