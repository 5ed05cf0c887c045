"""Reads: one read transaction per shard, all at the same applied index.

A `Cut` never changes. The one that is shown answers `get`; a view holds a cut of its own choosing for as long as it
likes. A publish opens a new read transaction on each shard that committed, shares those of the others with the cut
before, and closes what no cut holds any more. `Reads` is that for an engine; `follow.py` for other processes.

Invariants: `ReadTx.holders` counts the cuts, alive, that hold it; a cut is alive while published or pinned. Every store
has a slot in its readers' table prepared for the next publish, which therefore cannot fail for the lack of one.

Threads: a transaction is for one thread at a time, and must not end under who reads it. `Cuts.lock` sees to that: it
is held while cuts change, and by every thread that reads one, but for the thread that changes them where it is the only
one that reads.
"""

from __future__ import annotations

import heapq
import logging
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from operator import itemgetter
from typing import Any

from shardengine.engine.contract import ScanResult, scanned
from shardengine.engine.errors import EngineError, ViewClosedError
from shardengine.shards.digest import records_digest
from shardengine.shards.store import BadKey, ReadStore, ReadTx
from shardengine.shards.types import Position

SLICE = 512
"""Records that are read between two looks at what others want."""
_CLOSED = "its engine was stopped"
log = logging.getLogger("shardengine")


class Cut:
    """All shards at one applied index. Every read of it, at any time, sees the same state, or raises ViewClosedError
    once it has `ended`, which says why."""

    __slots__ = ("_owner", "ended", "pins", "position", "reads", "shards")

    def __init__(self, shards: Sequence[ReadTx | Lost], position: Position, reads: Cuts) -> None:
        self.shards = shards
        self.position = position
        self.pins = 0
        self.ended: str | None = None
        self.reads = reads
        self._owner = reads.owner

    def get(self, key: bytes) -> bytes | None:
        try:
            return self.shards[self._owner(key)].get(key)
        except BadKey:
            return None  # no record can have such a key
        except Exception as error:  # a machine's partition_key may raise anything of what is no key
            if isinstance(key, (bytes, bytearray, memoryview)):
                raise
            raise TypeError(f"a key is bytes, not {type(key).__name__}") from error

    def get_multi(self, keys: Iterable[bytes]) -> list[bytes | None]:
        return [self.get(key) for key in keys]

    def scan_prefix(
        self, prefix: bytes, limit: int | None = None, start_after: bytes | None = None, reverse: bool = False
    ) -> ScanResult:
        return scanned(self.records(prefix, start_after, reverse=reverse), limit, self.position.index)

    def records(self, prefix: bytes, start_after: bytes | None, *, reverse: bool) -> Iterator[tuple[bytes, bytes]]:
        """Those whose key starts with `prefix`, in key order over all shards, beyond `start_after` only."""
        scans = [shard.scan(prefix, start_after, reverse=reverse) for shard in self.shards]
        return heapq.merge(*scans, key=itemgetter(0), reverse=reverse) if len(scans) > 1 else scans[0]

    def count(self) -> int:
        return sum(shard.count() for shard in self.shards)

    def digest_slices(self) -> Iterator[int]:
        """The digest, as a sum of parts that take about a millisecond each. Others may go on between them."""
        for shard in self.shards:
            records: Iterator[tuple[bytes, bytes]] | None = None
            while True:
                with self.reads.lock:
                    self.judge()
                    records = records or shard.scan(b"", None, reverse=False)
                    batch = list(islice(records, SLICE))
                    self.judge()
                if not batch:
                    break
                yield records_digest(batch)

    def check(self) -> None:
        """Raises ViewClosedError once it has ended."""
        if self.ended is not None:
            raise ViewClosedError(f"the state of revision {self.position.index} cannot be read: {self.ended}")

    def judge(self) -> None:
        """As `check`, and where nothing keeps its pages, look what has become of them: behind a read, whether its
        result counts."""
        self.check()

    def hand_back(self) -> None:
        """Undo one `Reads.pin`, from any thread, at any moment: its store's thread does it when it comes by."""
        self.reads.handed_back.append(self)


