"""py-lmdb without an engine: one process that writes, as many as there are shards, and as many that copy."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from operator import itemgetter
from pathlib import Path
from typing import Any

import lmdb
import msgspec

from perf.load import Pair, Source, digest_sum, whole
from shardengine.shards.placement import shard_of, slot_of

FLAGS: dict[str, Any] = {"writemap": True, "sync": False, "meminit": False, "lib_version": 0}
MAP_BYTES = 64 << 30
START_S = 600.0  # how long processes may take to make themselves ready


class Written(msgspec.Struct, frozen=True):
    """One process's work. Times are of the machine's monotonic clock, seconds. `total` is its part of a digest."""

    began: float
    ended: float
    cpu: float
    records: int
    total: int = 0


class Raced(msgspec.Struct, frozen=True):
    """What processes did together: the seconds from the first one's start to the last one's end, and their CPU time;
    the records that they hold, and the digest of those."""

    seconds: float
    cpu: float
    records: int
    digest: bytes


class How(msgspec.Struct, frozen=True):
    """So many chunks come before the clock starts; whether every commit waits for the disk; and the core of each
    process, in turn, if they are bound to any."""

    warm: int = 0
    sync: bool = False
    cores: list[int] = []


USUAL = How()


def single(directory: Path, source: Source, how: How = USUAL) -> Raced:
    """One process, pairs as they come, sorted within the time."""
    return _write_all(directory, source, 1, how, presorted=False)


def limit(directory: Path, source: Source, shards: int, how: How = USUAL) -> Raced:
    """As many processes as shards, pairs split and sorted beforehand."""
    return _write_all(directory, source, shards, how, presorted=True)


def copy(sources: Sequence[Path], targets: Sequence[Path]) -> tuple[float, int]:
    """A process for each environment of `sources`: `copyfd(compact=True)` into its file of `targets`, and fsync.
    Returns seconds and records."""
    raced = _race(_copy, list(zip(sources, targets, strict=True)))
    return raced.seconds, raced.records


def _write_all(directory: Path, source: Source, writers: int, how: How, *, presorted: bool) -> Raced:
    paths = [directory / f"writer-{writer}" for writer in range(writers)]
    return _race(_write, [(path, source, writer, writers, presorted, how) for writer, path in enumerate(paths)])


def _race(work: Callable[..., None], arguments: Sequence[tuple[Any, ...]]) -> Raced:
    """A process for each of `arguments`; all start together, and the time ends with the last."""
    context = multiprocessing.get_context("spawn")
    ends: list[Connection[Any, Any]] = []
    processes = []
    try:
        for own in arguments:
            ours, theirs = context.Pipe()
            ends.append(ours)
            process = context.Process(target=work, args=(*own, theirs))
            with uninterrupted():
                process.start()
                processes.append(process)
            theirs.close()
        for end in ends:
            end.recv()
        for end in ends:
            end.send(None)
        written: list[Written] = [end.recv() for end in ends]
    except BaseException:
        for process in processes:
            process.kill()
        raise
    finally:
        for process in processes:
            process.join(START_S)
            process.close()
        for end in ends:
            end.close()
    return Raced(
        max(one.ended for one in written) - min(one.began for one in written),
        sum(one.cpu for one in written),
        sum(one.records for one in written),
        whole(sum(one.total for one in written)),
    )


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Processes that are started within are not interrupted from the keyboard: who started them ends them."""
    resource_tracker.ensure_running()  # which unblocks the signal when it is started
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _wait_for_the_start(host: Connection[Any, Any]) -> None:
    """This process is ready; return when all are. By pipe: a barrier of multiprocessing's would need /dev/shm."""
    host.send(None)
    host.recv()


_by_key = itemgetter(0)
"""To sort by: of two pairs with one key the later one stays behind, and is what is left in the end."""


def _share(source: Source, writer: int, writers: int, presorted: bool) -> list[list[Pair]]:
    """What one writer puts, chunk by chunk."""
    chunks = []
    for pairs in source.chunks():
        mine = pairs if writers == 1 else [pair for pair in pairs if shard_of(slot_of(pair[0]), writers) == writer]
        chunks.append(sorted(mine, key=_by_key) if presorted else mine)
    return chunks


def _write(
    path: Path, source: Source, writer: int, writers: int, presorted: bool, how: How, host: Connection[Any, Any]
) -> None:
    """A writer process: everything made beforehand, one transaction a chunk."""
    chunks = _share(source, writer, writers, presorted)
    if how.cores:
        os.sched_setaffinity(0, {how.cores[writer % len(how.cores)]})
    with lmdb.open(str(path), map_size=MAP_BYTES, **{**FLAGS, "sync": how.sync}) as env:
        gc.collect()
        gc.disable()
        _put_all(env, chunks[: how.warm], presorted)
        _wait_for_the_start(host)
        began, cpu = time.monotonic(), time.process_time()
        _put_all(env, chunks[how.warm :], presorted)
        ended, cpu = time.monotonic(), time.process_time() - cpu
        with env.begin() as txn, txn.cursor() as cursor:
            total = digest_sum(cursor)
        host.send(Written(began, ended, cpu, int(env.stat()["entries"]), total))


def _put_all(env: lmdb.Environment, chunks: Sequence[list[Pair]], presorted: bool) -> None:
    for chunk in chunks:
        with env.begin(write=True) as txn, txn.cursor() as cursor:
            cursor.putmulti(chunk if presorted else sorted(chunk, key=_by_key))


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
