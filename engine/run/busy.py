"""The one thing at a time that an engine does beside applying: it takes a snapshot, or replaces its state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum, auto

from shardengine.engine.errors import SnapshotInProgressError, disk_error
from shardengine.engine.run.runtime import Runtime


class _With(Enum):
    NOTHING = auto()
    FILES = auto()
    REPLACING = auto()


class Busy:
    """What it is busy with, if with anything."""

    def __init__(self) -> None:
        self._with = _With.NOTHING

    @property
    def taking(self) -> bool:
        """A snapshot is being taken or installed, or the state replaced: up to its last file."""
        return self._with is not _With.NOTHING

    @property
    def replacing(self) -> bool:
        """The state is being replaced: no chunk is accepted."""
        return self._with is _With.REPLACING

    @contextmanager
    def one(self, runtime: Runtime) -> Iterator[None]:
        """One snapshot, install, reset or compaction at a time, up to its last file. StoreError: the disk refuses."""
        if self.taking:
            what = "another state is being installed" if self.replacing else "a snapshot is being taken, or installed,"
            raise SnapshotInProgressError(f"{what} already", hint="await it, then ask again")
        runtime.check_writable()
        self._with = _With.FILES
        try:
            yield
        except OSError as error:
            path = runtime.opened.directory.path
            raise disk_error(f"{path} cannot be written", error, path=str(path)) from error
        finally:
            self._with = _With.NOTHING

    @contextmanager
    def replacement(self) -> Iterator[None]:
        """Inside of `one`: from here to its end no chunk is accepted."""
        self._with = _With.REPLACING
        try:
            yield
        finally:
            self._with = _With.FILES
