"""What is recorded: operations, each with its order numbers.

One counter numbers all beginnings and ends. `next` of an `itertools.count` is one step that no thread interrupts, so
an operation that ended before another began has the smaller number, in whatever task or thread each of them was; that
is all the order that a check needs, and no clock has a say in it. The times are for people.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from time import monotonic_ns
from typing import Any, Literal, TypeVar

import msgspec

from shardengine.engine.contract import ScanResult
from shardengine.engine.errors import HistoryError
from shardengine.shards.types import ApplyResult, Entry

T = TypeVar("T", bound="Operation")
Outcome = Literal["open", "ok", "fail", "info"]
"""open: not ended yet. ok: answered. fail: it did nothing, and never will. info: not known, it may have an effect."""


class Operation(msgspec.Struct, kw_only=True):
    """One call. Its number is `begun`; whoever made it says how it ended, once: a second time raises HistoryError."""

    order: Iterator[int]
    session: str
    begun: int
    begun_ns: int
    ended: int | None = None
    ended_ns: int = 0
    outcome: Outcome = "open"
    error: str | None = None

    def failed(self, error: BaseException | str) -> None:
        """It did nothing, and never will."""
        self._end("fail", error)

    def unknown(self, error: BaseException | str) -> None:
        """Whether it does, or did, something is not known."""
        self._end("info", error)

    def _end(self, outcome: Outcome, error: BaseException | str | None = None) -> None:
        if self.ended is not None:
            raise HistoryError(f"operation {self.begun} has ended already", operation=self.begun)
        self.ended_ns = monotonic_ns()
        self.outcome = outcome
        if error is not None:
            self.error = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
        self.ended = next(self.order)


class Write(Operation, kw_only=True):
    """Commands for the log: proposed, or, with `first`, applied as the entries from that index on."""

    datas: list[bytes]
    first: int | None = None
    results: Sequence[ApplyResult] = ()

    def ok(self, results: Sequence[ApplyResult]) -> None:
        """One result for each command, in order."""
        if len(results) != len(self.datas):
            raise HistoryError(f"operation {self.begun}: {len(self.datas)} commands, {len(results)} results")
        self._end("ok")
        self.results = results


class Read(Operation, kw_only=True):
    """Values of some keys at one index; of no key: a view was opened, or a barrier passed, there.

    linearizable: it must see all that was acknowledged to anybody before. at_least: it must see that entry. of_view:
    it was asked of a view of that revision.
    """

    keys: list[bytes]
    linearizable: bool = True
    at_least: int = 0
    of_view: int | None = None
    values: list[bytes | None] = []
    revision: int | None = None

    def ok(self, values: Sequence[bytes | None], revision: int | None = None) -> None:
        """`revision`: the index at which it was answered; None: not known."""
        if len(values) != len(self.keys) or (not self.keys and revision is None):
            raise HistoryError(f"operation {self.begun}: {len(self.keys)} keys, {len(values)} values, at {revision}")
        self._end("ok")
        self.values = list(values)
        self.revision = revision if self.of_view is None else self.of_view


class Scan(Operation, kw_only=True):
    """Records under a prefix; else as `Read`."""

    prefix: bytes
    limit: int | None = None
    start_after: bytes | None = None
    reverse: bool = False
    linearizable: bool = True
    at_least: int = 0
    of_view: int | None = None
    entries: list[tuple[bytes, bytes]] = []
    more: bool = False
    revision: int | None = None

    def ok(self, result: ScanResult) -> None:
        self._end("ok")
        self.entries, self.more, self.revision = result.entries, result.more, result.revision


class Event(msgspec.Struct, frozen=True):
    """What a watcher was told. kind: "put", "deleted", or "progress" and "cancelled", which say that everything up to
    `revision` was told. previous: the value before, None too where nobody asked for it."""

    kind: str
    key: bytes
    value: bytes | None
    previous: bytes | None
    revision: int


class Watch(Operation, kw_only=True):
    """A subscription, from the moment at which it is known that `since` is the first revision it covers. `key`, or all
    keys with `prefix`; `previous`: events carry the value before."""

    since: int
    key: bytes | None = None
    prefix: bytes = b""
    previous: bool = False
    events: list[Event] = []
    at: list[int] = []
    """The order number of each event."""
    through: int = 0
    """Every event up to that revision was waited for."""

    def saw(self, event: Event) -> None:
        """An event came."""
        self.at.append(next(self.order))
        self.events.append(event)

    def ok(self, through: int = 0) -> None:
        """It ended. `through`: whoever watched waited for every event up to that revision."""
        self._end("ok")
        self.through = through


class Recorder:
    """Takes down operations, of any number of tasks and threads."""

    def __init__(self) -> None:
        self._order = count(1)
        self.operations: list[Operation] = []
        """In the order in which they began, but for such of several threads."""

    def _begun(self, session: str) -> dict[str, Any]:
        return {"order": self._order, "session": session, "begun": next(self._order), "begun_ns": monotonic_ns()}

    def _added(self, operation: T) -> T:
        self.operations.append(operation)
        return operation

    def begin_propose(self, datas: Iterable[bytes], *, session: str = "") -> Write:
        """Encoded commands, one or more, are proposed, to stand next to each other in the log."""
        return self._added(Write(**self._begun(session), datas=_some(datas)))

    def begin_apply(self, entries: Sequence[Entry], *, session: str = "") -> Write:
        """Entries, one or more, are applied as a chunk."""
        datas = _some(entry.data for entry in entries)
        return self._added(Write(**self._begun(session), datas=datas, first=entries[0].index))

    def begin_get(
        self,
        keys: Iterable[bytes],
        *,
        session: str = "",
        linearizable: bool = True,
        at_least: int = 0,
        of_view: int | None = None,
    ) -> Read:
        """Keys, one or more, are read."""
        told = self._begun(session)
        return self._added(Read(**told, keys=list(keys), linearizable=linearizable, at_least=at_least, of_view=of_view))

    def begin_view(self, *, session: str = "", linearizable: bool = True, at_least: int = 0) -> Read:
        """A view is opened, or a barrier waited for. It ends with `ok([], view.revision)`; what is read of it goes with
        `of_view`."""
        return self.begin_get([], session=session, linearizable=linearizable, at_least=at_least)

    def begin_scan(
        self,
        prefix: bytes,
        limit: int | None = None,
        start_after: bytes | None = None,
        reverse: bool = False,
        *,
        session: str = "",
        linearizable: bool = True,
        at_least: int = 0,
        of_view: int | None = None,
    ) -> Scan:
        """Records under a prefix are read."""
        return self._added(
            Scan(
                **self._begun(session),
                prefix=prefix,
                limit=limit,
                start_after=start_after,
                reverse=reverse,
                linearizable=linearizable,
                at_least=at_least,
                of_view=of_view,
            )
        )

    def begin_watch(
        self, since: int, *, key: bytes | None = None, prefix: bytes = b"", previous: bool = False, session: str = ""
    ) -> Watch:
        """A subscription covers what comes from revision `since` on."""
        told = self._begun(session)
        return self._added(Watch(**told, since=since, key=key, prefix=prefix, previous=previous))


def _some(datas: Iterable[bytes]) -> list[bytes]:
    if found := list(datas):
        return found
    raise HistoryError("a write of nothing is no operation")
