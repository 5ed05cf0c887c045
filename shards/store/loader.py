"""A new environment, out of records that come in key order, or out of a copied file."""

from __future__ import annotations

import os
from pathlib import Path

import lmdb

from shardengine.ipc.errors import hint_for
from shardengine.ipc.files import allocate
from shardengine.shards.errors import StoreError, StoreFullError
from shardengine.shards.store.env import (
    COMMIT_PAGES,
    DATA,
    IDENTITY,
    META,
    PAGE_BYTES,
    POSITION,
    SOLO,
    Identity,
    encode,
    make_databases,
    open_environment,
    refusal,
    reserve_a_commit,
    used_bytes,
)
from shardengine.shards.types import Position


class Loader:
    """Makes an environment out of records that come in key order, in bounded transactions. Nobody else has it open.

    Either `load` records into a new one, or start from a copied file; then `finish` signs it. Until then it belongs
    to nobody. `close` it in any case.
    """

    def __init__(self, path: Path, map_bytes: int) -> None:
        self._env = open_environment(path, map_bytes, 1, readonly=False)
        self._file = path / "data.mdb"
        try:
            reserve_a_commit(self._env, self._file)
            self._databases = make_databases(self._env)
        except lmdb.Error as error:
            self.close()
            raise refusal(f"{self._file}: cannot be loaded", error, path=str(self._file)) from error
        except StoreError:
            self.close()
            raise

    def load(self, records: list[tuple[bytes, bytes]]) -> None:
        """Append `records`, all beyond those before. Raises StoreFullError when map or disk are full."""
        try:
            used = used_bytes(self._env)
            room = sum([len(key) + len(value) for key, value in records]) * 2 + PAGE_BYTES * (
                len(records) + COMMIT_PAGES
            )
            with self._file.open("r+b") as file:
                allocate(file.fileno(), used, min(room, self._env.info()["map_size"] - used))
            with self._env.begin(write=True, db=self._databases[DATA]) as txn:
                txn.cursor().putmulti(records, append=True)
        except (lmdb.Error, OSError) as error:
            hint = hint_for(error) if isinstance(error, OSError) else "raise map_bytes"
            raise StoreFullError(f"{self._file}: cannot load: {error}", hint=hint, path=str(self._file)) from error

    def finish(self, identity: Identity, position: Position) -> None:
        """Sign the environment, and return when it is on the disk, closed, and cut to the pages in use."""
        try:
            with self._env.begin(write=True, db=self._databases[META]) as txn:
                txn.delete(SOLO)
                txn.put(IDENTITY, encode(identity))
                txn.put(POSITION, encode(position))
            self._env.sync(True)
        except lmdb.Error as error:
            raise refusal(f"{self._file}: cannot finish", error, path=str(self._file)) from error
        used = used_bytes(self._env)
        self.close()
        os.truncate(self._file, used)

    def close(self) -> None:
        self._env.close()
