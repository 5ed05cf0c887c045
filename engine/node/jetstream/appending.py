"""What is appended: one batch on its way, what comes meanwhile goes with the next. A user of `asyncio`.

Every opening has a subject of its own, to which nobody else appends, and names with each batch the position of its last
message there: a batch that got stuck somewhere is refused when it comes after a later one. A batch that is not answered
is sent again, until an answer tells; "the last message is elsewhere" then tells that it was added by an earlier try,
since nothing else was sent that could be there.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from shardengine.engine.errors import EngineError, FrameTooLargeError, LogError, LogFullError, LogUnreachableError
from shardengine.engine.node.frames import Frame, FrameIds, encode_frame
from shardengine.engine.node.jetstream.connection import pauses
from shardengine.engine.node.jetstream.guarding import Doubt, Guard, regressed
from shardengine.engine.node.jetstream.stream import Added, Elsewhere, Full, Later, Outcome, Stream, TooLarge
from shardengine.engine.run.waiting import resolve

BATCH_FRAMES = 64
BATCH_BYTES = 8 << 20
"""What several calls have is sent together up to these."""
CALL_FRAMES = 1000
CALL_BYTES = 96 << 20
"""What one call has is sent together up to these: servers take no more at once."""
log = logging.getLogger("shardengine")


class Call:
    """Frames to be appended, or none, and who waits for their positions: without frames, for that of any later one."""

    def __init__(self, frames: Sequence[bytes]) -> None:
        self.frames = frames
        self.size = sum(map(len, frames))
        self.waiter: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()


class Appender:
    """The one who appends to a stream while it is open.

    `_last` is the position of the newest message of `_subject`, which has one as soon as it has a name.
    """

    def __init__(self, stream: Stream, guard: Guard, appended: Callable[[int], None]) -> None:
        """`appended` is called with the position of the last frame of each batch."""
        self._stream = stream
        self._guard = guard
        self._appended = appended
        self._doubt = Doubt()
        self._ids = FrameIds()
        self._subject = ""
        self._last = 0
        self._queue: deque[Call] = deque()
        self._under_way: list[Call] = []
        self._some = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def put(self, call: Call) -> None:
        """Have it appended. Raises FrameTooLargeError."""
        if len(call.frames) > CALL_FRAMES or call.size > CALL_BYTES:
            raise FrameTooLargeError(
                f"{len(call.frames)} frames of {call.size} bytes are to be appended at once; this log takes "
                f"{CALL_FRAMES} of {CALL_BYTES}",
                hint="append less at once",
                size=call.size,
                limit=CALL_BYTES,
            )
        self._queue.append(call)
        self._some.set()
        self._idle.clear()

    async def run(self) -> None:
        """Append until cancelled. Raises LogError when that has no use any more."""
        while True:
            await self._some.wait()
            calls = self._under_way = self._take()
            try:
                if calls:
                    await self._append(calls)
            except (LogFullError, FrameTooLargeError) as error:
                self._refuse(calls, error)
            except LogUnreachableError as error:
                self._subject = ""
                self._refuse([call for call in calls if call.frames], error)
                self._queue.extendleft(call for call in calls if not call.frames)
            self._under_way = []
            if not self._queue:
                self._some.clear()
                self._idle.set()

    async def drained(self) -> None:
        """Wait until nothing is to be appended."""
        await self._idle.wait()

    def end(self, unsent: EngineError, unknown: EngineError) -> None:
        """It does not run any more: who waits gets an error."""
        self._refuse(self._under_way, unknown)
        self._refuse(self._queue, unsent)
        self._under_way = []
        self._queue.clear()
        self._idle.set()

    @property
    def unsettled(self) -> tuple[str, int] | None:
        """Where what is under way may still be added: a subject, behind that position."""
        return (self._subject, self._last) if self._under_way and self._subject else None

    async def settle(self, subject: str, last: int) -> None:
        """What an earlier opening left `unsettled` there is in the log from here on, or never will be. Raises
        LogFullError, LogError."""
        await self._settle(subject, [self._no_op()], last)

    async def begin(self) -> int:
        """Append a frame without entries to a new subject; returns its position. Raises LogFullError, LogError.

        Each try is for a subject of its own. One that got stuck would fit where all of a subject was cut away, and be
        taken for what was sent there last.
        """
        waits = pauses()
        while True:
            await self._guard.trusted.wait()
            subject = f"{self._stream.name}.{self._stream.mark}.{os.urandom(8).hex()}"
            outcome = await self._stream.add(subject, frames := [self._no_op()], 0)
            if isinstance(outcome, Added):
                self._doubt.settled()
                self._subject, self._last = subject, outcome.position
                return outcome.position
            if isinstance(outcome, (Full, TooLarge)):
                raise _refusal(outcome, frames)
            log.debug("where an opening appends is not acknowledged yet: %s", outcome)
            await asyncio.sleep(next(waits))

    # ---- one batch -----------------------------------------------------------------------------------------------

    def _take(self) -> list[Call]:
        """The calls that go together next."""
        calls, frames, size = list[Call](), 0, 0
        while self._queue:
            call = self._queue[0]
            frames += len(call.frames)
            size += call.size
            if calls and (frames > BATCH_FRAMES or size > BATCH_BYTES):
                break
            self._queue.popleft()
            if not call.waiter.done():
                calls.append(call)
        return calls

    async def _append(self, calls: Sequence[Call]) -> None:
        frames = [frame for call in calls for frame in call.frames] or [self._no_op()]
        last = None
        while last is None:
            if not self._subject:
                await self.begin()
            last = await self._settle(self._subject, frames, self._last)
            if last is None:
                self._subject = ""
        self._last = last
        before = last - sum(len(call.frames) for call in calls)
        for call in calls:
            behind = before + len(call.frames)
            positions = list(range(before + 1, behind + 1)) or [last]
            before = behind
            if not call.waiter.done():
                call.waiter.set_result(positions)
        self._appended(last)

    async def _settle(self, subject: str, frames: Sequence[bytes], expected: int) -> int | None:
        """Have frames added behind the message at `expected`, and return the position of the last one. None: that
        message was cut away, and they are not in the log, nor will be.

        Raises LogFullError, FrameTooLargeError: so are they; LogUnreachableError: a try was not answered, and whether
        it was cut away as well is not known; LogError of `Guard.check`.
        """
        unanswered, waits = False, pauses()
        before = max(expected, self._guard.seen)
        while True:
            await self._guard.trusted.wait()
            outcome = await self._stream.add(subject, frames, expected)
            if isinstance(outcome, Added) or (isinstance(outcome, Elsewhere) and outcome.position > expected):
                self._doubt.settled()
                return outcome.position
            if isinstance(outcome, Elsewhere):
                first = await self._cut_to(expected, outcome.position)
                if first > before + 1 and unanswered:
                    raise _lost_sight(frames, before, first)
                if first > expected:
                    return None
            elif isinstance(outcome, Later):
                if not unanswered:
                    log.warning("%d frames are not acknowledged yet, and sent again: %s", len(frames), outcome.why)
                unanswered = True
            elif not unanswered:
                raise _refusal(outcome, frames)
            await asyncio.sleep(next(waits))

    async def _cut_to(self, ours: int, last: int) -> int:
        """The first position that is left, where our last message was cut away with all before it; asked when a server
        says that the last one of the subject is not at `ours` but at `last`. 0: that one is behind the times, or it is
        too early to tell."""
        try:
            info = await self._guard.check()
        except LogUnreachableError:
            return 0
        if info is None:
            return 0
        if info.state.first_seq > ours:
            return info.state.first_seq
        self._doubt.heard(regressed(self._stream.name, last, ours))
        return 0

    def _refuse(self, calls: Iterable[Call], error: EngineError) -> None:
        for call in calls:
            resolve(call.waiter, error)

    def _no_op(self) -> bytes:
        return encode_frame(Frame(next(self._ids), []))


def _lost_sight(frames: Sequence[bytes], before: int, first: int) -> LogUnreachableError:
    return LogUnreachableError(
        f"no server answered for {len(frames)} frames, which came behind position {before} if they came at all, and "
        f"the log was cut up to position {first} meanwhile: whether they were in it is not known",
        hint="look for what they would have done; nodes that apply the log may have read them",
        position=before,
        first=first,
    )


def _refusal(outcome: Outcome, frames: Sequence[bytes]) -> LogError:
    """What the servers said of the only try."""
    assert isinstance(outcome, (Full, TooLarge))
    size = sum(map(len, frames))
    if isinstance(outcome, Full):
        return LogFullError(
            f"no room for {size} bytes in the log: {outcome.why}",
            hint="on every node take a snapshot, and compact(0); or raise the stream's max_bytes, or the servers' "
            "max_file_store",
            size=size,
        )
    return FrameTooLargeError(
        f"{len(frames)} frames of {size} bytes are more than the stream takes at once: {outcome.why}",
        hint="raise the stream's max_msg_size, or the servers' max_batch_size; or append less at once",
        size=size,
        limit=size - 1,
    )
