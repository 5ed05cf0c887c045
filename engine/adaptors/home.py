"""The directory of one state machine in this process: whose it is, of which kind, and that it stays in its place.

    DIR/
      LOCK               held from start to stop
      adaptor            the kind of store, its format, and what was fixed when it was made; checked
      hardstate          a node's term and vote, as in an engine's directory
      snapshot-metadata  which snapshot the host named last, as there
      ...                what the store keeps

`adaptor` is written last, when the store has its first state; what a start that was broken off has left without it is
taken over, as long as no entry was applied to it.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import msgspec

from shardengine.engine.adaptors.snapshots import INSTALLING
from shardengine.engine.contract import SnapshotMetadata
from shardengine.engine.errors import DamagedError, FormatError, disk_error
from shardengine.engine.snapshot.keeper import METADATA
from shardengine.engine.storage.anchors import Anchors
from shardengine.engine.storage.files import (
    BESIDE,
    Lock,
    make_directories,
    read_checked,
    read_json,
    refuse_network_filesystem,
    sync_directory,
    write_checked,
    write_json,
)
from shardengine.engine.storage.generations import DirectoryConfig
from shardengine.engine.storage.hardstate import HardStateFile
from shardengine.ipc.errors import FileRefusedError
from shardengine.ipc.files import check_owner
from shardengine.shards.placement import SLOTS

NAME = "adaptor"
FORMAT = 1


class Kind(msgspec.Struct, frozen=True):
    """The file: which store it is, its format, and what was fixed at first. What holds now, the store says."""

    kind: str
    format: int
    config: DirectoryConfig


class Home:
    """A directory, which is locked from `open` to `close`. `kind` names the store, `own` are the names that it uses."""

    def __init__(self, path: Path, kind: str, own: frozenset[str]) -> None:
        self.path = path
        self.hard = HardStateFile(path)
        self._kind = kind
        self._own = own
        self._lock: Lock | None = None
        self._anchors = Anchors([])

    def open(self) -> DirectoryConfig | None:
        """Make it where it is not, lock it, and return what was fixed in it; None: that is not settled yet.

        Raises EngineLockedError, FormatError (it is another store's, an engine's, or no data directory), DamagedError,
        FileRefusedError, OSError. It is closed then.
        """
        make_directories(self.path)
        refuse_network_filesystem(self.path)
        check_owner(self.path, self.path.stat())
        lock = Lock(self.path / "LOCK")
        try:
            lock.take()
            config = self._read()
            sync_directory(self.path)  # a start that failed may have left names that the disk lacks
            self.hard.start()
            self._anchors = Anchors([self.path / "LOCK"])
        except BaseException:
            lock.close()
            raise
        self._lock = lock
        return config

    def close(self) -> None:
        """Give it back. Closing twice does nothing."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def check_place(self) -> None:
        """Raises DirectoryChangedError when it is not where it was opened."""
        self._anchors.check()

    def _read(self) -> DirectoryConfig | None:
        for entry in list(self.path.iterdir()):
            check_owner(entry, entry.lstat())
            if entry.name.startswith(INSTALLING):
                shutil.rmtree(entry)
        try:
            found = read_checked(self.path / NAME, Kind)
        except FileNotFoundError:
            self._refuse_foreign()
            return None
        if (found.kind, found.format, found.config.slots) != (self._kind, FORMAT, SLOTS):
            raise FormatError(
                f"{self.path} belongs to a state machine of kind {found.kind!r}, format {found.format}, "
                f"{found.config.slots} slots; this one is of kind {self._kind!r}, format {FORMAT}, {SLOTS} slots",
                hint="open it with the class, and the version, that made it; a snapshot goes from each to any other",
                kind=found.kind,
                format=found.format,
            )
        return found.config

    def _refuse_foreign(self) -> None:
        known = {"LOCK", NAME + BESIDE, *self._own, *(name + BESIDE for name in self._own)}
        foreign = sorted(set(os.listdir(self.path)) - known)
        if foreign:
            raise FormatError(
                f"{self.path} is no directory of this state machine, and not empty: it holds {foreign[0]!r}",
                hint="name an empty or a new directory",
            )

    def refuse_state(self, index: int) -> None:
        """The store has a state, and nothing says whose. Raises DamagedError when entries were applied to it."""
        if index:
            raise DamagedError(
                f"{self.path}: the file {NAME!r} is missing, but entries up to {index} were applied here",
                hint="put a copy of that very file in its place",
                path=str(self.path),
            )

    def lost(self) -> DamagedError:
        """For a store that has no state where there must be one."""
        return DamagedError(
            f"{self.path}: there was a state, and now there is none",
            hint="was a file moved away? Put it back, or remove the directory and restore a snapshot",
            path=str(self.path),
        )

    def settle(self, config: DirectoryConfig) -> None:
        """The store has its first state: from here on the directory is one of its kind."""
        write_checked(self.path / NAME, Kind(self._kind, FORMAT, config))

    def metadata(self) -> SnapshotMetadata | None:
        """Which snapshot the host named last; None: none, or nobody can tell. No state hangs on it."""
        try:
            return read_json(self.path / METADATA, SnapshotMetadata)
        except (FormatError, FileRefusedError, OSError):
            return None

    def persist(self, metadata: SnapshotMetadata) -> None:
        """Keep it for good. Raises StoreError, DirectoryChangedError."""
        self.check_place()
        try:
            write_json(self.path / METADATA, metadata)
        except OSError as error:
            raise disk_error("the snapshot's metadata cannot be written", error, path=str(self.path)) from error
