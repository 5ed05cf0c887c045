"""The contract an application implements.

A machine is pure: what `apply` does depends on its arguments only. No clock, no randomness, no iteration over a set.
The same log then gives the same state on every replica and for every shard count.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import msgspec

from shardengine.shards.transaction import Tx
from shardengine.shards.types import Limits


class Rejected(Exception):
    """Raised by `apply` to refuse a command: it leaves no trace, its result is `succeeded=False` with the reason."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = str(reason)


class Context:
    """Where in the log a command stands. Valid during the call of `apply` only.

    index: of the entry. term: in which it was proposed. time_ms: the log clock there, the running maximum of all
    entries' `time_ms` so far.
    """

    __slots__ = ("index", "term", "time_ms")

    def __init__(self) -> None:
        self.index = 0
        self.term = 0
        self.time_ms = 0


class Machine(ABC):
    """What the log's commands mean. Subclass it in a module that worker processes can import.

    Class attributes:
        name: remembered by the directory, which opens under no other.
        version: of the commands' meaning; raise it when the same log would give another state.
        command: the command type: a msgspec Struct, or a union of tagged ones.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    command: ClassVar[Any]

    @abstractmethod
    def keys(self, command: Any) -> Sequence[bytes]:
        """Keys of every partition that `command` may read, write or scan, at least one.

        The command may touch all keys of those partitions. Naming those that it will touch saves time: where the
        partitions lie on several shards, the values of named keys come along, and any other has to be asked for.
        """

    @abstractmethod
    def apply(self, tx: Tx, command: Any, context: Context) -> Any:
        """Run one command. Returns its result, anything msgpack can carry (None costs nothing).

        Raises Rejected to refuse it. Any other exception fails the whole chunk, on every shard. It may be run more
        than once, from its start, and what it wrote is kept once. An exception of `tx` is to be let through; it
        fails the chunk in any case.
        """

    def partition_key(self, key: bytes) -> bytes:
        """Which partition `key` is in: keys with the same partition key live on the same shard, and a command that
        names one of them may touch them all. By default a key is a partition by itself."""
        return key

    def check(self, command: Any, limits: Limits) -> str | None:
        """Why `command` must not enter the log, or None. Called for commands longer than `value_bytes_max` only,
        after their keys were checked: the place to check values."""
        return None


encode: Callable[[Any], bytes] = msgspec.msgpack.Encoder().encode
"""A command as the bytes of `Entry.data`."""


def partition_of(machine: Machine) -> Callable[[bytes], bytes] | None:
    """The `partition_key` of `machine`; None where every key is a partition by itself."""
    return None if type(machine).partition_key is Machine.partition_key else machine.partition_key
