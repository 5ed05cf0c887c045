"""A directory of snapshots: which of them are valid, which stay, and where a new one grows.

    DIRECTORY/  <index>-<term>/        a snapshot, if its manifest is valid and bears the same name
                .partial-...           one that is being written; swept once nobody holds it
                .removing-...          one that is being removed; swept by the next removal

Indices of two *lineages* (logs) say nothing about each other. Once a snapshot is sealed, the newest `keep` of its
lineage up to it stay, itself first of all, and what is ahead of it: nobody has that state yet. Of all other lineages
together, those `keep` stay that were written last: somebody may be about to install one, but they do not pile up. They
go only now, when one of ours is there.

Whatever else lies there is somebody else's and is never touched.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec

from shardengine.engine.contract import SnapshotInfo
from shardengine.engine.errors import ConfigError, SnapshotDamagedError, SnapshotError, SnapshotFormatError
from shardengine.engine.snapshot.manifest import Manifest, read_manifest
from shardengine.engine.storage.files import make_directories, sync_directory
from shardengine.ipc.errors import hint_for
from shardengine.ipc.files import make_directory

PARTIAL = ".partial-"
REMOVING = ".removing-"

log = logging.getLogger("shardengine")

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Found(msgspec.Struct, frozen=True):
    """A valid snapshot, and what its manifest said when it was looked at."""

    info: SnapshotInfo
    manifest: Manifest

    @property
    def path(self) -> Path:
        return Path(self.info.path)


def snapshot_at(path: Path) -> Found | None:
    """The snapshot at `path`. None: it is none, its manifest is damaged or of another format or name, or one of its
    parts is missing or has another size. The parts' contents are not read. SnapshotError: this process lacks what it
    takes to look."""
    if not _is_folder(path):
        return None
    try:
        manifest = read_manifest(path)
    except (SnapshotDamagedError, SnapshotFormatError):
        return None
    if manifest.name != path.name or not all(_has_size(path / part.file, part.bytes) for part in manifest.parts):
        return None
    return Found(_info(path, manifest), manifest)


def snapshot_info(path: Path) -> SnapshotInfo | None:
    """What the snapshot at `path` is; None as `snapshot_at`."""
    found = snapshot_at(path)
    return None if found is None else found.info


def _has_size(path: Path, size: int) -> bool:
    try:
        found = path.lstat()
    except (OSError, ValueError):
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size == size


def _info(path: Path, manifest: Manifest) -> SnapshotInfo:
    return SnapshotInfo(
        str(path),
        manifest.last_included,
        manifest.shards,
        sum(part.bytes for part in manifest.parts),
        sum(part.entries for part in manifest.parts),
        bytes.fromhex(manifest.checksum),
        manifest.lineage,
    )


def snapshots_in(directory: Path) -> list[Found]:
    """The valid snapshots in `directory`, of whatever lineage, oldest first by index. SnapshotError: it cannot be
    listed."""
    try:
        children = _children(directory)
    except OSError as error:
        message = f"{directory} cannot be listed: {error}"
        raise SnapshotError(message, hint=hint_for(error), path=str(directory)) from error
    found = [snapshot_at(path) for path in children if not path.name.startswith(".")]
    return sorted((one for one in found if one is not None), key=lambda one: one.info.last_included)


def valid_snapshots(directory: str | os.PathLike[str]) -> list[SnapshotInfo]:
    """The snapshots in `directory`, oldest first by index. Damaged ones and foreign files are left out.

    Raises SnapshotError when the directory is there and cannot be listed.
    """
    return [found.info for found in snapshots_in(Path(directory))]


def prune(directory: str | os.PathLike[str], keep: int, newest: Manifest) -> list[str]:
    """Remove what has had its day now that `newest` is there; see above. Returns the paths that are gone, oldest first.

    A crash leaves each of them whole, or no longer listed. Blocks while files are removed.

    Raises:
        ConfigError: `keep` is less than 1.
    """
    if keep < 1:
        raise ConfigError(f"keep = {keep}: at least 1 snapshot stays", hint="keep 1 or more", keep=keep)
    folder = Path(directory)
    sweep_removed(folder)
    found = snapshots_in(folder)
    own = [one for one in found if one.manifest.lineage == newest.lineage]
    others = sorted((one for one in found if one.manifest.lineage != newest.lineage), key=_written)
    past = [one for one in own if one.info.last_included <= newest.last_included]
    surplus = {one.info.path for one in past[:-keep] + others[:-keep]}
    gone = [one.info.path for one in found if one.info.path in surplus]
    for path in gone:
        remove_snapshot(Path(path))
    return gone


def _written(found: Found) -> int:
    """When its manifest got its name, in nanoseconds of some clock."""
    try:
        return found.path.lstat().st_mtime_ns
    except FileNotFoundError:
        return 0


def remove_snapshot(path: Path) -> None:
    """Remove one: first its name, durably, then its files. Nothing happens when it is gone already."""
    if (removing := take_name(path)) is not None:
        _remove_tree(removing)


def take_name(path: Path) -> Path | None:
    """Take its name from a snapshot, durably; the next removal, or sweep, takes the rest. None: it is gone already."""
    removing = path.with_name(f"{REMOVING}{path.name}-{os.urandom(4).hex()}")
    try:
        path.rename(removing)
    except FileNotFoundError:
        return None
    sync_directory(path.parent)
    return removing


def sweep(directory: str | os.PathLike[str], prefix: str = PARTIAL) -> list[str]:
    """Remove what dead runs left: half-removed snapshots, and half-written ones whose names begin with `prefix`.

    One that a living process holds as a `Partial` stays. Returns the names that were removed.
    """
    assert prefix.startswith(PARTIAL)
    folder = Path(directory)
    stale = [path.name for path in _children(folder) if path.name.startswith(prefix) and _sweep_partial(path)]
    return sweep_removed(folder) + stale


def sweep_removed(folder: Path) -> list[str]:
    """Finish the removals that have begun. Returns the names that were removed."""
    removed = [path for path in _children(folder) if path.name.startswith(REMOVING) and _is_folder(path)]
    return [path.name for path in removed if _swept(path)]


def _sweep_partial(path: Path) -> bool:
    try:
        descriptor = os.open(path, _FOLDER)
    except OSError:
        return False  # no directory, or gone meanwhile
    try:
        return _lock(descriptor) and _swept(path)
    finally:
        os.close(descriptor)


def _swept(path: Path) -> bool:
    """Whether it could be removed. What cannot be is in nobody's way."""
    try:
        _remove_tree(path)
    except OSError as error:
        log.warning("%s cannot be removed: %s", path, error)
        return False
    return True


