"""Machines that are not what a machine must be, each in its own way, and sound ones that look as if they were not."""

from __future__ import annotations

import datetime
import os
import random
import sys
import time
from collections.abc import Sequence
from typing import Any, ClassVar

import msgspec

from shardengine import Context, KeyValue, Machine, Put, Rejected, Tx
from shardengine.shards import worker

HERE = os.getpid()  # of the process that imports this: never that of the rehearsal, in another one
IN_REHEARSAL = "PYTEST_CURRENT_TEST" in os.environ and "pytest" not in sys.modules
_module_state: list[bytes] = []


class Kept(KeyValue):
    """Puts what `value` says, under the key that a command names; the result is what `answer` says."""

    name: ClassVar[str] = "test.unruly"

    def apply(self, tx: Tx, command: Any, context: Context) -> Any:
        tx.put(command.key, self.value(command, context))
        return self.answer(command)

    def value(self, command: Any, context: Context) -> bytes:
        return b""

    def answer(self, command: Any) -> Any:
        return None

    def partition_key(self, key: bytes) -> bytes:
        return key.partition(b"/")[0]


class Clock(Kept):
    """Reads the clock."""

    def value(self, command: Any, context: Context) -> bytes:
        return b"%d" % time.time_ns()


class SlowClock(Kept):
    """Reads a clock that moves so seldom that it seems to stand."""

    def value(self, command: Any, context: Context) -> bytes:
        return b"%d" % (time.time() // 1_000_000)


class Dated(Kept):
    """Reads the calendar."""

    def value(self, command: Any, context: Context) -> bytes:
        return datetime.datetime.now().strftime("%x").encode()


class Random(Kept):
    """Throws dice, for the result only."""

    def answer(self, command: Any) -> Any:
        return random.random()


class SetOrder(Kept):
    """Goes through a set."""

    def value(self, command: Any, context: Context) -> bytes:
        return b" ".join({b"%d" % number for number in range(20)})


class Seed(Kept):
    """Knows what sets are ordered by."""

    def value(self, command: Any, context: Context) -> bytes:
        return os.environ.get("PYTHONHASHSEED", "").encode()


class Process(Kept):
    """Knows in which process it runs."""

    def answer(self, command: Any) -> Any:
        return HERE


class Worker(Kept):
    """Knows whether it runs in a worker."""

    def answer(self, command: Any) -> Any:
        return worker.Process.is_worker


class Counting(Kept):
    """Counts on the machine."""

    def __init__(self) -> None:
        self._count = 0

    def answer(self, command: Any) -> Any:
        self._count += 1
        return self._count


class ClassCounting(Kept):
    """Remembers on its class what it has seen."""

    seen: ClassVar[set[bytes]] = set()

    def answer(self, command: Any) -> Any:
        new = command.key not in self.seen
        self.seen.add(command.key)
        return new


class ModuleKept(Kept):
    """Keeps in its module what came last."""

    def value(self, command: Any, context: Context) -> bytes:
        _module_state.append(command.key)
        return b"" if len(_module_state) < 2 else _module_state[-2]


class FirstSeen(Kept):
    """Keeps what it saw first: the same however often a command is run, and another on every shard."""

    def __init__(self) -> None:
        self._first = b""

    def value(self, command: Any, context: Context) -> bytes:
        self._first = self._first or command.key
        return self._first


class OtherKeys(Kept):
    """Names other keys of the same partition every time."""

    def __init__(self) -> None:
        self._calls = 0

    def keys(self, command: Any) -> Any:
        self._calls += 1
        return (command.key, command.key.partition(b"/")[0] + b"/%d" % self._calls)


class OtherPartitions(Kept):
    """Places a key by the process that asks."""

    def partition_key(self, key: bytes) -> bytes:
        return b"%d" % HERE


class Misplacing(Kept):
    """Places keys anew every time, where it is the coordinator's of two shards: the sixth that a rehearsal makes."""

    made: ClassVar[int] = 0

    def __init__(self) -> None:
        Misplacing.made += 1
        self._misplaces = Misplacing.made == 6
        self._calls = 0

    def value(self, command: Any, context: Context) -> bytes:
        return b"%d" % context.index

    def partition_key(self, key: bytes) -> bytes:
        self._calls += 1
        return key if not self._misplaces else [b"2", b"0"][self._calls % 2]


class SometimesFails(Kept):
    """Fails when a command is run again."""

    def __init__(self) -> None:
        self._last = 0

    def value(self, command: Any, context: Context) -> bytes:
        again, self._last = self._last == context.index, context.index
        if again:
            raise LookupError("seen before")
        return b""


class SometimesDeletes(Kept):
    """Deletes instead of writing when a command is run again."""

    def __init__(self) -> None:
        self._last = 0

    def apply(self, tx: Tx, command: Any, context: Context) -> None:
        again, self._last = self._last == context.index, context.index
        tx.delete(command.key) if again else tx.put(command.key, b"1")


class SometimesRejects(Kept):
    """Rejects what it knows."""

    def __init__(self) -> None:
        self._known: set[int] = set()

    def value(self, command: Any, context: Context) -> bytes:
        if context.index in self._known:
            raise Rejected("known")
        self._known.add(context.index)
        return b""


class Trespasser(Kept):
    """Touches a key that no command names, once it comes to "c"."""

    def value(self, command: Any, context: Context) -> bytes:
        return b""

    def apply(self, tx: Tx, command: Any, context: Context) -> None:
        tx.put(b"elsewhere" if command.key == b"c" else command.key, b"")


class Fails(Kept):
    """Fails over "c"."""

    def value(self, command: Any, context: Context) -> bytes:
        if command.key == b"c":
            raise LookupError("no c")
        return b""


class NoKeys(Kept):
    """Names no key."""

    def keys(self, command: Any) -> Any:
        return ()


class TextKeys(Kept):
    """Names a key that is text."""

    def keys(self, command: Any) -> Any:
        return (command.key.decode(),)


class Exits(Kept):
    """Ends the other process."""

    def value(self, command: Any, context: Context) -> bytes:
        if IN_REHEARSAL:
            sys.stderr.write("so long\n")
            sys.stderr.flush()
            os._exit(3)
        return b""


class NeverEnds(Kept):
    """Comes to no end in the other process."""

    def value(self, command: Any, context: Context) -> bytes:
        while IN_REHEARSAL:
            pass
        return b""


class Unmade(Kept):
    """Cannot be made in the other process."""

    def __init__(self) -> None:
        if IN_REHEARSAL:
            raise RuntimeError("not here")


class Pop(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Take numbers off a list: the command's own."""

    key: bytes
    numbers: list[int]


class Popping(Kept):
    """Changes its command: found, since a command that is run again is the same object."""

    command: ClassVar[Any] = Pop

    def keys(self, command: Any) -> Any:
        return (command.key,)

    def answer(self, command: Any) -> Any:
        return command.numbers.pop()


# ---- and sound ones --------------------------------------------------------------------------------------------------


class Chatty(Kept):
    """Sound, though it says so on standard output, and remembers what it worked out."""

    def __init__(self) -> None:
        self._known: dict[bytes, bytes] = {}

    def value(self, command: Any, context: Context) -> bytes:
        sys.stdout.write("working\n")
        sys.stdout.flush()
        return self._known.setdefault(command.value, command.value * 2)


class Touch(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Name keys, in any number."""

    names: list[bytes]


class Touching(Machine):
    """Sound: says which entry touched a key last."""

    name: ClassVar[str] = "test.touching"
    command: ClassVar[Any] = Touch

    def keys(self, command: Any) -> Sequence[bytes]:
        return list(command.names)

    def apply(self, tx: Tx, command: Any, context: Context) -> Any:
        for key in command.names:
            tx.put(key, b"%d" % context.index)


class Transfer(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Add to the numbers of two partitions, and write down what all keys of the first add up to."""

    source: bytes
    target: bytes
    amount: int


class Transfers(Machine):
    """Sound; its commands span shards, and scan."""

    name: ClassVar[str] = "test.transfers"
    command: ClassVar[Any] = Transfer | msgspec.defstruct("Nothing", [], tag=2, array_like=True)

    def keys(self, command: Any) -> Sequence[bytes]:
        return [command.source, command.target]

    def partition_key(self, key: bytes) -> bytes:
        return key.partition(b"/")[0]

    def apply(self, tx: Tx, command: Any, context: Context) -> Any:
        for key, amount in ((command.source, -command.amount), (command.target, command.amount)):
            tx.put(key, b"%d" % (int(tx.get(key) or b"0") + amount))
        return sum(int(value) for _, value in tx.scan(self.partition_key(command.source) + b"/"))


def puts_of(*keys: bytes) -> list[Any]:
    """A command for each key."""
    return [Put(key, key) for key in keys]
