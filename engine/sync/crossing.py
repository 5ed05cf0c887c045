"""From any thread into the loop of what lives there, from its start to its end."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from typing import Any

from shardengine.engine.config import EngineConfig
from shardengine.engine.engine import Engine
from shardengine.engine.errors import EngineStoppedError, OutcomeUnknownError
from shardengine.engine.sync.portal import Portal, end_daemon


class Crossing:
    """The one way to an engine, or to a node with that engine.

    Invariant: there is a portal while the engine runs, and its thread is the engine's owner then; else nobody is.
    """

    def __init__(self, engine: Engine, config: EngineConfig, close: Callable[[], Awaitable[None]]) -> None:
        """`close` ends all that was started, in the loop, be it whole or in part."""
        self._engine = engine
        self._owner = engine._owner
        self._close = close
        self._patience_s = (3 * config.stop_timeout_ms + config.flush_timeout_ms) / 1000
        self._portal: Portal | None = None
        self._life = threading.RLock()
        self._owner.depart()

    def check(self) -> None:
        """Raises ForkedError in a forked child, WrongThreadError in the loop's own thread."""
        if self._owner.forked:
            self._owner.check()
        if (portal := self._portal) is not None:
            portal.check()

    @property
    def forked(self) -> bool:
        return self._owner.forked

    def begin(self, start: Callable[[], Any]) -> Any:
        """Have it started. What is raised, in the loop or in this thread, leaves nothing running."""
        self.check()
        with self._life:
            if self._portal is None:
                name = f"shardengine {self._engine._readside.path}"
                self._portal = Portal(name, self._owner.here(), self._close, self._patience_s)
            elif self._engine._shell.runtime is not None:
                return self._portal.call(start)  # which is refused
            try:
                return self._portal.call(start)
            except BaseException:
                self.end(self._close)
                raise

    def end(self, how: Callable[[], Any], otherwise: Callable[[], None] | None = None) -> None:
        """Have it stopped, and end the thread; with no thread, do `otherwise`. Where the wait is interrupted, all goes
        on, and a later call waits."""
        self.check()
        with self._life:
            if (portal := self._portal) is None:
                if otherwise is not None:
                    self.here(otherwise)
                return
            try:
                if not portal.closed:  # as the interpreter's end may have
                    portal.call(how)
            except Exception:
                portal.close()
                self._portal = None
                raise
            portal.close()
            self._portal = None

    def ask(self, work: Callable[[], Any], otherwise: Callable[[], Any] | None = None) -> Any:
        """Have `work` done there, and what it gives awaited. While nothing runs, `otherwise` is done here, `work` when
        it is None."""
        self.check()
        if (portal := self._portal) is None:
            with self._life:
                if (portal := self._portal) is None:
                    return self.here(otherwise or work)
        try:
            return portal.call(work)
        except (EngineStoppedError, OutcomeUnknownError):
            end_daemon()
            raise

    def here(self, work: Callable[[], Any]) -> Any:
        """Do `work` in this thread, while nothing runs, and nothing is started."""
        with self._owner.here():
            return work()
