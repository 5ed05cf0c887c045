"""Repeatable reads: a view keeps the cut that was published when it was opened."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from itertools import islice
from types import TracebackType
from typing import ClassVar, Self

from shardengine.engine.contract import ScanResult, scanned
from shardengine.engine.errors import ForkedError, WrongThreadError, view_closed
from shardengine.engine.read.cut import SLICE, Cut


class _Process:
    """Which process this is: how many forks led to it."""

    forks: ClassVar[int] = 0


def forks() -> int:
    """Another number in a forked child than in its parent."""
    return _Process.forks


class View:
    """All shards as they were at one applied index, while applies go on. Opens nothing and waits for nobody.

    Close it, or use it as a context manager: an old view makes the files grow. It is read in its engine's thread, and
    may be closed in any; one that is dropped is closed. A forked child cannot read it (ForkedError): no slot in the
    readers' table keeps pages for the child. A view that outlives `view_age_max_ms`, or its engine's
    run, is closed for it; reads then raise ViewClosedError. That of a `SyncEngine` is for any thread.
    """

    _for_any: ClassVar[bool] = False

    def __init__(self, cut: Cut, opened_at: float) -> None:
        self._held = [cut]
        self._thread = threading.get_ident()
        self._forks = _Process.forks
        self._why = "it was closed"
        self.opened_at = opened_at
        self.revision = cut.position.index
        """The log index it shows."""

    def get(self, key: bytes) -> bytes | None:
        """The value of `key`, or None. Does not block."""
        return self._open().get(key)

    def get_multi(self, keys: Iterable[bytes]) -> list[bytes | None]:
        """The value of each key, or None, in the order of `keys`."""
        return self._open().get_multi(keys)

    def scan_prefix(
        self, prefix: bytes, limit: int | None = None, start_after: bytes | None = None, reverse: bool = False
    ) -> ScanResult:
        """As `Engine.scan_prefix`, of this view's state."""
        return self._open().scan_prefix(prefix, limit, start_after, reverse)

    def __len__(self) -> int:
        return self._open().count()

    def __bool__(self) -> bool:
        return True

    def close(self, why: str = "it was closed") -> None:
        """Let go of the state: at once in the engine's thread, soon from any other. Closing twice does nothing, nor
        does closing in a forked child do anything to the parent's view."""
        cut = self._let_go(why)
        if cut is not None and self._here() and (self._for_any or threading.get_ident() == self._thread):
            cut.reads.take_back()

    def _let_go(self, why: str) -> Cut | None:
        try:
            cut = self._held.pop()  # one of all who close it gets it
        except IndexError:
            return None
        self._why = why
        cut.hand_back()
        return cut

    @property
    def closed(self) -> bool:
        return not self._held

    def __del__(self) -> None:
        if getattr(self, "_held", None):
            self._let_go("it was dropped")  # at any moment, in any thread: nothing else may be done here

    def _open(self) -> Cut:
        self._check_process()
        if threading.get_ident() != self._thread and not self._for_any:
            raise WrongThreadError("the view belongs to another thread", hint="use it where its engine lives")
        try:
            cut = self._held[0]
        except IndexError:
            why = self._why
        else:
            if cut.ended is None:
                return cut
            why = cut.ended
        raise view_closed(self.revision, why)

    def _here(self) -> bool:
        return self._forks == _Process.forks

    def _check_process(self) -> None:
        if not self._here():
            raise ForkedError("the view was opened before a fork, in the parent process", hint="make one per process")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class SharedView(View):
    """A view for any thread. It holds the lock of its cuts for a lookup, or a slice of a scan, at a time. First it
    looks what process this is: no thread of a forked child may ever give that lock back."""

    _for_any = True

    def __init__(self, cut: Cut, opened_at: float) -> None:
        super().__init__(cut, opened_at)
        self._lock = cut.reads.lock

    def get(self, key: bytes) -> bytes | None:
        self._check_process()
        with self._lock:
            return self._open().get(key)

    def get_multi(self, keys: Iterable[bytes]) -> list[bytes | None]:
        self._check_process()
        wanted, found = iter(keys), []
        while keys_next := list(islice(wanted, SLICE)):
            with self._lock:
                found += self._open().get_multi(keys_next)
        return found

    def scan_prefix(
        self, prefix: bytes, limit: int | None = None, start_after: bytes | None = None, reverse: bool = False
    ) -> ScanResult:
        self._check_process()
        size = SLICE if limit is None else min(SLICE, limit + 1)
        return scanned(self._in_slices(prefix, start_after, reverse, size), limit, self.revision)

    def _in_slices(
        self, prefix: bytes, start_after: bytes | None, reverse: bool, size: int
    ) -> Iterator[tuple[bytes, bytes]]:
        with self._lock:
            records = self._open().records(prefix, start_after, reverse=reverse)
        try:
            more = True
            while more:
                with self._lock:
                    self._open()
                    found = list(islice(records, size))
                yield from found
                more = len(found) == size
        finally:
            with self._lock:
                del records  # with its cursors

    def __len__(self) -> int:
        self._check_process()
        with self._lock:
            return self._open().count()


def _after_fork() -> None:
    _Process.forks += 1


os.register_at_fork(after_in_child=_after_fork)
