"""What a view of a state machine in this process is."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType

from shardengine.engine.adaptors.store import Reads, as_bytes
from shardengine.engine.contract import ScanResult
from shardengine.engine.errors import view_closed


class StateView:
    """The records as they were at the index `revision`, while applies go on. What it holds, the store's class says. Its
    machine closes it when it stops or gets another state; reads then raise ViewClosedError."""

    def __init__(self, records: Reads, revision: int) -> None:
        """`records` are the view's from now on."""
        self._records: Reads | None = records
        self._why = ""
        self.revision = revision
        """The log index it shows."""

    def get(self, key: bytes) -> bytes | None:
        """The value of `key`, or None."""
        return self._open().get(as_bytes(key))

    def get_multi(self, keys: Iterable[bytes]) -> list[bytes | None]:
        """The value of each key, or None, in the order of `keys`."""
        return list(map(self._open().get, map(as_bytes, keys)))

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
        if self._records is not None:
            records, self._records, self._why = self._records, None, why
            records.close()

    @property
    def closed(self) -> bool:
        return self._records is None

    def _open(self) -> Reads:
        if self._records is None:
            raise view_closed(self.revision, self._why)
        return self._records

    def __enter__(self) -> StateView:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()
