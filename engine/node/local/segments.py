"""The files of a log: segments by the position of their first record, and spare ones that have none yet.

A spare is made whole, with disk for all of it, before it gets its head and its name; so a segment with a name has both,
and a sync of its content changes no size. The newest segment is written, the others never change.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from shardengine.engine.errors import DirectoryChangedError, LogDamagedError
from shardengine.engine.node.local.layout import HEAD_BYTES, Codec, Head, Walk, encode_head
from shardengine.engine.node.log import Logged
from shardengine.engine.node.refusals import truncated
from shardengine.engine.storage.anchors import Anchors
from shardengine.engine.storage.files import sync_directory
from shardengine.ipc.files import SyncError, allocate, create_file, open_file, sync, write_all

SUFFIX = ".log"
SPARE = "spare-"
LOCK = "LOCK"
_DIGITS = 20
_MARKED_BYTES = 64 << 10
"""So far apart are places whose position is known without reading."""
_STRETCH_BYTES = 1 << 20
"""About so much is read in one go."""


def name_of(first: int) -> str:
    return f"{first:0{_DIGITS}}{SUFFIX}"


def first_of(name: str) -> int | None:
    """None: it is no segment's name."""
    digits = name.removesuffix(SUFFIX)
    return int(digits) if digits.isdecimal() and name_of(int(digits)) == name else None


class Segment:
    """One file: its first position, its length in bytes, and where some of its records lie."""

    def __init__(self, path: Path, first: int, size: int, secret: bytes) -> None:
        self.path = path
        self.first = first
        self.size = size
        self.codec = Codec(secret, first)
        self._positions = [first]
        self._places = [HEAD_BYTES]

    def note(self, position: int, at: int) -> None:
        """The record of `position` begins there; they are told in order. Others may look for one meanwhile."""
        if at - self._places[-1] >= _MARKED_BYTES:
            self._places.append(at)
            self._positions.append(position)

    def place_before(self, position: int) -> int:
        """Where a record begins that is that of `position`, or not far before it."""
        return self._places[bisect_right(self._positions, position) - 1]

    @contextmanager
    def walk(self, at: int = HEAD_BYTES) -> Iterator[Walk]:
        """Its records from `at` on. Raises FileRefusedError, OSError."""
        descriptor = open_file(self.path)
        try:
            yield Walk(self.codec, descriptor, self.size, at)
        finally:
            os.close(descriptor)

    def damaged(self, at: int, what: str) -> LogDamagedError:
        return damaged(self.path, at, what)


def damaged(path: Path, at: int, what: str) -> LogDamagedError:
    return LogDamagedError(
        f"{path}, offset {at}: {what}",
        hint="nothing was changed: restore the log from a copy, or begin an empty one and bring the node to its place "
        "by a snapshot",
        path=str(path),
        offset=at,
    )


class Segments:
    """All segments of a log, oldest first. One thread changes them; others may read meanwhile.

    Invariant: once the log is made, `kept` is never empty, not for a moment, and `descriptor` is open to write its
    newest one. `anchors` tell whether their directory is where it was.
    """

    def __init__(self, directory: Path, identity: bytes, secret: bytes, size: int, kept: list[Segment]) -> None:
        """`size`: of new ones, in bytes."""
        self.kept = kept
        self.size = size
        self.descriptor = -1
        self._directory = directory
        self._identity = identity
        self._secret = secret
        self._spares: list[tuple[Path, int]] = []
        self._made = 0
        self.anchors = Anchors([directory, directory / LOCK])

    @property
    def first(self) -> int:
        """The first position that is kept, if any is."""
        return self.kept[0].first

    @property
    def newest(self) -> Segment:
        return self.kept[-1]

    @property
    def spares(self) -> int:
        return len(self._spares)

    def close(self) -> None:
        """Let go of the files, and remove the spare ones, if they are where they were made."""
        while self._spares:
            path, descriptor = self._spares.pop()
            os.close(descriptor)
            with suppress(OSError, DirectoryChangedError):
                self.anchors.check()
                path.unlink()
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    # ---- changes: one thread -------------------------------------------------------------------------------------

    def make_spare(self) -> None:
        """Have one more file with disk for a segment. Blocks. Raises OSError; nothing is left of it then.
        DirectoryChangedError: the directory is not where it was; so do all that change names."""
        self.anchors.check()
        self._made += 1
        path = self._directory / f"{SPARE}{self._made}"
        descriptor = create_file(path)
        try:
            allocate(descriptor, 0, self.size)
            sync(descriptor, path)
        except OSError:
            os.close(descriptor)
            with suppress(OSError):
                path.unlink()
            raise
        self._spares.append((path, descriptor))

    def roll(self, first: int) -> None:
        """Make a spare the newest segment, for records from `first` on; all before are on the disk. It takes the place
        of the newest one if that has none. Blocks.

        Raises OSError, and it is the spare that it was; SyncError, and nobody can tell what it is.
        """
        self.anchors.check()
        path, descriptor = self._spares[0]
        segment = Segment(self._directory / name_of(first), first, self.size, self._secret)
        write_all(descriptor, encode_head(Head(first, self.size, self._identity)), 0)
        sync(descriptor, path, content_only=True)
        path.rename(segment.path)
        try:
            sync_directory(self._directory)
        except OSError as error:
            raise SyncError(error.errno, error.strerror, str(self._directory)) from error
        del self._spares[0]
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor = descriptor
        if self.kept and self.newest.first == first:
            self.kept[-1] = segment
        else:
            self.kept.append(segment)

    def remove_before(self, position: int) -> bool:
        """Remove the oldest segment if all of it lies before `position`. Returns whether it did. Blocks. Raises
        OSError."""
        if len(self.kept) < 2 or self.kept[1].first > position:
            return False
        self.anchors.check()
        self.kept.pop(0).path.unlink()
        sync_directory(self._directory)
        return True

    # ---- reading: any thread -------------------------------------------------------------------------------------

    def read(self, after: int, upto: int) -> list[Logged]:
        """Some of what follows position `after`, at most up to `upto`, which is on the disk and behind `after`. Blocks.

        Raises LogTruncatedError, LogDamagedError, OSError.
        """
        kept = self.kept.copy()
        number = bisect_right([segment.first for segment in kept], after + 1) - 1
        if number < 0:
            raise truncated(kept[0].first, after)
        segment, found, size = kept[number], list[Logged](), 0
        try:
            with segment.walk(segment.place_before(after + 1)) as walk:
                for record in walk:
                    if record.position > upto or size >= _STRETCH_BYTES:
                        break
                    if record.position == after + 1 + len(found):
                        found.append(Logged(record.position, record.time_ms, record.frame))
                        size += len(record.frame)
        except FileNotFoundError:
            if self.first > after + 1:
                raise truncated(self.first, after) from None
            raise
        if not found:
            raise segment.damaged(walk.at, f"the record of position {after + 1} is missing or damaged")
        return found
