"""The thread that writes a local log: everything that waits goes with one write and one sync.

What is handed over while a sync runs is written together by the next. Nothing is told to the loop before the disk has
it, and then everything at once. A write that fails for want of room is undone, and fails those calls alone; whatever
else fails is the end of writing: nobody can tell any more what the disk holds.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple, Protocol

from shardengine.engine.errors import EngineError, LogFailedError, LogFullError
from shardengine.engine.node.local.layout import HEAD_BYTES, Record, record_bytes
from shardengine.engine.node.local.opening import CLOSED, Closed, Opened, open_directory
from shardengine.engine.node.local.segments import Segments
from shardengine.engine.node.log import Logged
from shardengine.engine.run.tasks import start
from shardengine.engine.storage.files import write_checked
from shardengine.ipc.errors import FULL
from shardengine.ipc.files import SyncError, sync, write_all

_RUN_BYTES = 8 << 20
"""About so much is written at once."""
_ZEROES_BYTES = 256 << 10
"""So far ahead zeroes are written: where a file system first notes which blocks were written, it does so once for all
of them, and not with each sync."""
_LOOK_S = 1.0
"""So often at most it is asked whether the directory, and its lock, are where they were."""
log = logging.getLogger("shardengine")


class Call:
    """Frames to be appended, and who waits for their positions."""

    def __init__(self, frames: Sequence[bytes], waiter: asyncio.Future[list[int]]) -> None:
        self.frames = frames
        self.waiter = waiter
        self.size = sum([record_bytes(len(frame)) for frame in frames])


class Cut(NamedTuple):
    """Segments that lie before `position` are to be removed, which somebody waits for."""

    position: int
    waiter: asyncio.Future[None]


class Host(Protocol):
    """What the loop is told, in the loop."""

    def opened(self, outcome: Opened | BaseException) -> None:
        """It may be written from here on; or it is not open, and that is all."""

    def appended(self, calls: Sequence[Call], frames: Sequence[Logged]) -> None:
        """The frames of these calls are on the disk."""

    def refused(self, calls: Sequence[Call], error: EngineError) -> None: ...

    def removed(self, cut: Cut, error: EngineError | None) -> None: ...

    def failed(self, error: LogFailedError) -> None:
        """Nothing is written any more."""

    def ended(self) -> None:
        """Everything is closed. The last word."""


class Writer:
    """Owns the files of a log from `start` until it has told that it ended.

    Invariant: the records up to `_last`, which end at `_end` in the newest segment, are on the disk, and behind them
    there is none, unless `_failure` is set.
    """

    def __init__(self, tell: Callable[..., None], host: Host) -> None:
        """`tell` has the loop call something soon."""
        self._tell = tell
        self._host = host
        self._handed: SimpleQueue[Call | Cut | None] = SimpleQueue()
        self._waiting: deque[Call | Cut | None] = deque()
        self._failure: LogFailedError | None = None
        self._last = self._time_ms = self._end = self._zeroed = 0
        self._looked_ahead = False
        self._look_at = 0.0

    def start(self, directory: Path, segment_bytes: int) -> threading.Thread:
        """Raises StoreError: there is no thread to be had."""
        thread = threading.Thread(target=self._main, args=(directory, segment_bytes), name="log", daemon=True)
        start(thread)
        return thread

    def hand(self, job: Call | Cut | None) -> None:
        """Have this done behind all that was handed over before. None: close everything; it comes last. Any thread."""
        self._handed.put(job)

    # ---- the thread ----------------------------------------------------------------------------------------------

    def _main(self, directory: Path, segment_bytes: int) -> None:
        try:
            opened = open_directory(directory, segment_bytes)
        except BaseException as error:
            self._tell(self._host.opened, error)
            return
        self._last, self._time_ms, self._end, self._zeroed = opened.last, opened.time_ms, opened.end, opened.end
        self._tell(self._host.opened, opened)
        try:
            self._serve(opened.segments)
        except BaseException as error:
            self._fail(opened.segments, error)
            raise
        finally:
            opened.segments.close()
            self._mark_closed(directory, opened.segments)
            opened.lock.close()
            self._tell(self._host.ended)

    def _mark_closed(self, directory: Path, segments: Segments) -> None:
        """Have the next opening know that nothing was in the making."""
        try:
            if self._failure is None:
                segments.anchors.check()
                write_checked(directory / CLOSED, Closed(self._last))
        except (OSError, EngineError) as error:
            log.warning("%s: closed, and not marked so: %s", directory, error)

    def _serve(self, segments: Segments) -> None:
        """Until all is done that was handed over before None."""
        waiting = self._waiting
        while True:
            if not waiting:
                waiting.append(self._handed.get())
            for _ in range(self._handed.qsize()):
                waiting.append(self._handed.get())
            job = waiting[0]
            if job is None and len(waiting) == 1:
                return
            if isinstance(job, Call):
                self._append(segments)
            else:
                waiting.popleft()
                if job is None:
                    waiting.append(job)
                else:
                    self._cut(segments, job)

    def _cut(self, segments: Segments, cut: Cut) -> None:
        """Remove one segment at a time, so that who appends does not wait for all of them."""
        if self._failure is None:
            try:
                if segments.remove_before(cut.position):
                    self._waiting.append(cut)
                    return
            except (OSError, EngineError) as error:
                self._fail(segments, error)
        self._tell(self._host.removed, cut, self._failure)

    def _append(self, segments: Segments) -> None:
        """Write the calls that wait first, as many as belong together."""
        calls = self._next(segments.newest.size - self._end)
        if self._failure is None:
            try:
                logged = self._store(segments, calls)
            except Exception as error:
                self._refuse(segments, calls, error)
            else:
                self._tell(self._host.appended, calls, logged)
                self._look_ahead(segments)
        else:
            self._tell(self._host.refused, calls, self._failure)

    def _next(self, room: int) -> list[Call]:
        """The first call, and those behind it that fit into `room` with it."""
        calls, size, waiting = list[Call](), 0, self._waiting
        while waiting and isinstance(call := waiting[0], Call):
            size += call.size
            if calls and (size > room or size > _RUN_BYTES):
                break
            calls.append(call)
            waiting.popleft()
        return calls

    def _store(self, segments: Segments, calls: Sequence[Call]) -> list[Logged]:
        """Bring the frames of calls to the disk: together into the newest segment, or into new ones, for which the disk
        is found first. Raises OSError: if it lacks room, nothing of them is in the log."""
        if time.monotonic() >= self._look_at:
            segments.anchors.check()
            self._look_at = time.monotonic() + _LOOK_S
        frames = [frame for call in calls for frame in call.frames]
        if sum([call.size for call in calls]) <= segments.newest.size - self._end:
            return self._write(segments, frames)
        pieces = _split(frames, segments.size - HEAD_BYTES)
        while segments.spares < len(pieces):
            segments.make_spare()
        logged = list[Logged]()
        for piece in pieces:
            try:
                segments.roll(self._last + 1)
                self._end = self._zeroed = HEAD_BYTES
                self._looked_ahead = False
                logged += self._write(segments, piece)
            except OSError as error:
                if logged:
                    raise _SpoiledError(*error.args) from error
                raise
        return logged

    def _write(self, segments: Segments, frames: Sequence[bytes]) -> list[Logged]:
        """Bring frames, which have room there, to the disk in the newest segment. Raises OSError: if it lacks room,
        nothing of them is in the log."""
        segment, descriptor, start = segments.newest, segments.descriptor, self._end
        time_ms = max(self._time_ms, time.time_ns() // 1_000_000)
        at, position, pieces, places, logged = start, self._last, list[bytes](), list[int](), list[Logged]()
        for frame in frames:
            position += 1
            places.append(at)
            logged.append(Logged(position, time_ms, frame))
            pieces.append(segment.codec.encode(Record(at, position, time_ms, self._last, frame)))
            at += len(pieces[-1])
        zeroes = min(_ZEROES_BYTES, segment.size - at) if at > self._zeroed else 0
        data = b"".join([*pieces, bytes(zeroes)])
        try:
            write_all(descriptor, data, start)
        except OSError as error:
            if lacks_room(error):
                _undo(descriptor, start, len(data), segment.path)
            raise
        sync(descriptor, segment.path, content_only=True)
        self._last, self._time_ms, self._end = position, time_ms, at
        self._zeroed = max(self._zeroed, at + zeroes)
        for one, place in zip(logged, places, strict=True):
            segment.note(one.position, place)
        return logged

    def _look_ahead(self, segments: Segments) -> None:
        """When the newest segment is nearly full, have disk for the next one before somebody waits for it."""
        if self._looked_ahead or segments.spares or self._end < segments.newest.size * 3 // 4:
            return
        self._looked_ahead = True
        try:
            segments.make_spare()
        except (OSError, EngineError) as error:
            if not lacks_room(error):
                self._fail(segments, error)

    # ---- failures ------------------------------------------------------------------------------------------------

    def _refuse(self, segments: Segments, calls: Sequence[Call], error: Exception) -> None:
        """These calls have failed; if not for want of room, so will all others."""
        refusal: EngineError
        if lacks_room(error):
            size = sum([call.size for call in calls])
            refusal = LogFullError(
                f"no room for {size} bytes behind position {self._last} of the log: {error}",
                hint="free disk space, or have the quota or the limit for file sizes raised; then append again",
                size=size,
            )
        else:
            refusal = self._fail(segments, error)
        self._tell(self._host.refused, calls, refusal)

    def _fail(self, segments: Segments, error: BaseException) -> LogFailedError:
        """Nothing is written any more."""
        number, said = (error.errno, error.strerror) if isinstance(error, OSError) else (None, str(error))
        path = str(getattr(error, "filename", None) or segments.newest.path)
        failure = self._failure = LogFailedError(
            f"the log cannot be written any more behind position {self._last}: {path}: {said}",
            hint="see the kernel's log; open it anew on a disk that works; nothing that was acknowledged is touched",
            path=path,
            errno=number,
        )
        log.error("%s", failure)
        self._tell(self._host.failed, failure)
        return failure


class _SpoiledError(OSError):
    """There was no room, and what is in the file by now cannot be undone."""


def lacks_room(error: Exception) -> bool:
    """Whether that is all: a sync that failed for it has lost what it was to bring to the disk."""
    return isinstance(error, OSError) and error.errno in FULL and not isinstance(error, (SyncError, _SpoiledError))


def _undo(descriptor: int, start: int, size: int, path: Path) -> None:
    """No record is there, nor is a part of one. Raises _SpoiledError."""
    try:
        write_all(descriptor, bytes(size), start)
        sync(descriptor, path, content_only=True)
    except OSError as error:
        raise _SpoiledError(error.errno, error.strerror, str(path)) from error


def _split(frames: Sequence[bytes], room: int) -> list[list[bytes]]:
    """The same frames, in as few pieces as have room for them, each in its own."""
    pieces, left = list[list[bytes]](), 0
    for frame in frames:
        size = record_bytes(len(frame))
        if size > left:
            pieces.append([])
            left = room
        pieces[-1].append(frame)
        left -= size
    return pieces
