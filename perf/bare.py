"""Stores without a state machine: key and value pairs, as they come, one transaction or batch a chunk. No process of
their own, no log place, no answers; a chunk is in the kernel when the next one begins, but for RocksDB without its log.
"""

from __future__ import annotations

import gc
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmdb
import rocksdict

from perf.load import Pair, digest_of
from perf.peers import FLAGS, MAP_BYTES

Done = tuple[float, bytes]
"""Seconds, and the digest of what is there then."""


@contextmanager
def quiet() -> Iterator[Callable[[], float]]:
    """The garbage collector is off, as in a worker. What is given tells the seconds since then."""
    gc.collect()
    gc.disable()
    try:
        began = time.monotonic()
        yield lambda: time.monotonic() - began
    finally:
        gc.enable()


def over_lmdb(directory: Path, chunks: list[list[Pair]]) -> Done:
    """Sorted within the time, with the flags of `peers.FLAGS`."""
    with lmdb.open(str(directory), map_size=MAP_BYTES, **FLAGS) as env:
        with quiet() as seconds:
            for chunk in chunks:
                with env.begin(write=True) as txn, txn.cursor() as cursor:
                    cursor.putmulti(sorted(chunk))
            took = seconds()
        with env.begin() as txn, txn.cursor() as cursor:
            return took, digest_of(dict(cursor))


def over_sqlite(directory: Path, chunks: list[list[Pair]]) -> Done:
    """Sorted within the time; write-ahead log, `synchronous=NORMAL`."""
    directory.mkdir()
    db = sqlite3.connect(directory / "db", isolation_level=None)
    try:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=NORMAL")
        db.execute("CREATE TABLE records (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID")
        with quiet() as seconds:
            for chunk in chunks:
                db.execute("BEGIN")
                db.executemany("INSERT OR REPLACE INTO records VALUES (?, ?)", sorted(chunk))
                db.execute("COMMIT")
            took = seconds()
        return took, digest_of(dict(db.execute("SELECT key, value FROM records")))
    finally:
        db.close()


def over_rocksdb(directory: Path, chunks: list[list[Pair]]) -> Done:
    """One write batch a chunk; the write-ahead log is on, and not synced."""
    return _over_rocksdb(directory, chunks, logged=True)


def over_rocksdb_without_log(directory: Path, chunks: list[list[Pair]]) -> Done:
    """As `over_rocksdb`, without its write-ahead log: a death of the process loses what is in memory."""
    return _over_rocksdb(directory, chunks, logged=False)


def _over_rocksdb(directory: Path, chunks: list[list[Pair]], *, logged: bool) -> Done:
    db: Any = rocksdict.Rdict(str(directory), rocksdict.Options(raw_mode=True))
    try:
        how: Any = rocksdict.WriteOptions()
        how.disable_wal = not logged
        with quiet() as seconds:
            for chunk in chunks:
                batch = rocksdict.WriteBatch(raw_mode=True)
                for key, value in chunk:
                    batch.put(key, value)
                db.write(batch, how)
            took = seconds()
        return took, digest_of({key: value for key, value in db.items()})  # noqa: C416  # its items are of no known type
    finally:
        db.close()


BARE: dict[str, Callable[[Path, list[list[Pair]]], Done]] = {
    "py-lmdb": over_lmdb,
    "RocksDB": over_rocksdb,
    "RocksDB, no log": over_rocksdb_without_log,
    "SQLite": over_sqlite,
}
