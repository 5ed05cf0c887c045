"""One entry at a time, each awaited before the next is sent, beside the round trip of a bare `multiprocessing.Pipe`.

The pipe carries the same bytes there and back with `send_bytes`, to a process that does nothing else.
"""

from __future__ import annotations

import multiprocessing
import time
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from engine import Engine, Entry, Put, encode
from shards.placement import shard_of, slot_of

BLOCK = 100
WARM_UP = 200


class Latency(msgspec.Struct, frozen=True):
    """Median round trips, in microseconds."""

    pipe_us: float
    one_shard_us: float
    two_shards_us: float


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
        value = bytes(value_bytes)
        self._first = [encode(Put(key, value)) for key in _keys(0, shards)]
        self._last = [encode(Put(key, value)) for key in _keys(shards - 1, shards)]
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

    async def measure(self, rounds: int) -> Latency:
        """`rounds` blocks of each kind, in turn."""
        for _ in range(WARM_UP // BLOCK):
            self.pipe()
            await self.chunks(self._first, self._last)
            await self.chunks(self._first)
        pipe, one, two = [], [], []
        for _ in range(rounds):
            pipe += self.pipe()
            one += await self.chunks(self._first)
            two += await self.chunks(self._first, self._last)
        return Latency(median(pipe) / 1000, median(one) / 1000, median(two) / 1000)


async def measure(directory: Path, shards: int, value_bytes: int, rounds: int) -> Latency:
    """Medians over `rounds` blocks of BLOCK round trips of each kind. Needs two shards or more."""
    assert shards >= 2
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    echo = context.Process(target=_echo, args=(theirs,))
    echo.start()
    theirs.close()
    try:
        async with Engine(directory, shards=shards) as db:
            return await _Caller(db, shards, value_bytes, ours).measure(rounds)
    finally:
        ours.send_bytes(b"")
        echo.join()
        echo.close()
        ours.close()
