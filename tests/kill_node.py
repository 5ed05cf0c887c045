"""The program that is killed: a node over a local log, and callers who propose all the time.

    live(directory, first, "cut" or "keep")        in a process of tests/forking.py

Each proposal adds one to a number of its own, `first` and those behind it; one in three is a `propose_many` of three.
With "cut", snapshots are taken all the time, and the log is cut behind them; without, what is found at the start has
to be exactly what the whole log gives. On its standard output it says `open`, then the number of each result that has
come. `-` for `first`: it says what every number stands at, and ends.
"""

from __future__ import annotations

import asyncio
import os
from itertools import count

import msgspec

from shardengine import EngineConfig, SnapshotPolicy, run
from shardengine.engine.storage import runmark
from shardengine.node import LocalLog, Node, NodePolicy, entries_of
from tests.machines import Add, Ledger

CONFIG = EngineConfig(map_bytes=16 << 20, ring_bytes=1 << 20, value_bytes_max=16 << 10)
POLICY = NodePolicy(snapshots=SnapshotPolicy(), keep_entries=100)
ANOTHER_BOOT = "ANOTHER_BOOT"
"""The machine has gone down since, if this is in the environment: its value is the name of the boot."""
SEGMENT_BYTES = 64 << 10
CALLERS = 16
_decode = msgspec.msgpack.Decoder(Add).decode


def say(text: str) -> None:
    os.write(1, f"{text}\n".encode())


async def replayed(log: LocalLog) -> dict[bytes, bytes]:
    """What the whole log gives."""
    numbers: dict[bytes, int] = {}
    for entry in await entries_of(log):
        key = _decode(entry.data).key
        numbers[key] = numbers.get(key, 0) + 1
    return {key: b"%d" % number for key, number in numbers.items()}


async def propose_for_ever(node: Node, numbers: count[int]) -> None:
    for turn in count():
        if turn % 3:
            taken = [next(numbers)]
            results = [await node.propose(Add(b"%d" % taken[0], 1))]
        else:
            taken = [next(numbers) for _ in range(3)]
            results = await node.propose_many([Add(b"%d" % number, 1) for number in taken])
        assert [result.value for result in results] == [1] * len(taken)
        say("\n".join(map(str, taken)))


async def cut_for_ever(node: Node) -> None:
    while True:
        await node.snapshot()


async def main(directory: str, first: str, cut: bool) -> None:
    log = LocalLog(f"{directory}/log", segment_bytes=SEGMENT_BYTES)
    async with Node(f"{directory}/data", log=log, machine=Ledger, shards=1, config=CONFIG, policy=POLICY) as node:
        await node.wait_ready()
        found = dict(node.engine.scan_prefix(b"").entries)
        if not cut:
            assert found == await replayed(log), "the state is not what the log gives"
        if first == "-":
            say(msgspec.json.encode({key.decode(): value.decode() for key, value in found.items()}).decode())
            return
        say("open")
        callers = [propose_for_ever(node, count(int(first) + 1_000_000 * i)) for i in range(CALLERS)]
        await asyncio.gather(*callers, *([cut_for_ever(node)] if cut else []))


def live(directory: str, first: str, cut: str) -> None:
    if ANOTHER_BOOT in os.environ:
        runmark._boot_id = lambda: os.environ[ANOTHER_BOOT]
    run(lambda: main(directory, first, cut == "cut"))
