"""Opening what others may have put there: a plain file at once, or an OSError; no link is followed, nothing waits."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO


def open_plain(path: Path) -> BinaryIO:
    """The plain file at `path`, to be read. OSError: it is a link, a pipe, a device or a directory, or not there."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "no plain file", str(path))
    return open(descriptor, "rb")


def read_small(path: Path, bytes_max: int) -> bytes:
    """All of a plain file of at most `bytes_max`. OSError: it is longer, or as `open_plain` says."""
    with open_plain(path) as file:
        data = file.read(min(os.fstat(file.fileno()).st_size, bytes_max) + 1)
    if len(data) > bytes_max:
        raise OSError(errno.EFBIG, f"longer than the {bytes_max} bytes that such a file may have", str(path))
    return data
