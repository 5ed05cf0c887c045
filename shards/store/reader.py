"""Read transactions, and the slots in the readers' table that keep the pages they see.

LMDB reuses a page when no slot in `lock.mdb` holds a commit that needs it, and it trusts two POSIX locks to tell whose
slots are alive. Both can be lost to what happens in this process or in another one, without a word: the system drops
the locks when *any* descriptor of `lock.mdb` is closed here (a copy of the directory does that), and whoever opens the
environment then, with nobody else holding a lock, empties the table, as whoever clears what the dead have left frees
our slots. `keep_locks` takes the locks again; `keeps_slots` tells whether the slots are still ours.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import lmdb

from shardengine.ipc.errors import hint_for
from shardengine.shards.errors import StoreDamagedError, StoreError, StoreMismatchError
from shardengine.shards.store.env import (
    DATA,
    IDENTITY,
    META,
    PAGE_BYTES,
    POSITION,
    SOLO,
    SPARE_TXNS,
    Identity,
    check_identity,
    check_length,
    decode_position,
    decode_solo,
    keep_from_children,
    number_of,
    open_environment,
    open_hint,
    open_table,
    refusal,
)
from shardengine.shards.types import Position, Standing

_BEGINS = 2  # a publish, and another one if the cut of the first is kept


class Owner(Protocol):
    """The store that a read transaction belongs to."""

    data: lmdb._Database
    meta: lmdb._Database

    def forget(self, transaction: ReadTx, closed: lmdb.Transaction[bytes]) -> None: ...


class ReadTx:
    """One read transaction: the shard exactly as one commit left it, whatever is committed later. `holders` is for
    the owner to count who needs it."""

    __slots__ = ("_owner", "_txn", "get", "holders", "number")

    def __init__(self, txn: lmdb.Transaction[bytes], owner: Owner) -> None:
        self.holders = 0
        self._txn = txn
        self._owner = owner
        self.number = txn.id()
        """Of the commit it sees, as LMDB counts."""
        self.get: Callable[[bytes], bytes | None] = txn.get
        """Bound: a lookup is one call. Raises BadKey for a key no record can have."""

    def position(self) -> Position:
        return decode_position(self._txn.get(POSITION, b"", self._owner.meta))

    def standing(self) -> Standing:
        """Its position, and what a start wants to know beside it."""
        position, left = self.position(), self._txn.get(SOLO, None, self._owner.meta)
        solo = None if left is None else decode_solo(left)
        return Standing(position, solo.runs if solo is not None and solo.group == position.group else b"")

    def count(self) -> int:
        """Live records."""
        return int(self._txn.stat(self._owner.data)["entries"])

    def copy_to(self, env: lmdb.Environment, descriptor: int) -> None:
        """For the store."""
        try:
            env.copyfd(descriptor, compact=True, txn=self._txn)
        except lmdb.Error as error:
            raise refusal("the copy failed", error) from error

    def close(self) -> None:
        """Let go of the commit. Closing twice does nothing; reads then raise StoreError."""
        if self.get is not _closed:
            self.get = _closed
            self._txn.abort()
            self._owner.forget(self, self._txn)
            del self._txn

    def scan(self, prefix: bytes, start_after: bytes | None, *, reverse: bool) -> Iterator[tuple[bytes, bytes]]:
        """Records whose key starts with `prefix`, in key order, those beyond `start_after` only."""
        return records_under(self._txn, self._owner.data, prefix, start_after, reverse=reverse)


def records_under(
    txn: lmdb.Transaction[bytes],
    data: lmdb._Database,
    prefix: bytes,
    start_after: bytes | None = None,
    *,
    reverse: bool,
) -> Iterator[tuple[bytes, bytes]]:
    """The records that `txn` sees, as `ReadTx.scan`."""
    try:
        with txn.cursor(data) as cursor:
            found = _seek_last(cursor, prefix, start_after) if reverse else _seek(cursor, prefix, start_after)
            step = cursor.iterprev if reverse else cursor.iternext
            if found:
                for key, value in step():
                    if not key.startswith(prefix):
                        return
                    yield key, value
    except lmdb.CorruptedError as error:
        raise StoreDamagedError(f"a shard's pages are damaged: {error}", hint="restore a snapshot") from error


def _closed(key: bytes) -> bytes | None:
    raise StoreError("a read transaction was closed")


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
    """The readers' side of an environment, which a `Store` has made before. Never waits for the writer.

    Invariant: `_open` are the transactions begun and not closed; each has a slot in the readers' table. So has each
    closed one in `_spare`: LMDB's binding gives the slot of one that is dropped to the next that begins.
    """

    def __init__(
        self,
        path: Path,
        identity: Identity | None,
        *,
        map_bytes: int,
        readers_max: int,
        part: bool = False,
        slots: bool = True,
    ) -> None:
        """See `open_environment`. Raises StoreMismatchError when it is no shard's, or another's; StoreError."""
        check_length(path if part else path / "data.mdb")
        self._env = open_environment(path, map_bytes, readers_max, readonly=True, part=part, slots=slots)
        self._open: set[ReadTx] = set()
        self._spare: list[lmdb.Transaction[bytes]] = []
        self._table = path / "lock.mdb"
        self._locks: int | None = None
        keep_from_children(self)
        try:
            self.data = self._env.open_db(DATA, create=False)
            self.meta = self._env.open_db(META, create=False)
            with self._env.begin(db=self.meta) as txn:
                if identity is not None:
                    check_identity(path, txn.get(IDENTITY), identity)
            if slots and not part:
                self._locks = open_table(self._table)
        except lmdb.Error as error:
            self._env.close()
            if number_of(error):
                raise refusal(f"{path} cannot be read", error, path=str(path)) from error
            raise StoreMismatchError(f"{path} is no shard: {error}", path=str(path)) from error
        except OSError as error:
            self._env.close()
            raise StoreError(f"{self._table}: {error}", hint=hint_for(error), path=str(self._table)) from error
        except BaseException:
            self._env.close()
            raise

    def begin(self) -> ReadTx:
        """Pin the last commit. Costs one of the environment's reader slots until `close`."""
        try:
            transaction = ReadTx(self._begin(), self)
        except lmdb.Error as error:
            raise self._refusal(error) from error
        self._open.add(transaction)
        return transaction

    def _begin(self) -> lmdb.Transaction[bytes]:
        try:
            return self._env.begin(db=self.data)
        except lmdb.ReadersFullError:
            if not self._spare:
                raise
            self._spare.pop()  # its slot is the next one's
            return self._env.begin(db=self.data)

    def prepare(self) -> None:
        """See to it that the next two calls of `begin` have their slots, and a worker that starts has one. Raises
        StoreError when others have taken so many that there are not even the two."""
        while len(self._spare) < SPARE_TXNS:
            try:
                spare = self._env.begin(db=self.data)
            except lmdb.Error as error:
                if len(self._spare) < _BEGINS:
                    raise self._refusal(error) from error
                return
            spare.abort()
            self._spare.append(spare)

    def make_way(self) -> None:
        """Give up a slot, for a worker that is about to start: LMDB's binding takes one as it opens an environment, and
        keeps the last one that is dropped here."""
        del self._spare[_BEGINS - 1 :]

    def _refusal(self, error: lmdb.Error) -> StoreError:
        hint = open_hint(self._table.parent, error) or "see README, how to back up a directory that is open"
        return refusal("cannot begin to read", error, hint)

    def forget(self, transaction: ReadTx, closed: lmdb.Transaction[bytes]) -> None:
        """For a transaction that was closed."""
        self._open.discard(transaction)
        if len(self._spare) < SPARE_TXNS:
            self._spare.append(closed)

    @classmethod
    def of_part(cls, file: Path, identity: Identity | None = None) -> ReadStore:
        """The file of a snapshot's part: nobody writes it, so it needs no lock. `identity` None: whosever it is.

        Raises StoreMismatchError when it is no shard's, or another's; StoreDamagedError when it is cut off.
        """
        return cls(file, identity, map_bytes=max(file.stat().st_size, PAGE_BYTES), readers_max=1, part=True)

    def copy(self, pinned: ReadTx, descriptor: int) -> None:
        """Write exactly what is pinned, compacted, as an environment's file. Any thread, while nobody reads `pinned`
        in another one."""
        pinned.copy_to(self._env, descriptor)

    def keep_locks(self) -> None:
        """Take the two locks that stand for our slots again, should this process have lost them."""
        if self._locks is not None:
            for kind, place in ((fcntl.LOCK_EX, os.getpid()), (fcntl.LOCK_SH, 0)):
                with suppress(OSError):  # another process is at it this moment; `keeps_slots` tells what comes of it
                    fcntl.lockf(self._locks, kind | fcntl.LOCK_NB, 1, place)

    def keeps_slots(self) -> bool:
        """False when the readers' table, or its file, is not the one that our transactions are entered in. Where they
        have no slots: False when there was a commit since, after which their pages may be reused."""
        if self._locks is None:
            last = self._env.info()["last_txnid"]
            return all(transaction.number == last for transaction in self._open)
        ours = [line.split() for line in self._env.readers().splitlines()[1:]]
        listed = [int(line[2]) for line in ours if int(line[0]) == os.getpid() and line[2] != "-"]
        for transaction in self._open:
            if transaction.number not in listed:
                return False
            listed.remove(transaction.number)
        try:
            there, opened = self._table.stat(), os.fstat(self._locks)
        except OSError:
            return False
        return (there.st_dev, there.st_ino) == (opened.st_dev, opened.st_ino)

    def clear_dead_readers(self) -> int:
        """Free the reader slots of processes that were killed. Returns how many; 0 also when the system cannot tell."""
        try:
            return self._env.reader_check()
        except lmdb.Error:
            return 0

    def close(self) -> None:
        """Close what is open. Closing twice does nothing."""
        for transaction in list(self._open):
            transaction.close()
        self._spare.clear()
        self._env.close()
        if self._locks is not None:
            os.close(self._locks)
            self._locks = None
