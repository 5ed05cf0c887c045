"""The writer's side of an environment: one write transaction at a time, and pins of the last commit."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import suppress
from pathlib import Path

import lmdb

from shardengine.ipc.errors import hint_for
from shardengine.shards.errors import StoreError, SyncFailedError
from shardengine.shards.store.env import (
    COMMIT_PAGES,
    DATA,
    IDENTITY,
    META,
    PAGE_BYTES,
    POSITION,
    SOLO,
    Identity,
    SoloRecord,
    check_identity,
    decode_position,
    decode_solo,
    encode,
    keep_from_children,
    make_databases,
    open_environment,
    refusal,
    reserve_a_commit,
    used_bytes,
)
from shardengine.shards.store.reader import ReadTx, records_under
from shardengine.shards.store.reserve import Reserve
from shardengine.shards.transaction import Record
from shardengine.shards.types import Position

_HEADROOM = b"headroom"
_INLINE_BYTES = PAGE_BYTES // 2 - 64 - 511  # a longer value may, with its key, go to overflow pages
_IDS_PER_PAGE = PAGE_BYTES // 8  # of the list of pages that a transaction frees
_VALUE_PAGES_MAX = (1 << 30) // PAGE_BYTES  # of one value: see engine/config.py


class Store:
    """The writer's side. One per environment on the whole machine, used by one thread.

    One write transaction at a time: `begin`, any number of `get`, one `write`, then `commit` or `abort`. An error in
    any of them leaves the transaction to be aborted; what is committed stays.
    """

    def __init__(self, path: Path, identity: Identity, *, map_bytes: int, readers_max: int, sync: bool) -> None:
        self._syncs = sync
        self._file = path / "data.mdb"
        self._env = open_environment(path, map_bytes, readers_max, readonly=False, sync=sync)
        self._txn: lmdb.Transaction[bytes] | None = None
        self._pins: set[ReadTx] = set()
        self._descriptor = -1
        keep_from_children(self)
        try:
            self._descriptor = os.open(self._file, os.O_RDWR | os.O_CLOEXEC)
            if not self._env.stat()["entries"]:
                reserve_a_commit(self._env, self._file)
            databases = make_databases(self._env)
            self.data, self.meta = databases[DATA], databases[META]
            self._reserve = Reserve(self._env, self._file, self._descriptor)
            self._adopt(path, identity)
        except lmdb.Error as error:
            self._let_go()
            raise refusal(f"{self._file}: cannot be opened", error, path=str(self._file)) from error
        except OSError as error:
            self._let_go()
            raise StoreError(f"{self._file}: {error}", hint=hint_for(error), path=str(self._file)) from error
        except StoreError:
            self._let_go()
            raise

    def _adopt(self, path: Path, identity: Identity) -> None:
        """Sign an empty environment; refuse one that was signed by another."""
        with self._env.begin(write=True, db=self.meta) as txn:
            found = txn.get(IDENTITY)
            if found is None:
                txn.put(IDENTITY, encode(identity))
                txn.put(POSITION, encode(Position()))
                found = encode(identity)
        check_identity(path, found, identity)

    @property
    def position(self) -> Position:
        """Where the last commit stands in the log."""
        return decode_position(self._in_meta(POSITION) or b"")

    def solo_results(self) -> bytes | None:
        """The results of the last commit when that was a Solo, as they were given to `commit`; else None."""
        found = self._in_meta(SOLO)
        if found is None:
            return None
        solo = decode_solo(found)
        return solo.results if solo.group == self.position.group else None

    def _in_meta(self, name: bytes) -> bytes | None:
        """Read through a write transaction, which needs no slot in the readers' table: that may be full of others."""
        if self._txn is not None:
            return self._txn.get(name, db=self.meta)
        txn = self._env.begin(write=True, db=self.meta)
        try:
            return txn.get(name)
        finally:
            txn.abort()

    def begin(self) -> None:
        assert self._txn is None
        self._reserve.begin(movable=not self._pins)
        self._open_transaction()

    def _open_transaction(self) -> None:
        self._txn = self._env.begin(write=True, db=self.data)

    def get(self, key: bytes) -> bytes | None:
        """What the open transaction sees: the last commit and its own writes."""
        assert self._txn is not None
        return self._txn.get(key)

    def scan(self, prefix: bytes, partitions: Set[bytes], limit: int | None, reverse: bool) -> Iterator[Record]:
        """Records that the open transaction sees, whose key starts with `prefix`, in key order or against it: of all
        partitions, and without a limit. Nothing may be written meanwhile."""
        assert self._txn is not None
        return records_under(self._txn, self.data, prefix, reverse=reverse)

    def write(self, writes: Mapping[bytes, bytes | None]) -> None:
        """Put and delete (None) in key order. Raises StoreFullError when map or disk do not hold the writes and their
        commit; the transaction is to be aborted then."""
        puts = [(key, value) for key in sorted(writes) if (value := writes[key]) is not None]
        longest = max([len(value) for _, value in puts], default=0)
        gone = sorted([key for key, value in writes.items() if value is None]) if len(puts) != len(writes) else []
        self._write(puts, longest, gone)

    def put_sorted(self, pairs: list[tuple[bytes, bytes]], longest: int) -> None:
        """As `write`, of puts in key order, whose longest value has `longest` bytes."""
        self._write(pairs, longest, ())

    def _write(self, puts: list[tuple[bytes, bytes]], longest: int, gone: Sequence[bytes]) -> None:
        pages, freed = self._worst_case(len(puts) + len(gone), puts, longest)
        if not self._reserve.take(pages + freed // _IDS_PER_PAGE + COMMIT_PAGES):
            self._rehearse(puts, gone, freed)
        self._carry_out(puts, gone)

    def _worst_case(self, count: int, puts: list[tuple[bytes, bytes]], longest: int) -> tuple[int, int]:
        """How many pages `count` writes take at most, and free at most: every write copies a leaf and splits it, every
        branch page on the way is copied, long values take pages of their own, and give those of old values back."""
        assert self._txn is not None
        stat = self._txn.stat(self.data)
        branches = min(count * stat["depth"], stat["branch_pages"])
        pages = min(count, stat["leaf_pages"]) + count + branches + stat["depth"]
        if longest > _INLINE_BYTES:
            pages += sum([len(value) // PAGE_BYTES + 1 for _, value in puts if len(value) > _INLINE_BYTES])
        return pages, pages + min(stat["overflow_pages"], count * _VALUE_PAGES_MAX)

    def _rehearse(self, puts: list[tuple[bytes, bytes]], gone: Sequence[bytes], freed: int) -> None:
        """The worst case does not fit. Do all of it, with what its commit may take, and drop it: what has gone well
        goes well again, from the same commit, since LMDB only ever finds more free pages. What puts something leaves
        room for deletes after it. Raises StoreFullError."""
        self.abort()
        if not self._reserve.tight and self._pins:
            raise self._reserve.refusal()  # the map cannot be confined while somebody reads it here
        self._reserve.confine()
        self._open_transaction()
        self._carry_out(puts, gone)
        run = 2 * (1 + freed // _IDS_PER_PAGE) * PAGE_BYTES
        single = PAGE_BYTES // 2 + PAGE_BYTES // 4
        singles = COMMIT_PAGES // 4 + (self._reserve.for_deletes if puts else 0)
        for number, size in enumerate([run] + [single] * singles):
            self._guarded_put(_HEADROOM + b"%d" % number, bytes(size))
        self.abort()
        self._open_transaction()

    def _carry_out(self, puts: list[tuple[bytes, bytes]], gone: Sequence[bytes]) -> None:
        txn = self._txn
        assert txn is not None
        try:
            for key in gone:
                txn.delete(key)
            if len(puts) == 1:
                txn.put(*puts[0])
            else:
                txn.cursor().putmulti(puts)
        except lmdb.MapFullError as error:
            raise self._reserve.refusal() from error
        except lmdb.Error as error:
            raise StoreError(f"{self._file}: {error}", path=str(self._file)) from error

    def _guarded_put(self, name: bytes, value: bytes) -> None:
        assert self._txn is not None
        try:
            self._txn.put(name, value, db=self.meta)
        except lmdb.MapFullError as error:
            raise self._reserve.refusal() from error
        except lmdb.Error as error:
            raise StoreError(f"{self._file}: {error}", path=str(self._file)) from error

    def commit(self, position: Position, solo_results: bytes | None = None, solo_runs: bytes = b"") -> None:
        """Commit data and position together, and what a Solo leaves there: its results, if they are given, and
        `solo_runs`. In mode "power" the call returns when all is on the disk.

        Raises StoreFullError when there is no room: the transaction is gone then and left no trace. StoreError: LMDB
        could not, and nobody knows whether it is committed before the environment is opened anew.
        """
        try:
            if solo_results is not None:
                self._take_for_solo(len(solo_results) + len(solo_runs))
                self._guarded_put(SOLO, encode(SoloRecord(position.group, solo_results, solo_runs)))
            self._guarded_put(POSITION, encode(position))
        except StoreError:
            self.abort()
            raise
        txn, self._txn = self._txn, None
        assert txn is not None
        try:
            txn.commit()
        except lmdb.MapFullError as error:
            raise self._reserve.refusal() from error
        except lmdb.Error as error:
            kind = SyncFailedError if self._syncs else StoreError
            told = refusal(f"{self._file}: the commit failed", error, path=str(self._file))
            raise kind(told.message, hint=told.hint, **told.facts) from error

    def _take_for_solo(self, length: int) -> None:
        """A solo may fail as late as this, so where the store is tight LMDB may be asked."""
        if length and not self._reserve.take(length // PAGE_BYTES + 2) and not self._reserve.tight:
            raise self._reserve.refusal()

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
            told = refusal(f"{self._file}: sync failed", error, path=str(self._file))
            raise SyncFailedError(told.message, hint=told.hint, **told.facts) from error

    def pin(self) -> ReadTx:
        """The last commit, readable whatever is committed later, also beside the open write transaction."""
        try:
            pinned = ReadTx(self._env.begin(db=self.data), self)
        except lmdb.Error as error:
            hint = "raise views_max, or see who else reads the directory"
            raise refusal(f"{self._file}: cannot pin", error, hint) from error
        self._pins.add(pinned)
        return pinned

    def forget(self, transaction: ReadTx, closed: lmdb.Transaction[bytes]) -> None:
        """For a pin that was closed, in whatever thread."""
        self._pins.discard(transaction)

    def copy(self, pinned: ReadTx, descriptor: int) -> None:
        """Write exactly what is pinned, compacted, as an environment's file. Any thread; the writer goes on."""
        pinned.copy_to(self._env, descriptor)

    def close(self) -> None:
        """Abort what is open, close, and cut the file, which is as long as the map, to the pages in use."""
        self.abort()
        used = used_bytes(self._env)
        self._let_go()
        os.truncate(self._file, used)

    def _let_go(self) -> None:
        self.abort()
        self._env.close()
        if self._descriptor >= 0:
            with suppress(OSError):
                os.close(self._descriptor)