class Partial:
    """A new, empty directory for a snapshot that is being written, which no listing shows.

    It is held by a lock on the directory itself, which ends with the process: what a dead one leaves is swept, what a
    living one writes is not. Either `seal` or `remove` ends it, and leaving its `with` block removes it.
    """

    def __init__(self, directory: Path, purpose: str) -> None:
        """`purpose` becomes part of the name. `directory` is made when missing. Raises OSError."""
        make_directories(directory)
        self.path, self._descriptor = directory, -1
        while self._descriptor < 0:  # again only if a sweep came between making and locking
            self.path = directory / f"{PARTIAL}{purpose}-{os.getpid()}-{os.urandom(8).hex()}"
            self._descriptor = _make_locked(self.path)

    def seal(self, name: str) -> Path:
        """Give the directory its final name, which must be free. Returns the path when it is on the disk.

        A name whose sync has failed is taken back: another sync would not say so again. What a power loss may bring
        back of it is a whole snapshot, or none.
        """
        sealed = self.path.with_name(name)
        sync_directory(self.path)
        self.path.rename(sealed)
        try:
            sync_directory(sealed.parent)
        except OSError:
            sealed.rename(self.path)
            raise
        self._release()
        return sealed

    def remove(self) -> None:
        """Remove the directory with all it holds. Once sealed, or removed, nothing happens."""
        if self._descriptor >= 0:
            _remove_tree(self.path)
            self._release()

    def __enter__(self) -> Partial:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def _release(self) -> None:
        os.close(self._descriptor)
        self._descriptor = -1


@contextmanager
def writing_into(directory: Path) -> Iterator[Path]:
    """Write into `directory`, which must be empty or not there; leave nothing when that fails.

    Raises SnapshotError when it is not empty, or cannot be made.
    """
    made = not directory.exists()
    try:
        make_directories(directory)
        foreign = sorted(os.listdir(directory))
    except OSError as error:
        raise SnapshotError(
            f"cannot write a snapshot into {directory}: {error}", hint=hint_for(error), path=str(directory)
        ) from error
    if foreign:
        raise SnapshotError(
            f"{directory} is not empty: it holds {foreign[0]!r}", hint="name a new directory", path=str(directory)
        )
    try:
        yield directory
    except BaseException:
        for path in directory.iterdir():
            path.unlink()
        if made:
            directory.rmdir()
        raise


def _make_locked(path: Path) -> int:
    """A descriptor that holds the new directory `path`, or -1: it was swept before it was locked. Neither is left by
    what is raised."""
    make_directory(path)
    with ExitStack() as undo:
        undo.callback(_remove_tree, path)
        try:
            descriptor = os.open(path, _FOLDER)
        except FileNotFoundError:
            return -1
        undo.callback(os.close, descriptor)
        if _lock(descriptor) and os.fstat(descriptor).st_nlink > 0:
            undo.pop_all()
            return descriptor
    return -1


def _lock(descriptor: int) -> bool:
    """`flock`, not `lockf`: it works on directories, and between two holders in one process."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _is_folder(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except OSError:
        return False


def _remove_tree(path: Path) -> None:
    """Remove a directory that others may be removing too."""
    while True:
        try:
            shutil.rmtree(path)
        except FileNotFoundError:
            if path.exists():
                continue
        return
