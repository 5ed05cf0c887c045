"""The readers' side of one shard whose slots in the readers' table are gone."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shardengine import (
    ViewClosedError,
)
from shardengine.shards.store import ReadStore
from shardengine.shards.types import Position

WRITER = """
import sys
from pathlib import Path
from shardengine.shards.placement import SLOTS
from shardengine.shards.store import Identity, Store
from shardengine.shards.types import Position
store = Store(Path(sys.argv[1]), Identity("g", 0, 1, SLOTS, "m"), map_bytes=64 << 20, readers_max=8, sync=False)
print("open", flush=True)
for line in sys.stdin:
    store.begin()
    store.write({b"k": line.strip().encode()})
    store.commit(Position(int(line), int(line), 1, 0))
    print("done", flush=True)
store.close()
"""


def writer(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "open\n"
    return process


def commit_in(process: subprocess.Popen[str], group: int) -> None:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(f"{group}\n")
    process.stdin.flush()
    assert process.stdout.readline() == "done\n"


@contextmanager
def told_without(lock: threading.RLock) -> Iterator[list[bool]]:
    """Whether another thread could have `lock`, for every line that is logged."""
    free: list[bool] = []

    def try_it() -> None:
        free.append(lock.acquire(blocking=False))
        if free[-1]:
            lock.release()

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            thread = threading.Thread(target=try_it)
            thread.start()
            thread.join()

    handler, log = Handler(), logging.getLogger("shardengine")
    log.addHandler(handler)
    try:
        yield free
    finally:
        log.removeHandler(handler)


def test_a_shard_whose_slots_are_gone_and_that_is_ahead_is_read_again_after_its_publish(tmp_path: Path) -> None:
    from shardengine.engine.read.cut import Reads

    (tmp_path / "s").mkdir()

    def open_store(shard: int) -> ReadStore:
        return ReadStore(tmp_path / "s", None, map_bytes=64 << 20, readers_max=8)

    first = writer(tmp_path / "s")
    commit_in(first, 1)
    reads = Reads(open_store, 1, Position(1, 1, 1, 0), lambda key: 0)
    commit_in(first, 2)
    first.kill()
    with first:
        pass
    (tmp_path / "s" / "lock.mdb").open().close()
    with writer(tmp_path / "s") as second:
        with told_without(reads.lock) as told:
            reads.worker_came(0)
        assert told == [True], "a handler may wait for a thread that reads"
        with pytest.raises(ViewClosedError, match="cannot be read at this moment"):
            reads.cut.get(b"k")
        pinned = reads.pin()
        with pytest.raises(ViewClosedError, match="cannot be read at this moment"):
            pinned.scan_prefix(b"")
        reads.publish([0], Position(2, 2, 1, 0))
        pinned.hand_back()
        assert (reads.cut.get(b"k"), reads.pinned) == (b"2", 0)
        for group in range(3, 8):
            commit_in(second, group)
            assert reads.cut.get(b"k") == b"%d" % (group - 1)
            reads.publish([0], Position(group, group, 1, 0))
        reads.close()
        assert second.stdin is not None
        second.stdin.close()
    assert second.returncode == 0
