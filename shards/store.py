"""One shard's LMDB environment: the writer's side (`Store`) and the readers' (`ReadStore`). The owner of `lmdb`.

Databases: `data` (key -> value), `expiry` (key -> deadline and its inverse; nothing writes it yet), `meta`:

    identity   whose files these are: format, generation, shard, shards, slots, machine
    position   group, index, term, clock: committed in the same transaction as the data they describe
    solo       group and results of the last Solo, so that an answer lost with its worker can be given again

Every commit is page-level copy on write, so the death of a process leaves the last commit. `sync=False` (mode
"process") leaves it to the kernel when pages reach the disk: that survives every process, not the machine.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path

import lmdb
import lmdb.verify
import msgspec

from ipc.files import FILE_MODE, allocate
from shards.errors import StoreDamagedError, StoreError, StoreFullError, StoreMismatchError, SyncFailedError
from shards.types import Position

FORMAT = 2
PAGE_BYTES = os.sysconf("SC_PAGESIZE")
BadKey = lmdb.BadValsizeError
COPIES_PINNED = lmdb.version(subpatch=True)[3] > 0
"""Whether this liblmdb carries py-lmdb's patch that copies a given read transaction; a system's own does not."""
_DATABASES_MAX = 3
_EXPORT_RECORDS = 4096
_SPARE_TXNS = 2  # closed read transactions kept for reuse: a publish opens one and closes one
_RESERVE_BYTES = 16 << 20
_INLINE_BYTES = PAGE_BYTES // 2 - 64 - 511  # a longer value may, with its key, go to overflow pages
_DEPTH_MAX = 16  # of a tree: 2^16 leaves would take that with two records a page
_COMMIT_PAGES = 64  # for the free list, meta and root pages of a commit
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_META = struct.Struct("<I116xQQ")  # magic ... last page, transaction
_PAGE_HEADER, _MAGIC = 16, 0xBEEFC0DE
_IDENTITY, _POSITION, _SOLO = b"identity", b"position", b"solo"


class Identity(msgspec.Struct, frozen=True):
    """Whose files an environment holds. An expected `generation` of "" is any."""

    generation: str
    shard: int
    shards: int
    slots: int
    machine: str
    format: int = FORMAT


class SoloRecord(msgspec.Struct, frozen=True, array_like=True):
    group: int
    results: bytes


_encode = msgspec.msgpack.encode
_decode_identity = msgspec.msgpack.Decoder(Identity).decode
_decode_position = msgspec.msgpack.Decoder(Position).decode
_decode_solo = msgspec.msgpack.Decoder(SoloRecord).decode


def _open(
    path: Path, map_bytes: int, readers_max: int, *, readonly: bool, sync: bool = False, part: bool = False
) -> lmdb.Environment:
    try:
        return lmdb.open(
            os.fsencode(path),
            mode=FILE_MODE,
            map_size=map_bytes,
            subdir=not part,
            lock=not part,
            create=not readonly,
            readonly=readonly,
            writemap=not readonly,
            meminit=False,
            sync=sync,
            metasync=sync,
            readahead=not readonly,  # the writer walks into fresh pages; lookups read one at a time
            max_dbs=_DATABASES_MAX,
            max_readers=readers_max,
            max_spare_txns=_SPARE_TXNS if readonly else 0,
            lib_version=0,
        )
    except lmdb.Error as error:
        if any(os.strerror(code) in str(error) for code in _FULL):
            raise StoreFullError(f"cannot make {path}: {error}", hint="free disk space", path=str(path)) from error
        raise StoreError(f"cannot open {path}: {error}", path=str(path), map_bytes=map_bytes) from error


def _make_databases(env: lmdb.Environment) -> tuple[lmdb._Database, lmdb._Database]:
    """`data` and `meta`, made with all others where they are missing."""
    env.open_db(b"expiry")
    return env.open_db(b"data"), env.open_db(b"meta")


def _reserve_a_commit(env: lmdb.Environment, file: Path) -> None:
    """Give a file disk for the next small commits: a full disk is an error here, and a SIGBUS in them.

    Raises StoreFullError; `env` is closed then.
    """
    used = (env.info()["last_pgno"] + 1) * PAGE_BYTES
    try:
        with file.open("r+b") as content:
            allocate(content.fileno(), used, _COMMIT_PAGES * PAGE_BYTES)
    except OSError as error:
        env.close()
        raise StoreFullError(f"{file}: no room for a commit: {error}", hint="free disk space", used=used) from error


def _position(txn: lmdb.Transaction[bytes]) -> Position:
    return _decode_position(txn.get(_POSITION, b""))


class Store:
    """The writer's side. One per environment on the whole machine, used by one thread.

    One write transaction at a time: `begin`, any number of `get`, one `write`, then `commit` or `abort`. An error in
    any of them leaves the transaction to be aborted; what is committed stays.
    """

    def __init__(self, path: Path, identity: Identity, *, map_bytes: int, readers_max: int, sync: bool) -> None:
        self._env = _open(path, map_bytes, readers_max, readonly=False, sync=sync)
        self._syncs = sync
        self._file = path / "data.mdb"
        self._descriptor = os.open(self._file, os.O_RDWR | os.O_CLOEXEC)
        if not self._env.stat()["entries"]:
            try:
                _reserve_a_commit(self._env, self._file)
            except StoreFullError:
                os.close(self._descriptor)
                raise
        self.data, self.meta = _make_databases(self._env)
        self._txn: lmdb.Transaction[bytes] | None = None
        self._reserved = 0
        self._granted_pages = 0
        self._promised_pages = 0
        self._map_size = self._env.info()["map_size"]
        self._adopt(path, identity)

    def _adopt(self, path: Path, identity: Identity) -> None:
        """Sign an empty environment; refuse one that was signed by another."""
        with self._env.begin(write=True, db=self.meta) as txn:
            found = txn.get(_IDENTITY)
            if found is None:
                txn.put(_IDENTITY, _encode(identity))
                txn.put(_POSITION, _encode(Position()))
                found = _encode(identity)
        try:
            _check_identity(path, found, identity)
        except StoreMismatchError:
            self.close()
            raise

    @property
    def position(self) -> Position:
        """Where the last commit stands in the log."""
        with self._env.begin(db=self.meta) as txn:
            return _position(txn)

    def solo_results(self) -> bytes | None:
        """The results of the last commit when that was a Solo, as they were given to `commit`; else None."""
        with self._env.begin(db=self.meta) as txn:
            found = txn.get(_SOLO)
            if found is None:
                return None
            solo = _decode_solo(found)
            return solo.results if solo.group == _position(txn).group else None

    def begin(self) -> None:
        assert self._txn is None
        self._promised_pages = 0
        self._txn = self._env.begin(write=True, db=self.data)

    def get(self, key: bytes) -> bytes | None:
        """What the open transaction sees: the last commit and its own writes."""
        assert self._txn is not None
        return self._txn.get(key)

    def write(self, writes: Mapping[bytes, bytes | None]) -> None:
        """Put and delete (None) in key order. Raises StoreFullError, before the first page is touched, when map or
        disk might not hold the writes and their commit."""
        puts = [(key, value) for key in sorted(writes) if (value := writes[key]) is not None]
        longest = max([len(value) for _, value in puts], default=0)
        self._reserve(len(writes), puts, longest)
        if len(puts) != len(writes):
            self._delete(sorted([key for key, value in writes.items() if value is None]))
        self._put(puts)

    def put_sorted(self, pairs: list[tuple[bytes, bytes]], longest: int) -> None:
        """As `write`, of puts in key order, whose longest value has `longest` bytes."""
        self._reserve(len(pairs), pairs, longest)
        self._put(pairs)

    def _delete(self, keys: list[bytes]) -> None:
        txn = self._txn
        assert txn is not None
        try:
            for key in keys:
                txn.delete(key)
        except lmdb.Error as error:
            raise StoreError(f"{self._file}: {error}", path=str(self._file)) from error

    def _put(self, pairs: list[tuple[bytes, bytes]]) -> None:
        txn = self._txn
        assert txn is not None
        try:
            if len(pairs) == 1:
                txn.put(*pairs[0])
            else:
                txn.cursor().putmulti(pairs)
        except lmdb.MapFullError as error:
            raise self._full("the map is full", 0) from error
        except lmdb.Error as error:
            raise StoreError(f"{self._file}: {error}", path=str(self._file)) from error

    def commit(self, position: Position, solo_results: bytes | None = None) -> None:
        """Commit data and position together; in mode "power" the call returns when both are on the disk.

        Raises StoreFullError when there is no room: the transaction is gone then and left no trace. StoreError: LMDB
        could not, and nobody knows whether it is committed before the environment is opened anew.
        """
        if solo_results:
            try:
                self._reserve(1, [(_SOLO, solo_results)], len(solo_results))
            except StoreFullError:
                self.abort()
                raise
        txn, self._txn = self._txn, None
        assert txn is not None
        try:
            txn.put(_POSITION, _encode(position), db=self.meta)
            if solo_results is not None:
                txn.put(_SOLO, _encode(SoloRecord(position.group, solo_results)), db=self.meta)
            txn.commit()
        except lmdb.MapFullError as error:
            txn.abort()
            raise self._full("the map is full", 0) from error
        except lmdb.Error as error:
            txn.abort()
            kind = SyncFailedError if self._syncs else StoreError
            raise kind(f"{self._file}: the commit failed: {error}", path=str(self._file)) from error

    def abort(self) -> None:
        """Drop the open transaction, if there is one."""
        if self._txn is not None:
            self._txn.abort()
            self._txn = None

    def sync(self) -> None:
        """Return when everything committed is on the disk. SyncFailedError: the disk refused."""
        try:
            self._env.sync(True)
        except lmdb.Error as error:
            raise SyncFailedError(f"{self._file}: sync failed: {error}", path=str(self._file)) from error

    def pin(self) -> ReadTx:
        """The last commit, readable whatever is committed later, also beside the open write transaction."""
        try:
            return ReadTx(self._env.begin(db=self.data), self)
        except lmdb.Error as error:
            raise StoreError(f"{self._file}: cannot pin: {error}", hint="raise views_max") from error

    def copy(self, pinned: ReadTx, path: Path, descriptor: int) -> None:
        """Write exactly what is pinned, compacted, as an environment's file at `path`, open as `descriptor`. Any
        thread; the writer goes on. A liblmdb that cannot copy a given transaction takes a detour beside `path`."""
        if COPIES_PINNED:
            pinned.copy_to(self._env, descriptor)
            return
        beside = path.with_name(path.name + ".export")
        try:
            pinned.export_to(beside, self._map_size, descriptor)
        finally:
            beside.unlink(missing_ok=True)

    def close(self) -> None:
        """Abort what is open, close, and cut the file, which is as long as the map, to the pages in use."""
        self.abort()
        used = (self._env.info()["last_pgno"] + 1) * PAGE_BYTES
        self._env.close()
        os.truncate(self._file, used)
        os.close(self._descriptor)

    def _reserve(self, count: int, puts: list[tuple[bytes, bytes]], longest: int) -> None:
        """Make sure that map and disk hold the worst case: every write copies a leaf and splits it, every branch
        page on the way is copied, long values take pages of their own. What one group was granted and is sure not to
        have used up is the next one's without asking."""
        pages = _COMMIT_PAGES + count // 256  # free list
        if longest > _INLINE_BYTES:
            pages += sum([len(value) // PAGE_BYTES + 1 for _, value in puts if len(value) > _INLINE_BYTES])
        rough = pages + count * (2 + _DEPTH_MAX)
        if rough <= self._granted_pages:
            self._granted_pages -= rough
            self._promised_pages += rough
            return
        assert self._txn is not None
        stat = self._txn.stat(self.data)
        branches = min(count * stat["depth"], stat["branch_pages"])
        pages += min(count, stat["leaf_pages"]) + count + branches + stat["depth"]
        self._promised_pages += pages
        needed = (self._env.info()["last_pgno"] + 1 + self._promised_pages) * PAGE_BYTES
        if needed > self._map_size:
            raise self._full("the map is full", needed)
        if needed > self._reserved:
            self._allocate(needed)
        self._granted_pages = (self._reserved - needed) // PAGE_BYTES

    def _allocate(self, needed: int) -> None:
        start = self._reserved or (self._env.info()["last_pgno"] + 1) * PAGE_BYTES
        generous = -(-needed // _RESERVE_BYTES) * _RESERVE_BYTES
        end = min(self._map_size, generous)
        if end == start:
            return
        try:
            try:
                allocate(self._descriptor, start, end - start)
            except OSError:
                if needed <= self._reserved:
                    return
                end = needed  # no room to be generous
                allocate(self._descriptor, start, end - start)
        except OSError as error:
            if error.errno not in _FULL:
                raise StoreError(f"{self._file}: cannot reserve disk: {error}", path=str(self._file)) from error
            raise self._full(f"the disk is full ({os.strerror(error.errno)})", needed) from error
        self._reserved = end

    def _full(self, what: str, needed: int) -> StoreFullError:
        used = (self._env.info()["last_pgno"] + 1) * PAGE_BYTES
        return StoreFullError(
            f"{self._file}: {what}: {used} bytes used, up to {needed} needed, limit {self._map_size}",
            hint="raise map_bytes" if "map" in what else "free disk space; later chunks then succeed",
            used=used,
            needed=needed,
            limit=self._map_size,
        )


def _check_length(file: Path) -> None:
    """Raise StoreDamagedError when a file is shorter than the pages in use: reading them through a map is a SIGBUS.

    The layout is that of LMDB 0.9's `MDB_meta`, on the first two pages behind a 16-byte header:
    https://github.com/LMDB/lmdb/blob/LMDB_0.9.33/libraries/liblmdb/mdb.c
    """
    descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)  # does not wait at a pipe
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise StoreDamagedError(f"{file} is no plain file", hint="restore a snapshot", path=str(file))
        head, size = os.pread(descriptor, 2 * PAGE_BYTES, 0), os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)
    metas = [_META.unpack_from(head, page + _PAGE_HEADER) for page in (0, PAGE_BYTES) if len(head) == 2 * PAGE_BYTES]
    last_page = max(((txnid, last) for magic, last, txnid in metas if magic == _MAGIC), default=(0, 1))[1]
    if size < (last_page + 1) * PAGE_BYTES:
        raise StoreDamagedError(
            f"{file} is cut off: {size} bytes, and {(last_page + 1) * PAGE_BYTES} are in use",
            hint="restore a snapshot",
            size=size,
        )


def _check_identity(path: Path, found: bytes | None, expected: Identity) -> None:
    if found is None:
        raise StoreMismatchError(f"{path} is no shard: it holds no identity", path=str(path))
    try:
        identity = _decode_identity(found)
    except msgspec.MsgspecError as error:
        raise StoreMismatchError(f"{path}: unreadable identity: {error}", path=str(path)) from error
    for field in msgspec.structs.fields(Identity):
        has, wants = getattr(identity, field.name), getattr(expected, field.name)
        if has != wants != "":
            raise StoreMismatchError(
                f"{path} belongs to {field.name} {has!r}, not {wants!r}", path=str(path), found=has, expected=wants
            )


class ReadTx:
    """One read transaction: the shard exactly as one commit left it, whatever is committed later. `holders` is for
    the owner to count who needs it."""

    __slots__ = ("_store", "_txn", "get", "holders")

    def __init__(self, txn: lmdb.Transaction[bytes], store: ReadStore | Store) -> None:
        self.holders = 0
        self._txn = txn
        self._store = store
        self.get = txn.get  # bound: a lookup is one call. Raises BadKey for a key no record can have.

    def position(self) -> Position:
        return _decode_position(self._txn.get(_POSITION, b"", self._store.meta))

    def count(self) -> int:
        """Live records."""
        return int(self._txn.stat(self._store.data)["entries"])

    def copy_to(self, env: lmdb.Environment, descriptor: int) -> None:
        """For the store."""
        try:
            env.copyfd(descriptor, compact=True, txn=self._txn)
        except lmdb.Error as error:
            raise StoreError(f"the copy failed: {error}") from error

    def export_to(self, beside: Path, map_bytes: int, descriptor: int) -> None:
        """As `copy_to`, record by record through another environment, in bounded transactions. For the store."""
        try:
            with lmdb.open(
                str(beside),
                map_size=map_bytes,
                subdir=False,
                lock=False,
                sync=False,
                max_dbs=_DATABASES_MAX,
                lib_version=0,
            ) as env:
                for target, source in zip(_make_databases(env), (self._store.data, self._store.meta), strict=True):
                    records = iter(self._txn.cursor(source))
                    while batch := list(islice(records, _EXPORT_RECORDS)):
                        with env.begin(write=True, db=target) as txn:
                            txn.cursor().putmulti(batch, append=True)
                env.copyfd(descriptor, compact=True)
        except lmdb.Error as error:
            raise StoreError(f"the export failed: {error}") from error

    def close(self) -> None:
        self._txn.abort()

    def scan(self, prefix: bytes, start_after: bytes | None, *, reverse: bool) -> Iterator[tuple[bytes, bytes]]:
        """Records whose key starts with `prefix`, in key order, those beyond `start_after` only."""
        try:
            with self._txn.cursor() as cursor:
                found = _seek_last(cursor, prefix, start_after) if reverse else _seek(cursor, prefix, start_after)
                step = cursor.iterprev if reverse else cursor.iternext
                if found:
                    for key, value in step():
                        if not key.startswith(prefix):
                            return
                        yield key, value
        except lmdb.CorruptedError as error:
            raise StoreDamagedError(f"a shard's pages are damaged: {error}", hint="restore a snapshot") from error


def _seek(cursor: lmdb.Cursor[bytes], prefix: bytes, start_after: bytes | None) -> bool:
    start = max(prefix, start_after + b"\0") if start_after is not None else prefix
    return bool(cursor.set_range(start) if start else cursor.first())


def _seek_last(cursor: lmdb.Cursor[bytes], prefix: bytes, start_after: bytes | None) -> bool:
    """Stand on the last key with `prefix`, or the last one before `start_after` when that comes earlier."""
    end = _successor(prefix)
    if start_after is not None and (end is None or start_after < end):
        end = start_after
    if end is None:
        return bool(cursor.last())
    if not end:
        return False
    return bool(cursor.prev() if cursor.set_range(end) else cursor.last())


def _successor(prefix: bytes) -> bytes | None:
    """The least key above every key that starts with `prefix`; None when there is none."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else None


class ReadStore:
    """The readers' side of an environment, which a `Store` has made before. Never waits for the writer."""

    def __init__(
        self, path: Path, identity: Identity | None, *, map_bytes: int, readers_max: int, part: bool = False
    ) -> None:
        _check_length(path if part else path / "data.mdb")
        self._env = _open(path, map_bytes, readers_max, readonly=True, part=part)
        try:
            self.data = self._env.open_db(b"data", create=False)
            self.meta = self._env.open_db(b"meta", create=False)
            with self._env.begin(db=self.meta) as txn:
                if identity is not None:
                    _check_identity(path, txn.get(_IDENTITY), identity)
        except lmdb.Error as error:
            self._env.close()
            raise StoreMismatchError(f"{path} is no shard: {error}", path=str(path)) from error
        except StoreMismatchError:
            self._env.close()
            raise

    def begin(self) -> ReadTx:
        """Pin the last commit. Costs one of the environment's reader slots until `close`."""
        try:
            return ReadTx(self._env.begin(db=self.data), self)
        except lmdb.Error as error:
            raise StoreError(f"cannot begin to read: {error}", hint="raise views_max") from error

    @classmethod
    def of_part(cls, file: Path, identity: Identity | None = None) -> ReadStore:
        """The file of a snapshot's part: nobody writes it, so it needs no lock. `identity` None: whosever it is.

        Raises StoreMismatchError when it is no shard's, or another's; StoreDamagedError when it is cut off.
        """
        return cls(file, identity, map_bytes=max(file.stat().st_size, PAGE_BYTES), readers_max=1, part=True)

    def clear_dead_readers(self) -> int:
        """Free the reader slots of processes that were killed."""
        return self._env.reader_check()

    def close(self) -> None:
        self._env.close()


class Loader:
    """Makes an environment out of records that come in key order, in bounded transactions. Nobody else has it open.

    Either `load` records into a new one, or start from a copied file; then `finish` signs it. Until then it belongs
    to nobody.
    """

    def __init__(self, path: Path, map_bytes: int) -> None:
        self._env = _open(path, map_bytes, 1, readonly=False)
        self._file = path / "data.mdb"
        _reserve_a_commit(self._env, self._file)
        self._data, self._meta = _make_databases(self._env)

    def load(self, records: list[tuple[bytes, bytes]]) -> None:
        """Append `records`, all beyond those before. Raises StoreFullError when map or disk are full."""
        try:
            used = (self._env.info()["last_pgno"] + 1) * PAGE_BYTES
            room = sum([len(key) + len(value) for key, value in records]) * 2 + PAGE_BYTES * (
                len(records) + _COMMIT_PAGES
            )
            with self._file.open("r+b") as file:
                allocate(file.fileno(), used, min(room, self._env.info()["map_size"] - used))
            with self._env.begin(write=True, db=self._data) as txn:
                txn.cursor().putmulti(records, append=True)
        except (lmdb.Error, OSError) as error:
            raise StoreFullError(
                f"{self._file}: cannot load: {error}", hint="free disk space, or raise map_bytes", path=str(self._file)
            ) from error

    def finish(self, identity: Identity, position: Position) -> None:
        """Sign the environment, and return when it is on the disk, closed, and cut to the pages in use."""
        try:
            with self._env.begin(write=True, db=self._meta) as txn:
                txn.delete(_SOLO)
                txn.put(_IDENTITY, _encode(identity))
                txn.put(_POSITION, _encode(position))
            self._env.sync(True)
        except lmdb.Error as error:
            raise StoreError(f"{self._file}: cannot finish: {error}", path=str(self._file)) from error
        used = (self._env.info()["last_pgno"] + 1) * PAGE_BYTES
        self.close()
        os.truncate(self._file, used)

    def close(self) -> None:
        self._env.close()


def damage_in(path: Path) -> list[str]:
    """What is structurally wrong with an environment at rest, or with a part's file, by reading every page; empty when
    nothing is. No page, however it was forged, does harm."""
    file = path / "data.mdb" if path.is_dir() else path
    try:
        _check_length(file)
        findings: list[str] = lmdb.verify.verify(str(path))  # type: ignore[no-untyped-call]
        return findings
    except (lmdb.verify.VerifyError, StoreDamagedError, OSError) as error:
        return [str(error)]
    except Exception as error:  # a page that the verifier does not survive either
        return [f"{file}: {type(error).__name__} while its pages were read: {error}"]
