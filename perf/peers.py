"""py-lmdb without an engine: one process that writes, as many as there are shards, and as many that copy."""

from __future__ import annotations

import gc
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import lmdb
import msgspec

from perf.load import Load, Pair
from shardengine.shards.placement import shard_of, slot_of

FLAGS: dict[str, Any] = {"writemap": True, "sync": False, "meminit": False, "lib_version": 0}
MAP_BYTES = 64 << 30
START_S = 600.0  # how long processes may take to make themselves ready


class Written(msgspec.Struct, frozen=True):
    """One process's work. Times are of the machine's monotonic clock, seconds."""

    began: float
    ended: float
    cpu: float
    records: int


def single(directory: Path, load: Load) -> tuple[float, int]:
    """One process, pairs as they come, sorted within the time. Returns seconds and records."""
    return _write_all(directory, load, writers=1, presorted=False)


def limit(directory: Path, load: Load, shards: int) -> tuple[float, int]:
    """As many processes as shards, pairs split and sorted beforehand. Returns seconds and records."""
    return _write_all(directory, load, writers=shards, presorted=True)


def copy(sources: Sequence[Path], targets: Sequence[Path]) -> tuple[float, int]:
    """A process for each environment of `sources`: `copyfd(compact=True)` into its file of `targets`, and fsync.
    Returns seconds and records."""
    return _race(_copy, list(zip(sources, targets, strict=True)))


def _write_all(directory: Path, load: Load, writers: int, presorted: bool) -> tuple[float, int]:
    paths = [directory / f"writer-{writer}" for writer in range(writers)]
    return _race(_write, [(path, load, writer, writers, presorted) for writer, path in enumerate(paths)])


def _race(work: Callable[..., None], arguments: Sequence[tuple[Any, ...]]) -> tuple[float, int]:
    """A process for each of `arguments`; all start together, and the time ends with the last."""
    context = multiprocessing.get_context("spawn")
    ends: list[Connection[Any, Any]] = []
    processes = []
    for own in arguments:
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(*own, theirs))
        process.start()
        theirs.close()
        ends.append(ours)
        processes.append(process)
    try:
        for end in ends:
            end.recv()
        for end in ends:
            end.send(None)
        written: list[Written] = [end.recv() for end in ends]
    finally:
        for process in processes:
            process.join(START_S)
            process.close()
        for end in ends:
            end.close()
    seconds = max(one.ended for one in written) - min(one.began for one in written)
    return seconds, sum(one.records for one in written)


def _wait_for_the_start(host: Connection[Any, Any]) -> None:
    """This process is ready; return when all are. By pipe: a barrier of multiprocessing's would need /dev/shm."""
    host.send(None)
    host.recv()


def _share(load: Load, writer: int, writers: int, presorted: bool) -> list[list[Pair]]:
    """What one writer puts, chunk by chunk."""
    chunks = []
    for pairs in load.chunks():
        mine = pairs if writers == 1 else [pair for pair in pairs if shard_of(slot_of(pair[0]), writers) == writer]
        chunks.append(sorted(mine) if presorted else mine)
    return chunks


def _write(path: Path, load: Load, writer: int, writers: int, presorted: bool, host: Connection[Any, Any]) -> None:
    """A writer process: everything made beforehand, one transaction a chunk."""
    chunks = _share(load, writer, writers, presorted)
    with lmdb.open(str(path), map_size=MAP_BYTES, **FLAGS) as env:
        gc.collect()
        gc.disable()
        _wait_for_the_start(host)
        began, cpu = time.monotonic(), time.process_time()
        for chunk in chunks:
            with env.begin(write=True) as txn, txn.cursor() as cursor:
                cursor.putmulti(chunk if presorted else sorted(chunk))
        ended, cpu = time.monotonic(), time.process_time() - cpu
        host.send(Written(began, ended, cpu, int(env.stat()["entries"])))


def _copy(source: Path, target: Path, host: Connection[Any, Any]) -> None:
    """A copier process: every page is mapped beforehand, as it is in a worker that wrote it."""
    flags = {name: value for name, value in FLAGS.items() if name != "writemap"}
    with lmdb.open(str(source), map_size=MAP_BYTES, readonly=True, max_dbs=3, **flags) as env:
        data = env.open_db(b"data", create=False)
        with env.begin(db=data) as txn, txn.cursor() as cursor:
            records = sum(1 for _ in cursor)
        descriptor = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        _wait_for_the_start(host)
        began, cpu = time.monotonic(), time.process_time()
        env.copyfd(descriptor, compact=True)
        os.fsync(descriptor)
        ended, cpu = time.monotonic(), time.process_time() - cpu
        os.close(descriptor)
        host.send(Written(began, ended, cpu, records))
