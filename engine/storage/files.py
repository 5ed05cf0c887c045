"""Small files that must be whole or absent, whatever dies: written beside their place, fsynced, renamed into it.

Nothing is undone after a rename: from there on the new name may be on the disk, whatever the sync behind it says.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import msgspec

from shardengine.engine.errors import (
    ConfigError,
    DirectoryChangedError,
    EngineLockedError,
    FormatError,
)
from shardengine.ipc.files import create_file, make_directory, open_file, sync, sync_path
from shardengine.shards.digest import checksum128

T = TypeVar("T")

SMALL_BYTES_MAX = 1 << 20
"""More than any small file has."""

BESIDE = ".new"
"""What the name of a file ends with that is about to take the place of the one without it."""

_UNREADABLE = (msgspec.MsgspecError, UnicodeError, RecursionError)

_LOCAL_ONLY = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "glusterfs", "lustre", "fuse.sshfs", "afs"}
)

_UNSYNCABLE = frozenset((errno.EINVAL, errno.EROFS, errno.ENOTSUP, errno.EACCES, errno.EPERM))

_COPY_ON_WRITE = frozenset({"btrfs", "zfs", "bcachefs", "nilfs2"})


def absolute(path: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> Path:
    """The place that `path` names now, whatever directory this process changes to. ConfigError: it names none."""
    try:
        place = Path(os.fsdecode(path)).absolute()
        if b"\0" in os.fsencode(place):
            raise ValueError("it holds a NUL")
    except (TypeError, ValueError, OSError) as error:
        raise ConfigError(f"{path!r} is no path: {error}", hint="pass a str, bytes, or a Path") from error
    return place


def data_path(path: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> Path:
    """Where a data directory lies, or will: absolute, and through its links once and for all. Raises ConfigError."""
    place = absolute(path)
    try:
        return place.resolve()
    except (OSError, RuntimeError) as error:  # links in a circle
        raise ConfigError(f"{place} leads nowhere: {error}", hint="name another directory", path=str(place)) from error


# ---- whole or absent -------------------------------------------------------------------------------------------------


def write_whole(path: Path, data: bytes) -> None:
    """Replace the file at `path`. Returns when the new content, and its name, are on the disk."""
    replace_file(path, data)
    sync_directory(path.parent)


def replace_file(path: Path, data: bytes, *, synced: bool = True) -> None:
    """Give `path` new content, which is on the disk when this returns, unless not `synced`; its name may not be.

    Until the rename, which is the last step, a failure changes nothing, and leaves no file.
    """
    beside = path.with_name(path.name + BESIDE)
    beside.unlink(missing_ok=True)
    try:
        with os.fdopen(create_file(beside), "wb") as file:
            file.write(data)
            file.flush()
            if synced:
                sync(file.fileno(), beside)
        beside.rename(path)
    except OSError:
        with suppress(OSError):
            beside.unlink()
        raise


def sync_directory(path: Path) -> None:
    """Return when the names in the directory are on the disk. Raises SyncError."""
    sync_path(path)


def make_directories(path: Path) -> None:
    """Make `path`, for this user alone, and what is missing above it; returns when all their names are on the disk.

    So is that of the first directory that is there, if it is empty: who made it here may have failed, or died, before
    its name was synced; nothing is put into one that is made here before that.
    """
    missing = [one for one in (path, *path.parents) if not one.exists()]
    there = missing[-1].parent if missing else path
    if _may_be_empty(there):
        _sync_name(there)
    for one in reversed(missing):
        try:
            make_directory(one) if one == path else one.mkdir()
        except FileExistsError:
            if not one.is_dir():
                raise
        sync_directory(one.parent.resolve())


def _may_be_empty(path: Path) -> bool:
    try:
        with os.scandir(path) as children:
            return next(children, None) is None
    except OSError:
        return True


def _sync_name(path: Path) -> None:
    """As `sync_directory`, of the name that a directory has had. A mount point's belongs to another file system; and
    one above may be of a kind that syncs no directories, or not be open to who may pass through it."""
    try:
        above = path.parent.resolve()
        if above.stat().st_dev == path.lstat().st_dev:
            sync_directory(above)
    except OSError as error:
        if error.errno not in _UNSYNCABLE:
            raise


def read_small(path: Path) -> bytes:
    """All of a plain file of this user that is as small as every file of ours. Raises FileRefusedError, FormatError,
    OSError."""
    descriptor = open_file(path)
    try:
        size = os.fstat(descriptor).st_size
        data = os.read(descriptor, SMALL_BYTES_MAX) if size <= SMALL_BYTES_MAX else b""
    finally:
        os.close(descriptor)
    if size > SMALL_BYTES_MAX:
        raise FormatError(f"{path}: {size} bytes; no such file has more than {SMALL_BYTES_MAX}", hint=_WRITTEN_BY)
    return data


_FLOCK = struct.Struct("@hhqqi0q")  # `struct flock` of 64-bit Linux
_REPLACED_MAX = 100
_WRITTEN_BY = "was it written by another program, or another version?"


def pretty(value: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=1)


def write_json(path: Path, value: Any) -> None:
    write_whole(path, pretty(value) + b"\n")


def read_json(path: Path, kind: type[T]) -> T:
    """Raises FormatError when the file is not what this version writes, FileNotFoundError when there is none."""
    return _decode(path, read_small(path), kind)


def _decode(path: Path, data: bytes | msgspec.Raw, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except _UNREADABLE as error:
        raise FormatError(f"{path}: not readable: {error}", hint=_WRITTEN_BY) from error


class _Checked(msgspec.Struct, frozen=True):
    checksum: str
    content: msgspec.Raw


def checked(value: Any) -> bytes:
    """A value as JSON that carries the XXH3-128 of its own text."""
    text = pretty(value)
    return b'{"checksum": "%s",\n"content": %s}\n' % (checksum128(text).hex().encode(), text)


def write_checked(path: Path, value: Any) -> None:
    write_whole(path, checked(value))


def read_checked(path: Path, kind: type[T]) -> T:
    """As `read_json`, of what `write_checked` wrote: one changed bit is a FormatError."""
    envelope = read_json(path, _Checked)
    if checksum128(bytes(envelope.content)).hex() != envelope.checksum:
        raise FormatError(
            f"{path}: its content does not match its checksum",
            hint="it was edited or damaged: put a copy in its place, or restore a snapshot into another directory",
        )
    return _decode(path, envelope.content, kind)


# ---- locks -----------------------------------------------------------------------------------------------------------


class Lock:
    """An exclusive `lockf` lock on a file, which also tells its holder's pid. A forked child does not inherit it.

    The kernel would give a process the lock twice, and drop it when the process closes any descriptor of the file; so
    a second Lock on the same file is refused here before it opens anything.
    """

    _held: ClassVar[set[Path]] = set()

    def __init__(self, path: Path) -> None:
        """Raises EngineLockedError when this process has the file locked already, FileRefusedError."""
        self._key = path.resolve()
        if self._key in self._held:
            raise self._refused(path, os.getpid())
        self._path = path
        self._descriptor = open_file(path, os.O_RDWR | os.O_CREAT)
        self._held.add(self._key)

    def take(self, timeout_ms: int = 0, *, sign: bool = True) -> None:
        """Raises EngineLockedError when another process has it and keeps it for `timeout_ms`. Blocks up to then.
        `sign`: write our pid into it."""
        deadline = time.monotonic() + timeout_ms / 1000
        replaced = 0
        while True:
            try:
                fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._in_place():
                    break
                self._reopen()
                replaced += 1
            except (BlockingIOError, PermissionError):
                if time.monotonic() >= deadline:
                    raise self._refusal() from None
                time.sleep(0.005)
            if replaced > _REPLACED_MAX:
                raise DirectoryChangedError(
                    f"{self._path} is replaced again and again", hint="see who else writes there"
                )
        if sign:
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, str(os.getpid()).encode(), 0)

    def _in_place(self) -> bool:
        """Whether the path names the file that is locked: somebody may have removed it before."""
        try:
            return os.path.samestat(os.lstat(self._path), os.fstat(self._descriptor))
        except FileNotFoundError:
            return False

    def _reopen(self) -> None:
        descriptor = open_file(self._path, os.O_RDWR | os.O_CREAT)
        os.close(self._descriptor)
        self._descriptor = descriptor

    def _refusal(self) -> EngineLockedError:
        holder = os.pread(self._descriptor, 32, 0).decode(errors="replace").strip()
        return self._refused(self._path, int(holder) if holder.isdecimal() and holder.isascii() else None)

    @staticmethod
    def _refused(path: Path, pid: int | None) -> EngineLockedError:
        return EngineLockedError(
            f"{path} is held by process {pid or 'unknown'}",
            hint="one engine at a time may use a directory; stop the other one",
            pid=pid,
        )

    @classmethod
    def held_here(cls, path: Path) -> bool:
        """Whether this process has the file locked, which it must not close a descriptor of then."""
        return path.resolve() in cls._held

    @classmethod
    def held(cls, path: Path) -> bool:
        """Whether some process has the file locked. Takes and writes nothing. Raises OSError, FileRefusedError."""
        if cls.held_here(path):
            return True
        try:
            descriptor = open_file(path)
        except FileNotFoundError:
            return False
        try:
            asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            return bool(_FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))[0] != fcntl.F_UNLCK)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Give the lock back."""
        self._held.discard(self._key)
        os.close(self._descriptor)


