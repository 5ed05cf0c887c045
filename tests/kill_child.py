"""The process that is killed: an engine in a process group of its own, fed with a log that needs no source.

    python -m tests.kill_child ORDERS        ORDERS: the JSON of an `Orders`

It says what happens on its standard output, in frames of a length and a msgpack `Frame`: what it found when it had
opened the directory, before anything was fed; the index of every chunk that was acknowledged; the points it reached.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections import deque

import msgspec

from shardengine import Engine, EngineConfig, run
from tests.kill_points import Points, arm
from tests.streams import chunk_ends, entries, script_ends

CONFIG = EngineConfig(map_bytes=16 << 20, ring_bytes=1 << 20, value_bytes_max=16 << 10)


class Orders(msgspec.Struct, frozen=True):
    """What to do with `directory`: `open` it only, `stream` for ever, or run the `script` once and stop.

    sizes_seed, window, largest: of a stream's chunks. fatal, group, files: see `tests.kill_points`; points are counted
    from before the directory is opened, or from where the script has reached its starting place.
    """

    directory: str
    shards: int
    seed: int
    what: str = "open"
    sizes_seed: str = ""
    window: int = 1
    largest: int = 64
    fatal: int = -1
    group: bool = False
    files: bool = False


class Opened(msgspec.Struct, frozen=True, tag=True):
    """The state that the engine had when `start` returned."""

    outcome: str
    index: int
    term: int
    entry_term: int | None
    count: int
    digest: bytes
    records: dict[bytes, bytes]
    workers: list[int]


class Acknowledged(msgspec.Struct, frozen=True, tag=True):
    index: int


class Ended(msgspec.Struct, frozen=True, tag=True):
    """Stopped, without having been killed; `points` are those that were reached."""

    points: list[str]


Frame = Opened | Acknowledged | Ended


def say(frame: Frame) -> None:
    payload = msgspec.msgpack.encode(frame)
    data = len(payload).to_bytes(4, "little") + payload
    while data:
        data = data[os.write(1, data) :]


async def look(db: Engine, outcome: str) -> Opened:
    last = db.last_applied()
    workers = [int(worker["pid"]) for worker in db.stats()["workers"]]
    records = dict(db.scan_prefix(b"").entries)
    return Opened(
        outcome, last.index, last.term, db.entry_term(last.index), len(db), await db.digest(), records, workers
    )


async def feed(db: Engine, seed: int, first: int, last: int) -> int:
    await db.apply_chunk(entries(seed, first, last))
    return last


async def stream(db: Engine, orders: Orders) -> None:
    """Chunks without end, `window` of them in flight."""
    start = db.last_applied().index
    flying: deque[asyncio.Task[int]] = deque()
    for end in chunk_ends(orders.sizes_seed, start, orders.largest):
        flying.append(asyncio.create_task(feed(db, orders.seed, start + 1, end)))
        start = end
        if len(flying) == orders.window:
            say(Acknowledged(await flying.popleft()))


async def script(db: Engine, orders: Orders) -> Points | None:
    """The script: votes and records, solos, a group of no-ops, groups staged and merged, a flush."""
    points = None
    start = db.last_applied().index
    for number, ends in enumerate(script_ends(start)):
        if number == 1 and orders.fatal >= 0:
            points = arm(orders.fatal, group=orders.group)
        flying = []
        for end in ends:
            flying.append(asyncio.create_task(feed(db, orders.seed, start + 1, end)))
            start = end
        for task in flying:
            say(Acknowledged(await task))
        if number == 6:  # the chunk behind it makes the run mark unclean again
            await db.flush_async()
    return points


async def main(orders: Orders) -> None:
    points = None
    if orders.what == "open" and orders.fatal >= 0:
        points = arm(orders.fatal, group=orders.group, files=orders.files)
    db = Engine(orders.directory, shards=orders.shards, config=CONFIG)
    report = db.start()
    say(await look(db, report.outcome))
    if orders.what == "stream":
        await stream(db, orders)
    if orders.what == "script":
        points = await script(db, orders)
    await db.aclose()
    say(Ended(points.names if points else []))


if __name__ == "__main__":
    run(main(msgspec.json.decode(sys.argv[1], type=Orders)))
