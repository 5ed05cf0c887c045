"""A local log's files, read beside whoever writes them: no lock is taken, and nothing is opened to be written.

What is read is what the system holds, be it on the disk already or not.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from shardengine.engine.errors import LogDamagedError
from shardengine.engine.node.layout import HEAD_BYTES, Record
from shardengine.engine.node.opening import (
    ABOUT,
    About,
    Closed,
    check_end,
    check_next,
    list_segments,
    read_about,
    read_closed,
)
from shardengine.engine.node.segments import Segment

_ATTEMPTS = 100


class Overview(NamedTuple):
    """first, last: the oldest and the newest position; `last` is `first` - 1 when there is none. first_time_ms,
    last_time_ms: of their records; 0: there is none. bytes: of all segments. closed: the log was closed cleanly, and is
    not open."""

    identity: str
    segments: int
    bytes: int
    first: int
    last: int
    first_time_ms: int
    last_time_ms: int
    closed: bool


def find_log(path: Path) -> Path | None:
    """The directory of the log: `path`, or `log` in a node's directory; None: there is none."""
    return next((place for place in (path, path / "log") if (place / ABOUT).is_file()), None)


def overview(directory: Path) -> Overview:
    """What can be told without reading all. Blocks. Raises LogDamagedError, FormatError, FileRefusedError, OSError."""
    closed = read_closed(directory) is not None
    about, segments = _listed(directory)
    oldest = next(walk(directory), None)
    newest = deque(walk(directory, max(segments[-1].first - 2, 0)), maxlen=1)
    return Overview(
        identity=about.identity,
        segments=len(segments),
        bytes=sum([segment.size for segment in segments]),
        first=oldest[1].position if oldest else segments[0].first,
        last=newest[0][1].position if newest else segments[-1].first - 1,
        first_time_ms=oldest[1].time_ms if oldest else 0,
        last_time_ms=newest[0][1].time_ms if newest else 0,
        closed=closed,
    )


def walk(directory: Path, after: int = 0) -> Iterator[tuple[Segment, Record]]:
    """Every record behind position `after`, in order, and the segment it lies in: of the segments that there are when
    it begins, but for those that are removed meanwhile. Blocks. Raises as `overview`."""
    closed = read_closed(directory)
    _, segments = _listed(directory)
    for segment, behind in zip_longest(segments, segments[1:]):
        if behind is not None and behind.first <= after + 1:
            continue
        try:
            for record in _records(segment, behind, closed):
                if record.position > after:
                    yield segment, record
        except FileNotFoundError:
            if behind is None:
                raise


def _records(segment: Segment, behind: Segment | None, closed: Closed | None) -> Iterator[Record]:
    """All of one segment; without another behind it, those that are there by now."""
    last, at, seen = segment.first - 1, HEAD_BYTES, 0
    while True:
        with segment.walk(at) as records:
            for record in records:
                if record.position != last + 1:
                    raise segment.damaged(record.at, f"position {record.position} follows position {last}")
                last = record.position
                yield record
        at = records.at
        if behind is not None:
            check_next(segment, last, at, behind)
            return
        try:
            check_end(segment, last, at, closed)
            return
        except LogDamagedError:
            if at == seen:  # else it may have been written while we looked behind it
                raise
            seen = at


def _listed(directory: Path) -> tuple[About, list[Segment]]:
    about = read_about(directory)
    if about is None:
        raise FileNotFoundError(errno.ENOENT, "there is no log", str(directory))
    for _ in range(_ATTEMPTS):
        try:
            return about, list_segments(directory, about)
        except FileNotFoundError:  # one was removed meanwhile
            continue
    return about, list_segments(directory, about)
