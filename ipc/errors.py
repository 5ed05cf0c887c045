"""The base of every error, and what can go wrong between two processes.

`EngineError` lives here because every rank raises errors that a user can meet, and they all share one base.
"""

from __future__ import annotations

import errno
from typing import Any, Self, TypeVar

FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
"""What the system says when there is no room on a disk, in a quota, or under a limit for files."""

LACKING = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOLCK))
"""What a process lacks says nothing about the file that it could not read for it."""

_ADVICE = {
    errno.ENOSPC: "free disk space",
    errno.EDQUOT: "free disk space, or have the quota raised",
    errno.EFBIG: "raise the limit for file sizes (ulimit -f)",
    errno.EMFILE: "raise the limit of open files (ulimit -n): a shard takes about ten",
    errno.ENFILE: "the system has too many open files: close some, or raise fs.file-max",
    errno.EBADF: "it is closed, or not open for that: leave it open, or redirect it",
    errno.EACCES: "files and directories must be readable and writable for this user",
    errno.EPERM: "the system does not permit it to this user: see who owns the files, and what sandbox this runs in",
    errno.EROFS: "name a directory on a writable file system",
    errno.EIO: "the disk fails: see the kernel's log, and restore a snapshot on another one",
    errno.ENOENT: "a file is missing that was there: restore a snapshot into another directory",
    errno.ENOTDIR: "a file lies where a directory should: name another path",
    errno.EISDIR: "a directory lies where a file should: move it away",
    errno.ELOOP: "a symbolic link lies where a file should: nothing is followed here",
    errno.ENAMETOOLONG: "name a shorter path",
    errno.ENOMEM: "the system has no memory left for this process",
    errno.ENOLCK: "the system has no lock left: see who holds so many (/proc/locks)",
    errno.EAGAIN: "the system has no process or memory left for this user (ulimit -u)",
}


def hint_for(error: OSError) -> str:
    """What a person can do about what the system said."""
    return _ADVICE.get(error.errno or 0, f"the system said {errno.errorcode.get(error.errno or 0, 'no number')}")


E = TypeVar("E", bound="EngineError")


class EngineError(Exception):
    """Base of every error a user of the engine can meet.

    Carries the numbers it speaks of as attributes (`error.facts`), and a `hint` that says what to do.
    """

    def __init__(self, message: str, *, hint: str = "", **facts: Any) -> None:
        self.message = message
        self.hint = hint
        self.facts = facts
        super().__init__(message)

    def again(self) -> Self:
        """The same error, to be raised once more: a fresh one, with the first as its cause. One object that is raised
        again and again would keep, through its traceback, the frames of all who met it, and what they held."""
        fresh = _rebuild(type(self), self.message, self.hint, self.facts)
        for note in self.__dict__.get("__notes__", ()):
            fresh.add_note(note)
        fresh.__cause__ = self
        return fresh

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["facts"][name]
        except KeyError:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}") from None

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.message, self.hint, self.facts))


def _rebuild(kind: type[E], message: str, hint: str, facts: dict[str, Any]) -> E:
    return kind(message, hint=hint, **facts)


class LinkClosedError(EngineError):
    """The peer of a link is gone: its process ended, or it closed its end."""


class FileRefusedError(EngineError):
    """A link, a FIFO, a device, or another user's file lies where a file of the engine should; nothing was read."""


class RingError(EngineError):
    """An extent does not lie inside its ring: a message or a record is damaged."""