os.register_at_fork(after_in_child=Lock._held.clear)


# ---- file systems ----------------------------------------------------------------------------------------------------

_UNKNOWN = "unknown"


def filesystem_of(path: Path) -> str:
    """The type of the file system that `path` lies on, as /proc/self/mountinfo names it; "unknown" where it names none,
    as in a chroot."""
    try:
        mounts = Path("/proc/self/mountinfo").read_bytes()
    except OSError:
        return _UNKNOWN
    best, kind = -1, _UNKNOWN
    for line in mounts.splitlines():
        fields = line.split()
        mount = os.fsdecode(_unescaped(fields[4]))
        if len(mount) >= best and path.is_relative_to(mount):
            best, kind = len(mount), os.fsdecode(fields[fields.index(b"-") + 1])
    return kind


def _unescaped(name: bytes) -> bytes:
    r"""A name as the kernel writes it: blanks and backslashes as \ooo, every other byte as it is."""
    head, *rest = name.split(b"\\")
    return head + b"".join([bytes([int(part[:3], 8)]) + part[3:] for part in rest])


def reserved_disk_holds(kind: str) -> bool:
    """False for file systems that write every block to a new place, so that disk reserved for a file promises nothing
    to who overwrites it: on a full disk a store through a map is a SIGBUS."""
    return kind not in _COPY_ON_WRITE


def refuse_network_filesystem(path: Path) -> None:
    kind = filesystem_of(path.resolve())
    if kind in _LOCAL_ONLY:
        raise FormatError(
            f"{path} lies on {kind}, a network file system: shared maps and locks do not hold there",
            hint="use a local disk",
            filesystem=kind,
        )
