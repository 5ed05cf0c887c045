"""What dies at a step of a snapshot, an install, a reset or a reshard; and an engine whose workers do.

Lives in a process of tests/forking.py, and prints each step that it reaches, for tests/test_snapshot_kills.py.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable
from itertools import count
from pathlib import Path
from typing import Any

import msgspec

from shardengine import Engine, SnapshotError, run
from shardengine.engine.run.processes import Workers
from shardengine.engine.snapshot import build as install_module
from shardengine.engine.snapshot.folder import Partial
from shardengine.engine.storage import generations as generations_module
from shardengine.engine.storage.generations import Directory
from shardengine.shards.store import Loader
from tests.inside import runtime_of
from tests.kill_points import Points
from tests.killing import chosen
from tests.nursery import Nursery
from tests.streams import Follower, entries
from tests.taking import CONFIG as LARGE
from tests.taking import Feeder, holds

CONFIG = msgspec.structs.replace(LARGE, map_bytes=16 << 20, snapshots_keep=2)
SEED = 7
EARLY, LATE = 40, 90  # where the snapshots end that are installed by turns


class Orders(msgspec.Struct, frozen=True):
    """Do `what` to the engine at `path`, with the snapshots of others in `snapshots`, and die at the step `fatal`: with
    `group` together with the workers. Of "workers" some die, one at each of many steps. forked: workers come from
    tests/nursery.py."""

    what: str
    path: str
    snapshots: str
    fatal: int = 0
    group: bool = False
    forked: bool = True


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

    def __init__(self, orders: Orders) -> None:
        self.path = Path(orders.path)
        self.snapshots = Path(orders.snapshots)
        self._points = _Told(orders.fatal, group=orders.group)

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

    def reach(self, name: str) -> None:
        say(name)
        super().reach(name)


def say(line: str) -> None:
    os.write(1, f"{line}\n".encode())


async def workers_die(orders: Orders) -> None:
    """At each step of each work that `chosen` takes, one of them; then the next step of the next attempt."""
    db = Engine(Path(orders.path), config=CONFIG)
    db.start()
    points = _Killing(db)
    points.watch()
    arm(points)
    index = LATE
    for what in ("create", "install", "reset"):
        for fatal in filter(lambda number: chosen(f"worker, {what} {number}"), count(1)):
            points.aim(fatal)
            done = await one_attempt(db, what, Path(orders.snapshots))
            say(f"{what} {fatal} {done}")
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

    def __init__(self, db: Engine) -> None:
        super().__init__(0, group=False)
        self._db = db
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
            say(name)
            runtime = runtime_of(self._db)
            assert runtime is not None
            workers = self._newest or runtime.workers
            pid = workers.pid(self.fatal % 2)
            if pid is not None:
                os.kill(pid, signal.SIGKILL)


WORK: dict[str, Callable[[Child], Awaitable[None]]] = {
    "create": Child.create,
    "install": Child.install,
    "reset": Child.reset,
    "reshard": Child.reshard,
}


def live(text: str) -> None:
    orders = msgspec.json.decode(text, type=Orders)
    if orders.forked:
        Nursery.of_its_own().serve_all()
    run(lambda: workers_die(orders) if orders.what == "workers" else WORK[orders.what](Child(orders)))
