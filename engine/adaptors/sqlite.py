"""Over an SQLite database, in WAL mode."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Literal

import msgspec

from shardengine.engine.adaptors.durable import AnyPath, Durability, InDirectory, home_of
from shardengine.engine.adaptors.store import Reads, Transactional, after_all, damaged, place_of, read_place
from shardengine.engine.errors import EngineError, FormatError, StoreError, StoreFullError, disk_error
from shardengine.engine.intake.tail import Tail
from shardengine.engine.storage.files import sync_directory
from shardengine.engine.storage.generations import DirectoryConfig
from shardengine.ipc.files import check_file, create_file, sync_path
from shardengine.shards.kv import KeyValue
from shardengine.shards.machine import Machine
from shardengine.shards.transaction import Record
from shardengine.shards.types import Limits

NAME = "sqlite"
WAL = f"{NAME}-wal"
_FILES = (NAME, WAL, f"{NAME}-shm", f"{NAME}-journal")
_APPLICATION_ID = 0x5368456E  # "ShEn"
_BUSY_S = 5.0
_TABLES = (
    "CREATE TABLE records (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID",
    "CREATE TABLE place (id INTEGER PRIMARY KEY CHECK (id = 1), content BLOB NOT NULL)",
    f"PRAGMA application_id={_APPLICATION_ID}",
)
_PUT = "INSERT INTO records VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"
_DELETE = "DELETE FROM records WHERE key = ?"
_STAND = "INSERT INTO place VALUES (1, ?) ON CONFLICT (id) DO UPDATE SET content = excluded.content"
_NO_ROOM = frozenset((sqlite3.SQLITE_FULL, sqlite3.SQLITE_TOOBIG))
_DAMAGE = frozenset((sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB))


class SQLiteStateMachine(InDirectory):
    """A `StateMachine` whose records are in an SQLite database.

    Every chunk is one transaction: writes, and where the log stands. What a failure leaves, `durability` "process"
    (`synchronous=NORMAL`):

        a process is killed     everything that was acknowledged: the kernel has it
        power loss              the state of a chunk, at or behind `durable()`; no chunk in part

    and "power" (`synchronous=FULL`: the write-ahead log is synced with every commit):

        both                    everything that was acknowledged

    Pages of the database have no checksums: of damage to them only what contradicts itself is noticed. A view is a read
    transaction on a connection of its own, and keeps the write-ahead log from being begun anew: it grows. `len` looks
    at all records. A key and its value together have at most 1,000,000,000 bytes, whatever the limits say.

    Args: as of `FileStateMachine`. Raises ConfigError, or MachineImportError when `machine` is no machine.
    """

    def __init__(
        self,
        path: AnyPath,
        machine: type[Machine] = KeyValue,
        *,
        limits: Limits | None = None,
        bad_entry: Literal["fail", "reject"] | None = None,
        durability: Durability = "process",
    ) -> None:
        home = home_of(path, "sqlite", _FILES)
        store = SQLiteStore(home.path / NAME, synced=durability == "power")
        super().__init__(home, store, machine, limits, bad_entry, durability)


class _Rows(Reads):
    """The records that one connection sees."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._db: sqlite3.Connection | None = None

    @property
    def db(self) -> sqlite3.Connection:
        assert self._db is not None
        return self._db

    def get(self, key: bytes) -> bytes | None:
        try:
            row = self.db.execute("SELECT value FROM records WHERE key = ?", (key,)).fetchone()
        except sqlite3.Error as error:
            raise _told(self._path, error) from error
        return None if row is None else row[0]

    def under(self, prefix: bytes, start_after: bytes | None = None, *, reverse: bool = False) -> Iterator[Record]:
        bounds = [
            ("key >= ?", prefix),
            ("key < ?", after_all(prefix)),
            (f"key {'<' if reverse else '>'} ?", start_after),
        ]
        asked = [(text, bound) for text, bound in bounds if bound is not None]
        order = "DESC" if reverse else "ASC"
        where = " AND ".join(text for text, _ in asked)
        query = f"SELECT key, value FROM records WHERE {where} ORDER BY key {order}"
        try:
            with closing(self.db.execute(query, [bound for _, bound in asked])) as rows:
                yield from rows
        except sqlite3.Error as error:
            raise _told(self._path, error) from error

    def __len__(self) -> int:
        with _asking(self._path):
            return int(self.db.execute("SELECT count(*) FROM records").fetchone()[0])

    def close(self) -> None:
        if self._db is not None:
            db, self._db = self._db, None
            db.close()


