"""Read the state of an engine's directory from another process: beside the engine, or after its end."""

from __future__ import annotations

import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, TypeVar

from shardengine.engine.config import EngineConfig, load_config
from shardengine.engine.contract import ScanResult
from shardengine.engine.errors import (
    EngineError,
    EngineStateError,
    ForkedError,
    FormatError,
    StoreError,
    TooManyViewsError,
    ViewClosedError,
    disk_error,
)
from shardengine.engine.read.cut import SLICE, Cut
from shardengine.engine.read.follow import Followed
from shardengine.engine.read.readerview import ReaderView
from shardengine.engine.read.view import forks
from shardengine.engine.storage.control import LIVE
from shardengine.engine.storage.files import Lock, data_path, filesystem_of
from shardengine.engine.storage.generations import Directory, Generation
from shardengine.engine.storage.matching import check_machine
from shardengine.shards.kv import KeyValue
from shardengine.shards.machine import Machine
from shardengine.shards.types import LogId

LOOK_S = 0.05
"""How long a read may go by the generation that was current, without a look at what CURRENT names."""
_OPENS_MAX = 5
_WAIT_S, _WAIT_MAX_S = 100e-6, 5e-3
T = TypeVar("T")


class Reader:
    """The state of an engine's directory, read from another process than the engine's.

    Every read is a cut, as the engine's own: all shards at `last_applied()`, which is what the engine last published,
    and never falls while the directory holds one generation. It follows installs, resets, compactions and restarts; and
    when the engine has died it goes on showing what was published, while `age()` tells for how long nothing was heard.

    It takes no lock of the engine's, starts nothing, and writes nothing but its slots in the readers' tables
    (`lock.mdb`), which keep the pages that it reads.

    Where it may not write those, as on a read-only medium, it reads only a directory on which no engine runs. A read
    counts when none had come behind it, which is looked at for every lookup and slice of a scan; else it is an
    EngineStateError, and views end. What remains: where an engine starts and commits twice within one slice, as when
    this process was stopped in it, LMDB may find pages under it that make no sense, and abort this process.

    The system drops the locks by which slots are known to be alive when this process closes any descriptor of a
    `lock.mdb`, as a copy of the directory does, and an engine then takes the slots away, within a tick. Every LOOK_S,
    when something is read, the locks are taken again; where slots are gone, views end, and the newest state is opened
    anew. So what is read in the LOOK_S after such a close, and only that, may be wrong: copy with another process.

    One a directory and process, made after a fork (ForkedError in a child of the process that made it), in the
    engine's own pid namespace, as its user. Any thread may use it, one at a time: who comes second waits. A read takes
    the newest cut when the page of the engine has changed, which may block for as long as a commit takes, up to about
    1.5 seconds, then NoCutError; it can be tried again. So it is, too, while an engine hangs within a commit.

    What it read last is kept, and an old cut makes the engine's files grow: a process that reads seldom calls
    `release()` when it is done. A process that is killed gives up its slots by itself, within a tick of the engine.

    Args:
        path: the directory of an engine.
        machine: the one that the engine was opened with; its `partition_key` says on which shard a key lies.
        config: `views_max`, `view_age_max_ms` and `map_bytes` are used. None: as `load_config()` reads them.

    Raises FormatError when no engine was ever started there, MachineMismatchError, StateUntrustedError, NoCutError,
    EngineStateError (this process has the directory open already), StoreError (a readers' table is full: raise
    `readers_max` of the engine), FileRefusedError.
    """

    _made: ClassVar[weakref.WeakValueDictionary[Path, Reader]] = weakref.WeakValueDictionary()
    _making: ClassVar[threading.Lock] = threading.Lock()

    def __init__(
        self,
        path: str | bytes | os.PathLike[str] | os.PathLike[bytes],
        machine: type[Machine] = KeyValue,
        *,
        config: EngineConfig | None = None,
    ) -> None:
        self._path = data_path(path)
        self._machine = machine
        self._config = config or load_config()
        self._lock = threading.RLock()
        self._forks = forks()
        self._views: weakref.WeakSet[ReaderView] = weakref.WeakSet()
        self._followed: Followed | None = None
        self._tries = 0
        self._look_at = 0.0
        with self._making:  # before anything is opened: the end of a second one would drop the locks of the first
            if Lock.held_here(self._path / "LOCK") or self._path in self._made:
                raise EngineStateError(
                    f"this process, or one that it was forked from, has an engine or a reader of {self._path} already",
                    hint="read through that one, or close it; after a fork make a reader before the parent does",
                )
            self._made[self._path] = self
        try:
            self._open()
        except BaseException:
            del self._made[self._path]
            raise

    def __del__(self) -> None:
        if getattr(self, "_followed", None) is not None and self._forks == forks():
            self._let_go("the reader was dropped")

    # ---- read ----------------------------------------------------------------------------------------------------

    def get(self, key: bytes) -> bytes | None:
        """The value of `key` at `last_applied()`, or None."""
        self._check_process()
        with self._lock:
            try:
                return self._now().get(key)
            except ViewClosedError:
                return self._read(lambda cut: cut.get(key))

    def get_multi(self, keys: Iterable[bytes]) -> list[bytes | None]:
        """The value of each key, or None, in the order of `keys`, all at one index."""
        keys = list(keys)
        if len(keys) > SLICE:
            return self._whole(lambda view: view.get_multi(keys))
        return self._read(lambda cut: cut.get_multi(keys))

    def scan_prefix(
        self, prefix: bytes, limit: int | None = None, start_after: bytes | None = None, reverse: bool = False
    ) -> ScanResult:
        """As `Engine.scan_prefix`. Other threads read meanwhile."""
        return self._whole(lambda view: view.scan_prefix(prefix, limit, start_after, reverse))

    def __len__(self) -> int:
        """Live records."""
        return self._read(lambda cut: cut.count())

    def __bool__(self) -> bool:
        return True

    def is_empty(self) -> bool:
        return len(self) == 0

    def last_applied(self) -> LogId:
        """The newest entry that reads see."""
        self._check_process()
        with self._lock:
            position = self._now().position
            return LogId(position.index, position.term)

    def digest(self) -> bytes:
        """As `Engine.digest`, at one index. Reads every record; other threads read meanwhile."""
        return self._whole(lambda view: view.digest())

    def view(self) -> ReaderView:
        """Keep the state of now for repeatable reads, up to `view_age_max_ms`. Raises TooManyViewsError."""
        self._check_process()
        with self._lock:
            cut = self._now()
            if (count := sum([not view.closed for view in self._views])) >= self._config.views_max:
                raise TooManyViewsError(f"{count} views are open", hint="close views, or raise views_max", limit=count)
            now = time.monotonic()
            view = ReaderView(cut.reads.pin(), now, self._look, self._config.view_age_max_ms)
            self._views.add(view)
            return view

    def wait_applied(self, index: int, timeout: float) -> None:
        """Block until everything up to `index` can be read here. Raises TimeoutError after `timeout` seconds, also when
        no engine runs that might get there."""
        deadline, pause = time.monotonic() + timeout, _WAIT_S
        while (last := self.last_applied()).index < index:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"the state stood at index {last.index}, not {index}, after {timeout} s")
            time.sleep(min(pause, left))
            pause = min(2 * pause, _WAIT_MAX_S)

    # ---- the engine that writes ----------------------------------------------------------------------------------

    def age(self) -> float | None:
        """How old what is read may be: None while an engine lives and gave a sign of it within two seconds, else the
        seconds since the last one. An engine does that about every quarter of a second, as long as its loop runs:
        so it does when it has failed, and applies nothing any more, until it is stopped."""
        return self._of_files(lambda: self._current().age())

    def stats(self) -> dict[str, Any]:
        """Facts about this moment that files tell, as plain values."""
        return self._of_files(lambda: self._read(self._facts))

    @property
    def generation(self) -> Generation:
        """What is read at the moment."""
        self._check_process()
        with self._lock:
            return self._current().generation

    def _facts(self, cut: Cut) -> dict[str, Any]:
        """Of `cut`, the newest one."""
        followed = self._followed
        assert followed is not None
        page, age, generation = followed.control.read(), followed.age(), followed.generation
        entries = [transaction.count() for transaction in cut.shards]
        cut.judge()
        return {
            "shards": generation.shards,
            "machine": generation.info.config.machine,
            "generation": generation.path.name,
            "last_applied": {"index": cut.position.index, "term": cut.position.term},
            "groups": cut.position.group,
            "entries": sum(entries),
            "filesystem": filesystem_of(self._path),
            "bytes_on_disk": Directory(self._path).bytes_on_disk(),
            "engine": "runs" if age is None else "stopped" if page is None or page.state != LIVE else "gone",
            "pid": page.pid if page is not None and age is None else None,
            "age_s": None if age is None else round(age, 3),
            "tries": self._tries + followed.tries,
            "per_shard": [
                {"shard": shard, "entries": count, "bytes_on_disk": _bytes_of(generation.shard(shard))}
                for shard, count in enumerate(entries)
            ],
        }

    # ---- life ----------------------------------------------------------------------------------------------------

    def release(self) -> None:
        """Let go of what was read last, so that the engine's files need not grow for it while nothing is read. Views
        stay. The next read takes a new cut."""
        self._check_process()
        with self._lock:
            if self._followed is not None:
                self._followed.release()

    def close(self) -> None:
        """Give up the slots. Views end, and reads are an EngineStateError from then on. Closing twice does nothing, nor
        does closing in a forked child do anything to the parent's reader."""
        if self._forks != forks():
            return
        with self._lock:
            if self._made.get(self._path) is self:
                self._let_go("the reader was closed")  # first: the next one opens what this one must have closed
                del self._made[self._path]

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- the generation that is current --------------------------------------------------------------------------

    def _check_process(self) -> None:
        if self._forks != forks():
            raise ForkedError("the reader was made before a fork, in the parent process", hint="make one per process")

    def _now(self) -> Cut:
        """The newest cut that can be had."""
        followed = self._followed
        if followed is None or time.monotonic() >= self._look_at:
            followed = self._current()
        for _ in range(_OPENS_MAX):
            if followed.is_newest or self._renewed(followed):
                return followed.cut
            followed = self._current()
        raise EngineStateError(f"{self._path} is opened again and again", hint="see why its engine does not stay")

    def _read(self, read: Callable[[Cut], T]) -> T:
        """What `read` finds in the newest cut, or in one that is newer still where that ends under it."""
        self._check_process()
        with self._lock:
            while True:
                cut = self._now()
                try:
                    return read(cut)
                except ViewClosedError:
                    if cut.ended is None:
                        raise

    def _whole(self, read: Callable[[ReaderView], T]) -> T:
        """As `_read`, in slices, others reading between them."""
        self._check_process()
        while True:
            with self._lock:
                cut, now = self._now(), time.monotonic()
                view = ReaderView(cut.reads.pin(), now, self._look, math.inf)
            try:
                with view:
                    return read(view)
            except ViewClosedError:
                if cut.ended is None:
                    raise

    def _of_files(self, look: Callable[[], T]) -> T:
        """What `look` finds, which meets no file where the generation is replaced, and removed, meanwhile."""
        self._check_process()
        with self._lock:
            for _ in range(_OPENS_MAX):
                with suppress(FileNotFoundError):
                    return look()
                self._look_at = 0.0
        raise EngineStateError(f"{self._path} is replaced again and again", hint="see who else writes there")

    def _renewed(self, followed: Followed) -> bool:
        try:
            return followed.renew()
        except StoreError:
            followed.look_after()
            if followed.lost:
                return False
            self._let_go("its shards could not be read")  # the next read opens them anew
            raise

    def _current(self) -> Followed:
        """The generation that CURRENT names, as its newest run has it."""
        if self._made.get(self._path) is not self:
            raise EngineStateError("the reader was closed", hint="make another one")
        followed, due = self._followed, time.monotonic() >= self._look_at
        if followed is not None and (followed.moved() or not Directory(self._path).names(followed.generation)):
            self._let_go("another run, or another state, has taken over")
            followed = None
        if followed is None:
            return self._open()
        if due:
            followed.look_after()
            if followed.lost:
                return self._current()
            for view in list(self._views):
                view.expire()
            self._look_next(followed)
        return followed

    def _open(self) -> Followed:
        """Open the generation that CURRENT names, which another one may replace meanwhile."""
        for attempt in range(_OPENS_MAX):
            directory, generation = Directory(self._path), None
            try:
                generation = self._generation(directory)
                self._followed = followed = Followed(directory, generation, self._machine, self._config, self._lock)
            except (EngineError, OSError) as error:
                if attempt + 1 < _OPENS_MAX and (generation is None or not directory.names(generation)):
                    continue
                if isinstance(error, OSError):
                    raise disk_error(f"{self._path} cannot be read", error, path=str(self._path)) from error
                raise
            else:
                self._look_next(followed)
                return followed
        raise AssertionError("the last attempt returns or raises")

    def _generation(self, directory: Directory) -> Generation:
        if not os.path.lexists(self._path / "config") or directory.load() is None:
            raise FormatError(f"{self._path} is no data directory", hint="name the directory an engine was opened with")
        generation = directory.current()
        if generation is None:
            raise FormatError(
                f"{self._path} holds no live generation: it was never finished, or was set aside",
                hint="start an engine on it",
            )
        check_machine(generation.info.config, self._machine, self._path)
        return generation

    def _look_next(self, followed: Followed) -> None:
        """Without slots nothing keeps an engine that starts from our pages: so at every read."""
        self._look_at = time.monotonic() + (LOOK_S if followed.has_slots else 0)

    def _look(self) -> None:
        """For a view that is about to be read, under the lock."""
        followed = self._followed
        if followed and (not followed.has_slots or time.monotonic() >= followed.looked_at + LOOK_S):
            followed.look_after()

    def _let_go(self, why: str) -> None:
        if self._followed is not None:
            self._tries += self._followed.tries
            self._followed.close(why)
            self._followed = None


def _bytes_of(shard: Path) -> int:
    return (shard / "data.mdb").stat().st_blocks * 512


def _after_fork() -> None:
    Reader._making = threading.Lock()  # another thread of the parent may have held it


os.register_at_fork(after_in_child=_after_fork)
