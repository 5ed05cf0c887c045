"""py-lmdb without an engine: one process, and as many as there are shards."""

from __future__ import annotations

import gc
import multiprocessing
import time
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import lmdb
import msgspec

from perf.load import Load, Pair
from shards.placement import shard_of, slot_of

FLAGS: dict[str, Any] = {"writemap": True, "sync": False, "meminit": False, "lib_version": 0}
MAP_BYTES = 64 << 30
START_S = 600.0  # how long writers may take to make their load


class Written(msgspec.Struct, frozen=True):
    """One writer's work. Times are of the machine's monotonic clock, seconds."""

    began: float
    ended: float
    cpu: float
    records: int


def single(directory: Path, load: Load) -> tuple[float, int]:
    """One process, pairs as they come, sorted within the time. Returns seconds and records."""
    return _race(directory, load, writers=1, presorted=False)


def limit(directory: Path, load: Load, shards: int) -> tuple[float, int]:
    """As many processes as shards, pairs split and sorted beforehand. Returns seconds and records."""
    return _race(directory, load, writers=shards, presorted=True)


def _race(directory: Path, load: Load, writers: int, presorted: bool) -> tuple[float, int]:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(writers)
    ends: list[Connection[Any, Any]] = []
    processes = []
    for writer in range(writers):
        ours, theirs = context.Pipe(duplex=False)
        path = directory / f"writer-{writer}"
        process = context.Process(target=_write, args=(path, load, writer, writers, presorted, barrier, theirs))
        process.start()
        theirs.close()
        ends.append(ours)
        processes.append(process)
    try:
        written: list[Written] = [end.recv() for end in ends]
    finally:
        for process in processes:
            process.join(START_S)
            process.close()
        for end in ends:
            end.close()
    seconds = max(one.ended for one in written) - min(one.began for one in written)
    return seconds, sum(one.records for one in written)


def _share(load: Load, writer: int, writers: int, presorted: bool) -> list[list[Pair]]:
    """What one writer puts, chunk by chunk."""
    chunks = []
    for pairs in load.chunks():
        mine = pairs if writers == 1 else [pair for pair in pairs if shard_of(slot_of(pair[0]), writers) == writer]
        chunks.append(sorted(mine) if presorted else mine)
    return chunks


def _write(
    path: Path, load: Load, writer: int, writers: int, presorted: bool, barrier: Barrier, answer: Connection[Any, Any]
) -> None:
    """A writer process: everything made beforehand, one transaction a chunk."""
    chunks = _share(load, writer, writers, presorted)
    with lmdb.open(str(path), map_size=MAP_BYTES, **FLAGS) as env:
        gc.collect()
        gc.disable()
        barrier.wait(START_S)
        began, cpu = time.monotonic(), time.process_time()
        for chunk in chunks:
            with env.begin(write=True) as txn, txn.cursor() as cursor:
                cursor.putmulti(chunk if presorted else sorted(chunk))
        ended, cpu = time.monotonic(), time.process_time() - cpu
        answer.send(Written(began, ended, cpu, int(env.stat()["entries"])))
