"""Reads in any thread, at the newest applied index, of an engine that lives in another one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from shardengine.engine.contract import ScanResult
from shardengine.engine.engine import Engine
from shardengine.engine.errors import EngineStoppedError, ViewClosedError
from shardengine.engine.read.cut import SLICE, Cut, Reads
from shardengine.engine.read.view import SharedView, View
from shardengine.engine.sync.portal import end_daemon
from shardengine.shards.types import LogId

Method = TypeVar("Method", bound=Callable[..., object])
T = TypeVar("T")


def as_in(original: Callable[..., object]) -> Callable[[Method], Method]:
    """A method does what `original` does, and says so."""

    def documented(method: Method) -> Method:
        method.__doc__ = original.__doc__
        return method

    return documented


class _View(SharedView):
    def _open(self) -> Cut:
        try:
            return super()._open()
        except ViewClosedError:
            end_daemon()
            raise


class SyncReads:
    """What an engine holds, for any thread. Nobody is asked, and no thread waited for, but one that reads at the same
    moment, or publishes: a lookup, or a slice of a scan, at a time.

    Raises what the engine's own reads do; ForkedError in a forked child.
    """

    def __init__(self, engine: Engine) -> None:
        self._side = engine._readside
        self._owner = engine._owner
        self._lock = self._side.lock

    def __bool__(self) -> bool:
        return True

    @as_in(Engine.get)
    def get(self, key: bytes) -> bytes | None:
        if self._owner.forked:
            self._owner.check()
        with self._lock:
            return self._reads().cut.get(key)

    @as_in(Engine.get_multi)
    def get_multi(self, keys: Iterable[bytes]) -> list[bytes | None]:
        keys = list(keys)
        if len(keys) > SLICE:
            return self._whole(lambda view: view.get_multi(keys))
        self._check_process()
        with self._lock:
            return self._reads().cut.get_multi(keys)

    @as_in(Engine.scan_prefix)
    def scan_prefix(
        self, prefix: bytes, limit: int | None = None, start_after: bytes | None = None, reverse: bool = False
    ) -> ScanResult:
        return self._whole(lambda view: view.scan_prefix(prefix, limit, start_after, reverse))

    @as_in(Engine.view)
    def view(self) -> View:
        self._check_process()
        with self._lock:
            self._reads()
            return self._side.shared_view(_View)

    @as_in(Engine.__len__)
    def __len__(self) -> int:
        self._check_process()
        with self._lock:
            return self._reads().count()

    def is_empty(self) -> bool:
        return len(self) == 0

    @as_in(Engine.last_applied)
    def last_applied(self) -> LogId:
        self._check_process()
        with self._lock:
            position = self._reads().cut.position
        return LogId(position.index, position.term)

    def _check_process(self) -> None:
        if self._owner.forked:
            self._owner.check()

    def _reads(self) -> Reads:
        try:
            return self._side.for_any()
        except EngineStoppedError:
            end_daemon()
            raise

    def _whole(self, read: Callable[[View], T]) -> T:
        """Read one cut in slices, others going on between them. Where the whole state is replaced meanwhile, the newer
        one is read from the start."""
        self._check_process()
        while True:
            with self._lock:
                cut = self._reads().cut
                view = SharedView(cut.reads.pin(), 0.0)  # at once: it hands back what is pinned, whatever interrupts us
            try:
                with view:
                    return read(view)
            except ViewClosedError:
                if cut.ended is None:
                    raise