class _View(_Rows):
    """As they were when it was made."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with _asking(path):
            self._db = sqlite3.connect(
                f"{path.as_uri()}?mode=ro", uri=True, isolation_level=None, timeout=_BUSY_S, check_same_thread=False
            )
            self._db.execute("BEGIN")
            self._db.execute("SELECT id FROM place").fetchone()


class SQLiteStore(_Rows, Transactional):
    """A database of two tables: records, and the one place where their log stands."""

    def __init__(self, path: Path, *, synced: bool) -> None:
        """`synced`: with every commit."""
        super().__init__(path)
        self._synchronous = "FULL" if synced else "NORMAL"
        self._level = ""

    def open(self, *, create: bool) -> bool:
        there = self._path.exists()
        if not there and not create:
            return False
        if not there:
            os.close(create_file(self._path))
            sync_directory(self._path.parent)
        for name in _FILES:
            with suppress(FileNotFoundError):
                check_file(self._path.with_name(name))
        with _asking(self._path):
            self._db = sqlite3.connect(self._path, isolation_level=None, timeout=_BUSY_S)
            return self._set_up()

    def _set_up(self) -> bool:
        """The tables, and all that was committed on the disk; False: nothing was."""
        db = self.db
        tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        (application,) = db.execute("PRAGMA application_id").fetchone()
        if tables and (application != _APPLICATION_ID or tables != {"records", "place"}):
            raise FormatError(
                f"{self._path} is an SQLite database of another program: it has the tables {sorted(tables)}",
                hint="name another directory",
            )
        (mode,) = db.execute("PRAGMA journal_mode=WAL").fetchone()
        if mode != "wal":
            raise StoreError(
                f"{self._path}: SQLite keeps no write-ahead log here, but {mode!r}", hint="use a local disk"
            )
        db.execute("PRAGMA synchronous=FULL")
        self._level = "FULL"
        if not tables:
            with self._transaction("FULL"):
                for statement in _TABLES:
                    db.execute(statement)
        (busy, _, _) = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise StoreError(f"{self._path} is being read by another program", hint="end it, and start again")
        return bool(db.execute("SELECT id FROM place").fetchone())

    def _read_again(self) -> tuple[Tail, DirectoryConfig]:
        with _asking(self._path):
            if self.db.in_transaction:
                self.db.execute("ROLLBACK")
            row = self.db.execute("SELECT content FROM place").fetchone()
        if row is None or type(row[0]) is not bytes:
            raise damaged(str(self._path), "it does not say where its log stands")
        return read_place(row[0], str(self._path))

    @contextmanager
    def _transaction(self, synchronous: str) -> Iterator[None]:
        if self._level != synchronous:
            self._level = ""
            self.db.execute(f"PRAGMA synchronous={synchronous}")
            self._level = synchronous
        self.db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.db.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                if self.db.in_transaction:
                    self.db.execute("ROLLBACK")
            raise

    def commit(self, writes: Mapping[bytes, bytes | None], fixed: DirectoryConfig, tail: Tail) -> None:
        self._place = None
        ordered = sorted(writes.items())
        with _asking(self._path), self._transaction(self._synchronous):
            self.db.executemany(_PUT, [pair for pair in ordered if pair[1] is not None])
            self.db.executemany(_DELETE, [(key,) for key, value in ordered if value is None])
            self.db.execute(_STAND, (msgspec.msgpack.encode(place_of(tail, fixed)),))
        self._place = tail, fixed

    def replace(self, records: Iterable[Record], fixed: DirectoryConfig, tail: Tail) -> None:
        self._place = None
        with _asking(self._path), self._transaction("FULL"):
            self.db.execute("DELETE FROM records")
            self.db.executemany(_PUT, records)
            self.db.execute(_STAND, (msgspec.msgpack.encode(place_of(tail, fixed)),))
        self._place = tail, fixed

    def flush(self) -> None:
        try:
            with suppress(FileNotFoundError):  # nothing was written since it was emptied
                sync_path(self._path.with_name(WAL))
            sync_directory(self._path.parent)
        except OSError as error:
            raise disk_error(f"{self._path} cannot be synced", error, path=str(self._path)) from error

    def compact(self) -> None:
        with _asking(self._path):
            self.db.execute("VACUUM")
            self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def view(self) -> Reads:
        return _View(self._path)

    def close(self) -> None:
        self._place = None
        super().close()


@contextmanager
def _asking(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise _told(path, error) from error


def _told(path: Path, error: sqlite3.Error) -> EngineError:
    """What SQLite said, as an error that a user can meet."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    what = f"{path}: SQLite says: {error}"
    if code in _NO_ROOM:
        return StoreFullError(what, hint="free disk space; keys and values have their limits", path=str(path))
    if code in _DAMAGE:
        return damaged(str(path), f"SQLite says: {error}")
    return StoreError(what, hint="see what else uses that file, and the disk", path=str(path))
