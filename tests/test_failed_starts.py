"""A start that fails, for whatever the system says no to, leaves what was there before; the next one works.

Each call of the system that a start makes is refused once, in turn: the first, the second, and so on, until a start
makes fewer calls than that and succeeds. Behind the first of them every second one is, and all of them with
`HYPOTHESIS_PROFILE=deep`.
"""

from __future__ import annotations

import errno
import itertools
import os
import resource
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from shardengine import Engine, EngineError, Put, encode
from tests.conftest import descendants, open_descriptors
from tests.inside import tick_often
from tests.killing import DEEP
from tests.model import log_of


def held() -> tuple[dict[int, str], set[int], int]:
    """What a failed start must not add to: descriptors, processes, threads."""
    return open_descriptors(), descendants(), threading.active_count()


def starts(path: Path, around: AbstractContextManager[object] | None = None) -> EngineError | None:
    """Start an engine, inside `around`, and stop it. Returns what a failed start said; nothing is left of it then."""
    engine = Engine(path, shards=2)
    before, refused = held(), None
    try:
        with around or nullcontext():
            engine.start()
    except EngineError as error:
        refused = error
    if refused is None:
        engine.stop()
        engine.close_storage()
    else:
        after = held()
        assert after == before, (refused, after[0].items() ^ before[0].items(), after[1:])
        assert not engine.is_running()
    return refused


async def fill(path: Path) -> None:
    async with Engine(path, shards=2) as db:
        await db.apply_chunk(log_of([encode(Put(b"k", b"v"))]))


@contextmanager
def refusing(name: str, number: int, code: int) -> Iterator[list[int]]:
    """Refuse call `number` of `os.<name>`. The list holds one item once it was."""
    real, calls, refused = getattr(os, name), [0], list[int]()

    def refuse(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == number:
            refused.append(number)
            raise OSError(code, os.strerror(code))
        return real(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, name, refuse)
        yield refused


CALLS = [
    ("open", errno.EMFILE),
    ("fsync", errno.EIO),
    ("posix_fallocate", errno.ENOSPC),
    ("pidfd_open", errno.EMFILE),
    ("ftruncate", errno.ENOSPC),
    ("rename", errno.EIO),
]
STARTING = ("open", "pidfd_open")
"""Calls that the start of a worker makes in this process."""
ALL_UP_TO = 8
GOES_ON = {
    "posix_fallocate",  # zeroes are written instead
    "pidfd_open",  # workers look who their parent is
    "open",  # of a worker that is being started, and is started again
}


@pytest.mark.parametrize(("name", "code"), CALLS, ids=str)
@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "there"])
async def test_a_start_that_is_refused_anything_leaves_nothing_open(
    tmp_path: Path, name: str, code: int, fresh: bool, forking: Callable[[], AbstractContextManager[None]]
) -> None:
    """Where a worker's start makes no such call, and where nothing is refused, workers are forked."""
    path = tmp_path / "db"
    with forking():
        if not fresh:
            await fill(path)
    for number in itertools.count(1):
        if number > ALL_UP_TO and number % 2 and not DEEP:
            continue
        place = tmp_path / f"db{number}" if fresh else path
        with nullcontext() if name in STARTING else forking(), refusing(name, number, code) as refused:
            error = starts(place)
        if not refused:
            break
        assert error is not None or name in GOES_ON, "it goes on only where it can do without, or tries again"
        with forking():
            assert starts(place) is None, "the next start works"


async def test_a_start_without_descriptors_leaves_none_open_and_says_what_to_raise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(tmp_path / "db")
    tick_often(monkeypatch)
    failed = 0
    for spare in range(0, 200, 2):
        if starts(tmp_path / "db", around=spare_descriptors(spare)) is None:
            break
        failed += 1
    assert failed > 5
    assert starts(tmp_path / "db") is None


@contextmanager
def spare_descriptors(spare: int) -> Iterator[None]:
    """Leave so many descriptors beyond the highest open one, and none below: whoever started this process may have left
    it some of any number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(open_descriptors())
    filling = list(iter(lambda: os.open(os.devnull, os.O_RDONLY), highest + 1))
    os.close(highest + 1)
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1 + spare, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in filling:
            os.close(descriptor)


async def test_a_directory_in_the_place_of_the_workers_log_is_named_and_nothing_stays_open(tmp_path: Path) -> None:
    await fill(tmp_path / "db")
    (tmp_path / "db" / "worker.log").rename(tmp_path / "log")
    (tmp_path / "db" / "worker.log").mkdir()
    for _ in range(20):
        assert "worker.log" in str(starts(tmp_path / "db"))
    (tmp_path / "db" / "worker.log").rmdir()
    assert starts(tmp_path / "db") is None
