"""A directory that the nodes of a log share, for instance on a network: the newest snapshots lie there as files.

    DIRECTORY/  <32 hexadecimal digits>/          of one log: the XXH3-128 of its identity
                    <index>-<term>.snapshot       as `export_snapshot` writes it; the newest two stay

Every method blocks on files.
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from shardengine.engine.errors import SnapshotError
from shardengine.engine.snapshot.archive import export_snapshot, import_snapshot
from shardengine.engine.snapshot.transfer import file_errors_named
from shardengine.engine.storage.files import make_directories
from shardengine.shards.digest import checksum128
from shardengine.shards.types import LogId

KEPT = 2
_NAME = re.compile(r"(\d{20})-(\d{10,20})\.snapshot", re.ASCII)


class Shelf:
    """The snapshots of one log in such a directory."""

    def __init__(self, directory: Path, identity: str) -> None:
        self._path = directory / checksum128(identity.encode()).hex()

    def there(self) -> list[tuple[LogId, Path]]:
        """Labels and files, the newest first. Raises SnapshotError."""
        with file_errors_named(f"reading {self._path}"):
            files = list(self._path.iterdir()) if self._path.is_dir() else []
        found = [(match, file) for file in files if (match := _NAME.fullmatch(file.name))]
        return sorted(((LogId(int(match[1]), int(match[2])), file) for match, file in found), reverse=True)

    def put(self, snapshot: Path, label: LogId) -> None:
        """Lay a snapshot there, unless one as new lies there, and remove all but the newest. Raises SnapshotError."""
        there = self.there()
        if there and there[0][0] >= label:
            return
        with file_errors_named(f"making {self._path}"):
            make_directories(self._path)
        export_snapshot(snapshot, self._path / f"{label.index:020}-{label.term:010}.snapshot")
        for _, file in self.there()[KEPT:]:
            with suppress(OSError):
                file.unlink()

    def take(self, first: int, applied: LogId, into: Path) -> Path | None:
        """Make of the newest that is sound a snapshot in `into`: one that is newer than `applied`, and reaches a log
        that begins at `first`. None: there is no such one. Raises SnapshotError when none of them is sound."""
        failed: SnapshotError | None = None
        for label, file in self.there():
            if label.term + 1 >= first and label > applied:
                try:
                    return import_snapshot(file, into)
                except SnapshotError as error:
                    failed = error
        if failed is not None:
            raise failed
        return None
