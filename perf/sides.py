"""The engine's side of a round: the whole load through `apply_chunk`, with a bounded number of chunks in flight."""

from __future__ import annotations

import asyncio
import gc
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import msgspec

from perf.facts import cpu_seconds, kept_waiting_ns
from shardengine import Engine, Entry


class Spent(msgspec.Struct, frozen=True):
    """What a stretch of a log took. CPU seconds are those of the coordinator, and of all workers together; for
    `lacking` seconds, all processes together, one wanted a core and had none."""

    seconds: float
    coordinator_cpu: float
    worker_cpu: float
    lacking: float


class Applied(Spent, frozen=True):
    """What one run took, and left."""

    digest: bytes
    records: int


async def feed(db: Engine, chunks: Iterable[list[Entry]], window: int) -> None:
    """Apply chunks in order, `window` of them in flight."""
    flying: deque[asyncio.Task[Any]] = deque()
    try:
        for chunk in chunks:
            flying.append(asyncio.create_task(db.apply_chunk(chunk)))
            if len(flying) == window:
                await flying.popleft()
        while flying:
            await flying.popleft()
    finally:  # those behind one that failed, or was stopped, fail for no reason of their own
        for task in flying:
            task.cancel()
        await asyncio.gather(*flying, return_exceptions=True)


Stretch = Callable[[Sequence[int]], AbstractContextManager[None]]
"""What is around what is timed: it is given the pids of the workers."""


def nothing(pids: Sequence[int]) -> AbstractContextManager[None]:
    return nullcontext()


async def timed(db: Engine, chunks: list[list[Entry]], window: int, stretch: Stretch = nothing) -> Spent:
    """Apply entries that are all made beforehand."""
    pids = [worker["pid"] for worker in db.stats()["workers"]]
    gc.collect()
    gc.freeze()  # the load is the caller's: the collector need not walk it on the engine's time
    try:
        with stretch(pids):
            lacking, workers = _lacking_ns(pids), sum(map(cpu_seconds, pids))
            cpu, began = time.process_time(), time.monotonic()
            await feed(db, chunks, window)
            seconds, cpu = time.monotonic() - began, time.process_time() - cpu
            workers, lacking = sum(map(cpu_seconds, pids)) - workers, _lacking_ns(pids) - lacking
        return Spent(seconds, cpu, workers, lacking / 1e9)
    finally:
        gc.unfreeze()


def _lacking_ns(pids: Sequence[int]) -> int:
    return kept_waiting_ns("self") + sum(map(kept_waiting_ns, pids))


async def apply_all(directory: Path, chunks: list[list[Entry]], shards: int, window: int) -> Applied:
    """Apply entries that are all made beforehand to a new engine."""
    async with Engine(directory, shards=shards) as db:
        spent = await timed(db, chunks, window)
        return Applied(**msgspec.structs.asdict(spent), digest=await db.digest(), records=len(db))
