"""Polling for a little while before sleeping: a process that sleeps takes tens of microseconds to wake."""

from __future__ import annotations

import os
import time

REST_MIN, REST_MAX = 64, 4096
"""Waits that go without polling after the core was lost, at first and at most."""


class Spin:
    """How long one place polls when it waits. Not thread-safe.

    Between two looks it gives the core to whoever is ready to run. When it gets it back only after all its time is up,
    the core is wanted, and who polls is the last to get it: it rests for some waits, ever longer while that goes on.
    """

    def __init__(self, spin_us: int) -> None:
        """`spin_us`: how long it polls at most, in microseconds; 0: never."""
        self.limit_ns = 1000 * spin_us
        self._began = self._looked = 0
        self._resting = 0
        self._rest = REST_MIN

    def begin(self) -> bool:
        """A wait begins. True: poll, as long as `again` says so; False: sleep at once."""
        if self._resting:
            self._resting -= 1
            return False
        self._rest = max(REST_MIN, self._rest - 1)
        self._began = self._looked = time.perf_counter_ns()
        return self.limit_ns > 0

    def again(self) -> bool:
        """Give the core away for a moment. True: look again; False: sleep."""
        os.sched_yield()
        now = time.perf_counter_ns()
        step, self._looked = now - self._looked, now
        if step > self.limit_ns:
            self._resting, self._rest = self._rest, min(2 * self._rest, REST_MAX)
        return now - self._began < self.limit_ns
