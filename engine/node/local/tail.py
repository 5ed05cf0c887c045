"""The newest durable frames of a log, in memory, for those who read along."""

from __future__ import annotations

from collections.abc import Sequence

from shardengine.engine.node.log import Logged

TAIL_BYTES = 16 << 20
_OVERHEAD_BYTES = 200
"""More than a frame takes in memory than its own bytes."""
_BATCH_FRAMES = 256


class Tail:
    """Frames one behind the other, up to position `last`, which need not be among them: it may have none."""

    def __init__(self, last: int, bytes_max: int = TAIL_BYTES) -> None:
        self.last = last
        self._bytes_max = bytes_max
        self._bytes = 0
        self._frames: list[Logged] = []

    def extend(self, frames: Sequence[Logged]) -> None:
        """These follow `last`; the oldest ones go when it is too much."""
        self.last = frames[-1].position
        self._frames += frames
        self._bytes += sum(map(_size, frames))
        if self._bytes > self._bytes_max:
            self._trim()

    def _trim(self) -> None:
        """To three quarters, so that it is not done for every frame."""
        count = 0
        while self._bytes > self._bytes_max * 3 // 4:
            self._bytes -= _size(self._frames[count])
            count += 1
        del self._frames[:count]

    def behind(self, position: int) -> list[Logged]:
        """Some of what follows `position`, without a gap; nothing when that is not here any more, or not yet."""
        start = position + 1 - (self.last + 1 - len(self._frames))
        return self._frames[start : start + _BATCH_FRAMES] if start >= 0 else []


def _size(logged: Logged) -> int:
    return len(logged.frame) + _OVERHEAD_BYTES
