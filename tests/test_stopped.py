"""An engine that has stopped: no read is answered, nothing is left open, and it can be started again."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from shardengine import (
    Engine,
    EngineConfig,
    EngineLockedError,
    EngineStateError,
    EngineStoppedError,
    LogId,
    View,
    ViewClosedError,
    WorkerFailedError,
)
from shardengine.engine.read.cut import Reads
from tests.directories import holds_ten, opened, puts
from tests.inside import one_turn, reads_left


def reads(db: Engine) -> list[Callable[[], object]]:
    """Every call that says something of the state."""
    return [
        lambda: db.get(b"k9"),
        lambda: db.get(b"of no record"),
        lambda: db.get_multi([b"k9"]),
        lambda: db.scan_prefix(b"k"),
        lambda: len(db),
        lambda: asyncio.run(db.digest()),
        lambda: db.entry_term(1),
        db.is_empty,
        db.view,
        db.last_applied,
        db.durable,
        db.stats,
    ]


def test_no_read_is_answered_before_a_start_nor_after_a_stop_until_another_start(tmp_path: Path) -> None:
    db = Engine(tmp_path / "db", shards=3)
    for read in reads(db):
        with pytest.raises(EngineStateError, match="not open") as caught:
            read()
        assert not isinstance(caught.value, EngineStoppedError)
    db.start()
    with pytest.raises(EngineStateError, match="the engine runs"):
        db.close_storage()
    view, digest = asyncio.run(_applied_then_stopped(db))
    for read in reads(db):
        with pytest.raises(EngineStoppedError, match="was stopped"):
            read()
    db.close_storage()
    db.close_storage()
    for read in (lambda: view.get(b"k9"), lambda: len(view), lambda: digest.send(None)):
        with pytest.raises(ViewClosedError, match="engine was stopped"):
            read()
    for read in reads(db):
        with pytest.raises(EngineStoppedError, match="was stopped"):
            read()
    db.start()
    assert (db.is_running(), db.get(b"k9"), len(db), db.last_applied()) == (True, b"v9", 10, LogId(10, 1))
    with pytest.raises(ViewClosedError):
        view.get(b"k9")
    db.stop()


async def _applied_then_stopped(db: Engine) -> tuple[View, Coroutine[Any, Any, bytes]]:
    """Returns a view and a digest under way, of an engine that is stopped now."""
    await db.apply_chunk(puts(1, 10))
    view, digest = db.view(), db.digest()
    digest.send(None)
    assert (view.get(b"k9"), db.get(b"k9"), len(db)) == (b"v9", b"v9", 10)
    db.stop()
    return view, digest


def test_a_stop_leaves_nothing_open_that_a_new_engine_on_the_path_could_stumble_over(tmp_path: Path) -> None:
    old = Engine(tmp_path / "db", shards=2)
    old.start()
    view, digest = asyncio.run(_applied_then_stopped(old))
    digest.close()
    new = Engine(tmp_path / "db")
    assert new.start().last_applied == LogId(10, 1)
    assert new.get(b"k1") == b"v1"
    with pytest.raises(EngineStoppedError):
        old.get(b"k1")
    with pytest.raises(ViewClosedError):
        view.get(b"k1")
    new.stop()


def slowly(
    copy: Callable[[Reads, int, int], None], begun: threading.Event, go_on: threading.Event, copied: list[int]
) -> Callable[[Reads, int, int], None]:
    """A copy that says when it has begun, waits, and notes which shard it was of."""

    def slow(self: Reads, shard: int, descriptor: int) -> None:
        begun.set()
        go_on.wait(30)
        copy(self, shard, descriptor)
        copied.append(shard)

    return slow


def test_what_a_thread_still_reads_as_the_engine_stops_stays_open_until_it_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy out of an environment that is closed under it would end the process."""
    begun, go_on, copied = threading.Event(), threading.Event(), list[int]()
    slow = slowly(Reads.copy, begun, go_on, copied)

    async def main() -> Engine:
        db = Engine(tmp_path / "db", shards=1, config=EngineConfig(stop_timeout_ms=1))
        db.start()
        await db.apply_chunk(puts(1, 10))
        view, digest = db.view(), db.digest()
        digest.send(None)
        monkeypatch.setattr(Reads, "copy", slow)
        compacting = asyncio.ensure_future(db.compact())
        while not begun.is_set():
            await one_turn()
        with pytest.raises(WorkerFailedError, match="still at work"):
            db.stop()
        db.close_storage()
        with pytest.raises(EngineStoppedError):
            db.get(b"k1")
        for ended in (lambda: view.get(b"k1"), lambda: digest.send(None)):
            with pytest.raises(ViewClosedError):
                ended()
        go_on.set()
        with pytest.raises(EngineStoppedError):
            await compacting
        return db

    db = asyncio.run(main())
    assert copied == [0]
    with pytest.raises(EngineLockedError):
        db.start()
    db.close_storage()
    assert reads_left(db) is None
    opened(tmp_path / "db", holds_ten)
