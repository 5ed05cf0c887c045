"""What is proposed, into the log: one append at a time; what is proposed meanwhile travels with the next one.

An append that fails without saying whether its frames are in the log leaves that to be found out: a frame without
entries is appended behind them, as often as it takes, and once that is read, so are they, or they are not there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from itertools import count

from shardengine.engine.errors import (
    FrameTooLargeError,
    LogClosedError,
    LogFailedError,
    LogFullError,
    NotAppendedError,
    named,
)
from shardengine.engine.node.feeding import Feeder
from shardengine.engine.node.log import Log
from shardengine.engine.node.proposals import Proposals, Sent

_PAUSES_S = (0.02, 0.05, 0.1, 0.25, 0.5, 1.0)
log = logging.getLogger("shardengine")


class Appender:
    """The one who appends to a node's log. `stalled`: why it does not, for now."""

    def __init__(self, target: Log, proposals: Proposals, feeder: Feeder, linger_ms: float) -> None:
        self._log = target
        self._proposals = proposals
        self._feeder = feeder
        self._linger_s = linger_ms / 1000
        self.stalled: str | None = None

    async def run(self) -> None:
        """Append until cancelled. Raises what ends the node: the log takes nothing any more."""
        while True:
            await self._proposals.some()
            if self._linger_s:
                await asyncio.sleep(self._linger_s)
            await self._append(self._proposals.take())

    async def _append(self, frames: Sequence[Sent]) -> None:
        before = self._proposals.passed_over
        try:
            self._proposals.placed(frames, await self._log.append([sent.data for sent in frames]))
        except (LogFullError, FrameTooLargeError) as error:
            self._proposals.refused(frames, error)
        except LogClosedError as error:
            self._proposals.refused(frames, error)
            raise
        except LogFailedError:
            raise
        except Exception as error:
            self.stalled = f"it is not known whether {len(frames)} frames are in the log: {error!r}"
            log.warning("%s", self.stalled)
            await self._find_out(frames, error, before)
            self.stalled = None

    async def _find_out(self, frames: Sequence[Sent], error: Exception, passed_over: int) -> None:
        """Wait until it is known which of `frames` are in the log, and refuse the others. What was passed over since
        they were appended may hold them: then it is not known, ever."""
        position = await self._append_no_op()
        await self._feeder.reached(position)
        if self._proposals.passed_over != passed_over:
            self._proposals.unknown(frames, named(error))
            return
        self._proposals.refused(
            frames,
            NotAppendedError(
                f"the log was read up to position {position}, and the proposal is not there: {error!r}",
                hint="propose it again",
                position=position,
            ),
        )

    async def _append_no_op(self) -> int:
        """Append a frame without entries, however often that takes; returns its position."""
        for attempt in count():
            try:
                (position,) = await self._log.append([self._proposals.no_op()])
                return position
            except (LogClosedError, LogFailedError, ValueError):
                raise
            except Exception as error:
                log.debug("the log cannot be appended to: %r", error)
                await asyncio.sleep(_PAUSES_S[min(attempt, len(_PAUSES_S) - 1)])
        raise AssertionError
