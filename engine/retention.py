"""A directory of snapshots: which of them are valid, which stay, and where a new one grows.

    DIRECTORY/  <index>-<term>/        a snapshot, if its manifest is valid and bears the same name
                .partial-...           one that is being written; swept once nobody holds it
                .removing-...          one that is being removed; swept by the next removal

Whatever else lies there is somebody else's and is never touched.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
from pathlib import Path

from engine.contract import SnapshotInfo
from engine.errors import ConfigError, SnapshotError
from engine.files import make_directories, sync_directory
from engine.manifest import Manifest, read_manifest
from ipc.files import make_directory

PARTIAL = ".partial-"
REMOVING = ".removing-"

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def snapshot_info(path: Path) -> SnapshotInfo | None:
    """What the snapshot at `path` is. None: it is none, its manifest is damaged or of another format or name, or one of
    its parts is missing or has another size. The parts' contents are not read."""
    if path.is_symlink() or not path.is_dir():
        return None
    try:
        manifest = read_manifest(path)
    except (SnapshotError, OSError):
        return None
    if manifest.name != path.name or not all(_has_size(path / part.file, part.bytes) for part in manifest.parts):
        return None
    return _info(path, manifest)


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
    )


def valid_snapshots(directory: str | os.PathLike[str]) -> list[SnapshotInfo]:
    """The snapshots in `directory`, oldest first by index. Damaged ones and foreign files are left out."""
    found = [snapshot_info(path) for path in _children(Path(directory)) if not path.name.startswith(".")]
    return sorted((info for info in found if info is not None), key=lambda info: info.last_included)


def prune(directory: str | os.PathLike[str], keep: int) -> list[str]:
    """Remove all valid snapshots but the `keep` newest by index. Returns the paths that are gone, oldest first.

    A crash leaves each of them whole, or no longer listed. Blocks while files are removed.

    Raises:
        ConfigError: `keep` is less than 1.
    """
    if keep < 1:
        raise ConfigError(f"keep = {keep}: at least 1 snapshot stays", hint="keep 1 or more", keep=keep)
    folder = Path(directory)
    _sweep_removed(folder)
    surplus = [info.path for info in valid_snapshots(folder)[:-keep]]
    for path in surplus:
        remove_snapshot(Path(path))
    return surplus


def remove_snapshot(path: Path) -> None:
    """Remove one: first its name, durably, then its files. Nothing happens when it is gone already."""
    removing = path.with_name(f"{REMOVING}{path.name}-{os.urandom(4).hex()}")
    try:
        path.rename(removing)
    except FileNotFoundError:
        return
    sync_directory(path.parent)
    _remove_tree(removing)


def sweep(directory: str | os.PathLike[str], prefix: str = PARTIAL) -> list[str]:
    """Remove what dead runs left: half-removed snapshots, and half-written ones whose names begin with `prefix`.

    One that a living process holds as a `Partial` stays. Returns the names that were removed.
    """
    assert prefix.startswith(PARTIAL)
    folder = Path(directory)
    stale = [path.name for path in _children(folder) if path.name.startswith(prefix) and _sweep_partial(path)]
    return _sweep_removed(folder) + stale


def _sweep_removed(folder: Path) -> list[str]:
    removed = [path for path in _children(folder) if path.name.startswith(REMOVING) and _is_folder(path)]
    for path in removed:
        _remove_tree(path)
    return [path.name for path in removed]


def _sweep_partial(path: Path) -> bool:
    try:
        descriptor = os.open(path, _FOLDER)
    except OSError:
        return False  # no directory, or gone meanwhile
    try:
        if not _lock(descriptor):
            return False
        _remove_tree(path)
        return True
    finally:
        os.close(descriptor)


class Partial:
    """A new, empty directory for a snapshot that is being written, which no listing shows.

    It is held by a lock on the directory itself, which ends with the process: what a dead one leaves is swept, what a
    living one writes is not. Either `seal` or `remove` ends it.
    """

    def __init__(self, directory: Path, purpose: str) -> None:
        """`purpose` becomes part of the name. `directory` is made when missing. Raises OSError."""
        make_directories(directory)
        self.path, self._descriptor = directory, -1
        while self._descriptor < 0:  # again only if a sweep came between making and locking
            self.path = directory / f"{PARTIAL}{purpose}-{os.getpid()}-{os.urandom(8).hex()}"
            self._descriptor = _make_locked(self.path)

    def seal(self, name: str) -> Path:
        """Give the directory its final name, which must be free. Returns the path when it is on the disk."""
        sealed = self.path.with_name(name)
        sync_directory(self.path)
        self.path.rename(sealed)
        sync_directory(sealed.parent)
        self._release()
        return sealed

    def remove(self) -> None:
        """Remove the directory with all it holds. Once sealed, or removed, nothing happens."""
        if self._descriptor >= 0:
            _remove_tree(self.path)
            self._release()

    def _release(self) -> None:
        os.close(self._descriptor)
        self._descriptor = -1


def _make_locked(path: Path) -> int:
    """A descriptor that holds the new directory `path`, or -1: it was swept before it was locked."""
    make_directory(path)
    try:
        descriptor = os.open(path, _FOLDER)
    except FileNotFoundError:
        return -1
    if _lock(descriptor) and os.fstat(descriptor).st_nlink > 0:
        return descriptor
    os.close(descriptor)
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
    except FileNotFoundError:
        return []


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _remove_tree(path: Path) -> None:
    """Remove a directory that others may be removing too."""
    while True:
        try:
            shutil.rmtree(path)
        except FileNotFoundError:
            if path.exists():
                continue
        return
