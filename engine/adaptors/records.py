"""Records in a dict, with their keys in order where somebody asks for that."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping

from shardengine.engine.adaptors.store import Reads
from shardengine.shards.transaction import Record


class Records(Reads):
    """What is live.

    Invariant: `_ordered` holds, in order, the keys of `_data` without those in `_added`, which are in `_data`, and with
    some that are not in `_data` any more if `_stale`. Both are made good when somebody scans.
    """

    def __init__(self, data: dict[bytes, bytes] | None = None) -> None:
        """`data`, which is the records' from now on, is in key order."""
        self._data = {} if data is None else data
        self._ordered = list(self._data)
        self._added: set[bytes] = set()
        self._stale = False

    def __len__(self) -> int:
        return len(self._data)

    def copy(self) -> Records:
        """The same records, which no write to these changes. Copies references, no records."""
        return Records({key: self._data[key] for key in self._keys()})

    def get(self, key: bytes) -> bytes | None:
        """The value of `key`, or None."""
        return self._data.get(key)

    def under(self, prefix: bytes, start_after: bytes | None = None, *, reverse: bool = False) -> Iterator[Record]:
        """See `Reads`."""
        keys = self._keys()
        low = bisect_left(keys, prefix)
        high = bisect_left(keys, True, low, key=lambda key: not key.startswith(prefix))
        if start_after is not None and reverse:
            high = min(high, bisect_left(keys, start_after))
        elif start_after is not None:
            low = max(low, bisect_right(keys, start_after))
        for place in range(high - 1, low - 1, -1) if reverse else range(low, high):
            yield keys[place], self._data[keys[place]]

    def write(self, writes: Mapping[bytes, bytes | None]) -> None:
        """Set keys, or delete those that are given as None. Interrupted anywhere, it is to be done once more."""
        data, added = self._data, self._added
        for key, value in writes.items():
            if value is not None:
                if key not in data:
                    added.add(key)
                data[key] = value
            elif key in data:
                self._stale = self._stale or key not in added
                added.discard(key)
                del data[key]

    def _keys(self) -> list[bytes]:
        """All keys, in order. Costs what has changed since it was asked last: two runs in order are merged. It may be
        interrupted anywhere."""
        if self._stale:
            kept = self._data.keys() - self._added
            self._ordered = [key for key in self._ordered if key in kept]
            self._stale = False
        if self._added:
            merged = self._ordered + sorted(self._added)
            merged.sort()
            self._stale = True  # until none of them is both in order and added
            self._ordered = merged
            self._added = set()
            self._stale = False
        return self._ordered

    def close(self) -> None:
        """Forget them."""
        self._data, self._ordered, self._added, self._stale = {}, [], set(), False
