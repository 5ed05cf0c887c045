"""A machine whose commands touch keys that they find while they run. Workers import it from here."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, ClassVar, Protocol

import msgspec

from shardengine import Context, Machine, Rejected

LETTERS = b"abcdefgh"
DIGITS = b"0123"


class Transaction(Protocol):
    """What a command reads and writes."""

    def get(self, key: bytes) -> bytes | None: ...
    def put(self, key: bytes, value: bytes) -> None: ...
    def delete(self, key: bytes) -> None: ...
    def scan(self, prefix: bytes, limit: int | None = None, reverse: bool = False) -> list[tuple[bytes, bytes]]: ...


class Wander(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Take `steps` among the partitions of the keys `names`: pairs of what is done, and with which of the names. What
    was read so far decides where a step goes and what it writes. The result is all that was read."""

    names: list[bytes]
    steps: list[tuple[str, int]]


class Wanderer(Machine):
    """A key is a letter, which is its partition, and a digit."""

    name: ClassVar[str] = "test.wanderer"
    command: ClassVar[Any] = Wander

    def keys(self, command: Wander) -> list[bytes]:
        return command.names

    def partition_key(self, key: bytes) -> bytes:
        return key[:1]

    def apply(self, tx: Transaction, command: Wander, context: Context) -> list[Any]:
        read: list[Any] = []
        for what, which in command.steps:
            mixed = hashlib.blake2b(repr((context.index, read)).encode(), digest_size=4).digest()
            key = command.names[which % len(command.names)]
            found = key[:1] + DIGITS[mixed[0] % len(DIGITS) :][:1]
            match what:
                case "get":
                    read.append(tx.get(key))
                case "put":
                    tx.put(key, mixed)
                case "delete":
                    tx.delete(key)
                case "get found":
                    read.append(tx.get(found))
                case "put found":
                    tx.put(found, mixed)
                case "delete found":
                    tx.delete(found)
                case "scan":
                    read.append(tx.scan(key[:1]))
                case "scan some":
                    read.append(tx.scan(key[: mixed[1] % 2 + 1], 1 + mixed[2] % 3, reverse=mixed[3] % 2 == 1))
                case "scan all":
                    read.append(tx.scan(b"", reverse=mixed[3] % 2 == 1))
                case "take first":
                    for first, _ in tx.scan(key[:1], 1):
                        tx.delete(first)
                case "reject" if mixed[0] % 3 == 0:
                    raise Rejected(f"after {len(read)}")
                case "swallow":
                    try:
                        read.append(tx.get(found))
                    except Exception:
                        read.append("an error that is none of its own")
                case "fail" if mixed[0] % 2 == 0:
                    raise ValueError(f"after {len(read)}")
        return read


STEPS = (
    "get", "put", "delete", "get found", "put found", "delete found", "scan", "scan some", "scan all", "take first",
    "reject", "swallow",
)  # fmt: skip


class DumbTx:
    """What a command reads and writes, without any overlay: the records, and what this command makes of them."""

    def __init__(self, records: dict[bytes, bytes], partitions: set[bytes]) -> None:
        self.records = dict(records)
        self._partitions = partitions

    def _check(self, key: bytes) -> None:
        assert key[:1] in self._partitions, key

    def get(self, key: bytes) -> bytes | None:
        self._check(key)
        return self.records.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        self._check(key)
        self.records[key] = value

    def delete(self, key: bytes) -> None:
        self._check(key)
        self.records.pop(key, None)

    def scan(self, prefix: bytes, limit: int | None = None, reverse: bool = False) -> list[tuple[bytes, bytes]]:
        found = sorted(item for item in self.records.items() if item[0].startswith(prefix))
        mine = [item for item in found if item[0][:1] in self._partitions]
        return (mine[::-1] if reverse else mine)[:limit]


def one_by_one(commands: Iterable[Wander], records: dict[bytes, bytes], first: int = 1) -> list[Any]:
    """Run commands in log order, from the entry `first` on. Returns a value, or why it was rejected, for each;
    `records` are what they leave. Raises what a command raises."""
    machine, context, outcomes = Wanderer(), Context(), list[Any]()
    for index, command in enumerate(commands, first):
        context.index = index
        tx = DumbTx(records, {name[:1] for name in command.names})
        try:
            outcomes.append(msgspec.msgpack.decode(msgspec.msgpack.encode(machine.apply(tx, command, context))))
        except Rejected as rejection:
            outcomes.append(rejection.reason)
        else:
            records.clear()
            records.update(tx.records)
    return outcomes
