"""The other places where a machine runs: in this process over a dict, and in this process over py-lmdb."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterable, Iterator, Set
from pathlib import Path
from typing import Any

import lmdb
import msgspec

from perf.load import digest_of
from perf.peers import FLAGS, MAP_BYTES
from shardengine import Entry, Limits, Machine
from shardengine.adaptors import MemoryStateMachine
from shardengine.shards.part import Run
from shardengine.shards.running import Runner
from shardengine.shards.transaction import Record, Tx


class _Committed:
    """What is in the environment, within a chunk's transaction: a `transaction.Base`."""

    def __init__(self, txn: Any) -> None:
        self._txn = txn
        self.get = txn.get

    def scan(self, prefix: bytes, partitions: Set[bytes], limit: int | None, reverse: bool) -> Iterator[Record]:
        assert not reverse, "no example scans backwards"
        with self._txn.cursor() as cursor:
            found = cursor.set_range(prefix)
            while found and cursor.key().startswith(prefix):
                yield cursor.item()
                found = cursor.next()


class OverLmdb:
    """One environment, one transaction a chunk: the commands run in log order in an overlay, whose last writes are put
    in one go, sorted. No worker, no log, no result is kept."""

    def __init__(self, env: Any, machine: Machine) -> None:
        self._env = env
        self._runner = Runner(machine, Limits())
        self._decode = msgspec.msgpack.Decoder(machine.command).decode
        self._clock = 0

    def apply(self, chunk: list[Entry]) -> None:
        with self._env.begin(write=True) as txn:
            transaction = self._runner.transaction(_Committed(txn))
            commands = list(map(self._decode, [entry.data for entry in chunk]))
            run = Run(0, 0, 0)
            for entry, command in zip(chunk, commands, strict=True):
                self._clock = max(self._clock, entry.time_ms)
                if (run.term, run.clock) != (entry.term, self._clock):
                    run = Run(entry.index, entry.term, self._clock)
                if self._runner.run(transaction, command, entry.index, run).reason is None:
                    transaction.settle()
                else:
                    transaction.drop()
            _write(txn, transaction)

    def digest(self) -> bytes:
        with self._env.begin() as txn, txn.cursor() as cursor:
            return digest_of(dict(cursor))


def _write(txn: Any, transaction: Tx) -> None:
    writes = sorted(transaction.writes.items())
    with txn.cursor() as cursor:
        cursor.putmulti([(key, value) for key, value in writes if value is not None])
    for key, value in writes:
        if value is None:
            txn.delete(key)


def over_lmdb(
    directory: Path, machine: type[Machine], first: Iterable[list[Entry]], chunks: list[list[Entry]]
) -> tuple[float, bytes]:
    """Apply `first`, then `chunks` against time. Returns the seconds and the digest."""
    with lmdb.open(str(directory), map_size=MAP_BYTES, **FLAGS) as env:
        place = OverLmdb(env, machine())
        for chunk in first:
            place.apply(chunk)
        gc.collect()
        gc.disable()  # as in a worker
        try:
            began = time.monotonic()
            for chunk in chunks:
                place.apply(chunk)
            seconds = time.monotonic() - began
        finally:
            gc.enable()
        return seconds, place.digest()


async def over_a_dict(
    machine: type[Machine], first: Iterable[list[Entry]], chunks: list[list[Entry]]
) -> tuple[float, bytes]:
    """The same on `MemoryStateMachine`."""
    async with MemoryStateMachine(machine) as place:
        for chunk in first:
            await place.apply_chunk(chunk)
        gc.collect()
        gc.freeze()
        try:
            began = time.monotonic()
            for chunk in chunks:
                await place.apply_chunk(chunk)
            seconds = time.monotonic() - began
        finally:
            gc.unfreeze()
        return seconds, await place.digest()
