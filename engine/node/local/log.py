"""A log in files of this machine, for one node: the whole of what a node needs that replicates nothing."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import Any

from shardengine.engine.errors import (
    ConfigError,
    EngineError,
    EngineStateError,
    ForkedError,
    LogFailedError,
    WrongLoopError,
    disk_error,
    named,
)
from shardengine.engine.node.arrivals import Arrivals
from shardengine.engine.node.local.opening import Opened
from shardengine.engine.node.local.segments import Segments
from shardengine.engine.node.local.tail import Tail
from shardengine.engine.node.local.writing import Call, Cut, Writer
from shardengine.engine.node.log import Logged, LogState
from shardengine.engine.node.refusals import FRAME_BYTES_MAX, check_frames, closed, truncated
from shardengine.engine.run.tasks import called_back
from shardengine.engine.run.waiting import resolve
from shardengine.engine.storage.files import absolute

SEGMENT_BYTES = 64 << 20
SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX = 4 << 10, 1 << 30


class LocalLog:
    """A log in the files of a directory, which one process has open at a time. What is acknowledged is on the disk.

    A thread writes and syncs, and what is read from files is read beside the loop, too. The files keep whatever is
    appended until `truncate_before` lets them go, in whole segments. What a process that died was appending may or may
    not be found by the next `open`; what it had acknowledged is.

    An interpreter that ends without `aclose` loses nothing either; but then the next `open` cannot tell damage to the
    newest records from records that were never finished.
    """

    def __init__(
        self,
        directory: str | bytes | os.PathLike[str] | os.PathLike[bytes],
        *,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        """Opens nothing yet. `segment_bytes`: of each new file, 4 KiB to 1 GiB; a frame may have a quarter of that, and
        64 MiB at most. Raises ConfigError."""
        self.directory = absolute(directory)
        if type(segment_bytes) is not int or not SEGMENT_BYTES_MIN <= segment_bytes <= SEGMENT_BYTES_MAX:
            raise ConfigError(
                f"segment_bytes is {segment_bytes!r}; it must be a whole number from {SEGMENT_BYTES_MIN} to "
                f"{SEGMENT_BYTES_MAX}",
                hint="64 MiB suit most",
            )
        self._segment_bytes = segment_bytes // 8 * 8
        self._frame_bytes_max = min(segment_bytes // 4, FRAME_BYTES_MAX)
        self._session: _Session | None = None

    async def open(self) -> LogState:
        """See `Log.open`. The directory is made where it is missing, and the whole log is read, beside the loop.

        Raises:
            LogLockedError: another process, or another LocalLog of this one, has it open.
            LogDamagedError: a file is damaged, with its name and the offset; nothing was changed.
            EngineStateError: this one is open already.
            FormatError: another version wrote it, or it lies on a network file system.
            FileRefusedError, StoreError: the files cannot be read, or synced.
        """
        if self._session is not None and not self._session.over:
            raise EngineStateError("the log is open already")
        session = self._session = _Session(self.directory)
        try:
            opened = await session.begin(self._segment_bytes)
        except BaseException:
            self._session = None
            raise
        return LogState(opened.identity, session.first, opened.last, self._frame_bytes_max)

    async def append(self, frames: Sequence[bytes]) -> list[int]:
        """See `Log.append`. After LogFullError the next call may succeed; after LogFailedError none does until the log
        is opened anew. A call that is cancelled is written all the same."""
        session = self._writable()
        check_frames(frames, self._frame_bytes_max)
        if not frames:
            return []
        call = Call([bytes(frame) for frame in frames], session.loop.create_future())
        session.writer.hand(call)
        return await call.waiter

    async def read(self, after: int) -> AsyncGenerator[Logged, None]:
        """See `Log.read`. Raises StoreError, too, when a file cannot be read. Once the log takes nothing any more, what
        is durable in it is still given, and then LogFailedError raised."""
        session = self._opened()
        while not session.arrivals.closed:
            if after + 1 < session.first:
                raise truncated(session.first, after)
            if after >= session.tail.last:
                await session.arrivals.wait()
                continue
            for logged in session.tail.behind(after) or await session.read_files(after):
                yield logged
                after = logged.position
        raise closed()

    async def last(self) -> int:
        """See `Log.last`."""
        return self._writable().tail.last

    async def truncate_before(self, position: int) -> None:
        """See `Log.truncate_before`. Whole segments go, never the newest one; returns when they are gone."""
        session = self._writable()
        cut = Cut(position, session.loop.create_future())
        session.writer.hand(cut)
        await cut.waiter

    async def aclose(self) -> None:
        """See `Log.aclose`. Cancelled, it is closed all the same, a little later."""
        session = self._session
        if session is not None:
            await session.close()
            if self._session is session:
                self._session = None

    def _opened(self) -> _Session:
        """Raises LogClosedError, ForkedError, WrongLoopError."""
        if self._session is None or self._session.segments is None:
            raise closed()
        self._session.check_loop()
        return self._session

    def _writable(self) -> _Session:
        """As `_opened`; raises LogFailedError, too, and LogClosedError while it closes."""
        session = self._opened()
        if session.closing:
            raise closed()
        if session.failure is not None:
            raise session.failure.again()
        return session


class _Session:
    """What is between one `open` and its end, in the loop. The writer's host."""

    def __init__(self, directory: Path) -> None:
        self.loop = asyncio.get_running_loop()
        self.writer = Writer(self._tell, self)
        self.arrivals = Arrivals()
        self.tail = Tail(0)
        self.segments: Segments | None = None
        self.failure: LogFailedError | None = None
        self.closing = False
        self._directory = directory
        self._pid = os.getpid()
        self._thread: threading.Thread | None = None
        self._begun: Callable[[Opened | BaseException], None] | None = None
        self._ended = self.loop.create_future()

    @property
    def over(self) -> bool:
        """Whether everything has ended."""
        return self._ended.done()

    def check_loop(self) -> None:
        """Raises ForkedError in a child, WrongLoopError in any other loop."""
        if asyncio._get_running_loop() is self.loop:
            return
        if os.getpid() != self._pid:
            raise ForkedError("the log was opened before a fork, in the parent process", hint="open one per process")
        raise WrongLoopError("the log belongs to the event loop that opened it, until aclose()", hint="aclose() it")

    @property
    def first(self) -> int:
        return 1 if self.segments is None else self.segments.first

    async def begin(self, segment_bytes: int) -> Opened:
        """Open the files. Raises what keeps them from it; cancelled, too, nothing stays open."""

        def start(begun: Callable[[Opened | BaseException], None]) -> None:
            self._begun = begun
            self._thread = self.writer.start(self._directory, segment_bytes)

        try:
            outcome = await called_back(start, lambda: None)
        except asyncio.CancelledError:
            await self.close()
            raise
        if isinstance(outcome, OSError):
            raise disk_error(f"the log in {self._directory} cannot be opened", outcome) from outcome
        if isinstance(outcome, BaseException):
            raise named(outcome) if isinstance(outcome, Exception) else outcome
        return outcome

    async def close(self) -> None:
        """Have everything end, and wait for that. Where the loop is gone, it blocks until the last sync is done."""
        if not self.loop.is_closed():
            self.check_loop()
        if not self.closing:
            self.closing = True
            self.writer.hand(None)
        if self.loop.is_closed():
            assert self._thread is not None
            self._thread.join()
        elif self._thread is not None:
            await asyncio.shield(self._ended)

    async def read_files(self, after: int) -> list[Logged]:
        """Some of what follows `after`, from the files, beside the loop."""
        assert self.segments is not None
        try:
            return await asyncio.to_thread(self.segments.read, after, self.tail.last)
        except OSError as error:
            raise disk_error(f"the log in {self._directory} cannot be read behind position {after}", error) from error

    # ---- what the writer's thread tells --------------------------------------------------------------------------

    def _tell(self, what: Callable[..., None], *arguments: Any) -> None:
        """Any thread. What the loop does not live to hear is told to nobody."""
        try:
            self.loop.call_soon_threadsafe(what, *arguments)
        except RuntimeError:
            assert self.loop.is_closed()

    def opened(self, outcome: Opened | BaseException) -> None:
        if isinstance(outcome, Opened):
            self.segments, self.tail = outcome.segments, Tail(outcome.last)
        else:
            self.ended()
        assert self._begun is not None
        self._begun(outcome)

    def appended(self, calls: Sequence[Call], frames: Sequence[Logged]) -> None:
        self.tail.extend(frames)
        first = frames[0].position
        for call in calls:
            behind = first + len(call.frames)
            if not call.waiter.done():
                call.waiter.set_result(list(range(first, behind)))
            first = behind
        self.arrivals.wake()

    def refused(self, calls: Sequence[Call], error: EngineError) -> None:
        for call in calls:
            if not call.waiter.done():
                call.waiter.set_exception(error.again())

    def removed(self, cut: Cut, error: EngineError | None) -> None:
        resolve(cut.waiter, error)

    def failed(self, error: LogFailedError) -> None:
        self.failure = error
        self.arrivals.fail(error)

    def ended(self) -> None:
        self.segments = None
        self.arrivals.close()
        if not self._ended.done():
            self._ended.set_result(None)
