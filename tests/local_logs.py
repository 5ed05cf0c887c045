"""Local logs for tests: filled, left as a death leaves them, and looked at."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from shardengine.engine.node.layout import HEAD_BYTES, Record
from shardengine.engine.node.opening import CLOSED, list_segments, read_about
from shardengine.node import LocalLog

SEGMENT = 4 << 10


def small(path: Path) -> LocalLog:
    return LocalLog(path, segment_bytes=SEGMENT)


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[LocalLog]:
    log = small(path)
    await log.open()
    try:
        yield log
    finally:
        await log.aclose()


async def filled(path: Path, *calls: list[bytes]) -> None:
    """Make a log of these, each call on the disk before the next one is made, and leave it as a death does."""
    log = small(path)
    await log.open()
    for frames in calls:
        await log.append(frames)
    await log.aclose()
    (path / CLOSED).unlink()


def copied(path: Path, target: Path) -> Path:
    """A copy of a log, in place of what was at `target`."""
    shutil.rmtree(target, ignore_errors=True)
    return shutil.copytree(path, target)


def content(path: Path) -> dict[str, bytes]:
    """Every file of a log but its lock."""
    return {file.name: file.read_bytes() for file in path.iterdir() if file.name != "LOCK"}


def records(path: Path) -> list[tuple[Path, Record, int]]:
    """Every record of a closed log: its file, itself, and where it ends."""
    about, found = read_about(path), []
    assert about is not None
    for segment in list_segments(path, about):
        with segment.walk(HEAD_BYTES) as walk:
            found += [(segment.path, record, walk.at) for record in walk]
    return found


async def frames(path: Path) -> list[bytes]:
    """All frames that the next `open` finds."""
    log = small(path)
    state = await log.open()
    found, reading = [], log.read(state.first - 1)
    for _ in range(state.first, state.last + 1):
        found.append((await anext(reading)).frame)
    await log.aclose()
    return found
