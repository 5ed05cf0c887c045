"""What `python -m perf machines` lets each example machine do: entries, made from a seed, that a log of it may hold."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec

from shardengine import Entry, Machine, encode
from shardengine.machines import bank, leaderboard, limiter, queue

_BEGAN_MS = 1_700_000_000_000
_PER_MS = 20  # entries between two ticks of the log clock
_PER_BOARD = 1_000  # of the keys, players of a board; and as many queues as boards

Commands = Iterator[Any]


class Workload(msgspec.Struct, frozen=True):
    """What is there when the clock starts, and what is applied then, both in chunks; and what it consists of."""

    machine: type[Machine]
    first: list[list[Entry]]
    chunks: list[list[Entry]]
    what: str

    @property
    def name(self) -> str:
        return self.machine.__name__.lower()

    @property
    def entries(self) -> int:
        return sum(map(len, self.chunks))


def _transfers(rng: random.Random, keys: int) -> tuple[Iterable[Any], Commands]:
    names = [b"account-%08d" % number for number in range(keys)]

    def commands() -> Commands:
        while True:
            yield bank.Transfer(rng.choice(names), rng.choice(names), rng.randint(1, 100))

    return (bank.Open(name, 1_000) for name in names), commands()


def _submits(rng: random.Random, keys: int) -> tuple[Iterable[Any], Commands]:
    boards = [b"board-%06d" % number for number in range(-(-keys // _PER_BOARD))]

    def commands() -> Commands:
        while True:
            board, player = rng.choice(boards), b"player-%06d" % rng.randrange(_PER_BOARD)
            lot = rng.random()
            if lot < 0.9:
                yield leaderboard.Submit(board, player, rng.randrange(1 << 32))
            else:
                yield leaderboard.Top(board, 10) if lot < 0.99 else leaderboard.Remove(board, player)

    return (), commands()


def _leases(rng: random.Random, keys: int) -> tuple[Iterable[Any], Commands]:
    """No lease ends before it is acknowledged, so what each command finds is known here."""
    queues = [b"queue-%06d" % number for number in range(-(-keys // _PER_BOARD))]
    waiting = dict.fromkeys(queues, 0)
    leased: dict[bytes, deque[int]] = {name: deque() for name in queues}
    heads = dict.fromkeys(queues, 0)

    def commands() -> Commands:
        while True:
            name, lot = rng.choice(queues), rng.random()
            if lot < 1 / 3 and leased[name]:
                yield queue.Ack(name, leased[name].popleft(), b"consumer")
            elif lot < 2 / 3 and waiting[name]:
                waiting[name] -= 1
                leased[name].append(heads[name])
                heads[name] += 1
                yield queue.Lease(name, b"consumer", 1 << 40, 1)
            else:
                waiting[name] += 1
                yield queue.Push(name, rng.randbytes(100))

    return (), commands()


def _takes(rng: random.Random, keys: int) -> tuple[Iterable[Any], Commands]:
    names = [b"bucket-%08d" % number for number in range(keys)]

    def commands() -> Commands:
        while True:
            yield limiter.Take(rng.choice(names), rng.randint(1, 5))

    return (limiter.Configure(name, 10, 5) for name in names), commands()


_KINDS: dict[type[Machine], tuple[str, Callable[[random.Random, int], tuple[Iterable[Any], Commands]]]] = {
    bank.Bank: ("transfers between any two accounts", _transfers),
    leaderboard.Leaderboard: ("90 % submits, 9 % top 10, 1 % removals", _submits),
    queue.Queue: ("pushes of 100 bytes, leases, and acks, a third each", _leases),
    limiter.Limiter: ("takes, under a rising clock", _takes),
}


def workloads(keys: int, entries: int, chunk: int, seed: int) -> Iterator[Workload]:
    """One for each machine: over about so many keys, so many entries that are applied against time."""
    for machine, (what, make) in _KINDS.items():
        prepared, commands = make(random.Random(seed), keys)
        first = list(_chunks(_entries(prepared, 1), chunk))
        begin = 1 + sum(map(len, first))
        timed = _entries((next(commands) for _ in range(entries)), begin)
        yield Workload(machine, first, list(_chunks(timed, chunk)), what)


def _entries(commands: Iterable[Any], first: int) -> Iterator[Entry]:
    for index, command in enumerate(commands, first):
        yield Entry(index, 1, encode(command), _BEGAN_MS + index // _PER_MS)


def _chunks(entries: Iterable[Entry], size: int) -> Iterator[list[Entry]]:
    chunk: list[Entry] = []
    for entry in entries:
        chunk.append(entry)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