class Lost:
    """In the place of a read transaction that cannot be had until the shard's next publish."""

    def __init__(self, why: str) -> None:
        self._why = why

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise ViewClosedError(f"a shard cannot be read at this moment: {self._why}", hint="read again after a chunk")

    get = scan = count = _refuse


class Cuts:
    """The cuts of one generation: the one that is shown, `cut`, and those that are pinned, with their stores.

    `closer` is who will close it, kept alive as long as any cut of it is: a view may outlive all else of its engine.
    Every method holds `lock`; a thread may take it twice.
    """

    cut: Cut

    def __init__(self, owner: Callable[[bytes], int], lock: threading.RLock | None = None) -> None:
        """`owner` gives the shard of a key. `lock`: None makes one."""
        self.owner = owner
        self.handed_back: deque[Cut] = deque()
        self.closer: object = None
        self.lock = lock or threading.RLock()
        self._stores: list[ReadStore] = []
        self._pinned: set[Cut] = set()
        self._kind = Cut
        self._closed = False

    @property
    def stores(self) -> Sequence[ReadStore]:
        """One a shard."""
        return self._stores

    @property
    def pinned(self) -> int:
        """Cuts that are kept alive beside the one that is shown."""
        with self.lock:
            self.take_back()
            return len(self._pinned - {self.cut})

    def count(self) -> int:
        """Live records of the cut that is shown."""
        with self.lock:
            return self.cut.count()

    def pin(self) -> Cut:
        """The cut that is shown, kept until it is unpinned as often as it was pinned."""
        with self.lock:
            self.take_back()
            self.cut.pins += 1
            self._pinned.add(self.cut)
            return self.cut

    def take_back(self) -> None:
        """Unpin what was handed back. The thread that publishes, or one that reads under the lock."""
        with self.lock:
            while self.handed_back:
                cut = self.handed_back.popleft()
                cut.pins -= 1
                if cut.pins == 0:
                    self._pinned.discard(cut)
                    if cut is not self.cut and cut.ended is None:
                        self._drop(cut)

    def close(self, why: str = _CLOSED) -> None:
        """Close every transaction and environment. Cuts still pinned are dead. Closing twice does nothing."""
        with self.lock:
            if self._closed:
                return
            self._closed = True
            self._end_all(why)
            self._drop(self.cut)
            self.cut.ended = why
            for store in self._stores:
                store.close()

    def _show(self, shards: Sequence[ReadTx | Lost], position: Position) -> None:
        """In place of the cut before, which goes unless it is pinned."""
        old = self.cut
        self.cut = self._hold(shards, position)
        if old.pins == 0:
            self._drop(old)

    def _end_all(self, why: str) -> None:
        """Every pinned cut ends. The one that is shown is replaced, or closed, by the caller."""
        for cut in self._pinned:
            cut.ended = why
            if cut is not self.cut:
                self._drop(cut)
        if self.cut in self._pinned:  # its views end; who reads the newest state goes on
            ended, self.cut = self.cut, self._hold(self.cut.shards, self.cut.position)
            self._drop(ended)
        self._pinned.clear()

    def _hold(self, shards: Sequence[ReadTx | Lost], position: Position) -> Cut:
        for shard in shards:
            if isinstance(shard, ReadTx):
                shard.holders += 1
        return self._kind(shards, position, self)

    def _drop(self, cut: Cut) -> None:
        for shard in cut.shards:
            if isinstance(shard, ReadTx):
                shard.holders -= 1
                if shard.holders == 0:
                    shard.close()


