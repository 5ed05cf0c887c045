"""Engines that are left: in a thread, with a loop, at the interpreter's end; and errors that outlive who met them."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import warnings
import weakref
from collections.abc import Awaitable
from pathlib import Path

import pytest

from shardengine import Engine, EngineError, Entry, Put, WrongLoopError, encode, run
from shardengine.engine.errors import WorkerFailedError
from shardengine.engine.storage.runmark import read_mark
from tests.killing import ROOT, environment
from tests.model import log_of

CHUNK = log_of([encode(Put(b"k%d" % number, b"v")) for number in range(100)])
FEED = """
import asyncio, sys, threading
from pathlib import Path
from shardengine import Engine
from tests.test_leaving import CHUNK

ready, never = threading.Event(), threading.Event()

async def feed(db):
    await db.apply_chunk(CHUNK)
"""
LEFT = {
    "in a running loop": """
async def serve():
    db = Engine(Path(sys.argv[1]), shards=2)
    db.start()
    await feed(db)
    ready.set()
    await asyncio.Event().wait()

threading.Thread(target=asyncio.run, args=(serve(),), daemon=True).start()
""",
    "by a thread that ended": """
def work():
    global db
    db = Engine(Path(sys.argv[1]), shards=2)
    db.start()
    asyncio.run(feed(db))
    ready.set()

thread = threading.Thread(target=work)
thread.start()
thread.join()
""",
    "in a thread that does something else": """
def work():
    db = Engine(Path(sys.argv[1]), shards=2)
    db.start()
    asyncio.run(feed(db))
    ready.set()
    never.wait()

threading.Thread(target=work, daemon=True).start()
""",
}


@pytest.mark.parametrize("where", LEFT)
def test_an_engine_left_at_the_interpreters_end_is_quiet_and_honest(tmp_path: Path, where: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FEED + LEFT[where] + "ready.wait()\n", str(tmp_path / "db")],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    busy = "something else" in where
    said = done.stderr.splitlines()
    assert done.returncode == 0 and len(said) == busy, done.stderr
    assert not busy or "left running in thread" in said[0]
    mark = read_mark(tmp_path / "db")
    assert mark is not None and mark.clean is not busy
    engine = Engine(tmp_path / "db")
    engine.start()
    assert (engine.last_applied().index, len(engine)) == (100, 100)
    engine.stop()
    engine.close_storage()


async def test_run_inside_a_loop_says_what_to_do_and_leaves_no_coroutine() -> None:
    async def main() -> None: ...

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for argument in (main(), main):
            with pytest.raises(WrongLoopError, match="await the coroutine instead"):
                run(argument)
        del argument
        gc.collect()


def test_a_second_loop_is_refused_with_what_to_do_which_works(tmp_path: Path) -> None:
    engine = Engine(tmp_path / "db", shards=2)
    engine.start()

    async def feed() -> None:
        await engine.apply_chunk(CHUNK)

    asyncio.run(feed())
    with pytest.raises(WrongLoopError, match=r"closed.*stop\(\) the engine after each run, and start\(\) it again"):
        asyncio.run(feed())
    engine.stop()
    engine.start()
    asyncio.run(feed())
    engine.stop()
    engine.close_storage()


class Watched(list[Entry]):
    """A chunk that can be seen to go."""


async def refusal(call: Awaitable[object]) -> EngineError:
    with pytest.raises(WorkerFailedError) as caught:
        await call
    return caught.value


async def test_a_refused_chunk_is_not_kept_by_the_error_that_refused_it(tmp_path: Path) -> None:
    engine = Engine(tmp_path / "db", shards=2)
    engine.start()
    first = WorkerFailedError("it cannot go on", hint="start again", shard=1)
    engine._running().coordinator.fail(first)
    seen: list[weakref.ref[Watched]] = []
    errors: list[EngineError] = []
    for _ in range(5):
        chunk = Watched(CHUNK)
        seen.append(weakref.ref(chunk))
        for call in (engine.apply_chunk(chunk), engine.wait_applied(5), engine.flush_async()):
            errors.append(await refusal(call))
        del chunk, call
    assert len(set(map(id, errors))) == 15
    assert {str(error) for error in errors} == {str(first)} and {error.shard for error in errors} == {1}
    assert all(error.__cause__ is not None for error in errors)
    errors.clear()
    gc.collect()
    assert [ref() for ref in seen] == [None] * 5
    assert first.__traceback__ is None
    with pytest.raises(WorkerFailedError):
        engine.stop()
    engine.close_storage()
