"""Gets of random keys that are there, in batches, in one thread or several."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec

from perf.load import Load
from perf.report import CheckError

Get = Callable[[bytes], bytes | None]
Timer = Callable[[int], float]
"""Runs the batch of that number; returns the nanoseconds that a get took."""


class Gets(msgspec.Struct, frozen=True):
    """The records that are there, and `rounds` batches of `size` of their keys: the same in every process."""

    load: Load
    size: int
    rounds: int

    def records(self) -> dict[bytes, bytes]:
        return {key: value for pairs in self.load.chunks() for key, value in pairs}

    def batches(self) -> list[list[bytes]]:
        keys, rng = list(self.records()), random.Random(self.load.seed)
        return [rng.choices(keys, k=self.size) for _ in range(self.rounds)]


def check(what: str, get: Get, gets: Gets) -> None:
    """Raise CheckError unless every record is found, and nothing where none is."""
    records = gets.records()
    wrong = sum(get(key) != value for key, value in records.items())
    if wrong or get(b"no such key") is not None:
        raise CheckError(f"{what}: {wrong} of {len(records)} records are not as they were put")


def in_a_thread(read: Callable[[Sequence[bytes]], None], gets: Gets) -> Timer:
    batches = gets.batches()

    def timer(number: int) -> float:
        keys = batches[number]
        began = time.perf_counter_ns()
        read(keys)
        return (time.perf_counter_ns() - began) / len(keys)

    return timer


def in_threads(read: Callable[[Sequence[bytes]], None], threads: int, gets: Gets) -> Timer:
    """Each thread reads the whole batch, from another place on. A get takes the time from the first one's start to the
    last one's end, by the gets of all of them."""
    places = [gets.size * thread // threads for thread in range(threads)]
    batches = [[keys[at:] + keys[:at] for at in places] for keys in gets.batches()]

    def timer(number: int) -> float:
        ready = threading.Barrier(threads)

        def share(keys: list[bytes]) -> tuple[int, int]:
            ready.wait()
            began = time.perf_counter_ns()
            read(keys)
            return began, time.perf_counter_ns()

        with ThreadPoolExecutor(threads) as pool:
            times = list(pool.map(share, batches[number]))
        spent = max(ended for _, ended in times) - min(began for began, _ in times)
        return spent / (threads * gets.size)

    return timer


def each(get: Get) -> Callable[[Sequence[bytes]], None]:
    """A batch, one after the other."""

    def read(keys: Sequence[bytes]) -> None:
        for key in keys:
            get(key)

    return read