class Reads(Cuts):
    """The readers' side of an engine over one generation: what it publishes is the cut that is shown."""

    def __init__(
        self, open_store: Callable[[int], ReadStore], shards: int, position: Position, owner: Callable[[bytes], int]
    ) -> None:
        """`open_store` opens the store of a shard. Whatever is raised leaves none open."""
        super().__init__(owner)
        self._open_store = open_store
        self._untold: deque[str] = deque()
        try:
            for shard in range(shards):
                self._stores.append(open_store(shard))
                self._stores[shard].prepare()
            self.cut = self._hold([store.begin() for store in self._stores], position)
            self._prepare()
        except BaseException:
            for store in self._stores:
                store.close()
            raise

    def publish(self, shards: Collection[int], position: Position) -> None:
        """Make what `shards` have committed visible, all at once."""
        try:
            with self.lock:
                self.take_back()
                fresh = list(self.cut.shards)
                for shard in shards:
                    fresh[shard] = self._begin(shard)
                self._show(fresh, position)
        finally:
            if self._untold:
                self._tell()

    def pin(self) -> Cut:
        """As any cut's. Raises StoreError when a readers' table is full."""
        with self.lock:
            self.take_back()
            if self.cut.pins == 0:
                self._prepare()
            return super().pin()

    def _prepare(self) -> None:
        """One slot a store for the next publish, and one for the one after it, when this cut is kept till then."""
        for store in self._stores:
            store.prepare()

    def copy(self, shard: int, descriptor: int) -> None:
        """Write what `shard` has committed, compacted, as an environment's file. Blocks; any thread."""
        pinned = self._stores[shard].begin()
        try:
            self._stores[shard].copy(pinned, descriptor)
        finally:
            pinned.close()

    # ---- slots in the readers' table -----------------------------------------------------------------------------

    def worker_ended(self, shard: int) -> None:
        """The worker of `shard` is gone, and its successor not there yet: nobody but us holds the environment. Free
        what it had pinned, which would make the file grow for ever, and see that the successor finds our locks."""
        with self.lock:
            if self._closed:
                return
            self.take_back()
            self._stores[shard].keep_locks()
            self._stores[shard].clear_dead_readers()
            self._stores[shard].make_way()

    def look_after(self) -> None:
        """Now and then. The system drops LMDB's locks when any descriptor of `lock.mdb` is closed in this process; and
        the slots of other processes' readers that were killed keep pages for ever."""
        with self.lock:
            for store in self._stores:
                store.keep_locks()
                store.clear_dead_readers()

    def worker_came(self, shard: int) -> None:
        """A new worker of `shard` has opened the environment, and was sent nothing yet. If it took itself for the first
        and emptied the readers' table, it would reuse pages under our cuts."""
        try:
            with self.lock:
                if self._closed:
                    return
                if not self._stores[shard].keeps_slots():
                    self._renew(shard)
                with suppress(EngineError):  # the two that matter are there
                    self._stores[shard].prepare()
        finally:
            self._tell()

    def _begin(self, shard: int) -> ReadTx:
        try:
            return self._stores[shard].begin()
        except EngineError:  # our slots were taken from us, or the table is full all the same
            return self._reopen(shard)

    def _renew(self, shard: int) -> None:
        """Our slots are gone: end every view, and publish the same state again, through new ones."""
        seen = self.cut.shards[shard]
        stands = seen.position() if isinstance(seen, ReadTx) else None
        fresh = self._reopen(shard)
        if stands is None or fresh.position() != stands:
            # It has committed a group that the others have not: the cut before that is out of reach, and the next
            # publish, which is of that group, near.
            fresh.close()
            self._replace(shard, Lost("its readers' table was reset"))
        else:
            self._replace(shard, fresh)

    def _reopen(self, shard: int) -> ReadTx:
        why = f"the readers' table of shard {shard} was reset under it; was its lock.mdb copied, moved or opened?"
        self._untold.append(why)
        self._end_all(why)
        self._replace(shard, Lost(why))
        self._stores[shard].close()
        store = self._stores[shard] = self._open_store(shard)
        store.prepare()
        return store.begin()

    def _tell(self) -> None:
        """What happened under the lock: a handler may read, or wait for a thread that does, so nobody holds it here."""
        while self._untold:
            log.warning("%s; views end", self._untold.popleft())

    def _replace(self, shard: int, transaction: ReadTx | Lost) -> None:
        """Publish the same state once more, with another transaction of `shard`."""
        old, shards = self.cut, list(self.cut.shards)
        shards[shard] = transaction
        self.cut = self._hold(shards, old.position)
        self._drop(old)
