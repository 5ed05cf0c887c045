"""Workers' lives as the coordinator sees them: how often starting one failed, how long it has owed an answer, what is
known of its end. No I/O, no clock.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import NamedTuple

from shardengine.engine.errors import EngineError, WorkerFailedError
from shardengine.engine.intake.chunks import error_of
from shardengine.ipc.errors import hint_for
from shardengine.shards import wire

START_ATTEMPTS_MAX = 10
_NO_PROGRAM = frozenset((errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ENOEXEC))
"""What the system says of a program that it cannot run."""
_SILENT = "it said nothing"
_SPEECHLESS = "see that interpreter names a Python, and one with this program's packages"
DYING_S = 10.0  # a killed process takes milliseconds, unless it waits for a disk that does not answer
LISTENED_S_MAX = 0.5  # what lies longer between two ticks is time in which this process did not listen


class Patience(NamedTuple):
    """How long a worker may owe its Hello, the end of a flush, and any other answer, in seconds; and whether it waits
    for the disk before all of them (`power`)."""

    start: float
    flush: float
    answer: float
    power: bool = False

    def limits(self, up: bool, flushes: bool) -> tuple[float, float]:
        """How long a worker may owe its answer, and be silent: it is not while it waits for the disk."""
        if not up:
            return self.start, self.start
        if flushes:
            return self.flush, self.answer
        return max(self.flush, self.answer) if self.power else self.answer, self.answer

    def setting(self, up: bool, flushes: bool, limit: float) -> str:
        """Which setting the `limit` is of that a worker has passed."""
        if not up:
            return "start_timeout_ms"
        return "flush_timeout_ms" if (flushes or self.power) and limit == self.flush else "worker_timeout_ms"


class Lives:
    """One life at a time for each shard.

    Invariant: `_dying` are those killed for being late that have not ended yet. `stalled` says by shard what keeps its
    worker from committing what is decided.
    """

    def __init__(self, shards: int) -> None:
        self._deaths = [0] * shards  # since the last Hello
        self._refusals = [0] * shards  # since the last start
        self._last_words: list[wire.Problem | None] = [None] * shards
        self._late = [("", "")] * shards  # why it is killed, and by which setting
        self._outlasted = [""] * shards
        self._why_ended = [_SILENT] * shards
        self._heard_of_any = False
        self.stalled: dict[int, wire.Problem] = {}
        self._owed_for: list[float | None] = [None] * shards
        self._silent_for = [0.0] * shards
        self._dying: set[int] = set()
        self._ticked = 0.0

    def heard(self, shard: int) -> None:
        """It has answered something."""
        self._owed_for[shard] = None

    def alive(self, shard: int) -> None:
        """It is not done, and says so."""
        self._silent_for[shard] = 0.0

    def welcome(self, shard: int) -> None:
        """It has said Hello."""
        self._deaths[shard] = 0
        self._heard_of_any = True

    def said_last(self, shard: int, problem: wire.Problem) -> None:
        self._last_words[shard] = problem

    def ended(self, shard: int, *, was_up: bool) -> EngineError | None:
        """It is dead. Returns why no other should be started, if so."""
        self._owed_for[shard] = None
        self._dying.discard(shard)
        self.stalled.pop(shard, None)
        self._deaths[shard] += 1
        problem, (late, self._outlasted[shard]) = self._last_words[shard], self._late[shard]
        self._last_words[shard], self._late[shard] = None, ("", "")
        said = _SILENT if problem is None else f"it said {problem.kind}: {problem.message}"
        self._why_ended[shard] = late or said
        if problem is not None and not was_up and "passing" not in problem.facts:
            return error_of(problem, None)
        if self._deaths[shard] < START_ATTEMPTS_MAX:
            return None
        return WorkerFailedError(
            f"the worker of shard {shard} died {START_ATTEMPTS_MAX} times in a row before it was ready, the last time: "
            f"{self.why_ended(shard)}",
            hint=self._hint(shard, problem),
            shard=shard,
        )

    def _hint(self, shard: int, problem: wire.Problem | None) -> str:
        """What to do when one life after the other ends before its Hello."""
        if setting := self._outlasted[shard]:
            return f"raise {setting}"
        if problem is not None and problem.hint:
            return problem.hint
        speechless = not self._heard_of_any and self.why_ended(shard) == _SILENT
        return "see worker.log in the data directory" + (f"; {_SPEECHLESS}" if speechless else "")

    def why_ended(self, shard: int) -> str:
        """What is known of the end of the last one that ended."""
        return self._why_ended[shard]

    def killed_by(self, shard: int, first: int, last: int) -> WorkerFailedError:
        """One after the other ended over the chunk of entries `first` to `last`."""
        chunk, worker = f"the chunk of entries {first} to {last}", f"the worker of shard {shard}"
        what = f"{chunk} killed {worker} every time it was sent"
        hint = "see worker.log; reads go on, and a restart with a mended machine applies again"
        if setting := self._outlasted[shard]:
            what = f"{worker} was not done with {chunk} in time, however often it was sent"
            hint = f"raise {setting}, or find what it waits for: the disk, or the machine's apply; reads go on"
        return WorkerFailedError(
            f"{what}, the last time: {self.why_ended(shard)}", hint=hint, shard=shard, index=first, last=last
        )

    def started(self, shard: int) -> None:
        self._refusals[shard] = 0

    def refused(self, shard: int, error: OSError) -> EngineError | None:
        """None could be started. Returns why it should not be tried again, if so."""
        self._owed_for[shard] = None
        self._refusals[shard] += 1
        if self._refusals[shard] < START_ATTEMPTS_MAX:
            return None
        return WorkerFailedError(
            f"the worker of shard {shard} could not be started, {START_ATTEMPTS_MAX} times: {error}",
            hint="set interpreter to a Python that is there" if error.errno in _NO_PROGRAM else hint_for(error),
            shard=shard,
        )

    def tick(
        self, now: float, owes: Callable[[int], bool], limits: Callable[[int], tuple[float, float]]
    ) -> dict[int, float]:
        """Time passes (in seconds). Returns the shards whose workers have owed an answer for longer than the first of
        their `limits`, or have been silent for longer than the second, or have not died of it for longer than DYING_S;
        with the limit that they passed.

        Time in which nobody here listened, as while this process was stopped, is not theirs.
        """
        listened, self._ticked = min(now - self._ticked, LISTENED_S_MAX), now
        late: dict[int, float] = {}
        for shard, owed in enumerate(self._owed_for):
            if owed is None or not owes(shard):
                self._owed_for[shard], self._silent_for[shard] = (0.0 if owes(shard) else None), 0.0
                continue
            self._owed_for[shard] = owed = owed + listened
            self._silent_for[shard] += listened
            answer, word = (DYING_S, DYING_S) if shard in self._dying else limits(shard)
            if owed > answer or self._silent_for[shard] > word:
                late[shard] = answer if owed > answer else word
                self._owed_for[shard] = None
        return late

    def condemn(self, shard: int, pid: int | None, limit: float, setting: str) -> tuple[WorkerFailedError, bool]:
        """It is late, and is to be killed. Returns that as an error, and whether it was killed before and has not
        ended since."""
        if shard in self._dying:
            return undying(shard, pid, DYING_S), True
        self._dying.add(shard)
        self._late[shard] = f"it owed an answer for more than {limit * 1000:.0f} ms and was killed", setting
        what = f"the worker of shard {shard} (process {pid}) owed an answer for more than {limit * 1000:.0f} ms"
        return WorkerFailedError(f"{what} and was killed", hint=f"raise {setting}", shard=shard, pid=pid), False


def undying(shard: int, pid: int | None, seconds: float) -> WorkerFailedError:
    """SIGKILL did not end it."""
    return WorkerFailedError(
        f"the worker of shard {shard} (process {pid}) has not ended {seconds:.0f} s after SIGKILL",
        hint="it waits inside the system, most likely for a disk: see /proc/PID/stack and the kernel's log",
        shard=shard,
        pid=pid,
    )
