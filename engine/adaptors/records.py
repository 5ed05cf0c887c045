"""Records in a dict, with their keys in order where somebody asks for that; and views, which keep a copy."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Set
from types import TracebackType

from shardengine.engine.contract import ScanResult, scanned
from shardengine.engine.errors import view_closed
from shardengine.shards.transaction import Record


class Records:
    """What is live. Commands run over it: it is a `transaction.Base`.

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
        """The value of `key`, or None. Raises TypeError when it is no bytes."""
        try:
            return self._data.get(key if type(key) is bytes else bytes(memoryview(key)))
        except TypeError:
            raise TypeError(f"a key is bytes, not {type(key).__name__}") from None

    def scan(self, prefix: bytes, partitions: Set[bytes], limit: int | None, reverse: bool) -> Iterator[Record]:
        """See `transaction.Base`: of all partitions."""
        return self.under(prefix, reverse=reverse)

    def under(self, prefix: bytes, start_after: bytes | None = None, *, reverse: bool = False) -> Iterator[Record]:
        """Records whose key starts with `prefix`, in key order or against it, those beyond `start_after` only. Nothing
        may be written before its end."""
        keys = self._keys()
        low = bisect_left(keys, prefix)
        high = bisect_left(keys, True, low, key=lambda key: not key.startswith(prefix))
        if start_after is not None and reverse:
            high = min(high, bisect_left(keys, start_after))
        elif start_after is not None:
            low = max(low, bisect_right(keys, start_after))
        for place in range(high - 1, low - 1, -1) if reverse else range(low, high):
            yield keys[place], self._data[keys[place]]

    def scan_prefix(
        self, prefix: bytes, limit: int | None, start_after: bytes | None, revision: int, *, reverse: bool
    ) -> ScanResult:
        """See `Engine.scan_prefix`; `revision` is the index that the records stand at."""
        return scanned(self.under(prefix, start_after, reverse=reverse), limit, revision)

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


class MemoryView:
    """The records as they were at the index `revision`, while applies go on. A copy: it holds memory, and costs
    nothing else. Its machine closes it when it stops or gets another state; reads then raise ViewClosedError."""

    def __init__(self, records: Records, revision: int) -> None:
        self._records = records
        self._why: str | None = None
        self.revision = revision
        """The log index it shows."""

    def get(self, key: bytes) -> bytes | None:
        """The value of `key`, or None."""
        return self._open().get(key)

    def get_multi(self, keys: Iterable[bytes]) -> list[bytes | None]:
        """The value of each key, or None, in the order of `keys`."""
        return list(map(self._open().get, keys))

    def scan_prefix(
        self, prefix: bytes, limit: int | None = None, start_after: bytes | None = None, reverse: bool = False
    ) -> ScanResult:
        """As `Engine.scan_prefix`, of this view's state."""
        return self._open().scan_prefix(prefix, limit, start_after, self.revision, reverse=reverse)

    def __len__(self) -> int:
        return len(self._open())

    def __bool__(self) -> bool:
        return True

    def close(self, why: str = "it was closed") -> None:
        """Let go of the state. Closing twice does nothing."""
        if self._why is None:
            self._records, self._why = Records(), why

    @property
    def closed(self) -> bool:
        return self._why is not None

    def _open(self) -> Records:
        if self._why is not None:
            raise view_closed(self.revision, self._why)
        return self._records

    def __enter__(self) -> MemoryView:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
