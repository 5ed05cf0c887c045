"""What a log's directory holds when it is opened: made if nothing is there, checked, and brought to the disk.

    DIR/  LOCK  about  closed  00000000000000000001.log  00000000000000051203.log  …  spare-1

`about` tells what the log is, for life. `closed` is there after a clean close, and tells where the log ended.

A record that is none ends the log only in the newest segment, only after no clean close, and only if no record behind
it tells that it was on the disk once. Then it was being written when everything died; nobody was told of it, nor of
what is behind it, and both are overwritten with zeroes. All else is damage, and nothing is changed.
"""

from __future__ import annotations

import logging
import os
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import msgspec

from shardengine.engine.errors import EngineLockedError, FormatError, LogLockedError
from shardengine.engine.node.local.layout import HEAD_BYTES, Walk, decode_head
from shardengine.engine.node.local.segments import LOCK, SPARE, Segment, Segments, damaged, first_of, name_of
from shardengine.engine.storage.files import (
    Lock,
    make_directories,
    read_checked,
    refuse_network_filesystem,
    sync_directory,
    write_checked,
)
from shardengine.ipc.files import drop_from_memory, open_file, sync, write_all

FORMAT = 1
ABOUT, CLOSED = "about", "closed"
_PIECE = 1 << 20
log = logging.getLogger("shardengine")


class About(msgspec.Struct, frozen=True):
    """identity: 32 hexadecimal digits. secret: 32 more, which make this log's records known from all others."""

    format: int
    identity: str
    secret: str


class Closed(msgspec.Struct, frozen=True):
    """last: the newest position at a clean close."""

    last: int


class Opened(NamedTuple):
    """A log that may be written: its newest record, and where the next one goes in its newest segment."""

    lock: Lock
    identity: str
    segments: Segments
    last: int
    time_ms: int
    end: int


def open_directory(directory: Path, segment_bytes: int) -> Opened:
    """Lock the log in `directory`, or make one there, and bring it to where it can be written. Blocks.

    Raises LogLockedError, LogDamagedError, FormatError, FileRefusedError, OSError. Nothing stays open then.
    """
    refuse_network_filesystem(directory)
    make_directories(directory)
    lock = _locked(directory / LOCK)
    segments = None
    try:
        about = read_about(directory) or _create(directory, segment_bytes)
        kept = list_segments(directory, about)
        identity, secret = bytes.fromhex(about.identity), bytes.fromhex(about.secret)
        segments = Segments(directory, identity, secret, segment_bytes, kept)
        last, time_ms, end = _recover(directory, segments)
    except BaseException:
        if segments is not None:
            segments.close()
        lock.close()
        raise
    return Opened(lock, about.identity, segments, last, time_ms, end)


def _locked(path: Path) -> Lock:
    try:
        lock = Lock(path)
        try:
            lock.take()
        except BaseException:
            lock.close()
            raise
    except EngineLockedError as error:
        raise LogLockedError(
            f"the log in {path.parent} is held by process {error.pid or 'unknown'}",
            hint="one node at a time may use a log; stop the other one",
            pid=error.pid,
        ) from None
    return lock


# ---- what is there ---------------------------------------------------------------------------------------------------


def read_about(directory: Path) -> About | None:
    """None: no log was made there, or not to its end. Raises FormatError, LogDamagedError, OSError."""
    path = directory / ABOUT
    try:
        about = read_checked(path, About)
    except FileNotFoundError:
        return None
    except FormatError as error:
        raise damaged(path, 0, error.message) from error
    if about.format != FORMAT:
        raise FormatError(
            f"the log in {directory} has format {about.format}; this version reads format {FORMAT}",
            hint="use the version that wrote it",
            format=about.format,
        )
    return about


def read_closed(directory: Path) -> Closed | None:
    """None: the log is open, or was not closed cleanly. Raises LogDamagedError, OSError."""
    path = directory / CLOSED
    try:
        return read_checked(path, Closed)
    except FileNotFoundError:
        return None
    except FormatError as error:
        raise damaged(path, 0, error.message) from error


def list_segments(directory: Path, about: About) -> list[Segment]:
    """All segments, oldest first, with heads that fit. Raises LogDamagedError, FileRefusedError, OSError."""
    firsts = sorted(first for path in directory.iterdir() if (first := first_of(path.name)) is not None)
    if not firsts:
        raise damaged(directory / ABOUT, 0, "the log has no segment left, and it always had one")
    return [_segment(directory / name_of(first), first, about) for first in firsts]


def _segment(path: Path, first: int, about: About) -> Segment:
    descriptor = open_file(path)
    try:
        head, size = decode_head(os.pread(descriptor, HEAD_BYTES, 0)), os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)
    if head is None:
        raise damaged(path, 0, "the head of the segment is damaged, or of another format")
    if head.identity.hex() != about.identity:
        raise damaged(path, 0, f"the segment belongs to log {head.identity.hex()}, and not to {about.identity}")
    if head.first != first:
        raise damaged(path, 0, f"the segment begins at position {head.first}, which is not what its name says")
    if head.size != size:
        raise damaged(path, min(head.size, size), f"the segment has {size} bytes, and was made with {head.size}")
    return Segment(path, first, size, bytes.fromhex(about.secret))


