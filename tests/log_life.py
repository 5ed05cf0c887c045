"""The life of a local log that is killed, or whose calls fail, in a child of a `control.Zygote`.

It appends frames that nobody else appends, and says of each call what became of it, a JSON line each.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from shardengine import EngineError, run
from shardengine.node import LocalLog
from tests.faults.control import DISK, Faults, serve
from tests.kill_points import armed_on_files

SEGMENT = 4 << 10


class Orders(msgspec.Struct, frozen=True):
    """What to do: the `script` once, or a `stream` for ever. before: the number of the last frame that was appended by
    an earlier life. fatal: die at this point; -1: none is counted. image: keep what a power loss would leave; who dies
    while that is written must do so at a point."""

    what: str
    seed: int = 0
    before: int = 0
    fatal: int = -1
    image: bool = False


class Said(msgspec.Struct, frozen=True):
    """step: "open", "append", "cut", "close", "points"; "cutting" is said before. error: "" or the name of its class,
    with its errno. frames: the numbers of those that were appended, at `positions`."""

    step: str
    error: str = ""
    errno: int | None = None
    frames: list[int] = []
    positions: list[int] = []
    points: list[str] = []


def frame(number: int) -> bytes:
    """The frame of this number, of 8 to 1000 bytes."""
    chance = random.Random(number)
    return number.to_bytes(8, "big") + chance.randbytes(chance.choice([0, 3, 100, 300, 992]))


def number_of(data: bytes) -> int:
    return int.from_bytes(data[:8], "big")


def say(said: Said) -> None:
    os.write(1, msgspec.json.encode(said) + b"\n")


class Life:
    def __init__(self, place: Path, before: int) -> None:
        self.log = LocalLog(place / DISK / "log", segment_bytes=SEGMENT)
        self.number = before

    async def append(self, count: int) -> None:
        """The next `count` frames, in one call."""
        numbers = list(range(self.number + 1, self.number + 1 + count))
        self.number += count
        positions: list[int] = []

        async def append() -> None:
            positions.extend(await self.log.append([frame(number) for number in numbers]))

        await self.step("append", append, numbers, positions)

    async def step(
        self,
        step: str,
        work: Callable[[], Awaitable[object]],
        numbers: list[int] | None = None,
        positions: list[int] | None = None,
    ) -> bool:
        try:
            await work()
        except EngineError as error:
            number = error.facts.get("errno")
            say(Said(step, type(error).__name__, number, numbers or []))
            return False
        say(Said(step, frames=numbers or [], positions=positions or []))
        return True

    async def cut(self, position: int) -> bool:
        say(Said("cutting", positions=[position]))
        return await self.step("cut", lambda: self.log.truncate_before(position))

    async def open(self) -> bool:
        return await self.step("open", self.log.open)

    async def close(self) -> bool:
        return await self.step("close", self.log.aclose)


async def script(life: Life, faults: Faults) -> None:
    """Segments are made, filled, and removed; some calls overlap, and one is longer than a segment. Then once more,
    without faults."""
    faults.enter("create")
    opened = await life.open()
    faults.leave()
    if not opened:
        await life.open()
    faults.enter("apply")
    for _ in range(4):
        await life.append(1)
    await asyncio.gather(*(life.append(1) for _ in range(4)))
    await life.append(9)
    await life.cut(10)
    await life.append(1)
    faults.leave()
    await life.append(2)
    faults.enter("stop")
    await life.close()
    faults.enter("start")
    opened = await life.open()
    faults.leave()
    if not opened:
        await life.open()
    for _ in range(3):
        await life.append(1)


async def stream(life: Life, seed: int) -> None:
    """Calls without end, several at once, and a cut now and then."""
    chance = random.Random(seed)
    await life.open()
    while True:
        await asyncio.gather(*(life.append(chance.choice([1, 1, 1, 2, 9])) for _ in range(chance.randint(1, 8))))
        if chance.random() < 0.1:
            await life.cut(chance.randint(1, await life.log.last()))
        if chance.random() < 0.02:
            await life.close()
            await life.open()


def main(place: Path, text: str) -> None:
    orders = msgspec.json.decode(text, type=Orders)

    async def life() -> None:
        with Faults(place) as faults:
            if orders.image:
                faults.image(place / DISK)
            points = None if orders.fatal < 0 else armed_on_files(orders.fatal, "posix_fallocate")
            life = Life(place, orders.before)
            if orders.what == "script":
                await script(life, faults)
            else:
                await stream(life, orders.seed)
            faults.lose_power()
            await life.close()
            say(Said("points", points=points.names if points else []))

    run(life)


if __name__ == "__main__":
    import uvloop  # noqa: F401  # so that no child has to

    serve(main)
