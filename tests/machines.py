"""Machines for tests. Workers import them from here."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import msgspec

from shardengine import Context, KeyValue, Machine, Put, Rejected, Tx

_FAULTS = "FAULT_DIRECTORY"


class _Command(msgspec.Struct, frozen=True, array_like=True):
    pass


class Add(_Command, frozen=True, tag=1):
    """Add to a number; the result is the new one."""

    key: bytes
    amount: int


class Move(_Command, frozen=True, tag=2):
    """Take from one number and give to another; rejected, after it wrote, when the first falls below zero."""

    source: bytes
    target: bytes
    amount: int


class Stamp(_Command, frozen=True, tag=3):
    """Write down where in the log the command stands; the result is the same."""

    key: bytes


class Fail(_Command, frozen=True, tag=4):
    """Write, then raise an exception of its own."""

    key: bytes


class Trespass(_Command, frozen=True, tag=5):
    """Do something ("get", "put" or "delete") with a key that is not declared."""

    key: bytes
    other: bytes
    how: str


class Reject(_Command, frozen=True, tag=6):
    """Write, then refuse."""

    key: bytes
    reason: str


class Bloat(_Command, frozen=True, tag=7):
    """Put a value of so many bytes: larger than the command that asks for it."""

    key: bytes
    size: int


LedgerCommand = Add | Move | Stamp | Fail | Trespass | Reject | Bloat


class Ledger(Machine):
    """Numbers under keys; what stands before the "/" of a key places it."""

    name: ClassVar[str] = "test.ledger"
    version: ClassVar[int] = 1
    command: ClassVar[Any] = LedgerCommand

    def keys(self, command: LedgerCommand) -> list[bytes]:
        return [command.source, command.target] if isinstance(command, Move) else [command.key]

    def partition_key(self, key: bytes) -> bytes:
        return key.partition(b"/")[0]

    def apply(self, tx: Tx, command: LedgerCommand, context: Context) -> Any:
        match command:
            case Add(key, amount):
                return self._add(tx, key, amount)
            case Move(source, target, amount):
                self._add(tx, target, amount)
                if self._add(tx, source, -amount) < 0:
                    raise Rejected("not enough")
            case Stamp(key):
                stamp = [context.index, context.term, context.time_ms]
                tx.put(key, msgspec.json.encode(stamp))
                return stamp
            case Fail(key):
                tx.put(key, b"a trace")
                raise ValueError("told to fail")
            case Trespass(key, other, how):
                tx.put(key, b"a trace")
                self._trespass(tx, other, how)
            case Reject(key, reason):
                tx.put(key, b"a trace")
                raise Rejected(reason)
            case Bloat(key, size):
                tx.put(key, bytes(size))
        return None

    def _add(self, tx: Tx, key: bytes, amount: int) -> int:
        total = int(tx.get(key) or b"0") + amount
        tx.put(key, b"%d" % total)
        return total

    def _trespass(self, tx: Tx, other: bytes, how: str) -> None:
        if how == "get":
            tx.get(other)
        elif how == "put":
            tx.put(other, b"a trace")
        else:
            tx.delete(other)


class LaterLedger(Ledger):
    """The same machine, grown older."""

    version: ClassVar[int] = 2


class Other(KeyValue):
    """Another machine, though it does the same."""

    name: ClassVar[str] = "test.other"


class Faulty(KeyValue):
    """The built-in machine in a worker whose disk fills up at command: `posix_fallocate` says so while the file
    `disk-full` lies in the directory that the environment names."""

    name: ClassVar[str] = "test.faulty"

    def __init__(self) -> None:
        if _FAULTS in os.environ and "pytest" not in sys.modules:  # in a worker
            os.posix_fallocate = _allocate_unless_full


def _allocate_unless_full(descriptor: int, offset: int, length: int) -> None:
    if Path(os.environ[_FAULTS], "disk-full").exists():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    _allocate(descriptor, offset, length)


_allocate = os.posix_fallocate


class Unhappy(KeyValue):
    """A machine that no worker can make."""

    name: ClassVar[str] = "test.unhappy"

    def keys(self, command: Any) -> NoReturn:
        raise RuntimeError("keys are out")


class Rekeyed(Ledger):
    """The ledger, of the same name and version, whose keys are placed by themselves."""

    def partition_key(self, key: bytes) -> bytes:
        return key


class Partless(Ledger):
    """The ledger, whose `partition_key` does not take every key."""

    def partition_key(self, key: bytes) -> bytes:
        return key.split(b"/", 2)[1]


class Deadly(KeyValue):
    """A machine that ends the process that makes it, as LMDB does over a page that cannot be."""

    name: ClassVar[str] = "test.deadly"

    def __init__(self) -> None:
        os.abort()


class Endless(_Command, frozen=True, tag=2):
    """Loop for ever, once both keys are read; `stubborn`: past whatever is raised, a few times."""

    first: bytes
    second: bytes
    stubborn: int


class Cut(_Command, frozen=True, tag=3):
    """Count up at both keys: "quick", at once; else loop for ever, and when that is cut off, "put" something, "reject",
    or "return" as if nothing had been."""

    first: bytes
    second: bytes
    how: str


class Looping(Machine):
    """Commands that do not come to an end, unless they are interrupted."""

    name: ClassVar[str] = "test.looping"
    command: ClassVar[Any] = Add | Endless | Cut

    def keys(self, command: Any) -> list[bytes]:
        return [command.key] if isinstance(command, Add) else [command.first, command.second]

    def apply(self, tx: Tx, command: Any, context: Context) -> Any:
        match command:
            case Add(key, amount):
                tx.put(key, b"%d" % amount)
            case Endless(first, second, stubborn):
                tx.get(first), tx.get(second)
                for _ in range(stubborn):
                    _cut_off()
                while True:
                    pass
            case Cut(first, second, how):
                if how != "quick":
                    _cut_off()
                if how == "reject":
                    raise Rejected("cut off")
                for key in (first, second) if how != "return" else ():
                    tx.put(key, b"%d" % (int(tx.get(key) or b"0") + 1))


def _cut_off() -> None:
    """Loop until something is raised, and pass over it, as careless machines do."""
    with suppress(BaseException):
        while True:
            pass


class Astray(KeyValue):
    """Does something else where the environment has `VARIABLE`, as no machine may."""

    VARIABLE: ClassVar[str] = "TEST_ASTRAY"
    name: ClassVar[str] = "test.astray"

    def apply(self, tx: Tx, command: Any, context: Context) -> None:
        if self.VARIABLE in os.environ and isinstance(command, Put):
            command = Put(command.key, b"astray")
        super().apply(tx, command, context)
