"""The contract an application implements, and the transaction its commands run in.

A machine is pure: what `apply` does depends on its arguments only. No clock, no randomness, no iteration over a set.
The same log then gives the same state on every replica and for every shard count.
"""

from __future__ import annotations

import reprlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import msgspec

from shardengine.shards.errors import BadEntryError, UndeclaredKeyError
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


class Tx:
    """What `apply` reads and writes. An overlay over the store: entry over group over what is committed.

    Invariant: `_entry` is empty between commands; `_group` holds the last write of each key in the group, None for a
    deletion.
    """

    __slots__ = ("_allowed", "_entry", "_group", "_limits", "_read")

    def __init__(self, read: Callable[[bytes], bytes | None], limits: Limits) -> None:
        self._read = read
        self._limits = limits
        self._group: dict[bytes, bytes | None] = {}
        self._entry: dict[bytes, bytes | None] = {}
        self._allowed: Sequence[bytes] = ()

    def get(self, key: bytes) -> bytes | None:
        """The value of `key` as all earlier commands of the log left it, or None."""
        if key not in self._allowed:
            self._refuse(key)
        if key in self._entry:
            return self._entry[key]
        if key in self._group:
            return self._group[key]
        return self._read(key)

    def put(self, key: bytes, value: bytes) -> None:
        """Set `key`. Raises BadEntryError when the value is no bytes or passes the directory's limit."""
        if key not in self._allowed:
            self._refuse(key)
        if not isinstance(value, bytes) or len(value) > self._limits.value_bytes_max:
            raise BadEntryError(
                f"apply put a {type(value).__name__} that is no value of at most {self._limits.value_bytes_max} bytes",
                hint="the limit is value_bytes_max, fixed when the directory was created",
                limit=self._limits.value_bytes_max,
            )
        self._entry[key] = value

    def delete(self, key: bytes) -> None:
        """Remove `key`; nothing happens when it is not there."""
        if key not in self._allowed:
            self._refuse(key)
        self._entry[key] = None

    def _refuse(self, key: bytes) -> None:
        raise UndeclaredKeyError(
            f"apply touched the key {reprlib.repr(key)}, which keys(command) does not name",
            hint="declare every key that a command may read or write",
            key=key,
            declared=list(self._allowed),
        )

    def declare(self, keys: Sequence[bytes]) -> None:
        """Begin a command that may touch `keys`. For the worker, not for machines."""
        self._allowed = keys

    def settle(self) -> None:
        """Keep the command's writes. For the worker, not for machines."""
        if self._entry:
            self._group.update(self._entry)
            self._entry.clear()

    def drop(self) -> None:
        """Forget the command's writes. For the worker, not for machines."""
        self._entry.clear()

    def write_all(self, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        """Take writes that need no look at the store, in order. For the worker, not for machines."""
        self._group.update(pairs)

    @property
    def writes(self) -> dict[bytes, bytes | None]:
        """The last write of every key touched so far; None is a deletion."""
        return self._group


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
        """Every key that `command` may read or write, at least one. All must lie in one partition."""

    @abstractmethod
    def apply(self, tx: Tx, command: Any, context: Context) -> Any:
        """Run one command. Returns its result, anything msgpack can carry (None costs nothing).

        Raises Rejected to refuse it. Any other exception fails the whole chunk, on every shard.
        """

    def partition_key(self, key: bytes) -> bytes:
        """What places `key`: keys with the same partition key live on the same shard."""
        return key

    def check(self, command: Any, limits: Limits) -> str | None:
        """Why `command` must not enter the log, or None. Called for commands longer than `value_bytes_max` only,
        after their keys were checked: the place to check values."""
        return None


encode: Callable[[Any], bytes] = msgspec.msgpack.Encoder().encode
"""A command as the bytes of `Entry.data`."""
