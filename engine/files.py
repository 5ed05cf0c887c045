"""Small files that must be whole or absent, whatever dies: written beside their place, fsynced, renamed into it."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import msgspec

from engine.errors import EngineLockedError, FormatError

T = TypeVar("T")

_LOCAL_ONLY = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "glusterfs", "lustre", "fuse.sshfs", "afs"}
)


def write_whole(path: Path, data: bytes) -> None:
    """Replace the file at `path`. Returns when the new content, and its name, are on the disk."""
    beside = path.with_name(path.name + ".new")
    with beside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    beside.rename(path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Return when the names in the directory are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    write_whole(path, msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n")


def read_json(path: Path, kind: type[T]) -> T:
    """Raises FormatError when the file is not what this version writes, FileNotFoundError when there is none."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except msgspec.MsgspecError as error:
        raise FormatError(f"{path}: not readable: {error}", hint="was it written by another version?") from error


class Lock:
    """An exclusive `lockf` lock on a file, which also tells its holder's pid. A forked child does not inherit it.

    The kernel would give a process the lock twice, and drop it when the process closes any descriptor of the file; so
    a second Lock on the same file is refused here before it opens anything.
    """

    _held: ClassVar[set[Path]] = set()

    def __init__(self, path: Path) -> None:
        """Raises EngineLockedError when this process has the file locked already."""
        self._key = path.resolve()
        if self._key in self._held:
            raise self._refused(path, os.getpid())
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._path = path
        self._held.add(self._key)

    def take(self, timeout_ms: int = 0, *, sign: bool = True) -> None:
        """Raises EngineLockedError when another process has it and keeps it for `timeout_ms`. Blocks up to then.
        `sign`: write our pid into it."""
        deadline = time.monotonic() + timeout_ms / 1000
        while True:
            try:
                fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() >= deadline:
                    raise self._refusal() from None
                time.sleep(0.005)
        if sign:
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, str(os.getpid()).encode(), 0)

    def _refusal(self) -> EngineLockedError:
        holder = os.pread(self._descriptor, 32, 0).decode(errors="replace").strip()
        return self._refused(self._path, int(holder) if holder.isdigit() else None)

    @staticmethod
    def _refused(path: Path, pid: int | None) -> EngineLockedError:
        return EngineLockedError(
            f"{path} is held by process {pid or 'unknown'}",
            hint="one engine at a time may use a directory; stop the other one",
            pid=pid,
        )

    def close(self) -> None:
        """Give the lock back."""
        self._held.discard(self._key)
        os.close(self._descriptor)


os.register_at_fork(after_in_child=Lock._held.clear)


def filesystem_of(path: Path) -> str:
    """The type of the file system that `path` lies on, as /proc/self/mountinfo names it; "" when unknown."""
    best, kind = -1, ""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        mount = fields[4].encode().decode("unicode_escape")
        if len(mount) >= best and path.is_relative_to(mount):
            best, kind = len(mount), fields[fields.index("-") + 1]
    return kind


def refuse_network_filesystem(path: Path) -> None:
    kind = filesystem_of(path.resolve())
    if kind in _LOCAL_ONLY:
        raise FormatError(
            f"{path} lies on {kind}, a network file system: shared maps and locks do not hold there",
            hint="use a local disk",
            filesystem=kind,
        )
