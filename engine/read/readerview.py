"""Repeatable reads of another process's engine: views that any thread may use."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

from shardengine.engine.contract import ScanResult
from shardengine.engine.read.cut import Cut
from shardengine.engine.read.view import View
from shardengine.shards.digest import DIGEST_MODULUS
from shardengine.shards.types import LogId


class ReaderView(View):
    """A view of a `Reader`: the state at `revision`, for any thread, one at a time.

    It ends with the reader, with the run of the engine that it was opened in, and, when the reader or it is used next,
    after `view_age_max_ms`: reads then raise ViewClosedError.
    """

    def __init__(self, cut: Cut, opened_at: float, reader: object, lock: threading.Lock, age_max_ms: int) -> None:
        """`reader` closes what the view reads when nobody refers to it any more; `lock` is its."""
        super().__init__(cut, opened_at)
        self._reader = reader
        self.last_applied = LogId(cut.position.index, cut.position.term)
        """The entry it shows the state at."""
        self._lock = lock
        self._age_max_ms = age_max_ms

    def get(self, key: bytes) -> bytes | None:
        self._check_process()
        with self._lock:
            return super().get(key)

    def get_multi(self, keys: Iterable[bytes]) -> list[bytes | None]:
        self._check_process()
        with self._lock:
            return super().get_multi(keys)

    def scan_prefix(
        self, prefix: bytes, limit: int | None = None, start_after: bytes | None = None, reverse: bool = False
    ) -> ScanResult:
        self._check_process()
        with self._lock:
            return super().scan_prefix(prefix, limit, start_after, reverse)

    def __len__(self) -> int:
        self._check_process()
        with self._lock:
            return super().__len__()

    def digest(self) -> bytes:
        """As `Reader.digest`, of this state."""
        self._check_process()
        with self._lock:
            cut = self._open()
        return digest_of(cut, self._lock, self._open)

    def cut(self) -> Cut:
        """For who looks at its shards one by one, while no other thread reads."""
        with self._lock:
            return self._open()

    def close(self, why: str = "it was closed") -> None:
        """Let go of the state. Closing twice does nothing."""
        if self._here():
            with self._lock:
                self._close(why)

    def expire(self) -> None:
        """For the reader, which has the lock: close it if it is too old."""
        if time.monotonic() - self.opened_at > self._age_max_ms / 1000:
            self._close(f"it was older than view_age_max_ms={self._age_max_ms}")

    def _close(self, why: str) -> None:
        cut = self._let_go(why)
        if cut is not None:
            cut.reads.take_back()

    def _check_thread(self) -> None:
        """Any will do; so this is where its age is looked at."""
        self.expire()


def digest_of(cut: Cut, lock: threading.Lock, check: Callable[[], object]) -> bytes:
    """In slices, between which other threads have the lock. `check` raises when there is nothing to read any more."""
    total, slices = 0, cut.digest_slices()
    while True:
        with lock:
            check()
            part = next(slices, None)
        if part is None:
            return (total % DIGEST_MODULUS).to_bytes(16, "big")
        total += part
