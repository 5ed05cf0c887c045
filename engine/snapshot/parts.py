"""The parts of a snapshot: each is read once, through one descriptor, and is judged by what was read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from shardengine.engine.errors import SnapshotDamagedError, SnapshotError
from shardengine.engine.snapshot.manifest import PartInfo
from shardengine.ipc.errors import LACKING, hint_for
from shardengine.ipc.files import open_plain
from shardengine.shards.digest import hasher128

_READ_BYTES = 1 << 20


def stretches(path: Path, part: PartInfo, stretch_bytes: int = _READ_BYTES) -> Iterator[tuple[int, bytes]]:
    """A part in stretches, each with its offset. Of one that is not what its manifest says, the last is not given.

    Raises SnapshotDamagedError when it is not, SnapshotError when this process lacks what it takes to read it.
    """
    try:
        with open(open_plain(path), "rb") as file:
            yield from _checked(file, path, part, stretch_bytes)
    except OSError as error:
        raise _unreadable(path, error) from error


def _checked(file: BinaryIO, path: Path, part: PartInfo, stretch_bytes: int) -> Iterator[tuple[int, bytes]]:
    hasher, offset = hasher128(), 0
    while data := file.read(stretch_bytes):
        end = offset + len(data)
        hasher.update(data)
        if end >= part.bytes or len(data) < stretch_bytes:
            _check(path, part, end + len(file.read(1)), hasher.hexdigest())
        yield offset, data
        offset = end
    if offset == 0 or offset < part.bytes:
        _check(path, part, 0, hasher.hexdigest())


def _check(path: Path, part: PartInfo, size: int, checksum: str) -> None:
    if size != part.bytes:
        raise damaged(path, f"{size if size < part.bytes else 'more'} bytes, not {part.bytes}")
    if checksum != part.checksum:
        raise damaged(path, "its checksum does not match the manifest's")


def read_part(path: Path, part: PartInfo, into: BinaryIO | None = None) -> None:
    """Read a part, into `into` if that is given. Raises as `stretches`, and OSError when `into` cannot be written."""
    for _, data in stretches(path, part):
        if into is not None:
            into.write(data)


def damaged(file: Path, what: str) -> SnapshotDamagedError:
    return SnapshotDamagedError(
        f"{file} is damaged: {what}", hint="take another snapshot, or fetch this one again", path=str(file)
    )


def _unreadable(path: Path, error: OSError) -> SnapshotError:
    if error.errno in LACKING:
        return SnapshotError(f"{path} cannot be read: {error}", hint=hint_for(error), path=str(path))
    return damaged(path, str(error))
