"""What every log of ours refuses, and how it says so."""

from __future__ import annotations

from collections.abc import Sequence

from shardengine.engine.errors import FrameTooLargeError, LogClosedError, LogTruncatedError

FRAME_BYTES_MAX = 64 << 20
"""No log of this room takes a longer frame."""


def check_frames(frames: Sequence[bytes], bytes_max: int) -> None:
    """Raises FrameTooLargeError when one is longer than `bytes_max`."""
    for frame in frames:
        if len(frame) > bytes_max:
            raise FrameTooLargeError(
                f"a frame has {len(frame)} bytes; this log takes {bytes_max}",
                hint="append less at once, or give the log larger segments",
                size=len(frame),
                limit=bytes_max,
            )


def truncated(first: int, after: int) -> LogTruncatedError:
    return LogTruncatedError(
        f"the log begins at position {first}; what follows position {after} was cut away",
        hint="begin from a snapshot that was taken at that position or later",
        first=first,
        after=after,
    )


def closed() -> LogClosedError:
    return LogClosedError("the log is not open", hint="open() it")
