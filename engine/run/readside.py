"""The readers' side of an engine: open from its start until `close_storage`, stopped or not."""

from __future__ import annotations

import threading
import time
import weakref
from pathlib import Path

from shardengine.engine.config import EngineConfig
from shardengine.engine.errors import EngineStateError, TooManyViewsError
from shardengine.engine.read.cut import Reads
from shardengine.engine.read.view import View
from shardengine.engine.run.owner import Owner


class ReadSide:
    """What the directory at `path` is read through, while it is open, and the views of it."""

    def __init__(self, path: Path, owner: Owner, config: EngineConfig) -> None:
        self.path = path
        self.reads: Reads | None = None
        self._owner = owner
        self._config = config
        self._views: weakref.WeakSet[View] = weakref.WeakSet()

    def now(self) -> Reads:
        """Raises WrongThreadError, ForkedError, or EngineStateError when it is not open."""
        if threading.get_ident() != self._owner.thread or self.reads is None:
            self._owner.check()
            raise EngineStateError("the engine's storage is not open", hint="start() it")
        return self.reads

    def close(self) -> None:
        """Views end. Closing twice does nothing."""
        if self.reads is not None:
            self.reads.close()
            self.reads = None

    def view(self) -> View:
        """A view of now. Raises TooManyViewsError, or as `now`."""
        reads = self.now()
        if (count := self.views_open) >= self._config.views_max:
            raise TooManyViewsError(f"{count} views are open", hint="close views, or raise views_max", limit=count)
        view = View(reads.pin(), time.monotonic())
        self._views.add(view)
        return view

    @property
    def views_open(self) -> int:
        """How many."""
        return sum([not view.closed for view in self._views])

    def expire_views(self, now: float) -> None:
        """Close those that are older, at `now` (in seconds), than `view_age_max_ms`."""
        oldest = now - self._config.view_age_max_ms / 1000
        for view in [view for view in self._views if view.opened_at < oldest]:
            view.close(f"it was older than view_age_max_ms={self._config.view_age_max_ms}")
