"""Calls that each wait for their answer before the next is made, by one caller or by many, and what they took."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from math import ceil

import msgspec

_WARM_UP = 10  # one part in so many comes before the clock starts


class Amount(msgspec.Struct, frozen=True):
    """How much is measured: so many commands, or so many seconds, whichever is less."""

    commands: int
    seconds: float

    @property
    def prepared(self) -> int:
        """So many commands are needed, with those before the clock starts."""
        return self.commands + max(1, self.commands // _WARM_UP)

    def warm_up(self, size: int) -> _Stretch:
        return _Stretch(0, self.prepared - self.commands, size, self.seconds / _WARM_UP)

    def behind(self, first: int, size: int) -> _Stretch:
        return _Stretch(first, first + self.commands, size, self.seconds)


class _Stretch(msgspec.Struct, frozen=True):
    """The commands from `first` to before `end`, `size` in a call, given away while `seconds` last."""

    first: int
    end: int
    size: int
    seconds: float

    def turns(self) -> Iterator[tuple[int, int]]:
        """The first command of each call and the one behind its last, for whoever asks next; for one call at least."""
        ends = time.monotonic() + self.seconds
        for first in range(self.first, self.end, self.size):
            if first > self.first and time.monotonic() >= ends:
                return
            yield first, min(first + self.size, self.end)


class Took(msgspec.Struct, frozen=True):
    """What calls took, all together and each. cpu: of the thread that calls, and runs the loop if there is one. given:
    commands, from the first one on, those before the clock started included; timed: those behind them."""

    seconds: float
    cpu: float
    given: int
    timed: int
    calls_ns: list[int]

    @property
    def per_second(self) -> float:
        return self.timed / self.seconds


async def closed_loop(call: Callable[[int, int], Awaitable[object]], callers: int, size: int, amount: Amount) -> Took:
    """So many callers, each of which calls again when its call has ended. The calls begin in the order of the
    commands."""
    warm = await _loop(call, callers, amount.warm_up(size))
    with _frozen():
        return await _loop(call, callers, amount.behind(warm.given, size))


async def _loop(call: Callable[[int, int], Awaitable[object]], callers: int, stretch: _Stretch) -> Took:
    turns, given, calls_ns = stretch.turns(), stretch.first, list[int]()

    async def caller() -> None:
        nonlocal given
        for first, end in turns:
            given = end
            began = time.perf_counter_ns()
            await call(first, end)
            calls_ns.append(time.perf_counter_ns() - began)

    start, cpu = time.monotonic(), time.thread_time()
    await asyncio.gather(*(caller() for _ in range(callers)))
    seconds, cpu = time.monotonic() - start, time.thread_time() - cpu
    return Took(seconds, cpu, given, given - stretch.first, calls_ns)


def one_by_one(call: Callable[[int, int], object], size: int, amount: Amount) -> Took:
    """The same without a loop: one caller, whose calls do all the work themselves."""
    warm = _each(call, amount.warm_up(size))
    with _frozen():
        return _each(call, amount.behind(warm.given, size))


def _each(call: Callable[[int, int], object], stretch: _Stretch) -> Took:
    given, calls_ns = stretch.first, list[int]()
    start, cpu = time.monotonic(), time.thread_time()
    for first, end in stretch.turns():
        given = end
        began = time.perf_counter_ns()
        call(first, end)
        calls_ns.append(time.perf_counter_ns() - began)
    seconds, cpu = time.monotonic() - start, time.thread_time() - cpu
    return Took(seconds, cpu, given, given - stretch.first, calls_ns)


@contextmanager
def _frozen() -> Iterator[None]:
    """The commands are made: the collector need not walk them within the time."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def percentile(times_ns: Sequence[int], percent: float) -> float:
    """In microseconds: so many percent took no longer."""
    return sorted(times_ns)[max(0, ceil(len(times_ns) * percent / 100) - 1)] / 1000
