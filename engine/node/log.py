"""What a log is to a node: frames in, positions out, in one order for all who read.

A log keeps *frames*, which are bytes to it, at *positions*: whole numbers from 1 that rise with every frame, and may
leave holes. It has one identity for life. A frame that was read, or acknowledged, is durable, never changes, and
never comes at another position. A log may hold frames of its own, without entries, between those that were appended.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import msgspec


class LogState(msgspec.Struct, frozen=True):
    """What a log was when it was opened.

    identity: of this log and no other, for life; at most 128 characters. first: the position of the oldest frame that
    it keeps; `last` + 1 when it keeps none. last: the position of the newest durable frame; 0: it never had one.
    frame_bytes_max: the longest frame that it takes.
    """

    identity: str
    first: int
    last: int
    frame_bytes_max: int


class Logged(NamedTuple):
    """A frame in its place. `time_ms` is the log's own stamp, milliseconds since the epoch: the same for all who
    read it, whenever they do; 0 where a log has no clock. It may fall along a log that several servers stamp."""

    position: int
    time_ms: int
    frame: bytes


@runtime_checkable
class Log(Protocol):
    """A log that one node owns, and cuts by what is durable for itself; what several may share is a `SharedLog`. It
    belongs to one event loop from `open` to `aclose`."""

    async def open(self) -> LogState:
        """Find or make the log; what is durable in it can be read from here on.

        Raises LogDamagedError, LogLockedError, StoreError, or what else keeps it from being read, by name. Nothing is
        open then.
        """
        ...

    async def append(self, frames: Sequence[bytes]) -> list[int]:
        """Add frames at the end, next to each other and in this order; return their positions when all are durable.

        Calls may overlap: what arrives while others are being written goes with the next write.

        Raises:
            LogFullError, LogClosedError, FrameTooLargeError: nothing of this call is in the log, nor will be.
            LogFailedError: the log takes nothing any more, for good; whether these frames are in it, only a later
                reading tells.
            Any other error, and a cancellation: it is not known whether these frames are in the log, or will be. If
                they come at all, they come before the frames of every call that began after this one had ended.
        """
        ...

    def read(self, after: int) -> AsyncGenerator[Logged, None]:
        """All durable frames behind position `after`, in order, for ever: at the end it waits for the next one.

        Raises LogTruncatedError when the frame that follows `after` was cut away, LogDamagedError, LogFailedError,
        LogClosedError when the log is closed.
        """
        ...

    async def last(self) -> int:
        """The position of a frame such that every frame acknowledged to anybody before this call is at it or before
        it; 0: there is none. Raises as `append`."""
        ...

    async def truncate_before(self, position: int) -> None:
        """Frames before `position` may go; it and all behind it stay. How many do go, and when, is the log's own
        choice. Raises LogFailedError, LogClosedError."""
        ...

    async def aclose(self) -> None:
        """Let go of everything. Appends under way end first; whoever waits in `read` gets LogClosedError. Closing
        twice does nothing."""
        ...
