"""Logs on JetStream that break what a log promises: what a checker of histories must catch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress

from shardengine import EngineError
from shardengine.node import JetStreamLog, Logged


class StaleLog(JetStreamLog):
    """It says where it ends without asking anybody."""

    async def last(self) -> int:
        return self._usable().guard.seen


class HastyLog(JetStreamLog):
    """Once it is `hasty` it acknowledges, and gives to who reads, what the servers do not have yet."""

    hasty = False

    async def append(self, frames: Sequence[bytes]) -> list[int]:
        if not self.hasty:
            return await super().append(frames)
        session = self._usable()
        positions = [session.guard.newest + number for number, _ in enumerate(frames, 1)]
        self._sending = asyncio.create_task(self._send(frames))
        for position, frame in zip(positions, frames, strict=True):
            session.guard.note(position)
            session.reader.heard(Logged(position, time.time_ns() // 1_000_000, frame))
        return positions

    async def _send(self, frames: Sequence[bytes]) -> None:
        with suppress(EngineError):
            await super().append(frames)
