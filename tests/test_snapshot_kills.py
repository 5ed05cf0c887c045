"""Death at every step of a snapshot, an install, a reset and a reshard: the old state or the new one, and nothing else.

A child opens the directory as the death before left it, judges it, begins the work and dies at its first step, the next
child at the second, and so on, until one has lived through all of them. So every next attempt is on what a death left.
"""

from __future__ import annotations

import os
import shutil
import signal
import traceback
from collections.abc import Awaitable, Callable
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shardengine import Engine, SnapshotError, run
from shardengine.engine.run.processes import Workers
from shardengine.engine.snapshot import build as install_module
from shardengine.engine.snapshot.folder import Partial, valid_snapshots
from shardengine.engine.snapshot.manifest import read_manifest
from shardengine.engine.storage import generations as generations_module
from shardengine.engine.storage.generations import Directory
from shardengine.engine.verify import verify_snapshot
from shardengine.shards.store import Loader
from tests.inside import runtime_of
from tests.kill_points import Points
from tests.killing import chosen
from tests.streams import Follower, entries
from tests.taking import CONFIG as LARGE
from tests.taking import Feeder, holds, holds_exactly

CONFIG = msgspec.structs.replace(LARGE, map_bytes=16 << 20, snapshots_keep=2)
SEED = 7
EARLY, LATE = 40, 90  # where the snapshots end that are installed by turns
SCOPES = pytest.mark.parametrize("group", [False, True], ids=["the coordinator", "everything"])


def arm(points: Points) -> None:
    """Every step of the work is a point from now on, in this process."""
    points.wrap(Workers, "send", lambda _, shard, order: f"{type(order).__name__} to shard {shard}", after=False)
    points.wrap(Workers, "start", lambda _, shard: f"starting worker {shard}", after=False)
    points.wrap(Path, "rename", lambda path, to: f"renaming {path.name} to {Path(to).name}")
    points.wrap(Path, "mkdir", lambda path, *_, **__: f"making {path.name}", after=False)
    points.wrap(generations_module, "create_ring", lambda path, _: f"making {path}", after=False)
    points.wrap(generations_module, "create_decision", lambda *_: "making the decision record", after=False)
    points.wrap(install_module, "read_part", lambda file, *_: f"copying {file.name}")
    points.wrap(Loader, "load", lambda *_: "loading", after=False)
    points.wrap(Loader, "finish", lambda *_: "finishing a shard")
    points.wrap(os, "rmdir", lambda path, **_: f"removing {path}", after=False)
    points.wrap(Partial, "remove", lambda _: "the removal of what is partial", after=False)


class Child:
    """What one process does, from the directory that it finds to the step that is fatal."""

    def __init__(self, path: Path, snapshots: Path, fatal: int, group: bool, out: int) -> None:
        self.path = path
        self.snapshots = snapshots
        self._points = _Told(fatal, group=group)
        self._points.out = out

    def arm(self) -> None:
        arm(self._points)

    async def judge(self, db: Engine, allowed: set[int]) -> int:
        """The state is the model's, whole, at one of the places where it may be; nothing else lies about."""
        index = db.last_applied().index
        assert index in allowed, index
        await holds(db, Follower(SEED), index)
        live = (self.path / "CURRENT").read_text().strip()
        assert [each.name for each in self.path.glob("*gen-*")] == [live]
        folder = self.path / "snapshots"
        if folder.exists():
            assert {str(each) for each in folder.iterdir()} == {info.path for info in db.snapshots()}
        return index

    async def create(self) -> None:
        db = Engine(self.path, config=CONFIG)
        db.start()
        feeder = Feeder(db, SEED)
        feeder.sent = await self.judge(db, set(range(LATE, 10_000, 10)))
        before = db.snapshots()
        assert db.durable().index >= max((info.last_included.index for info in before), default=0)
        await feeder.feed(10)
        self.arm()
        flying = feeder.send(10)
        info = await db.create_snapshot()
        await flying
        assert db.snapshots() == [*before, info][-2:]
        await db.aclose()

    async def install(self) -> None:
        db = Engine(self.path, config=CONFIG)
        db.start()
        index = await self.judge(db, {EARLY, LATE})
        other = LATE if index == EARLY else EARLY
        self.arm()
        await db.restore(self.snapshots / str(other), force=True)
        await holds(db, Follower(SEED), other)
        await db.aclose()

    async def reset(self) -> None:
        db = Engine(self.path, config=CONFIG)
        db.start()
        if await self.judge(db, {0, LATE}) == 0:
            await db.apply_chunk(entries(SEED, 1, LATE))
        self.arm()
        await db.reset()
        await holds(db, Follower(SEED), 0)
        await db.aclose()

    async def reshard(self) -> None:
        had = Directory(self.path).current()
        assert had is not None and had.shards in (2, 3)
        self.arm()
        db = Engine(self.path, shards=5 - had.shards, config=CONFIG, reshard=True)
        db.start()
        await self.judge(db, {LATE})
        await db.aclose()


class _Told(Points):
    """Points that are told of as they are reached."""

    out = -1

    def reach(self, name: str) -> None:
        os.write(self.out, f"{name}\n".encode())
        super().reach(name)


