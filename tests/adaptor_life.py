"""The life of a state machine in a directory that is killed, or whose calls fail, in a child of a `control.Zygote`.

It applies the log of tests/adaptors.py, and says what became of each step, a JSON line each.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal

import msgspec

from shardengine import EngineError, run
from tests.adaptors import durable, entries
from tests.faults.control import DISK, Faults, serve
from tests.kill_points import armed_on_files


class Orders(msgspec.Struct, frozen=True):
    """What to do: the `script` once, or a `stream` for ever. fatal: die at this point; -1: none is counted. image: keep
    what a power loss would leave; who dies while that is written must do so at a point, or after `chunks`."""

    kind: str
    what: str = "script"
    durability: Literal["process", "power"] = "process"
    seed: int = 0
    fatal: int = -1
    image: bool = False
    chunks: int = -1


class Said(msgspec.Struct, frozen=True):
    """What became of a step: "" or the class of its error. `sending` is said before a chunk, whose last index it is.
    last, durable: where it stands then."""

    step: str
    error: str = ""
    last: int = -1
    durable: int = -1
    points: list[str] = []


def say(said: Said) -> None:
    os.write(1, msgspec.json.encode(said) + b"\n")


class Life:
    def __init__(self, place: Path, orders: Orders) -> None:
        options: dict[str, Any] = {"checkpoint_bytes": 2_000} if orders.kind == "file" else {}
        self.machine = durable(orders.kind, place / DISK / "db", durability=orders.durability, **options)

    async def step(self, step: str, work: Callable[[], Awaitable[object] | object]) -> bool:
        try:
            found = work()
            if isinstance(found, Awaitable):
                await found
        except EngineError as error:
            say(Said(step, type(error).__name__))
            return False
        machine = self.machine
        if machine.is_running():
            say(Said(step, last=machine.last_applied().index, durable=machine.durable().index))
        else:
            say(Said(step))
        return True

    async def start(self) -> bool:
        return await self.step("start", self.machine.start)

    async def apply(self, count: int) -> bool:
        first = self.machine.last_applied().index + 1
        say(Said("sending", last=first + count - 1))
        return await self.step("apply", lambda: self.machine.apply_chunk(entries(first, count)))


async def script(life: Life, faults: Faults) -> None:
    """Chunks of all sizes, a flush, a compaction, and a second run. A start that fails is repeated."""
    for phase, more in (("create", "apply"), ("start", "stop")):
        faults.enter(phase)
        started = await life.start()
        faults.leave()
        if not started:
            await life.start()
        faults.enter(more)
        for count in (1, 30):
            await life.apply(count)
        await life.step("flush", life.machine.flush)
        await life.apply(3)
        await life.step("compact", life.machine.compact)
        for count in (25, 1):
            await life.apply(count)
        await life.step("stop", life.machine.stop)
        faults.leave()


async def stream(life: Life, orders: Orders) -> None:
    """Chunks without end, and a flush now and then; the death of itself after some."""
    chance = random.Random(orders.seed)
    await life.start()
    done = 0
    while done != orders.chunks:
        await life.apply(chance.choice([1, 1, 2, 9, 40]))
        if chance.random() < 0.05:
            await life.step("flush", life.machine.flush)
        done += 1
    os.kill(os.getpid(), signal.SIGKILL)


def main(place: Path, text: str) -> None:
    orders = msgspec.json.decode(text, type=Orders)

    async def life() -> None:
        with Faults(place) as faults:
            if orders.image:
                faults.image(place / DISK)
            points = None if orders.fatal < 0 else armed_on_files(orders.fatal, "ftruncate")
            life = Life(place, orders)
            if orders.what == "script":
                await script(life, faults)
            else:
                await stream(life, orders)
            faults.lose_power()
            say(Said("points", points=points.names if points else []))

    run(life)


if __name__ == "__main__":
    import uvloop  # noqa: F401  # so that no child has to

    serve(main)
