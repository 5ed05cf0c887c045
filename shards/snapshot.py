"""One shard's part of a snapshot: pin the last commit, copy it on a thread, let it go.

The copy goes to a file that must not exist yet; it is complete, with its checksum taken and fsynced, before Copied is
said. Whatever happens, the pin is released first: an old reader makes the environment grow.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from shardengine.ipc.errors import EngineError, LinkClosedError, hint_for
from shardengine.ipc.files import create_file, sync
from shardengine.shards import wire
from shardengine.shards.digest import checksum128
from shardengine.shards.errors import StoreError
from shardengine.shards.running import problem_of
from shardengine.shards.store import ReadTx, Store
from shardengine.shards.types import Position

COPIER_ORDERS = (wire.Pin, wire.Copy, wire.Unpin)


class Copier:
    """Answers Pin, Copy and Unpin. `say` sends an answer from any thread; it is called from the copying thread.

    Invariant: `_pinned` is set from Pinned until the copy ends or Unpin; one barrier at a time, of number `_barrier`.
    """

    def __init__(self, store: Store, say: Callable[[wire.Answer], None]) -> None:
        self._store = store
        self._say = say
        self._lock = threading.Lock()
        self._barrier = 0
        self._pinned: ReadTx | None = None
        self._copying: threading.Thread | None = None
        self._unpin = False

    def handle(self, order: wire.Pin | wire.Copy | wire.Unpin) -> list[wire.Answer]:
        """Carry out one order. Returns the answers that can be given at once."""
        if isinstance(order, wire.Pin):
            return [self._pin(order.barrier)]
        if isinstance(order, wire.Copy):
            self._copy(order.barrier, Path(os.fsdecode(order.path)))
            return []
        return self._let_go(order.barrier)

    def _pin(self, barrier: int) -> wire.Pinned:
        assert self._pinned is None
        try:
            self._pinned = self._store.pin()
        except EngineError as error:
            return wire.Pinned(barrier, Position(), problem_of(error))
        self._barrier = barrier
        return wire.Pinned(barrier, self._pinned.position(), None)

    def _copy(self, barrier: int, path: Path) -> None:
        """Start copying; Copied, or Unpinned, is said when it has ended."""
        assert self._pinned is not None and self._barrier == barrier
        self._copying = threading.Thread(target=self._run, args=(path, self._pinned), daemon=True)
        try:
            self._copying.start()
        except RuntimeError as error:
            self._pinned.close()
            self._copying = self._pinned = None
            self._say(wire.Copied(barrier, 0, 0, b"", problem_of(StoreError(f"no thread can be had to copy: {error}"))))

    def _let_go(self, barrier: int) -> list[wire.Answer]:
        """Give `barrier` up. While its copy still runs nothing is answered: that says Unpinned when it has ended."""
        with self._lock:
            if self._copying is not None and self._barrier == barrier:
                self._unpin = True
                return []
        if self._pinned is not None and self._barrier == barrier:
            self._pinned.close()
            self._pinned = None
        return [wire.Unpinned(barrier)]

    def _run(self, path: Path, pinned: ReadTx) -> None:
        copied = copy_pinned(self._store, pinned, path, self._barrier)
        with self._lock:
            given_up, self._unpin = self._unpin, False
            self._copying = self._pinned = None
            with suppress(LinkClosedError):  # the coordinator is gone, which the serving thread sees for itself
                self._say(wire.Unpinned(self._barrier) if given_up else copied)


def copy_pinned(store: Store, pinned: ReadTx, path: Path, barrier: int) -> wire.Copied:
    """Copy to `path`, fsync, take the checksum; release the pin in any case."""
    try:
        entries = pinned.count()
        try:
            descriptor = create_file(path)
            try:
                store.copy(pinned, descriptor)
                size, checksum = finish_file(descriptor, path)
            finally:
                os.close(descriptor)
        finally:
            pinned.close()
    except Exception as error:
        if not isinstance(error, EngineError):
            hint = hint_for(error) if isinstance(error, OSError) else ""
            error = StoreError(f"{path}: {error}", hint=hint, path=str(path))
        return wire.Copied(barrier, 0, 0, b"", problem_of(error))
    return wire.Copied(barrier, size, entries, checksum, None)


def finish_file(descriptor: int, path: Path) -> tuple[int, bytes]:
    """Size and XXH3-128 of the file at `path`; returns when its content is on the disk."""
    size = os.fstat(descriptor).st_size
    checksum = checksum128(b"")
    if size:
        with mmap.mmap(descriptor, size, access=mmap.ACCESS_READ) as content:
            checksum = checksum128(content)
    sync(descriptor, path)
    return size, checksum
