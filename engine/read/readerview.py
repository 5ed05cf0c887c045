"""Repeatable reads of another process's engine."""

from __future__ import annotations

import time
from collections.abc import Callable

from shardengine.engine.read.cut import Cut
from shardengine.engine.read.view import SharedView
from shardengine.shards.digest import DIGEST_MODULUS
from shardengine.shards.types import LogId


class ReaderView(SharedView):
    """A view of a `Reader`: the state at `revision`, for any thread.

    It ends with the reader, with the run of the engine that it was opened in, and, when the reader or it is used next,
    after `view_age_max_ms`, or when nothing keeps its pages any more: reads then raise ViewClosedError.
    """

    def __init__(self, cut: Cut, opened_at: float, look: Callable[[], object], age_max_ms: float) -> None:
        """`look`, a method of the reader, is called before a read, and ends the view where its pages are not kept. The
        reader closes what the view reads when nobody refers to it any more."""
        super().__init__(cut, opened_at)
        self._look = look
        self.last_applied = LogId(cut.position.index, cut.position.term)
        """The entry it shows the state at."""
        self._age_max_ms = age_max_ms

    def digest(self) -> bytes:
        """As `Reader.digest`, of this state."""
        return digest_of(self.cut(), self.cut)

    def cut(self) -> Cut:
        """For who looks at its shards one by one, while no other thread reads."""
        self._check_process()
        with self._lock:
            return self._open()

    def expire(self) -> None:
        """Close it if it is too old."""
        if time.monotonic() - self.opened_at > self._age_max_ms / 1000:
            self.close(f"it was older than view_age_max_ms={self._age_max_ms}")

    def _open(self) -> Cut:
        self.expire()
        self._look()
        return super()._open()


def digest_of(cut: Cut, check: Callable[[], object]) -> bytes:
    """The digest; between its slices other threads read, and `check` is called, which may raise."""
    total = 0
    for part in cut.digest_slices():
        total += part
        check()
    return (total % DIGEST_MODULUS).to_bytes(16, "big")
