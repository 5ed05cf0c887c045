"""An engine in a process of its own, told line by line what to do: what other processes read is judged beside it.

Its state is 64 keys that lie on every shard, and one version: each chunk sets all of them to its own number. Run as
`python -m tests.writing DIRECTORY SHARDS`; `Writer` is the other end.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from shardengine import Engine, EngineConfig, Entry, LogId, Put, encode, run
from shardengine.engine.run.processes import Workers
from shardengine.engine.run.runtime import Runtime
from shardengine.engine.storage.control import ControlPage
from shardengine.shards import wire
from tests.inside import one_turn
from tests.killing import DEEP, ROOT, environment
from tests.nursery import Nursery

KEYS = [b"key-%02d" % number for number in range(64)]
ALONE = b"alone"
WATCHDOG_S = 60.0
CONFIG = EngineConfig(map_bytes=256 << 20, ring_bytes=256 << 10)


class Writer:
    """Leaving the block ends the process, as hard as it takes, and its workers with it."""

    def __init__(self, directory: Path, shards: int = 3) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.writing", str(directory), str(shards)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env=environment(),
            start_new_session=True,
        )
        self.pid = self._process.pid
        self._watchdog = threading.Timer(WATCHDOG_S, lambda: os.killpg(self.pid, signal.SIGKILL))
        self._watchdog.start()
        assert self.answer() == "started"

    def tell(self, *words: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(map(str, words)).encode() + b"\n")
        self._process.stdin.flush()

    def answer(self) -> str:
        """The answer to what was told first; "" when it has ended."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().decode().strip()

    def ask(self, *words: object) -> str:
        self.tell(*words)
        return self.answer()

    def dies(self, *words: object) -> None:
        """Tell it what kills it, and return when it, and every worker of it, has ended."""
        workers = [os.pidfd_open(int(pid)) for pid in self.ask("workers").split()]
        assert self.ask(*words) == ""
        self._process.wait(WATCHDOG_S)
        self._watchdog.cancel()
        _await_ends(workers)

    def kill(self, *, workers: bool = True) -> None:
        """SIGKILL, of it and of its workers, or of it alone. Returns when all have ended."""
        ends = [os.pidfd_open(int(pid)) for pid in children_of(self.pid)]
        (os.killpg if workers else os.kill)(self.pid, signal.SIGKILL)
        self._process.wait(WATCHDOG_S)
        self._watchdog.cancel()
        _await_ends(ends)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if self._process.poll() is None and error is None:
                assert self._process.stdin is not None
                self._process.stdin.close()
                self._process.wait(WATCHDOG_S)
            elif self._process.poll() is None:
                self.kill()
        finally:
            self._watchdog.cancel()
            for pipe in (self._process.stdin, self._process.stdout):
                assert pipe is not None
                try:
                    pipe.close()
                except BrokenPipeError:
                    pass


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _await_ends(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        assert select.select([descriptor], [], [], WATCHDOG_S)[0], "a worker outlives its coordinator"
        os.close(descriptor)


# ---- the process -----------------------------------------------------------------------------------------------------


async def flip(db: Engine, first: int, count: int) -> None:
    """Set every key to `first`, then to the next number, and so on, `count` times."""
    for version in range(first, first + count):
        index = db.last_applied().index
        await db.apply_chunk(
            [Entry(index + 1 + place, 1, encode(Put(key, b"%d" % version))) for place, key in enumerate(KEYS)]
        )


async def put_alone(db: Engine, value: int) -> None:
    """A solo: one key, of one shard."""
    await db.apply_chunk([Entry(db.last_applied().index + 1, 1, encode(Put(ALONE, b"%d" % value)))])


async def kill_worker(db: Engine, shard: int) -> None:
    """Kill it, and return when its successor is up."""
    runtime = db._running()
    starts, pid = runtime.workers.starts[shard], runtime.workers.pid(shard)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    while runtime.workers.starts[shard] == starts or shard not in runtime.coordinator.up:
        await one_turn()


def _patch(kind: Any, name: str, instead: Callable[..., Any]) -> None:
    setattr(kind, name, instead)


def _dying(*_: Any) -> Any:
    os._exit(9)


def die_before_publish() -> None:
    """Every participant has committed."""
    _patch(Runtime, "published", _dying)


def die_before_commit() -> None:
    """It is decided, and no COMMIT is sent."""
    _patch(Workers, "send", _instead_of_commit(0))


def die_between_commits() -> None:
    """One shard has committed, the others were not told to."""
    _patch(Workers, "send", _instead_of_commit(1))


def hang_between_commits() -> None:
    """One shard has committed; what the others are to be told is kept back, for ever."""
    _patch(Workers, "send", _instead_of_commit(1, dies=False))


def _instead_of_commit(sent: int, *, dies: bool = True) -> Callable[[Workers, int, wire.Order], None]:
    original, links = Workers.send, list[int]()

    def send(workers: Workers, shard: int, order: wire.Order) -> None:
        if isinstance(order, wire.Commit) and len(links) == sent:
            if links and dies:
                select.select(links, [], [], WATCHDOG_S)  # its answer: it has committed
            if dies:
                os._exit(9)
            return
        if isinstance(order, wire.Commit):
            link = workers.links[shard]
            assert link is not None
            links.append(link.fileno())
        original(workers, shard, order)

    return send


def hang_before_publish() -> None:
    """Every participant has committed, and the engine does nothing more: it gives no sign of life either."""
    _patch(Runtime, "published", lambda *_: signal.pause())


def die_in_the_page() -> None:
    """While the control page is written."""

    def publish(page: ControlPage, _: object) -> None:
        page._words[1] = page._sequence + 1
        os._exit(9)

    _patch(ControlPage, "publish", publish)


async def serve(directory: str, shards: int) -> None:
    db = Engine(directory, shards=shards, config=CONFIG)
    db.start()
    await db.apply_chunk([])  # from here on the loop drives it
    sys.stdout.write("started\n")
    sys.stdout.flush()
    loop = asyncio.get_running_loop()
    while words := (await loop.run_in_executor(None, sys.stdin.readline)).split():
        sys.stdout.write(f"{await _carry_out(db, *words)}\n")
        sys.stdout.flush()
    await db.aclose()


async def _carry_out(db: Engine, what: str, *numbers: str) -> str:
    said = " ".join(numbers)
    match what:
        case "flip":
            await flip(db, int(numbers[0]), int(numbers[1]))
        case "alone":
            await put_alone(db, int(numbers[0]))
        case "noop":
            await db.apply_chunk([Entry(db.last_applied().index + 1, 1, b"")])
        case "pass":
            db.update_last_applied(LogId(db.last_applied().index + 10, 1))
        case "kill":
            await kill_worker(db, int(numbers[0]))
        case "snapshot":
            return (await db.create_snapshot()).path
        case "restore":
            await db.restore(said, force=True)
        case "compact":
            await db.compact()
        case "reset":
            await db.reset()
        case "restart":
            db.stop()
            db.start()
            await db.apply_chunk([])
        case "die":
            {"publish": die_before_publish, "commit": die_before_commit, "commits": die_between_commits,
             "page": die_in_the_page, "never": hang_between_commits,
             "silent": hang_before_publish}[numbers[0]]()  # fmt: skip
        case "digest":
            return (await db.digest()).hex()
        case "workers":
            return " ".join(str(db._running().workers.pid(shard)) for shard in range(db._running().shards))
        case "slots":
            return str(sum(store._env.info()["num_readers"] for store in db._running().reads.stores))
    return str(db.last_applied().index)


if __name__ == "__main__":
    if not DEEP:
        Nursery.of_its_own().serve_all()
    run(serve(sys.argv[1], int(sys.argv[2])))
