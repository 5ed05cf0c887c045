"""One generation that the engine of another process publishes, or published while it lived.

How a cut is had. The engine writes the control page at every publish: after every participant's commit of that group,
and before the record, let alone the COMMIT, of a later one. So transactions that are begun after the page said "group
g" are none of them behind g; when none stands beyond g either, they are the state at g. When one does, a later group is
being committed: they are let go, and begun again behind the page's next word.

Where the engine is gone, and nobody holds the directory's lock, its last group may be committed and never published:
no transaction shows the state that the page names any more. The decision record tells the rest, as it does
to a start (`recover`): when every participant has the group, or it is a solo, which a shard has whole or not at all,
then the metas name the very state that the next start publishes, since what is decided is never undone; that is shown.
The page must still say g behind the reading of the record: then that group is the next one to g, and nothing is behind.
When some have the group and some do not, only a start can finish it: NoCutError. A cut that is at hand stays good in
either case, as no page of it is reused while its slots are held. An engine that holds the lock and is silent, because
it hangs, or because its page cannot be written, may go on with the next commit at any moment: beside it a new cut is
had only where all shards stand at what the page says, and is a NoCutError elsewhere.

The page is read before the metas on every CPU: between the two the interpreter gives its lock away and takes it again,
and the engine heard of every commit through a system call before it wrote the page; both are fences.

(Mode "power": what an engine that was killed had not published may be in memory only, until the next start syncs it.)
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from itertools import islice

from shardengine.engine.commit.decision import DecisionFile, recover
from shardengine.engine.config import EngineConfig
from shardengine.engine.errors import EngineError, EngineStateError, NoCutError, StateUntrustedError
from shardengine.engine.read.cut import SLICE, Cut, Cuts
from shardengine.engine.storage.control import LIVE, REPLACED, ControlView, Page
from shardengine.engine.storage.files import Lock
from shardengine.engine.storage.generations import LOCK_BYTES, Directory, Generation
from shardengine.engine.storage.placing import check_samples, made, owner_of
from shardengine.engine.storage.runmark import read_mark, trusted, why_untrusted
from shardengine.ipc.files import check_file
from shardengine.shards.machine import Machine
from shardengine.shards.store import ReadStore, ReadTx
from shardengine.shards.types import Position

BEAT_MAX_S = 2.0
"""An engine whose last sign of life is older counts as gone: eight ticks."""
TRIES_MAX = 320
"""For one cut: about a second and a half, however fast the engine commits."""
_PAUSE_S, _PAUSE_GROWTH, _PAUSE_MAX_S = 20e-6, 1.2, 5e-3
_TRIES_OF_THE_LIVING = 8  # before it is asked whether the engine lives
_NONE = -1  # no page is at such a sequence
_LOST = "the slots in the readers' tables were taken from it; did this process copy, or read, a lock.mdb?"
_REPLACED = "another state has taken over"
_UNKEPT = (
    "an engine has come, and without slots in its readers' tables nothing keeps what is read from being overwritten"
)
_SLOTS_MAX = LOCK_BYTES // 64 - 2  # what every readers' table has room for


class _UnkeptCut(Cut):
    """One that nothing keeps an engine from: what was read of it counts when no engine had come behind the read."""

    def get(self, key: bytes) -> bytes | None:
        try:
            return super().get(key)
        finally:
            self.judge()

    def records(self, prefix: bytes, start_after: bytes | None, *, reverse: bool) -> Iterator[tuple[bytes, bytes]]:
        records, found = super().records(prefix, start_after, reverse=reverse), [(b"", b"")]
        while found:
            try:
                found = list(islice(records, SLICE))
            finally:
                self.judge()
            yield from found

    def count(self) -> int:
        try:
            return super().count()
        finally:
            self.judge()

    def judge(self) -> None:
        assert isinstance(self.reads, Followed)
        self.reads.look_after()
        self.check()


class Followed(Cuts):
    """The cuts of a generation as another process's engine publishes them. It is any thread's, one at a time.

    Invariant: `cut` is the newest cut that was had, at `sequence` of the page.

    Its constructor assigns more than a dozen attributes: what is followed, by which page, lock and run.
    """

    def __init__(
        self,
        directory: Directory,
        generation: Generation,
        machine: type[Machine],
        config: EngineConfig,
        lock: threading.RLock,
    ) -> None:
        """Have a first cut. Raises StateUntrustedError, EngineStateError, NoCutError, MachineMismatchError, StoreError,
        FileRefusedError, OSError; nothing is open then."""
        placing = made(machine)
        super().__init__(owner_of(placing, generation.shards), lock)
        self.generation = generation
        self.tries = 0
        self.sequence = 0
        self.looked_at = time.monotonic()
        self.lost = False
        self.control = ControlView(generation.control)
        self._lock = directory.path / "LOCK"
        self._run: int | None = None
        try:
            self._check_trusted(directory)
            self.has_slots = self._may_write()
            self._kind = Cut if self.has_slots else _UnkeptCut
            for shard in range(generation.shards):
                self._stores.append(_opened(generation, shard, config, slots=self.has_slots))
            check_samples(self._stores, placing)
            self.cut = self._hold([], Position())
            self.renew()
        except BaseException:
            for store in self._stores:
                store.close()
            self.control.close()
            raise

    def _check_trusted(self, directory: Directory) -> None:
        """A page of this boot was begun by a start that judged the files on it."""
        page = self.control.read()
        if page is not None and (page.same_boot or self.lives(page)):
            return
        mark = read_mark(directory.path)
        if not trusted(mark, self.generation, lambda: False):
            raise StateUntrustedError(
                f"{directory.path}: {why_untrusted(mark)[0]}", hint="start an engine on it, which decides what holds"
            )

    def _may_write(self) -> bool:
        """Whether our transactions may have slots. Raises EngineStateError: they may not, and an engine runs."""
        tables = [self.generation.shard(shard) / "lock.mdb" for shard in range(self.generation.shards)]
        if all(os.access(table if table.exists() else table.parent, os.W_OK) for table in tables):
            return True
        if Lock.held(self._lock):
            raise EngineStateError(
                f"an engine runs on {self._lock.parent}, and this process may not write its readers' tables: nothing "
                "would keep what it reads from being overwritten",
                hint="give it write access to the lock.mdb of every shard, or read a snapshot",
            )
        return False

    # ---- what is asked -------------------------------------------------------------------------------------------

    def lives(self, page: Page | None) -> bool:
        """Whether the engine that wrote the page runs, and says so."""
        if page is None or page.state != LIVE:
            return False
        return 0 <= time.monotonic_ns() - page.beat < BEAT_MAX_S * 1e9 and Lock.held(self._lock)

    def age(self) -> float | None:
        """Seconds since the engine's last sign of life; None while it lives."""
        page = self.control.read()
        if self.lives(page):
            return None
        if page is not None and page.same_boot:
            return max(0.0, (time.monotonic_ns() - page.beat) / 1e9)
        files = [self.generation.shard(shard) / "data.mdb" for shard in range(self.generation.shards)]
        return max(0.0, time.time() - max(file.stat().st_mtime for file in files))

    @property
    def is_newest(self) -> bool:
        """Whether the page has not changed since `cut` was had."""
        return self.control.sequence == self.sequence

    def moved(self) -> bool:
        """Whether another run, or another generation, has taken its place, as far as the page tells; or, where nothing
        keeps an engine from our pages, one may be about to."""
        if self.lost or (not self.has_slots and Lock.held(self._lock)):
            return True
        page = self.control.read()
        return (page is not None and self._is_foreign(page)) or not self.control.in_place()

    def _is_foreign(self, page: Page) -> bool:
        return self._run is not None and (page.run != self._run or page.state == REPLACED)

    # ---- cuts ----------------------------------------------------------------------------------------------------

    def look_after(self) -> None:
        """Take LMDB's locks again, as `Reads.look_after`; and where our slots are gone all the same, or an engine may
        be writing and we have none, end every cut: all is `lost`, and to be opened anew."""
        self.looked_at = time.monotonic()
        for store in self._stores:
            store.keep_locks()
        alone = self.has_slots or not Lock.held(self._lock)
        if not alone or not all(store.keeps_slots() for store in self._stores):
            why = _UNKEPT if not self.has_slots else _LOST if self.control.in_place() else _REPLACED
            self.lost = True
            self._end_all(why)
            self.cut.ended = why
            self.release()

    def renew(self) -> bool:
        """Show what is published by now. Blocks for as long as it takes to meet a moment between two commits. False:
        another run has taken over, or all is lost: open anew. Raises NoCutError, StoreError; the cut at hand stays."""
        self.take_back()
        if self.lost:
            return False
        pause, page, found = _PAUSE_S, None, list[Position]()
        for attempt in range(TRIES_MAX):
            self.tries += 1
            sequence, page = self.control.sequence, self.control.read()
            if page is not None and self._is_foreign(page):
                return False
            nobody = attempt >= _TRIES_OF_THE_LIVING and not Lock.held(self._lock)
            fresh = self._begin()
            try:
                found = [transaction.position() for transaction in fresh]
                position = self._judge(fresh, found, page, sequence, attempt, nobody=nobody)
            except BaseException:
                _close(fresh)
                raise
            if position is not None:
                self._show(fresh, position)
                self.sequence = sequence
                self._run = page.run if page is not None else None
                return True
            _close(fresh)
            time.sleep(pause)
            pause = min(pause * _PAUSE_GROWTH, _PAUSE_MAX_S)
        raise self._refusal(page, found)

    def release(self) -> None:
        """Let go of the cut at hand, and of what was handed back. The next one is had when it is asked for."""
        self.take_back()
        self._show([], self.cut.position)
        self.sequence = _NONE

    def _begin(self) -> list[ReadTx]:
        fresh: list[ReadTx] = []
        try:
            for store in self._stores:
                fresh.append(store.begin())
        except BaseException:
            _close(fresh)
            raise
        return fresh

    def _judge(
        self,
        fresh: Sequence[ReadTx],
        found: list[Position],
        page: Page | None,
        sequence: int,
        attempt: int,
        *,
        nobody: bool,
    ) -> Position | None:
        """Where the transactions `fresh`, which see `found`, stand together; None: nowhere, or nobody can tell yet.
        Before they were begun `page` was read, at `sequence` or later, and then it was found whether `nobody` held the
        lock: what the decision record tells is of a commit that nobody goes on with."""
        newest = max(position.group for position in found)
        if page is not None and newest <= page.position.group and (page.same_boot or self.lives(page)):
            return page.position
        if not nobody:
            return None
        with suppress(EngineError):  # a group that is on its way contradicts itself
            with closing(DecisionFile(self.generation.decision, readonly=True)) as decision:
                recovery = recover(decision.record, [transaction.standing() for transaction in fresh])
            if recovery.redo is None and self.control.sequence == sequence and not Lock.held(self._lock):
                return recovery.position
        return None

    def _refusal(self, page: Page | None, found: Sequence[Position]) -> NoCutError:
        groups = [position.group for position in found]
        facts = {"shards": groups, "published": None if page is None else page.position.group, "tries": self.tries}
        if self.lives(page):
            assert page is not None
            return NoCutError(
                f"the engine (process {page.pid}) has published group {page.position.group}, and its shards stand at "
                f"{groups}: no moment between two commits was met",
                hint="try again; when it lasts, see the engine's stats() for a shard that is stalled",
                **facts,
            )
        if Lock.held(self._lock):
            return NoCutError(
                f"the engine on {self._lock.parent} shows nothing to other processes: it starts or stops just now, "
                "hangs within a commit, cannot write its page, or is of an earlier version",
                hint="try again",
                **facts,
            )
        return NoCutError(
            f"the engine on {self._lock.parent} died within a commit: its shards stand at groups {groups}, which is "
            "no state of one index",
            hint="start an engine on it: that finishes the commit",
            **facts,
        )

    def close(self, why: str = "the reader was closed") -> None:
        super().close(why)
        self.control.close()


def _opened(generation: Generation, shard: int, config: EngineConfig, *, slots: bool) -> ReadStore:
    path = generation.shard(shard)
    check_file(path / "data.mdb")
    size = max(config.map_bytes, (path / "data.mdb").stat().st_size)  # as long as the engine's map while it is open
    return ReadStore(path, generation.identity(shard), map_bytes=size, readers_max=_SLOTS_MAX, slots=slots)


def _close(transactions: Sequence[ReadTx]) -> None:
    for transaction in transactions:
        transaction.close()
