"""Whether the files of a run are still its own, and how far they survive power loss."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

from shardengine.engine.commit.coordinator import Coordinator
from shardengine.engine.commit.flushing import Done
from shardengine.engine.errors import EngineError
from shardengine.engine.run.opening import Opened
from shardengine.engine.storage.anchors import Anchors
from shardengine.engine.storage.runmark import RunMark
from shardengine.shards.types import LogId, Position

_TICKS_A_LOOK = 8  # at the files that keep others out


class Durability:
    """The run mark, the anchors and the flushes of one run over one generation."""

    def __init__(self, opened: Opened, mode: str, applied: Callable[[], LogId], before: RunMark | None) -> None:
        """`applied` and `before`: see `RunMark`. Raises OSError."""
        path, generation = opened.directory.path, opened.generation
        self._anchors = Anchors([path / "LOCK", *generation.guards])
        self._ticks = count(1)
        self._flushed: Position | None = None
        self.mark = RunMark(path, generation, mode, self._anchors.check, applied, before)

    def check_place(self) -> None:
        """Raises DirectoryChangedError when the files that are opened by name are not ours any more."""
        self._anchors.check()

    def check_writable(self) -> None:
        """Raises SyncFailedError after a sync that failed, or as `check_place`."""
        self.mark.check_sound()
        self.check_place()

    def look_is_due(self) -> bool:
        """Time passes: tell the next start of a sync that failed; now and then it is time to look at the files."""
        self.mark.record_failure()
        return next(self._ticks) % _TICKS_A_LOOK == 0

    def flush(self, coordinator: Coordinator, done: Done) -> None:
        """Make all that is published durable, then call `done`. After a sync that failed nothing is, ever."""

        def flushed(error: EngineError | None) -> None:
            outcome = self.mark.flushed(error)
            if outcome is None:
                self._flushed = coordinator.applied
            done(outcome)

        if self.mark.failure is not None:
            done(self.mark.refusal())
        else:
            coordinator.flush(flushed)

    def holds(self, position: Position) -> bool:
        """True when a flush of this run made `position` durable, and nothing was written since."""
        return self._flushed == position and self.mark.clean and self.mark.failure is None
