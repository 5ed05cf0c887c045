"""What tests look at inside an engine: the one place that knows where it lies."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from shardengine import Engine, SyncEngine
from shardengine.engine.read.cut import Reads
from shardengine.engine.run import replacing as replaces
from shardengine.engine.run import runtime, shell, tasks
from shardengine.engine.run.runtime import Runtime
from shardengine.engine.run.shell import Shell
from shardengine.node import SyncNode


def shell_of(db: Engine) -> Shell:
    return db._shell


def runtime_of(db: Engine) -> Runtime | None:
    """The run, while there is one."""
    return shell_of(db).runtime


def reads_of(db: Engine) -> Reads:
    """Its readers' side, which is open."""
    return db._readside.now()


def reads_left(db: Engine) -> Reads | None:
    """What is still open of it, whether or not it may be read."""
    return db._readside.reads


def taking(db: Engine) -> bool:
    return db._busy.taking


def replacing(db: Engine) -> bool:
    return db._busy.replacing


def tick_often(patch: pytest.MonkeyPatch) -> None:
    """What an engine does as time passes it does sooner: what failed it tries again, and who is late it looks for."""
    for module in (runtime, shell, replaces):
        patch.setattr(module, "TICK_MS", 20)


async def one_turn() -> None:
    """Of the loop."""
    await tasks.one_turn()


def in_the_loop(db: SyncEngine | SyncNode, work: Callable[[], object]) -> None:
    """Have the thread that `db` owns do `work` soon."""
    portal = db._crossing._portal
    assert portal is not None
    portal._loop.call_soon_threadsafe(work)
