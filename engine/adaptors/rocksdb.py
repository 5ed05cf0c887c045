"""Over a RocksDB database, through rocksdict."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import msgspec

from shardengine.engine.adaptors.durable import AnyPath, Durability, InDirectory, home_of
from shardengine.engine.adaptors.store import Reads, Transactional, after_all, damaged, place_of, read_place
from shardengine.engine.errors import StoreError
from shardengine.engine.intake.tail import Tail
from shardengine.engine.storage.files import sync_directory
from shardengine.engine.storage.generations import DirectoryConfig
from shardengine.ipc.files import make_directory, refused
from shardengine.shards.kv import KeyValue
from shardengine.shards.machine import Machine
from shardengine.shards.transaction import Record
from shardengine.shards.types import Limits

try:
    import rocksdict
except ImportError as error:
    raise ImportError("RocksDBStateMachine needs rocksdict: pip install 'shardengine[rocksdb]'") from error

NAME = "rocksdb"
_PLACE = b"place"
_SIDES = (b"0", b"1")
_BATCH_RECORDS = 4096


class RocksDBStateMachine(InDirectory):
    """A `StateMachine` whose records are in a RocksDB database.

    Every chunk is one write batch: writes, and where the log stands. The write-ahead log is always on. What a failure
    leaves, `durability` "process":

        a process is killed     everything that was acknowledged: the kernel has it
        power loss              the state of a chunk, at or behind `durable()`; no chunk in part

    and "power", where the write-ahead log is synced with every batch:

        both                    everything that was acknowledged

    In mode "process" a damaged record of the write-ahead log ends it, as RocksDB's own default has it: the state is one
    of before; in mode "power" all but an unfinished one at its end is refused. After a write that failed, for want of
    disk too, RocksDB takes no other: make room, `stop`, which tells it once more, and `start`. `len` looks at all
    records. A view keeps what it sees on the disk, also when that was deleted or rewritten.

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
        home = home_of(path, "rocksdb", (NAME,))
        store = RocksDBStore(home.path / NAME, synced=durability == "power")
        super().__init__(home, store, machine, limits, bad_entry, durability)


class _Rows(Reads):
    """The records of one side of the database, as an iterator of it sees them: as they were when that was made."""

    def __init__(self, path: Path, side: bytes, found: Any = None) -> None:
        self._path = path
        self._side = side
        self._found = found

    def _iterator(self) -> Any:
        return self._found

    def get(self, key: bytes) -> bytes | None:
        sought = self._side + key
        try:
            found = self._iterator()
            found.seek(sought)
            if found.valid():
                return bytes(found.value()) if found.key() == sought else None
            found.status()
        except Exception as error:  # rocksdict has no other class for what RocksDB says
            raise _told(self._path, error) from error
        return None

    def under(self, prefix: bytes, start_after: bytes | None = None, *, reverse: bool = False) -> Iterator[Record]:
        """As of all. Of a view, one after the other: they share its iterator, since those of rocksdict's snapshots see
        what was written later."""
        side = self._side
        try:
            found = self._iterator()
            step = found.prev if reverse else found.next
            _seek(found, side + prefix, None if start_after is None else side + start_after, reverse=reverse)
            while found.valid():
                key = found.key()
                if not key.startswith(side + prefix):
                    return
                yield key[1:], found.value()
                step()
            found.status()
        except Exception as error:
            raise _told(self._path, error) from error

    def close(self) -> None:
        self._found = None


def _seek(found: Any, prefix: bytes, start_after: bytes | None, *, reverse: bool) -> None:
    """Bring an iterator to the first record under `prefix` that lies beyond `start_after`, or to another one if there
    is none."""
    bounds = [after_all(prefix) if reverse else prefix, start_after]
    bound = (min if reverse else max)(one for one in bounds if one is not None)
    (found.seek_for_prev if reverse else found.seek)(bound)
    if found.valid() and found.key() == bound and (reverse or bound == start_after):
        (found.prev if reverse else found.next)()


