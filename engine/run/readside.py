"""The readers' side of an engine: open from its start to its stop."""

from __future__ import annotations

import threading
import time
import weakref
from pathlib import Path
from typing import TypeVar

from shardengine.engine.config import EngineConfig
from shardengine.engine.errors import (
    EngineError,
    EngineStateError,
    TooManyViewsError,
    ViewClosedError,
    not_any_more,
    not_started,
)
from shardengine.engine.read.cut import Reads
from shardengine.engine.read.view import SharedView, View
from shardengine.engine.run.owner import Owner
from shardengine.engine.storage.files import Lock

AnyView = TypeVar("AnyView", bound=View)
AnyShared = TypeVar("AnyShared", bound=SharedView)


class ReadSide:
    """What the directory at `path` is read through, while the engine runs, and the views of it.

    Invariant: nothing is read while there is a `_refusal`, which says why; `reads` may be open then, not closed yet.
    As long as it is, the directory is locked. All of that, and the views, change under `lock`, which is the lock of all
    that is ever read here: who holds it may use `for_any`, in whatever thread.
    """

    def __init__(self, path: Path, owner: Owner, config: EngineConfig) -> None:
        self.path = path
        self.lock = threading.RLock()
        self.reads: Reads | None = None
        self._owner = owner
        self._config = config
        self._views: weakref.WeakSet[View] = weakref.WeakSet()
        self._lock: Lock | None = None
        self._refusal: EngineStateError | None = not_started()

    def open(self, reads: Reads, lock: Lock) -> None:
        """From now on `reads` is what is read, in the directory that `lock` keeps."""
        with self.lock:
            reads.lock = self.lock  # nobody has read there yet
            self.reads, self._lock, self._refusal = reads, lock, None

    def now(self) -> Reads:
        """Raises WrongThreadError, ForkedError, EngineStoppedError after a stop, or EngineStateError before a start."""
        if threading.get_ident() != self._owner.thread or self.reads is None or self._refusal is not None:
            self._owner.check()
            raise self.refusal
        return self.reads

    def for_any(self) -> Reads:
        """As `now`, in whatever thread, which holds `lock`."""
        if self.reads is None or self._refusal is not None:
            raise self.refusal
        return self.reads

    def check(self) -> None:
        """For who began to read before. Raises ViewClosedError when the engine was stopped since, or as `now`."""
        self._owner.check()
        if self._refusal is not None:
            raise ViewClosedError("what was begun to be read cannot be read on: its engine was stopped")

    @property
    def refusal(self) -> EngineError:
        """What to raise while the engine does not run."""
        assert self._refusal is not None
        return self._refusal.again()

    def refuse(self) -> None:
        """The engine has stopped: views end, and from now on nothing is read."""
        with self.lock:
            self._refusal = not_any_more()
            for view in list(self._views):
                view.close("its engine was stopped")

    def close(self) -> None:
        """Of an engine that has stopped: close what was read, and free the directory. Closing twice does nothing."""
        with self.lock:
            if self.reads is not None and self._lock is not None:
                self.reads.close()
                self._lock.close()
                self.reads = self._lock = None

    def view(self) -> View:
        """A view of now. Raises TooManyViewsError, or as `now`."""
        return self._add(View, self.now())

    def shared_view(self, kind: type[AnyShared]) -> AnyShared:
        """As `view`, for any thread, and in any, which holds `lock`."""
        return self._add(kind, self.for_any())

    def _add(self, kind: type[AnyView], reads: Reads) -> AnyView:
        if (count := self.views_open) >= self._config.views_max:
            raise TooManyViewsError(f"{count} views are open", hint="close views, or raise views_max", limit=count)
        now = time.monotonic()
        view = kind(reads.pin(), now)  # at once: it hands back what is pinned, whatever interrupts us
        self._views.add(view)
        return view

    @property
    def views_open(self) -> int:
        """How many."""
        with self.lock:
            return sum([not view.closed for view in self._views])

    def expire_views(self, now: float) -> None:
        """Close those that are older, at `now` (in seconds), than `view_age_max_ms`."""
        oldest = now - self._config.view_age_max_ms / 1000
        with self.lock:
            for view in [view for view in self._views if view.opened_at < oldest]:
                view.close(f"it was older than view_age_max_ms={self._config.view_age_max_ms}")
