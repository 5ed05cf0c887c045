"""Map and disk ahead of the last page: what LMDB may touch must be there, or it dies of SIGBUS instead of failing.

Invariant: LMDB takes no page that lies on no disk. Either the worst case of the open transaction ends below `end`, up
to which disk is reserved (`take` said True), or the map itself ends there (`confine`), so that LMDB refuses.

`_needed` is where the last page ends at the worst: that of the last measurement, and all that was taken since.

Between the two lies a store whose map, or whose disk, is nearly full: it may still have any number of free pages
before `end`. The worst case does not count them; LMDB does. So then the writer tries, and takes a refusal for what it
is: see `Store._rehearse`.
"""

from __future__ import annotations

import os
from pathlib import Path

import lmdb

from shardengine.ipc.errors import FULL, hint_for
from shardengine.ipc.files import allocate
from shardengine.shards.errors import StoreError, StoreFullError
from shardengine.shards.store.env import PAGE_BYTES, used_bytes

STEP_BYTES = 16 << 20
_WORTH_A_MOVE_BYTES = 1 << 20
_DELETE_PAGES_MAX = 64


class Reserve:
    """Of one environment, for its one writer. Sizes in bytes."""

    def __init__(self, env: lmdb.Environment, file: Path, descriptor: int) -> None:
        """`file` is the data file, open for writing as `descriptor`."""
        self._env = env
        self._file = file
        self._descriptor = descriptor
        self._map_bytes = int(env.info()["map_size"])
        self.for_deletes = min(_DELETE_PAGES_MAX, self._map_bytes // PAGE_BYTES // 32)
        """Pages that puts leave free, so that there is room to delete something."""
        self._taken = 0
        self._needed = used_bytes(env)
        self._no_disk: OSError | None = None
        self.end = min(self._needed, self._map_bytes)
        self.confined = False

    def begin(self, *, movable: bool) -> None:
        """A write transaction is about to begin. `movable`: none of any kind is open, so the map may be changed."""
        if self.confined and movable and self._allocate(self.end + _WORTH_A_MOVE_BYTES):
            self._env.set_mapsize(self._map_bytes)
            self.confined = False
        self._taken = 0

    def take(self, pages: int) -> bool:
        """Make room for `pages` more in the open transaction, whatever is free before `end`. False: there is not so
        much; nothing may be written then, unless the store is `tight` and LMDB is asked instead."""
        self._taken += pages * PAGE_BYTES
        self._needed += pages * PAGE_BYTES
        if self._needed > self.end:
            self._needed = used_bytes(self._env) + self._taken  # most of what was taken was not used
            if self._needed > self.end and not self.confined:
                self._allocate(self._needed)
        return self._needed <= self.end

    @property
    def tight(self) -> bool:
        """True when LMDB can take no page beyond `end`: what it grants lies on disk."""
        return self.confined or self.end == self._map_bytes

    def confine(self) -> None:
        """Have the map end where the disk does. No transaction is open, of whatever kind."""
        if not self.tight:
            self._env.set_mapsize(self.end)
            self.confined = True

    def _allocate(self, needed: int) -> bool:
        """Have the file system reserve disk up to `needed`, or where the map ends, and some more if it has it."""
        needed = min(self._map_bytes, -(-needed // PAGE_BYTES) * PAGE_BYTES)
        generous = min(self._map_bytes, -(-needed // STEP_BYTES) * STEP_BYTES)
        for end in dict.fromkeys((generous, needed)):
            try:
                if end > self.end:
                    allocate(self._descriptor, self.end, end - self.end)
                    self.end = end
                self._no_disk = None
                return True
            except OSError as error:
                if error.errno not in FULL:
                    raise StoreError(
                        f"{self._file}: cannot reserve disk: {error}", hint=hint_for(error), path=str(self._file)
                    ) from error
                self._no_disk = error
        return False

    def refusal(self) -> StoreFullError:
        """Why what was asked for is not there."""
        used, needed = used_bytes(self._env), max(self._needed, self.end + PAGE_BYTES)
        if self._no_disk is None:
            what = "the map is full"
            hint = "raise map_bytes; or, if much was deleted or rewritten, compact() the engine"
        else:
            what = f"the disk is full ({os.strerror(self._no_disk.errno or 0)})"
            hint = f"{hint_for(self._no_disk)}; later chunks then succeed"
        return StoreFullError(
            f"{self._file}: {what}: {used} bytes used, up to {needed} needed, limit {self._map_bytes}",
            hint=hint,
            used=used,
            needed=needed,
            limit=self._map_bytes,
        )
