"""Puts on the disk without a node: the system calls alone, and SQLite. Each side checks what it left."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import msgspec

from perf.calls import Amount, Took, one_by_one
from perf.load import Pair, digest_of
from perf.report import CheckError

SQLITE_VERSION = sqlite3.sqlite_version
_TABLE = "CREATE TABLE puts (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID"
_PUT = "INSERT OR REPLACE INTO puts VALUES (?, ?)"
_FULL = 2  # what `PRAGMA synchronous` answers


class Bare(msgspec.Struct, frozen=True):
    """What `pwrite` and `fdatasync` took, and each `fdatasync` of them."""

    took: Took
    syncs_ns: list[int]


def over_a_file(directory: Path, datas: Sequence[bytes], size: int, amount: Amount) -> Bare:
    """`size` commands a write, behind one another, each write synced; all blocks of the file were written before."""
    path, length, at, syncs_ns = directory / "file", sum(map(len, datas)), 0, list[int]()
    path.write_bytes(bytes(length))
    with path.open("r+b", buffering=0) as file:
        descriptor = file.fileno()
        os.fsync(descriptor)

        def call(first: int, end: int) -> None:
            nonlocal at
            at += os.pwrite(descriptor, b"".join(datas[first:end]), at)
            began = time.perf_counter_ns()
            os.fdatasync(descriptor)
            syncs_ns.append(time.perf_counter_ns() - began)

        took = one_by_one(call, size, amount)
    if path.read_bytes() != b"".join(datas[: took.given]).ljust(length, b"\0"):
        raise CheckError(f"write and fdatasync: the file holds other bytes than the {took.given} commands written")
    return Bare(took, syncs_ns[-len(took.calls_ns) :])


def over_sqlite(directory: Path, pairs: Sequence[Pair], size: int, amount: Amount) -> Took:
    """`size` puts a transaction, in WAL mode, synced with every commit."""
    with closing(sqlite3.connect(directory / "db", isolation_level=None)) as db:
        (mode,) = db.execute("PRAGMA journal_mode=WAL").fetchone()
        db.execute("PRAGMA synchronous=FULL")
        (synchronous,) = db.execute("PRAGMA synchronous").fetchone()
        if (mode, synchronous) != ("wal", _FULL):
            raise CheckError(f"SQLite: journal_mode is {mode}, synchronous {synchronous}")
        db.execute(_TABLE)

        def one(first: int, _: int) -> None:
            db.execute(_PUT, pairs[first])  # a transaction by itself

        def several(first: int, end: int) -> None:
            db.execute("BEGIN")
            db.executemany(_PUT, pairs[first:end])
            db.execute("COMMIT")

        took = one_by_one(one if size == 1 else several, size, amount)
    with closing(sqlite3.connect(directory / "db")) as db:
        found = dict(db.execute("SELECT key, value FROM puts"))
    if len(found) != took.given or digest_of(found) != digest_of(dict(pairs[: took.given])):
        raise CheckError(f"SQLite: {len(found)} rows, which are not the {took.given} that were committed")
    return took
