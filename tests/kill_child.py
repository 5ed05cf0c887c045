"""The process that is killed: an engine in a process group of its own, fed with a log that needs no source.

`live` is given the JSON of an `Orders`, in a process of tests/forking.py.

It says what happens on its standard output, in frames of a length and a msgpack `Frame`: what it found when it had
opened the directory, before anything was fed; the index of every chunk that was acknowledged; the points it reached.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import deque

import msgspec

from shardengine import ApplyResult, Engine, EngineConfig, run
from shardengine.engine.run.processes import Workers
from shardengine.shards import wire
from tests import banking
from tests.kill_points import Points, arm, kind_of
from tests.logs import Log, log_named, told
from tests.nursery import Nursery

CONFIG = EngineConfig(map_bytes=16 << 20, ring_bytes=1 << 20, value_bytes_max=16 << 10)
TERMS_TOLD = 100


class Orders(msgspec.Struct, frozen=True):
    """What to do with `directory`: `open` it only, `stream` for ever, or run the `script` once and stop.

    log: the name of one of tests/logs.py. views: of a stream that is a bank's, look at views all the time. sizes_seed,
    window, largest: of a stream's chunks. fatal, group, files, exchanges: see `tests.kill_points`; points are counted
    from before the directory is opened, or from where the script has reached its starting place. forked: its workers
    are not started, but come from tests/nursery.py.
    """

    directory: str
    shards: int
    seed: int
    what: str = "open"
    log: str = "plain"
    views: bool = False
    sizes_seed: str = ""
    window: int = 1
    largest: int = 64
    fatal: int = -1
    group: bool = False
    files: bool = False
    exchanges: bool = False
    forked: bool = True


class Opened(msgspec.Struct, frozen=True, tag=True):
    """The state that the engine had when `start` returned, and what it had sent to its workers by then. `terms` are
    those of the newest entries."""

    outcome: str
    index: int
    term: int
    terms: list[int | None]
    count: int
    digest: bytes
    records: dict[bytes, bytes]
    workers: list[int]
    sent: list[str]


class Acknowledged(msgspec.Struct, frozen=True, tag=True):
    """A chunk was applied; `told` are those of its results that say more than that it succeeded."""

    index: int
    told: list[ApplyResult]


class Viewed(msgspec.Struct, frozen=True, tag=True):
    """What accounts whose names begin with `prefix` held together in a view."""

    revision: int
    prefix: bytes
    accounts: int
    money: int


class Ended(msgspec.Struct, frozen=True, tag=True):
    """Stopped, without having been killed; `points` are those that were reached."""

    points: list[str]


Frame = Opened | Acknowledged | Viewed | Ended


def say(frame: Frame) -> None:
    payload = msgspec.msgpack.encode(frame)
    data = len(payload).to_bytes(4, "little") + payload
    while data:
        data = data[os.write(1, data) :]


async def look(db: Engine, outcome: str, sent: list[str]) -> Opened:
    last = db.last_applied()
    workers = [int(worker["pid"]) for worker in db.stats()["workers"]]
    records = dict(db.scan_prefix(b"").entries)
    digest, first = await db.digest(), max(1, last.index + 1 - TERMS_TOLD)
    terms = [db.entry_term(index) for index in range(first, last.index + 1)]
    return Opened(outcome, last.index, last.term, terms, len(db), digest, records, workers, sent)


async def feed(db: Engine, log: Log, first: int, last: int) -> Acknowledged:
    return Acknowledged(last, told(await db.apply_chunk(log.entries(first, last))))


async def stream(db: Engine, log: Log, orders: Orders) -> None:
    """Chunks without end, `window` of them in flight."""
    start = db.last_applied().index
    flying: deque[asyncio.Task[Acknowledged]] = deque()
    for end in log.ends(orders.sizes_seed, start, orders.largest):
        flying.append(asyncio.create_task(feed(db, log, start + 1, end)))
        start = end
        if len(flying) == orders.window:
            say(await flying.popleft())


async def view(db: Engine, seed: str) -> None:
    """Views without end, at random moments."""
    rng = random.Random(seed)
    while True:
        await asyncio.sleep(rng.random() * banking.LOOK_EVERY_S)
        with db.view() as seen:
            say(Viewed(seen.revision, *banking.look(seen, rng)))


async def script(db: Engine, log: Log, orders: Orders) -> Points | None:
    """The script: votes and records, solos, a group of no-ops, groups staged and merged, a flush; or that of the log's
    exchanges."""
    points = None
    start = db.last_applied().index
    for number, ends in enumerate(log.script(start)):
        if number == 1 and orders.fatal >= 0:
            points = arm(orders.fatal, group=orders.group, exchanges=orders.exchanges)
        flying = []
        for end in ends:
            flying.append(asyncio.create_task(feed(db, log, start + 1, end)))
            start = end
        for task in flying:
            say(await task)
        if number == 6:  # the chunk behind it makes the run mark unclean again
            await db.flush_async()
    return points


def overhear(sent: list[str]) -> None:
    """Write down what is sent to workers."""
    original = Workers.send

    def send(self: Workers, shard: int, order: wire.Order) -> None:
        sent.append(kind_of(order))
        original(self, shard, order)

    Workers.send = send  # type: ignore[method-assign]


async def main(orders: Orders) -> None:
    points, sent = None, list[str]()
    overhear(sent)
    if orders.what == "open" and orders.fatal >= 0:
        points = arm(orders.fatal, group=orders.group, files=orders.files)
    log = log_named(orders.log, orders.seed, orders.shards)
    db = Engine(orders.directory, shards=orders.shards, machine=log.machine, config=CONFIG)
    report = db.start()
    say(await look(db, report.outcome, sent.copy()))
    if orders.what == "stream":
        viewing = asyncio.create_task(view(db, orders.sizes_seed)) if orders.views else None
        await stream(db, log, orders)
        assert viewing is None, "a stream has no end"
    if orders.what == "script":
        points = await script(db, log, orders)
    await db.aclose()
    say(Ended(points.names if points else []))


def live(text: str) -> None:
    orders = msgspec.json.decode(text, type=Orders)
    if orders.forked:
        Nursery.of_its_own().serve_all()
    run(main(orders))
