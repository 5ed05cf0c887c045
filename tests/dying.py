"""Machines that kill, or stop, the worker they run in. Workers import them from here.

`DYING` in the environment names a directory. A worker dies at the step whose name a file there has; it removes the file
first, so that it dies once, unless the name ends in `-always`.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from shardengine import Context, Delete, KeyValue, Put, Tx
from shardengine.ipc.link import Link
from shardengine.shards.store import Store
from shardengine.shards.worker import Process

ENVIRONMENT = "DYING"
GATE = "gate"
STEPS = ("apply", "before write", "after write", "before commit", "after commit", "after answer")
"""Where a worker can be told to die: in `apply`, around LMDB's calls, and behind an answer that it sent."""


def reach(step: str) -> None:
    """Die if this step was chosen."""
    directory = Path(os.environ[ENVIRONMENT])
    try:
        (directory / step).unlink()
    except FileNotFoundError:
        if not (directory / f"{step}-always").exists():
            return
    os.kill(os.getpid(), signal.SIGKILL)


def _answered(original: Callable[[Link, bytes], None]) -> Callable[[Link, bytes], None]:
    def send(link: Link, message: bytes) -> None:
        original(link, message)
        if b"Hello" not in message[:16]:
            reach("after answer")

    return send


def _watched(original: Callable[..., Any], name: str) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        reach(f"before {name}")
        result = original(*args)
        reach(f"after {name}")
        return result

    return call


class Dying(KeyValue):
    """The built-in machine, in a worker that dies at the step it is told to. A command on a key that begins with `wait`
    takes until there is a byte to read in the FIFO `gate`."""

    name: ClassVar[str] = "test.dying"

    def __init__(self) -> None:
        if Process.is_worker:
            Store.write = _watched(Store.write, "write")  # type: ignore[method-assign]
            Store.commit = _watched(Store.commit, "commit")  # type: ignore[method-assign]
            Link.send = _answered(Link.send)  # type: ignore[assignment, method-assign]

    def apply(self, tx: Tx, command: Any, context: Context) -> None:
        reach("apply")
        if command.key.startswith(b"wait"):
            os.read(os.open(Path(os.environ[ENVIRONMENT]) / GATE, os.O_RDONLY), 1)
        super().apply(tx, command, context)


class Deadly(KeyValue):
    """The built-in machine, whose worker ends when it is to delete `die`, and hangs when it is to put `hang`; but not
    while the file `mended` lies in the directory that the environment names."""

    name: ClassVar[str] = "test.deadly"

    def apply(self, tx: Tx, command: Any, context: Context) -> None:
        if not (Path(os.environ[ENVIRONMENT]) / "mended").exists():
            if isinstance(command, Delete) and command.key == b"die":
                os._exit(9)
            if isinstance(command, Put) and command.key == b"hang":
                (Path(os.environ[ENVIRONMENT]) / "mended").touch()
                os.kill(os.getpid(), signal.SIGSTOP)
        super().apply(tx, command, context)
