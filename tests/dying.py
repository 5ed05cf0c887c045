"""Machines that kill, or stop, the worker they run in. Workers import them from here.

`DYING` in the environment names a directory. A worker dies at the step whose name a file there has; it removes the file
first, so that it dies once, unless the name ends in `-always`. Of a group with an exchange the step's name says which
shard it is, and the file holds a letter for each time that it is reached: `x`, it dies, or `.`, it does not.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from shardengine import Context, Delete, KeyValue, Put, Tx
from shardengine.ipc.link import Link
from shardengine.shards import wire
from shardengine.shards.shard import Shard
from shardengine.shards.store import Store
from shardengine.shards.worker import Process
from tests.wander import Wanderer

ENVIRONMENT = "DYING"
GATE = "gate"
STEPS = ("apply", "before write", "after write", "before commit", "after commit", "after answer")
"""Where a worker can be told to die: in `apply`, around LMDB's calls, and behind an answer that it sent."""
EXCHANGE_STEPS = (
    "before its commands", "before Values 0", "after Values 0", "before Values 1", "after Values 1", "before Writes",
    "before write", "after write", "after Vote", "before commit", "after commit", "after Committed",
)  # fmt: skip
"""Where a worker can be told to die in a group with an exchange: at each thing it does, and behind each answer."""


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


class DyingWanderer(Wanderer):
    """The machine of tests/wander.py, in a worker that dies at the step of an exchange that it is told to."""

    name: ClassVar[str] = "test.dying-wanderer"
    place: ClassVar[str] = ""

    def __init__(self) -> None:
        if Process.is_worker:
            Store.__init__ = _placed(Store.__init__)  # type: ignore[method-assign]
            Shard._begin = _awaited(Shard._begin, lambda *_: "before its commands")  # type: ignore[method-assign]
            Shard._answer = _awaited(Shard._answer, _values)  # type: ignore[method-assign]
            Shard._finish = _awaited(Shard._finish, lambda *_: "before Writes")  # type: ignore[method-assign]
            for name in ("write", "commit"):
                step = _awaited(getattr(Store, name), lambda *_, name=name: f"before {name}", f"after {name}")
                setattr(Store, name, step)
            Link.send = _said(Link.send)  # type: ignore[assignment, method-assign]


def _values(shard: Shard, part: wire.Part, paused: Any, question: wire.Question) -> str:
    return f"before Values {question.number}"


def _placed(original: Callable[..., None]) -> Callable[..., None]:
    def init(store: Store, directory: Path, *args: Any, **facts: Any) -> None:
        DyingWanderer.place = directory.name
        original(store, directory, *args, **facts)

    return init


def _awaited(original: Callable[..., Any], before: Callable[..., str], after: str = "") -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        count_down(before(*args))
        result = original(*args)
        count_down(after)
        return result

    return call


def _said(original: Callable[[Link, bytes], None]) -> Callable[[Link, bytes], None]:
    def send(link: Link, message: bytes) -> None:
        original(link, message)
        answer = wire.decode_answer(message)
        number = f" {answer.number}" if isinstance(answer, wire.Values) else ""
        count_down(f"after {type(answer).__name__}{number}")

    return send


def count_down(step: str) -> None:
    """Die if this step was chosen, and this is one of the times."""
    file = Path(os.environ[ENVIRONMENT], f"{step} of {DyingWanderer.place}")
    try:
        times = file.read_text()
    except FileNotFoundError:
        return
    if times[1:]:
        file.write_text(times[1:])
    else:
        file.unlink()
    if times[0] == "x":
        os.kill(os.getpid(), signal.SIGKILL)
