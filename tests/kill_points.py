"""Points of the coordinator's work at which a process can be told to die: before, inside and after every step.

`arm` wraps what the engine does to the world (a message sent, a record written, a group published, a file renamed or
made) in this process, for good. The n-th point reached is fatal. With n = 0 none is, and their names are only
collected: that is the first pass.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shardengine.engine.commit.coordinator import Coordinator
from shardengine.engine.commit.decision import DecisionFile
from shardengine.engine.commit.packing import Packing
from shardengine.engine.commit.takeover import Takeover
from shardengine.engine.read.cut import Reads
from shardengine.engine.run.processes import Workers
from shardengine.engine.storage import generations
from shardengine.shards import wire


class Points:
    """Counts the points reached; at the `fatal`-th one kills this process, or its whole process group."""

    def __init__(self, fatal: int, *, group: bool, strike: Callable[[], None] | None = None) -> None:
        """`strike`: what the fatal point does instead."""
        self.names: list[str] = []
        self._fatal = fatal
        self._group = group
        self._strike = strike

    def again(self, fatal: int) -> None:
        """Count from the start, and have another one be fatal."""
        self.names.clear()
        self._fatal = fatal

    def reach(self, name: str) -> None:
        self.names.append(name)
        if len(self.names) != self._fatal:
            return
        if self._strike is not None:
            self._strike()
            return
        if self._group:
            os.killpg(0, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

    def wrap(self, owner: Any, attribute: str, name: Callable[..., str], *, after: bool = True) -> None:
        """Make `owner.attribute` a step with a point before it and, where nothing else tells it from the point before
        the next step, one after it."""
        original = getattr(owner, attribute)

        def step(*args: Any, **kwargs: Any) -> Any:
            called = name(*args)
            self.reach(f"before {called}")
            result = original(*args, **kwargs)
            if after:
                self.reach(f"after {called}")
            return result

        setattr(owner, attribute, step)

    def tear(self) -> None:
        """Make every `os.pwrite` two writes, of its first half and of everything, with a point between."""
        original = os.pwrite

        def torn(descriptor: int, data: bytes, offset: int) -> int:
            if len(data) > 24:  # a record, not the pid in a lock file
                original(descriptor, data[: len(data) // 2], offset)
                self.reach("in the middle of a record")
            return original(descriptor, data, offset)

        os.pwrite = torn  # type: ignore[assignment]


def arm(
    fatal: int,
    *,
    group: bool,
    files: bool = False,
    exchanges: bool = False,
    strike: Callable[[], None] | None = None,
) -> Points:
    """From now on this process dies at its `fatal`-th point; with `group` it takes its workers along. `strike`: what
    happens there instead.

    `files` adds the steps that make a new directory's folders and rings; `exchanges` those in which the coordinator
    listens, and runs commands of its own.
    """
    points = Points(fatal, group=group, strike=strike)
    points.wrap(Workers, "send", lambda _, shard, order: f"sending {kind_of(order)} to shard {shard}", after=False)
    points.wrap(Workers, "start", lambda _, shard: f"starting worker {shard}", after=False)
    points.wrap(DecisionFile, "write", lambda _, record: f"writing the record of group {record.position.group}")
    points.wrap(Reads, "publish", lambda *_: "a publish")
    points.wrap(Path, "rename", lambda path, to: f"renaming {path.name} to {Path(to).name}")
    points.tear()
    if exchanges:
        exchange_points(points)
    if files:
        points.wrap(Path, "mkdir", lambda path, *_: f"making {path.name}", after=False)
        points.wrap(
            generations, "create_ring", lambda path, _: f"making the {path.name} of {path.parent.name}", after=False
        )
    return points


ARMED = [
    (Workers, "send"),
    (Workers, "start"),
    (DecisionFile, "write"),
    (Reads, "publish"),
    (Path, "rename"),
    (os, "pwrite"),
    (Coordinator, "on_answer"),
    (Takeover, "_attempt"),
    (Packing, "append"),
]
"""What `arm` replaces, with `exchanges`."""


def exchange_points(points: Points) -> None:
    """The steps of an exchange that send nothing."""
    points.wrap(Coordinator, "on_answer", lambda _, shard, said: f"taking {kind_of(said)} of {shard}", after=False)
    points.wrap(Takeover, "_attempt", lambda _, spanning, *__: f"running entry {spanning.entry % 16}", after=False)
    points.wrap(Packing, "append", lambda *_: "laying writes behind the parts")


def kind_of(message: wire.Order | wire.Answer) -> str:
    """The name of a message; of a part that asks, too."""
    asks = isinstance(message, wire.Part) and message.pause
    return f"{'asking ' * asks}{type(message).__name__}"


def armed_on_files(fatal: int, also: str) -> Points:
    """Die before, inside or after the `fatal`-th step that changes files, `also` among the system's calls."""
    points = Points(fatal, group=False)
    points.tear()
    for name in ("pwrite", "fdatasync", "fsync", also):
        points.wrap(os, name, lambda *_, name=name: name, after=False)
    for name in ("rename", "unlink"):
        points.wrap(Path, name, lambda path, *_, name=name, **__: f"{name} {path.name}")
    return points
