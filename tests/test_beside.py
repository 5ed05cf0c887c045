"""Work beside the loop: on several threads where they can be had, on one where not, and never later than it is told."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shardengine import Engine, run
from shardengine.engine.beside import each
from shardengine.engine.errors import StoreError
from shardengine.engine.verify import verify_directory
from tests.streams import entries


@contextmanager
def no_threads() -> Iterator[None]:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        yield


def test_several_things_are_worked_on_at_once_and_come_back_in_order() -> None:
    together = threading.Barrier(2, timeout=60)
    assert each(lambda thing: (together.wait(), thing)[1], [3, 1, 2, 0]) == [3, 1, 2, 0]
    assert each(int, []) == []


def test_without_threads_the_caller_does_it() -> None:
    with no_threads():
        assert each(lambda thing: (thing, threading.get_ident()), [1, 2]) == [
            (1, threading.get_ident()),
            (2, threading.get_ident()),
        ]


def test_after_a_failure_nothing_is_begun_and_it_is_raised() -> None:
    begun = []

    def work(thing: int) -> None:
        begun.append(thing)
        raise IndexError(thing)

    with no_threads(), pytest.raises(IndexError):
        each(work, range(9))
    assert begun == [0]


def test_a_look_at_a_directory_that_is_refused_a_process_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    db = Engine(tmp_path, shards=2)
    db.start()
    db.stop()
    db.close_storage()

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(subprocess, "run", refuse)
    with pytest.raises(StoreError, match="no process can be had") as caught:
        verify_directory(tmp_path)
    assert "ulimit -u" in caught.value.hint


def test_an_install_that_is_refused_a_thread_is_not_done_later_either(tmp_path: Path) -> None:
    async def main() -> None:
        async with Engine(tmp_path, shards=2) as db:
            await db.apply_chunk(entries(7, 1, 50))
            info = await db.create_snapshot()
            before = sorted(path.name for path in tmp_path.iterdir())
            with no_threads(), pytest.raises(StoreError, match="no thread can be had"):
                await db.restore(info.path)
            with no_threads(), pytest.raises(StoreError, match="no thread can be had"):
                await db.create_snapshot()
            await db.apply_chunk(entries(7, 51, 60))
            await db.create_snapshot()
            assert sorted(path.name for path in tmp_path.iterdir()) == before
            assert len(db.snapshots()) == 2 and db.last_applied().index == 60

    run(main)