def _create(directory: Path, segment_bytes: int) -> About:
    """Make an empty log, which is there once `about` is."""
    for path in sorted(directory.iterdir()):
        if first_of(path.name) is not None:
            if path.name != name_of(1) or not _is_empty(path):
                raise damaged(directory / ABOUT, 0, f"it is missing, and {path.name} lies beside where it should be")
            path.unlink()
    _remove_spares(directory)
    about = About(FORMAT, os.urandom(16).hex(), os.urandom(16).hex())
    segments = Segments(directory, bytes.fromhex(about.identity), bytes.fromhex(about.secret), segment_bytes, [])
    try:
        segments.make_spare()
        segments.roll(1)
    finally:
        segments.close()
    write_checked(directory / ABOUT, about)
    return about


def _is_empty(path: Path) -> bool:
    """Whether a segment has no record: its making was interrupted."""
    descriptor = open_file(path)
    try:
        at = HEAD_BYTES
        while piece := os.pread(descriptor, _PIECE, at):
            if piece.strip(b"\0"):
                return False
            at += len(piece)
    finally:
        os.close(descriptor)
    return True


def _remove_spares(directory: Path) -> None:
    for path in directory.iterdir():
        if path.name.startswith(SPARE) and path.name.removeprefix(SPARE).isdecimal():
            path.unlink()
    sync_directory(directory)


# ---- what may be believed --------------------------------------------------------------------------------------------


def _recover(directory: Path, segments: Segments) -> tuple[int, int, int]:
    """Read everything, cut what was torn, and have the newest segment open. Returns the newest position, its time, and
    where it ends."""
    closed = read_closed(directory)
    if closed is None:
        _settle(directory, segments)
    time_ms = 0
    for segment, behind in pairwise(segments.kept):
        last, time_ms, end = read_whole(segment, time_ms)
        check_next(segment, last, end, behind)
    newest = segments.newest
    last, time_ms, end = read_whole(newest, time_ms)
    check_end(newest, last, end, closed)
    segments.descriptor = open_file(newest.path, os.O_RDWR)
    _cut(newest, segments.descriptor, end)
    _remove_spares(directory)
    if closed is not None:
        (directory / CLOSED).unlink()
        sync_directory(directory)
    return last, time_ms, end


def _settle(directory: Path, segments: Segments) -> None:
    """Bring to the disk what a process that died has left in memory only; then forget what is in memory, which may be
    more than the disk has, if a sync failed."""
    for segment in segments.kept:
        descriptor = open_file(segment.path, os.O_RDWR)
        try:
            sync(descriptor, segment.path)
        finally:
            os.close(descriptor)
        drop_from_memory(segment.path)
    sync_directory(directory)


def read_whole(segment: Segment, time_ms: int) -> tuple[int, int, int]:
    """Read all records; `time_ms` is that of the one before. Returns the last one's position, its time, and where it
    ends. Blocks. Raises LogDamagedError, OSError."""
    last = segment.first - 1
    with segment.walk() as walk:
        for record in walk:
            if record.position != last + 1:
                raise segment.damaged(record.at, f"position {record.position} follows position {last}")
            last, time_ms = record.position, record.time_ms
            segment.note(last, record.at)
    return last, time_ms, walk.at


def check_next(segment: Segment, last: int, end: int, behind: Segment) -> None:
    """Raises LogDamagedError when position `last`, which ends there, is not the one before the next segment."""
    if last + 1 != behind.first:
        raise segment.damaged(end, f"position {last + 1} is missing or damaged; {behind.path.name} begins behind it")


def check_end(newest: Segment, last: int, end: int, closed: Closed | None) -> None:
    """Raises LogDamagedError when what ends the log was no record in the making. Blocks. Raises OSError."""
    if closed is not None and last < closed.last:
        raise newest.damaged(end, f"the log was closed behind position {closed.last}, and ends behind {last}")
    with newest.walk(end) as walk:
        for record in walk.behind():
            if record.synced > last:
                raise newest.damaged(
                    end, f"position {last + 1} is damaged, and was on the disk before position {record.position} was"
                )


def _cut(newest: Segment, descriptor: int, end: int) -> None:
    """Zero all behind `end`, and bring that to the disk."""
    until = Walk(newest.codec, descriptor, newest.size, end).end_of_bytes()
    if until > end:
        log.warning(
            "%s: %d bytes are cut behind offset %d: records that were not finished", newest.path, until - end, end
        )
        write_all(descriptor, bytes(until - end), end)
        sync(descriptor, newest.path, content_only=True)
