"""Files and directories as every rank makes, opens and syncs them: nobody else's, nothing but plain files, no surprise
later.

`open_file` follows no link and refuses what is no plain file of this user; `open_plain` asks not whose it is, and so is
for what came from elsewhere; `create_file` and `make_directory` give a mode that no umask changes; `allocate` gives a
file disk, so that a full one is an error here and no SIGBUS in a map; `sync` tells a sync that failed from every other
failure, since the kernel tells it once only.
"""

from __future__ import annotations

import errno
import os
import pathlib
import stat

from shardengine.ipc.errors import FileRefusedError

FILE_MODE = 0o600
DIRECTORY_MODE = 0o700
_PIECE = 1 << 20
_GUARDED = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
"""No link is followed, nothing waits at a pipe, no child inherits it."""
_CANNOT_ALLOCATE = frozenset((errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EPERM))
"""What file systems and sandboxes say that have no `fallocate`."""

Path = str | os.PathLike[str]


class SyncError(OSError):
    """A sync failed: what was written since the last one may be lost, and the next sync will not say so again."""


class NotPlainError(OSError):
    """What lies there is a pipe, a device or a directory."""


def open_file(path: Path, flags: int = os.O_RDONLY) -> int:
    """Open a plain file of this user (or of root); with O_CREAT it is this user's alone, whatever the umask. Returns
    the descriptor, which no child inherits.

    Raises FileRefusedError when a link, FIFO, device, directory, or somebody else's file lies there; OSError.
    """
    try:
        descriptor = os.open(path, flags | _GUARDED, FILE_MODE)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise refused(path, _KINDS[error.errno]) from error
        raise
    try:
        _check_plain(path, os.fstat(descriptor))
        if flags & os.O_CREAT:
            os.fchmod(descriptor, FILE_MODE)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


_KINDS = {errno.ELOOP: "a symbolic link", errno.ENXIO: "a FIFO, a socket or a device", errno.EISDIR: "a directory"}


def _check_plain(path: Path, found: os.stat_result) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise refused(path, _KINDS[errno.EISDIR])
    if not stat.S_ISREG(found.st_mode):
        raise refused(path, _KINDS[errno.ENXIO])
    check_owner(path, found)


def open_plain(path: Path) -> int:
    """Open what others may have put there, to be read: a plain file at once, whosever it is. Returns the descriptor,
    which no child inherits.

    Raises NotPlainError; OSError, for a link too.
    """
    descriptor = os.open(path, os.O_RDONLY | _GUARDED)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise NotPlainError(errno.EINVAL, "no plain file", os.fspath(path))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_plain(path: Path, bytes_max: int) -> bytes:
    """All of a plain file of at most `bytes_max`. OSError: it is longer, or as `open_plain` says."""
    with open(open_plain(path), "rb") as file:
        data = file.read(min(os.fstat(file.fileno()).st_size, bytes_max) + 1)
    if len(data) > bytes_max:
        raise OSError(errno.EFBIG, f"longer than the {bytes_max} bytes that such a file may have", os.fspath(path))
    return data


def check_file(path: Path) -> None:
    """Raises as `open_file`, without opening: for what a library opens by name."""
    found = os.lstat(path)
    if stat.S_ISLNK(found.st_mode):
        raise refused(path, _KINDS[errno.ELOOP])
    _check_plain(path, found)


def check_owner(path: Path, found: os.stat_result) -> None:
    """Raises FileRefusedError when it belongs to neither this user nor root."""
    if found.st_uid not in (0, os.geteuid()):
        raise FileRefusedError(
            f"{os.fspath(path)} belongs to user {found.st_uid}, not to user {os.geteuid()}",
            hint=f"run this as user {found.st_uid}, or see who else writes into that directory",
            path=os.fspath(path),
            owner=found.st_uid,
        )


def refused(path: Path, kind: str) -> FileRefusedError:
    return FileRefusedError(
        f"{kind} lies at {os.fspath(path)}, where a plain file should",
        hint="nothing is followed and nothing was read; move it away",
        path=os.fspath(path),
    )


def create_file(path: Path) -> int:
    """Make a file that was not there, for this user alone whatever the umask; FileExistsError when it was. Returns a
    descriptor to read and write it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE)
    try:
        os.fchmod(descriptor, FILE_MODE)
    except BaseException:
        os.close(descriptor)
        pathlib.Path(path).unlink()
        raise
    return descriptor


def make_directory(path: Path) -> None:
    """Make a directory that was not there, for this user alone whatever the umask; FileExistsError when it was."""
    made = pathlib.Path(path)
    made.mkdir(DIRECTORY_MODE)
    try:
        made.chmod(DIRECTORY_MODE)
    except OSError:
        made.rmdir()
        raise


def allocate(descriptor: int, start: int, length: int) -> None:
    """Give the file disk for `length` bytes from `start`, and that length; what it holds stays. Nobody else may write
    there meanwhile. Raises OSError when there is no room."""
    try:
        os.posix_fallocate(descriptor, start, length)
    except OSError as error:
        if error.errno not in _CANNOT_ALLOCATE:
            raise
        _write_over(descriptor, start, start + length)


def _write_over(descriptor: int, start: int, end: int) -> None:
    """Write what is there, and zeroes where nothing is."""
    for at in range(start, end, _PIECE):
        size = min(_PIECE, end - at)
        piece = os.pread(descriptor, size, at)
        write_all(descriptor, piece + bytes(size - len(piece)), at)


def write_all(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of `data` at `offset`; a system call may take less than it is given."""
    left = memoryview(data)
    while left:
        written = os.pwrite(descriptor, left, offset)
        left, offset = left[written:], offset + written


def sync(descriptor: int, what: Path, *, content_only: bool = False) -> None:
    """Return when the file, or the names in the directory, are on the disk. Raises SyncError."""
    try:
        (os.fdatasync if content_only else os.fsync)(descriptor)
    except OSError as error:
        raise SyncError(error.errno, error.strerror, os.fspath(what)) from error


def sync_path(path: Path) -> None:
    """As `sync`, by name: a plain file or a directory."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        sync(descriptor, path)
    finally:
        os.close(descriptor)


def drop_from_memory(path: Path) -> None:
    """Have the kernel forget what it holds of a file, as far as that is on the disk, so that the next read tells what
    is there. After a sync that failed the two may differ."""
    descriptor = open_file(path)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
