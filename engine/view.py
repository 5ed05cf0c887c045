"""Repeatable reads: a view keeps the cut that was published when it was opened."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from types import TracebackType

from engine.contract import ScanResult
from engine.cut import Cut
from engine.errors import ViewClosedError, WrongThreadError


class View:
    """All shards as they were at one applied index, while applies go on. Opens nothing and waits for nobody.

    Close it, or use it as a context manager: an old view makes the files grow. A view that outlives
    `view_age_max_ms`, or its engine's storage, is closed for it; reads then raise ViewClosedError.
    """

    def __init__(self, cut: Cut, opened_at: float, on_close: Callable[[View], None]) -> None:
        self._cut: Cut | None = cut
        self._on_close = on_close
        self._thread = threading.get_ident()
        self._why = "it was closed"
        self.opened_at = opened_at
        self.revision = cut.position.index
        """The log index it shows."""

    def get(self, key: bytes) -> bytes | None:
        """The value of `key`, or None. Does not block."""
        return self._open().get(key)

    def get_multi(self, keys: Iterable[bytes]) -> list[bytes | None]:
        """The value of each key, or None, in the order of `keys`."""
        return self._open().get_multi(keys)

    def scan_prefix(
        self, prefix: bytes, limit: int | None = None, start_after: bytes | None = None, reverse: bool = False
    ) -> ScanResult:
        """As `Engine.scan_prefix`, of this view's state."""
        return self._open().scan_prefix(prefix, limit, start_after, reverse)

    def __len__(self) -> int:
        return self._open().count()

    def __bool__(self) -> bool:
        return True

    def close(self, why: str = "it was closed") -> None:
        """Let go of the state. Closing twice does nothing."""
        if self._cut is not None:
            self._why = why
            self._on_close(self)
            self._cut = None

    def check_open(self) -> None:
        """Raises ViewClosedError once it is closed."""
        self._open()

    @property
    def cut(self) -> Cut:
        """For the engine."""
        return self._open()

    def _open(self) -> Cut:
        if threading.get_ident() != self._thread:
            raise WrongThreadError("the view belongs to another thread", hint="use it where its engine lives")
        if self._cut is None:
            raise ViewClosedError(f"the view of revision {self.revision} cannot be read: {self._why}")
        return self._cut

    def __enter__(self) -> View:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
