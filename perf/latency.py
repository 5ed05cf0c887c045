"""`python -m perf latency`: one entry at a time, each awaited before the next is sent, beside the round trip of a bare
`multiprocessing.Pipe`; with and without polling (`spin_us`), on the machine as it is and on a busy one.

The pipe carries the same bytes there and back with `send_bytes`, to a process that does nothing else.
"""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from perf.facts import machine
from perf.peers import uninterrupted
from perf.report import CheckError, carry_out, show_machine
from shardengine import Engine, EngineConfig, Entry, Put, encode, run
from shardengine.shards.placement import shard_of, slot_of

BLOCK = 100
WARM_UP = 200


SPINS = (EngineConfig().spin_us, 0)
BUSY_S = 900  # a busy process ends by itself after so long


class Latency(msgspec.Struct, frozen=True):
    """Median round trips, in microseconds."""

    pipe_us: float
    one_shard_us: float
    two_shards_us: float

    def facts(self) -> dict[str, float]:
        return {
            "pipe_us": self.pipe_us,
            "one_shard_us": self.one_shard_us,
            "two_shards_us": self.two_shards_us,
            "one_shard_over_pipe": self.one_shard_us / self.pipe_us,
            "two_shards_over_pipe": self.two_shards_us / self.pipe_us,
        }


def _echo(end: Connection[Any, Any]) -> None:
    while data := end.recv_bytes():
        end.send_bytes(data)


def _keys(shard: int, shards: int) -> list[bytes]:
    """Keys that live on `shard`."""
    found = (key for n in count() if shard_of(slot_of(key := n.to_bytes(16, "big")), shards) == shard)
    return [next(found) for _ in range(BLOCK)]


class _Caller:
    """Sends blocks of single chunks and times each."""

    def __init__(self, db: Engine, shards: int, value_bytes: int, pipe: Connection[Any, Any]) -> None:
        self._db = db
        self._pipe = pipe
        self._value = value = bytes(value_bytes)
        self._first = [encode(Put(key, value)) for key in _keys(0, shards)]
        last = _keys(shards - 1, shards)
        self._last_key = last[-1]
        self._last = [encode(Put(key, value)) for key in last]
        self._index = 0

    def pipe(self) -> list[int]:
        times = []
        for data in self._first:
            began = time.perf_counter_ns()
            self._pipe.send_bytes(data)
            self._pipe.recv_bytes()
            times.append(time.perf_counter_ns() - began)
        return times

    async def chunks(self, *columns: list[bytes]) -> list[int]:
        """One entry of each column a chunk."""
        times = []
        for datas in zip(*columns, strict=True):
            chunk = [Entry(index, 1, data) for index, data in enumerate(datas, self._index + 1)]
            self._index += len(chunk)
            began = time.perf_counter_ns()
            await self._db.apply_chunk(chunk)
            times.append(time.perf_counter_ns() - began)
        return times

    def check(self) -> None:
        index, value = self._db.last_applied().index, self._db.get(self._last_key)
        if index != self._index or value != self._value:
            raise CheckError(f"the engine stands at {index}, not at {self._index}, or lacks its last value")

    async def warm_up(self) -> None:
        for _ in range(WARM_UP // BLOCK):
            self.pipe()
            await self.chunks(self._first, self._last)
            await self.chunks(self._first)

    async def block(self, times: tuple[list[int], list[int], list[int]]) -> None:
        """A block of each kind."""
        pipe, one, two = times
        pipe += self.pipe()
        one += await self.chunks(self._first)
        two += await self.chunks(self._first, self._last)


async def measure(
    directory: Path, shards: int, value_bytes: int, rounds: int, spins: Sequence[int] = SPINS[:1]
) -> list[Latency]:
    """For each `spin_us` of `spins`, in turn, medians over `rounds` blocks of BLOCK round trips of each kind. Needs two
    shards or more. Raises CheckError when what was acknowledged is not there."""
    assert shards >= 2
    times: list[tuple[list[int], list[int], list[int]]] = [([], [], []) for _ in spins]
    async with AsyncExitStack() as stack:
        pipe = stack.enter_context(_echoing())
        callers = []
        for number, spin_us in enumerate(spins):
            engine = Engine(directory / str(number), shards=shards, config=EngineConfig(spin_us=spin_us))
            callers.append(_Caller(await stack.enter_async_context(engine), shards, value_bytes, pipe))
        for caller in callers:
            await caller.warm_up()
        for _ in range(rounds):
            for caller, found in zip(callers, times, strict=True):
                await caller.block(found)
        for caller in callers:
            caller.check()
    return [Latency(*(median(kind) / 1000 for kind in found)) for found in times]


@contextmanager
def _echoing() -> Iterator[Connection[Any, Any]]:
    """One end of a pipe whose other end gives back what it gets."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    echo = context.Process(target=_echo, args=(theirs,))
    with uninterrupted():
        echo.start()
    theirs.close()
    try:
        yield ours
    finally:
        ours.send_bytes(b"")
        echo.join()
        echo.close()
        ours.close()


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """As many processes that want a core all the time."""
    program = f"import time\nend = time.monotonic() + {BUSY_S}\nwhile time.monotonic() < end: pass"
    running = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def measured(directory: Path, *, shards: int, value_bytes: int, rounds: int, busy_processes: int) -> dict[str, Any]:
    """With and without polling, on the machine as it is and beside busy processes. Raises CheckError when what was
    acknowledged is not there."""
    rows: list[dict[str, Any]] = []
    for number in sorted({0, busy_processes}):
        what = f"beside {number} busy processes" if number else "as it is"
        with busy(number):
            found = run(measure(directory / str(number), shards, value_bytes, rounds, SPINS))
        rows += ({"machine": what, "spin_us": spin, **row.facts()} for spin, row in zip(SPINS, found, strict=True))
    return {"machine": machine(), "shards": shards, "value_bytes": value_bytes, "rounds": rounds, "latency": rows}


def run_latency(
    *, shards: int, value_bytes: int, rounds: int, busy_processes: int, parent: Path | None, output: Path | None
) -> int:
    """Measure, check, print, and write `output`. Returns the exit code."""
    work = partial(measured, shards=shards, value_bytes=value_bytes, rounds=rounds, busy_processes=busy_processes)
    return carry_out(work, show, parent=parent, output=output)


_ROW = "{:<26}{:>8}{:>8}{:>11}{:>12}"


def show(facts: dict[str, Any]) -> None:
    show_machine(facts)
    told = f"{facts['value_bytes']}-byte values, {facts['shards']} shards, median of {facts['rounds'] * BLOCK}"
    print(f"single chunks of {told} round trips, us\n")
    print(_ROW.format("machine", "spin_us", "pipe", "one shard", "two shards"))
    for row in facts["latency"]:
        times = (f"{row[name]:.1f}" for name in ("pipe_us", "one_shard_us", "two_shards_us"))
        print(_ROW.format(row["machine"], row["spin_us"], *times))
    print("\nchecked: the last entry and its value are there")
