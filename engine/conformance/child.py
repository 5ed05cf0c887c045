"""The victim: a process that feeds a machine, and says so, until it is killed.

It says, a line each: "opening", before the machine is started; "opened N", where the machine stands then; "applied N",
when the chunk that ends with entry N was acknowledged; of a machine that supports "snapshots", "installing N", before a
snapshot of its state there is installed in it again; and, of a machine that supports "hard_state", "voted N" when its
vote in term N was saved, ahead of the first chunk that ends in this term.
"""

from __future__ import annotations

import asyncio
import faulthandler
import importlib
import importlib.util
import os
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from shardengine import HardState
from shardengine.engine.conformance.base import Hooks, MachineUnderTest

LARGEST = 40  # entries in a chunk: a chunk ends in the term it begins in, or in the next
VOTE = "a node"
INSTALLED = 4  # behind one chunk in so many, the first one too, comes an install


class Orders(msgspec.Struct, frozen=True):
    """What to feed, and the class that builds it: its name in a module, and the file of that.

    seed: of the chunks' sizes. watchdog_s: after so long it ends by itself.
    """

    file: str
    module: str
    name: str
    directory: str
    seed: str
    watchdog_s: float


def ends(seed: str, start: int) -> Iterator[int]:
    """Where the chunks end that are fed from `start` on."""
    draw, at = random.Random(f"{seed}/{start}"), start
    while True:
        at += draw.randint(1, LARGEST)
        yield at


def found(orders: Orders) -> type[Hooks]:
    """The class, out of its module where that can be imported, else out of its file, as that module."""
    module = sys.modules.get(orders.module) or _imported(orders)
    if module is None or Path(getattr(module, "__file__", None) or "").resolve() != Path(orders.file):
        spec = importlib.util.spec_from_file_location(orders.module, orders.file)
        if spec is None or spec.loader is None:
            raise ImportError(f"{orders.file} cannot be imported", name=orders.module, path=orders.file)
        module = importlib.util.module_from_spec(spec)
        sys.modules[orders.module] = module
        spec.loader.exec_module(module)
    kind: Any = module
    for name in orders.name.split("."):
        kind = getattr(kind, name)
    suite: type[Hooks] = kind
    return suite


def _imported(orders: Orders) -> Any:
    try:
        return importlib.import_module(orders.module)
    except ModuleNotFoundError as error:
        if not f"{orders.module}.".startswith(f"{error.name}."):
            raise
        return None


async def feed(suite: Hooks, orders: Orders, voice: int) -> None:
    """Start the machine over that directory, and feed it for ever."""
    machine = suite.build(Path(orders.directory))
    os.write(voice, b"opening\n")
    machine.start()
    at, log = machine.last_applied().index, suite.log()
    os.write(voice, b"opened %d\n" % at)
    term = log.term(at)
    for number, end in enumerate(ends(orders.seed, at)):
        if "hard_state" in suite.supports and log.term(end) > term:
            term = log.term(end)
            machine.save_hard_state(HardState(term, VOTE))
            os.write(voice, b"voted %d\n" % term)
        await machine.apply_chunk(suite.entries(log, at + 1, end))
        os.write(voice, b"applied %d\n" % end)
        at = end
        if "snapshots" in suite.supports and number % INSTALLED == 0:
            await install(machine, Path(orders.directory), at, voice)


async def install(machine: MachineUnderTest, directory: Path, at: int, voice: int) -> None:
    """A snapshot of its own state, of now: whatever is left of that when it is killed, the state is the same."""
    with tempfile.TemporaryDirectory(dir=directory.parent) as place:
        await machine.generate_snapshot_data(place, None)
        metadata = machine.snapshot_metadata()
        assert metadata is not None
        os.write(voice, b"installing %d\n" % at)
        await machine.apply_snapshot_from_file(metadata, place)


def main() -> None:
    orders = msgspec.json.decode(sys.argv[-1], type=Orders)
    faulthandler.dump_traceback_later(orders.watchdog_s, exit=True)
    voice = os.dup(1)
    os.dup2(2, 1)  # what the machine prints is no word of ours
    asyncio.run(feed(found(orders)(), orders, voice))
