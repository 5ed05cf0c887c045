"""The transaction that commands run in: an overlay over the store, or over what the coordinator was told of stores."""

from __future__ import annotations

import reprlib
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from heapq import merge
from itertools import groupby, islice
from typing import NoReturn, Protocol

from shardengine.shards.errors import BadEntryError, UndeclaredKeyError
from shardengine.shards.types import Limits

Record = tuple[bytes, bytes]
_MANY_KEYS = 8  # from here on a set is asked faster than a sequence
_TOLD_KEYS = 16  # of a command, in an error


class MissingError(BaseException):
    """What an overlay lies on has to be told a value, or a range, before the command can run. It is raised through
    `apply`, past all handlers of errors, and the command is run again from its start."""


class Base(Protocol):
    """What an overlay lies on. Raises MissingError."""

    def get(self, key: bytes) -> bytes | None: ...

    def scan(self, prefix: bytes, partitions: Set[bytes], limit: int | None, reverse: bool) -> Iterator[Record]:
        """Records whose key starts with `prefix`, in key order. All of those in `partitions`, or more. No more than
        `limit` may be looked at, if nothing that the overlay holds hides one."""


class Tx:
    """What `apply` reads and writes: entry over group over what is committed.

    A command may touch every key in the partitions of the keys that `keys(command)` names, and no other: whatever the
    shard count, that raises UndeclaredKeyError. A command that passes over what is raised here fails all the same.

    Invariant: `_entry` is empty between commands; `_group` holds the last write of each key in the group, None for a
    deletion; `_ordered`, once there was a scan, its keys in order; `refusal` is the first error that a command has met
    here.
    """

    __slots__ = (
        *("_allowed", "_base", "_entry", "_get", "_group", "_limits", "_ordered", "_partition_of", "_partitions"),
        "refusal",
    )

    def __init__(self, base: Base, limits: Limits, partition_of: Callable[[bytes], bytes] | None = None) -> None:
        """`partition_of` None: every key is a partition by itself."""
        self._base = base
        self._get = base.get
        self._limits = limits
        self._partition_of = partition_of
        self._group: dict[bytes, bytes | None] = {}
        self._entry: dict[bytes, bytes | None] = {}
        self._ordered: list[bytes] | None = None
        self._allowed: Sequence[bytes] | Set[bytes] = ()
        self._partitions: Set[bytes] | None = None
        self.refusal: Exception | None = None

    # ---- for machines --------------------------------------------------------------------------------------------

    def get(self, key: bytes) -> bytes | None:
        """The value of `key` as all earlier commands of the log, and this one, left it, or None. Raises, as all of
        these, UndeclaredKeyError for a key that is none, or lies in another partition."""
        if type(key) is not bytes or key not in self._allowed:
            self._enter(key)
        if key in self._entry:
            return self._entry[key]
        if key in self._group:
            return self._group[key]
        return self._get(key)

    def put(self, key: bytes, value: bytes) -> None:
        """Set `key`. Raises BadEntryError when the value is no bytes or passes the directory's limit."""
        if type(key) is not bytes or key not in self._allowed:
            self._enter(key)
        if type(value) is not bytes or len(value) > self._limits.value_bytes_max:
            value = self._checked(value)
        self._entry[key] = value

    def delete(self, key: bytes) -> None:
        """Remove `key`; nothing happens when it is not there."""
        if type(key) is not bytes or key not in self._allowed:
            self._enter(key)
        self._entry[key] = None

    def scan(self, prefix: bytes, limit: int | None = None, reverse: bool = False) -> list[Record]:
        """The records of the command's partitions whose key starts with `prefix`, in key order or against it, at most
        `limit`, as all earlier commands of the log, and this one, left them.

        It looks at every record with that prefix, also at those of other partitions that it leaves out, and at every
        deletion since the group began: choose prefixes that only keys of the partition have.
        """
        if not isinstance(prefix, bytes):
            self._refuse(TypeError(f"a prefix is bytes, not {type(prefix).__name__}"))
        if limit is not None and (type(limit) is not int or limit < 0):
            self._refuse(ValueError(f"a limit is a number of records, or None, not {limit!r}"))
        return list(islice(self._merged(prefix, limit, reverse), limit))

    # ---- what may be touched -------------------------------------------------------------------------------------

    def _enter(self, key: bytes) -> None:
        """Raise UndeclaredKeyError unless `key`, which was not named, can be a key and lies in a named one's
        partition."""
        where, most = None, self._limits.key_bytes_max
        if type(key) is not bytes or not 1 <= len(key) <= most:
            what, hint = f"is no key: those are bytes, 1 to key_bytes_max={most} of them", "make another key"
        else:
            where = key if self._partition_of is None else self._partition_of(key)
            if type(where) is not bytes:
                self._refuse(TypeError(f"partition_key() returned {type(where).__name__}, not bytes"))
            if self._partition_of is not None and where in self._own_partitions():
                return
            what = "lies in no partition of a key that keys(command) names"
            hint = "name a key of every partition that a command may read or write"
        told = {"declared": sorted(self._allowed)[:_TOLD_KEYS]} | ({} if where is None else {"partition": where})
        self._refuse(
            UndeclaredKeyError(f"apply touched the key {reprlib.repr(key)}, which {what}", hint=hint, key=key, **told)
        )

    def _checked(self, value: bytes) -> bytes:
        """A value that is of a class of its own as what it is. Raises BadEntryError for what is none."""
        if not isinstance(value, bytes) or len(value) > self._limits.value_bytes_max:
            self._refuse(_bad_value(value, self._limits.value_bytes_max))
        return bytes(value)

    def _refuse(self, error: Exception) -> NoReturn:
        self.refusal = self.refusal or error
        raise error

    def _own_partitions(self) -> Set[bytes]:
        if self._partitions is None:
            of = self._partition_of
            self._partitions = frozenset(self._allowed if of is None else map(of, self._allowed))
        return self._partitions

    # ---- scans ---------------------------------------------------------------------------------------------------

    def _merged(self, prefix: bytes, limit: int | None, reverse: bool) -> Iterator[Record]:
        if self._partition_of is None:
            named = {key for key in self._own_partitions() if key.startswith(prefix)}
            yield from self._present(sorted(named, reverse=reverse))
            return
        partitions, of = self._own_partitions(), self._partition_of
        written = (key for key in self._written(prefix, reverse) if of(key) in partitions)
        above = next(written, None)
        for key, value in self._base.scan(prefix, partitions, limit, reverse):
            while above is not None and (above > key if reverse else above < key):
                yield from self._present((above,))
                above = next(written, None)
            if above == key:
                yield from self._present((key,))
                above = next(written, None)
            elif of(key) in partitions:
                yield key, value
        if above is not None:
            yield from self._present((above,))
        yield from self._present(written)

    def _present(self, keys: Iterable[bytes]) -> Iterator[Record]:
        """The records of those of `keys` that are there."""
        for key in keys:
            value = self.current(key)
            if value is not None:
                yield key, value

    def _written(self, prefix: bytes, reverse: bool) -> Iterator[bytes]:
        """The keys with `prefix` that the overlay holds, each once, in order."""
        if self._ordered is None:
            self._ordered = sorted(self._group)
        entry = sorted((key for key in self._entry if key.startswith(prefix)), reverse=reverse)
        both = merge(_under(self._ordered, prefix, reverse), entry, reverse=reverse)
        return (key for key, _ in groupby(both))

    # ---- for who runs the commands -------------------------------------------------------------------------------

    def declare(self, keys: Iterable[bytes]) -> None:
        """Begin a command that names `keys`."""
        named = tuple(keys)
        self._allowed = named if len(named) < _MANY_KEYS else frozenset(named)
        self._partitions = None

    def settle(self) -> None:
        """Keep the command's writes."""
        if self._entry:
            if self._ordered is not None:
                for key in self._entry.keys() - self._group.keys():
                    insort(self._ordered, key)
            self._group.update(self._entry)
            self._entry.clear()

    def drop(self) -> None:
        """Forget the command's writes."""
        self._entry.clear()

    def write_all(self, pairs: Iterable[tuple[bytes, bytes | None]]) -> None:
        """Take writes that need no look at what is there, in order."""
        self._group.update(pairs)
        self._ordered = None

    @property
    def writes(self) -> dict[bytes, bytes | None]:
        """The last write of every key touched so far; None is a deletion."""
        return self._group

    def current(self, key: bytes) -> bytes | None:
        """The value of any key."""
        for overlay in (self._entry, self._group):
            if key in overlay:
                return overlay[key]
        return self._get(key)

    def within(self, partitions: Set[bytes], prefix: bytes, limit: int | None, reverse: bool) -> Iterator[Record]:
        """As `scan`, of any partitions, record by record."""
        self._partitions = partitions
        return islice(self._merged(prefix, limit, reverse), limit)


def _bad_value(value: object, most: int) -> BadEntryError:
    if isinstance(value, bytes):
        what, hint = f"a value of {len(value)} bytes", "value_bytes_max is fixed when the directory was created"
    else:
        what, hint = f"a value of type {type(value).__name__}", "values are bytes; delete(key) removes a key"
    return BadEntryError(f"apply put {what}; allowed are bytes, at most {most} bytes", hint=hint, limit=most)


def _under(ordered: list[bytes], prefix: bytes, reverse: bool) -> Iterator[bytes]:
    """Those of `ordered` that start with `prefix`."""
    start = bisect_left(ordered, prefix)
    if not reverse:
        places: Iterable[int] = range(start, len(ordered))
    else:
        end = bisect_left(ordered, True, start, key=lambda key: not key.startswith(prefix))
        places = range(end - 1, start - 1, -1)
    for place in places:
        if not ordered[place].startswith(prefix):
            return
        yield ordered[place]