def in_child(work: Callable[[int], Awaitable[None]]) -> tuple[int, list[str]]:
    """Do `work` in a forked child, in a process group of its own. Returns its status and the points it reached."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setsid()
            run(lambda: work(writing))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writing)
    with open(reading, encoding="utf-8") as pipe:
        names = pipe.read().splitlines()
    return os.waitpid(child, 0)[1], names


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


WORK: dict[str, tuple[Callable[[Child], Awaitable[None]], set[str]]] = {
    "create": (Child.create, {"before Pin to shard 1", "before Copy to shard 0"}),
    "install": (
        Child.install,
        {"after copying shard-001.mdb", "after finishing a shard", "before renaming CURRENT.new to CURRENT"},
    ),
    "reset": (Child.reset, {"before renaming CURRENT.new to CURRENT", "before making the decision record"}),
    "reshard": (Child.reshard, {"before renaming CURRENT.new to CURRENT", "before loading"}),
}


@SCOPES
@pytest.mark.parametrize("what", WORK)
def test_death_at_any_step_leaves_the_old_state_or_the_new_one_and_the_next_attempt_works(
    tmp_path: Path, base: Path, what: str, group: bool
) -> None:
    """Of everything at each step; of the coordinator alone at half of them, always the same (`chosen`)."""
    path = tmp_path / "data"
    shutil.copytree(base / "data", path)
    work, expected = WORK[what]
    fatal, status, names = 0, signal.SIGKILL.value, [""]
    while status != 0:
        fatal = next(number for number in count(fatal + 1) if group or chosen(f"{what} {number}"))
        status, names = in_child(lambda out: work(Child(path, base, fatal, group, out)))  # noqa: B023
        assert status in (0, signal.SIGKILL), f"at step {fatal}: {names[-3:]}"
        for info in valid_snapshots(path / "snapshots"):
            holds_exactly(Path(info.path), Follower(SEED))
    assert expected <= set(names) and len(names) < fatal


def test_the_death_of_a_worker_at_any_step_costs_an_attempt_at_most(tmp_path: Path, base: Path) -> None:
    """At half of them, always the same (`chosen`)."""
    path = tmp_path / "data"
    shutil.copytree(base / "data", path)

    async def attempts(out: int) -> None:
        db = Engine(path, config=CONFIG)
        db.start()
        points = _Killing(db, out)
        points.watch()
        arm(points)
        index = LATE
        for what in ("create", "install", "reset"):
            for fatal in filter(lambda number: chosen(f"worker, {what} {number}"), count(1)):
                points.aim(fatal)
                done = await one_attempt(db, what, base)
                os.write(out, f"{what} {fatal} {done}\n".encode())
                lived = points.reached < fatal
                points.aim(0)
                await db.flush_async()  # every worker has answered: none is dead that nobody knows of
                if done:
                    index = {"create": index, "install": LATE, "reset": 0}[what]
                await holds(db, Follower(SEED), index)
                if index < LATE:
                    await db.apply_chunk(entries(SEED, 1, LATE))
                    index = LATE
                if lived:
                    assert done
                    break
        await db.aclose()

    status, names = in_child(attempts)
    assert status == 0, names[-3:]
    outcomes = [name.split() for name in names if name.endswith((" True", " False"))]
    assert {what for what, _, _ in outcomes} == {"create", "install", "reset"}
    assert "False" in {done for what, _, done in outcomes if what == "create"}
    assert "False" not in {done for what, _, done in outcomes if what != "create"}
    for info in valid_snapshots(path / "snapshots"):
        assert verify_snapshot(Path(info.path), deep=True) == read_manifest(Path(info.path))


async def one_attempt(db: Engine, what: str, base: Path) -> bool:
    """False: it was given up, and left nothing."""
    known = db.snapshots()
    try:
        if what == "create":
            await db.create_snapshot()
        elif what == "install":
            await db.restore(base / str(LATE))
        else:
            await db.reset()
    except SnapshotError:
        assert db.snapshots() == known
        return False
    return True


class _Killing(Points):
    """Points at which a worker is killed: by turns of one shard and the other, of the live generation and, where there
    is one, of that which is to take over."""

    def __init__(self, db: Engine, out: int) -> None:
        super().__init__(0, group=False)
        self._db = db
        self._out = out
        self._newest: Workers | None = None
        self.fatal = self.reached = 0

    def watch(self) -> None:
        """Learn of every generation's workers."""
        original = Workers.start

        def start(workers: Workers, shard: int) -> Any:
            link = original(workers, shard)
            self._newest = workers
            return link

        setattr(Workers, "start", start)  # noqa: B010

    def aim(self, fatal: int) -> None:
        self.fatal, self.reached, self._newest = fatal, 0, None

    def reach(self, name: str) -> None:
        self.reached += 1
        if self.reached == self.fatal:
            os.write(self._out, f"{name}\n".encode())
            runtime = runtime_of(self._db)
            assert runtime is not None
            workers = self._newest or runtime.workers
            pid = workers.pid(self.fatal % 2)
            if pid is not None:
                os.kill(pid, signal.SIGKILL)