class RocksDBStore(_Rows, Transactional):
    """A database of two sides, of which one holds the records; the place, which says which, lies beside them. Another
    state is written to the other side, and is there when the place says so."""

    def __init__(self, path: Path, *, synced: bool) -> None:
        """`synced`: with every commit."""
        super().__init__(path, _SIDES[0])
        self._synced = synced
        self._db: Any = None

    def open(self, *, create: bool) -> bool:
        if self._path.is_symlink():
            raise refused(self._path, "a symbolic link")
        there = self._path.is_dir()
        if not there and not create:
            return False
        if not there:
            make_directory(self._path)
            sync_directory(self._path.parent)
        options, mode = rocksdict.Options(raw_mode=True), rocksdict.DBRecoveryMode
        options.create_if_missing(create)
        options.set_keep_log_file_num(4)
        options.set_wal_recovery_mode(mode.tolerate_corrupted_tail_records() if self._synced else mode.point_in_time())
        with _asking(self._path):
            self._db = rocksdict.Rdict(str(self._path), options)
            if self._db.get(_PLACE) is None:
                return False
            self._clear(self._other)
            self._db.flush()
        return True

    @property
    def _other(self) -> bytes:
        self.settle()
        return _SIDES[self._side == _SIDES[0]]

    def _clear(self, side: bytes) -> None:
        found = self._db.iter()
        found.seek(side)
        if found.valid() and found.key().startswith(side):
            self._db.delete_range(side, after_all(side))

    def _read_again(self) -> tuple[Tail, DirectoryConfig]:
        with _asking(self._path):
            data = self._db.get(_PLACE)
        if data is None or data[:1] not in _SIDES:
            raise damaged(str(self._path), "it does not say where its log stands")
        self._side = bytes(data[:1])
        return read_place(data[1:], str(self._path))

    def commit(self, writes: Mapping[bytes, bytes | None], fixed: DirectoryConfig, tail: Tail) -> None:
        side, batch = self._side, rocksdict.WriteBatch(raw_mode=True)
        self._place = None
        for key, value in writes.items():
            if value is None:
                batch.delete(side + key)
            else:
                batch.put(side + key, value)
        self._write(batch, side, fixed, tail, synced=self._synced)

    def _write(self, batch: Any, side: bytes, fixed: DirectoryConfig, tail: Tail, *, synced: bool) -> None:
        """Write a batch, and the place with it."""
        batch.put(_PLACE, side + msgspec.msgpack.encode(place_of(tail, fixed)))
        how = rocksdict.WriteOptions()
        how.sync = synced
        with _asking(self._path):
            self._db.write(batch, how)
        self._side, self._place = side, (tail, fixed)

    def replace(self, records: Iterable[Record], fixed: DirectoryConfig, tail: Tail) -> None:
        before = self._side if self._place is not None else None
        side = _SIDES[0] if before is None else self._other
        with _asking(self._path):
            self._clear(side)
        found = iter(records)
        while some := list(islice(found, _BATCH_RECORDS)):
            batch = rocksdict.WriteBatch(raw_mode=True)
            for key, value in some:
                batch.put(side + key, value)
            with _asking(self._path):
                self._db.write(batch)
        self._place = None
        self._write(rocksdict.WriteBatch(raw_mode=True), side, fixed, tail, synced=True)
        if before is not None:
            with suppress(StoreError), _asking(self._path):  # else the next start does it
                self._clear(before)

    def _iterator(self) -> Any:
        return self._db.iter()

    def get(self, key: bytes) -> bytes | None:
        try:
            found = self._db.get(self._side + key)
        except Exception as error:
            raise _told(self._path, error) from error
        return None if found is None else bytes(found)

    def flush(self) -> None:
        with _asking(self._path):
            self._db.flush_wal(True)

    def compact(self) -> None:
        with _asking(self._path):
            self._db.compact_range(None, None)

    def view(self) -> Reads:
        with _asking(self._path):
            return _Rows(self._path, self._side, self._db.iter())

    def close(self) -> None:
        if self._db is not None:
            db, self._db, self._place = self._db, None, None
            with _asking(self._path):
                db.close()


@contextmanager
def _asking(path: Path) -> Iterator[None]:
    try:
        yield
    except StoreError:
        raise
    except Exception as error:  # rocksdict has no other class for what RocksDB says
        raise _told(path, error) from error


def _told(path: Path, error: Exception) -> StoreError:
    """What RocksDB said, as an error that a user can meet."""
    if str(error).startswith("Corruption"):
        return damaged(str(path), f"RocksDB says: {error}")
    hint = "free disk space, stop and start again" if "No space left" in str(error) else "see what else uses that disk"
    return StoreError(f"{path}: RocksDB says: {error}", hint=hint, path=str(path))
