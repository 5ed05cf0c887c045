"""The life of an engine in which calls fail, in a child of a `control.Zygote`.

It opens a directory, comes to the phase that it was told, and lives through that with the faults armed; then without:
it feeds and flushes if the engine says that it runs, stops, and starts again where that is a question. All that it
finds goes to its standard output, a JSON line each, for tests/faults/judging.py.

Workers are forked (tests/nursery.py), but for those that the faulty phase starts where the calls count of which a start
consists.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import signal
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from shardengine import Engine, EngineConfig, EngineError, KeyValue, run
from shardengine.engine.run.processes import Workers
from shardengine.engine.snapshot.check import Claim, judge
from shardengine.engine.storage.generations import Directory
from tests.faults.control import DISK, Faults, begun_as, serve
from tests.inside import runtime_of
from tests.nursery import Nursery
from tests.streams import entries

SEED = 7
PREPARED = 500  # entries in the directory that a life begins with, and in its snapshot
DECIDED = 540  # up to here, where the last life ended behind a decision
STARTS = ("create", "start", "recover", "redo")
SIZES = {"apply": (1, 1, 2, 30), "respawn": (1, 4), "": (6,), "after": (1, 3)}
HOLD_S = 4.0  # then the faults are lifted: who retries has had his tries
LIMIT_S = 15.0
LAST_WORDS_S = 35.0
ATTEMPTS = 5


class Orders(msgspec.Struct, frozen=True):
    """The faults are in `phase`. With `once` nothing is started again at the end; with `image` it is kept what a power
    loss would leave; with `starts` workers are started in that phase, else they are forked there too."""

    phase: str
    durability: Literal["process", "power"]
    once: bool
    image: bool
    starts: bool


class Sent(msgspec.Struct, frozen=True, tag=True):
    """A chunk of entries that ends here is on its way."""

    last: int


class Acknowledged(msgspec.Struct, frozen=True, tag=True):
    last: int


class Outcome(msgspec.Struct, frozen=True, tag=True):
    """How a step ended: `error` is "" or a class, `named` tells whether that is an EngineError, `running` whether the
    engine says that it runs."""

    step: str
    error: str
    named: bool
    text: str
    running: bool


class Seen(msgspec.Struct, frozen=True, tag=True):
    """What can be seen after a step. `durable` and `sync_failed`, which `stats()` tells, are None after a stop."""

    step: str
    running: bool
    index: int
    count: int
    digest: bytes
    durable: int | None
    sync_failed: bool | None


class Left(msgspec.Struct, frozen=True, tag=True):
    """What a stop, or a start that failed, has left open."""

    step: str
    what: list[str]


class Wrong(msgspec.Struct, frozen=True, tag=True):
    """What is wrong with the files of a stopped engine."""

    problems: list[str]


class Ended(msgspec.Struct, frozen=True, tag=True):
    pass


class Opened(msgspec.Struct, frozen=True, tag=True):
    """What a start reported."""

    outcome: str


Frame = Opened | Sent | Acknowledged | Outcome | Seen | Left | Wrong | Ended


def config(durability: Literal["process", "power"]) -> EngineConfig:
    return EngineConfig(
        durability=durability,
        map_bytes=2 << 20,
        ring_bytes=128 << 10,
        value_bytes_max=16 << 10,
        spin_us=0,
        worker_timeout_ms=3_000,
        start_timeout_ms=8_000,
        stop_timeout_ms=5_000,
    )


def say(frame: Frame) -> None:
    os.write(1, msgspec.json.encode(frame) + b"\n")


def holdings() -> Counter[str]:
    """Every descriptor and child of this process."""
    held: list[str] = []
    for name in os.listdir("/proc/self/fd"):
        try:
            held.append(os.readlink(f"/proc/self/fd/{name}"))  # noqa: PTH115
        except FileNotFoundError:
            continue
    for task in Path("/proc/self/task").iterdir():
        held += [f"process {pid}" for pid in (task / "children").read_text().split()]
    return Counter(held)


class Life:
    """One engine, and the steps of its life. No step raises; each says how it ended."""

    def __init__(self, place: Path, orders: Orders, faults: Faults) -> None:
        self._orders = orders
        self._faults = faults
        self._held = holdings()
        self.db = Engine(place / DISK / "data", shards=2, config=config(orders.durability))
        self._newest = ""
        self.sound = True

    async def step(self, name: str, work: Callable[[], Awaitable[None]]) -> bool:
        """Do `work`, under faults if this is the phase for them. Returns whether it ended well."""
        if name == self._orders.phase:
            self._faults.enter(name)
        task = asyncio.ensure_future(work())
        done, _ = await asyncio.wait([task], timeout=HOLD_S)
        self._faults.leave()
        if not done:
            done, _ = await asyncio.wait([task], timeout=LIMIT_S)
        error = task.exception() if done else TimeoutError("it does not end")
        outcome = self._outcome(name, error)
        say(outcome)
        self.sound = self.sound and not outcome.error
        await self._look(name)
        return not outcome.error

    def _outcome(self, step: str, error: BaseException | None) -> Outcome:
        named = error is None or isinstance(error, EngineError)
        text = str(error) if named else "".join(traceback.format_exception(error)[-4:])
        return Outcome(step, "" if error is None else type(error).__name__, named, text, self.db.is_running())

    async def _look(self, step: str) -> None:
        """Say what reads give, if there is something to read."""
        db = self.db
        if db._readside.reads is None:
            return
        try:
            runs = runtime_of(db) is not None
            durable = db.durable().index if runs else None
            sync_failed = db.stats()["sync_failed"] is not None if runs else None
            last = db.last_applied()
            say(Seen(step, db.is_running(), last.index, len(db), await db.digest(), durable, sync_failed))
        except Exception as error:
            say(self._outcome(f"a look after {step}", error))

    def look_for_leaks(self, step: str) -> None:
        left = holdings() - self._held
        say(Left(step, sorted(left.elements())))

    # ---- steps ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        say(Opened(self.db.start().outcome))

    async def feed(self, sizes: Sequence[int]) -> None:
        index = self.db.last_applied().index
        for size in sizes:
            say(Sent(index + size))
            await self.db.apply_chunk(entries(SEED, index + 1, index + size))
            index += size
            say(Acknowledged(index))

    async def insist(self) -> None:
        """Feed, again if need be, as long as the engine says that it runs."""
        for attempt in range(ATTEMPTS):
            try:
                await self.feed(SIZES["after"])
                return
            except EngineError:
                if attempt == ATTEMPTS - 1 or not self.db.is_running():
                    raise
                await asyncio.sleep(0)

    async def snapshot(self) -> None:
        self._newest = (await self.db.create_snapshot()).path

    async def install(self) -> None:
        await self.db.restore(self._newest)

    async def respawn(self) -> None:
        os.kill(self.db.stats()["workers"][0]["pid"], signal.SIGKILL)
        await self.feed(SIZES["respawn"])

    async def phase(self) -> None:
        """What the orders name."""
        steps: dict[str, tuple[bool, Callable[[], Awaitable[None]]]] = {
            "apply": (False, lambda: self.feed(SIZES["apply"])),
            "flush": (True, self.db.flush_async),
            "snapshot": (True, self.snapshot),
            "install": (True, self.install),
            "compact": (True, self.db.compact),
            "respawn": (False, self.respawn),
            "stop": (True, self.db.aclose),
        }
        name = self._orders.phase
        if name in steps:
            prepared, work = steps[name]
            if prepared:
                await self.step("before", lambda: self.feed(SIZES[""]))
            if name == "install":
                await self.step("before", self.snapshot)
            await self.step(name, work)

    async def look_in(self) -> None:
        """Nothing fails: open, feed, close; then look at every page and key."""
        if await self.step("open", self.start):
            await self.step("fed", lambda: self.feed(SIZES[""]))
        await self.step("close", self.db.aclose)
        if self.sound:
            self.look_at_files()

    def look_at_files(self) -> None:
        generation = Directory(self.db._path).current()
        assert generation is not None
        for shard in range(generation.shards):
            name, limits = generation.shard(shard).name, generation.info.config.limits
            claim = Claim(name, generation.identity(shard), limits)
            say(Wrong(judge(claim, generation.path, KeyValue()).problems))

    async def live(self) -> None:
        """Come to the phase that is named, live through it, and see what is left."""
        first = self._orders.phase if self._orders.phase in STARTS else "start"
        started = await self.step(first, self.start)
        if not started:
            self.look_for_leaks(first)
            started = await self.step("start again", self.start)
        if started:
            await self.phase()
        if self.db.is_running():
            await self.step("after", self.insist)
            if first == "create":  # else there is a snapshot that a power loss leaves
                await self.step("snapshot after", self.snapshot)
            else:
                await self.step("flush after", self.db.flush_async)
        sound = self.sound
        self._faults.lose_power()
        await self.step("close", self.db.aclose)
        self.look_for_leaks("close")
        if not (sound and self.sound) and not self._orders.once:
            await self.step("another start", self.start)
            await self.step("another close", self.db.aclose)
            self.look_for_leaks("another close")


def main(place: Path, text: str) -> None:
    orders = msgspec.json.decode(text, type=Orders)
    nursery, start = Nursery.of_its_own(), Workers._spawn

    async def life() -> None:
        await asyncio.to_thread(int)  # what the loop opens for its first thread is no leak
        with Faults(place) as faults:

            def spawn(workers: Workers, shard: int, link: int) -> object:
                if orders.starts and not faults.passing:
                    return start(workers, shard, link)
                return nursery.spawn(workers, shard, link, begun_as(place, f"worker {shard}"))

            setattr(Workers, "_spawn", spawn)  # noqa: B010
            life = Life(place, orders, faults)
            if orders.phase == "open":
                await life.look_in()
            else:
                if orders.image:
                    faults.image(place / DISK)
                await life.live()
        say(Ended())

    faulthandler.dump_traceback_later(LAST_WORDS_S, exit=True)
    run(life)


if __name__ == "__main__":
    import uvloop  # noqa: F401  # so that no child has to

    serve(main)
