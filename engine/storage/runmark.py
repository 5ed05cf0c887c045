"""The run mark: whether the files may hold more than the disk does. The owner of "clean", and of what is durable.

In mode "process" LMDB leaves it to the kernel when pages reach the disk: after a power loss they cannot be trusted.
So before its first write a run makes a mark durable that says "unclean, on this boot"; a flush or a stop makes it
clean again. A mark speaks of one generation only: another one was made durable before CURRENT named it, and has no
write since.

A sync that fails is told once by the kernel, and the next one succeeds though the pages are lost. After one, a run
never calls itself clean again, what is durable never rises, and the mark says so to the next start.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec

from shardengine.engine.errors import EngineError, FormatError, SyncFailedError, disk_error
from shardengine.engine.storage.files import checked, read_checked, replace_file, write_checked
from shardengine.engine.storage.generations import Generation
from shardengine.shards.types import LogId

NAME = "run-mark"
_CLOCKS_APART_S = 2
log = logging.getLogger("shardengine")


class Boot(msgspec.Struct, frozen=True):
    """Which boot of which machine: the kernel's random id ("" where /proc hides it), and when it was, in seconds."""

    id: str
    time: int

    def is_same(self, other: Boot) -> bool:
        """An id that repeats with another time is another boot: images, clones and sandboxes repeat it. Where one of
        the ids is hidden the time decides."""
        ids_differ = self.id and other.id and self.id != other.id
        return not ids_differ and abs(self.time - other.time) <= _CLOCKS_APART_S


def this_boot() -> Boot:
    return Boot(_boot_id(), _boot_time())


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except (OSError, UnicodeError):
        return ""


def _boot_time() -> int:
    """As `btime` in /proc/stat, without /proc. Who sets the clock by more than `_CLOCKS_APART_S` changes it: state
    that was not synced counts as lost then, which is the safe side."""
    return round(time.time() - time.clock_gettime(time.CLOCK_BOOTTIME))


class Mark(msgspec.Struct, frozen=True):
    """The file. `failure`: a sync that failed in the run."""

    clean: bool
    boot: Boot
    mode: str
    lineage: str
    generation: str
    failure: str | None = None


def read_mark(directory: Path) -> Mark | None:
    """The mark of the last run; None when it is missing or unreadable, as a power loss may leave it. FileRefusedError:
    something else has its name, which no power loss did."""
    try:
        return read_checked(directory / NAME, Mark)
    except (FileNotFoundError, FormatError):
        return None


def write_clean(directory: Path, generation: Generation, mode: str) -> None:
    """Mark a generation that is durable as a whole, and has no write yet. Returns when the mark is."""
    info = generation.info
    write_checked(directory / NAME, Mark(True, this_boot(), mode, info.config.lineage, info.id))


def trusted(mark: Mark | None, generation: Generation, is_whole: Callable[[], bool]) -> bool:
    """False when the machine went down after writes that nobody had synced, or a sync failed, or nobody can tell.

    In mode "power" nothing is acknowledged after a sync that failed; what was before is on the disk, if `is_whole`
    says so, which looks there.
    """
    if mark is None:
        return False
    if mark.failure is not None:
        return mark.mode == "power" and is_whole()
    if mark.generation != generation.info.id:
        return True
    return mark.lineage == generation.info.config.lineage and (
        mark.clean or mark.mode == "power" or mark.boot.is_same(this_boot())
    )


def why_untrusted(mark: Mark | None) -> tuple[str, bool]:
    """Why a generation whose mark that is is not `trusted`; and whether a person may know better."""
    if mark is None:
        return "the run mark is missing or unreadable: nothing tells whether the machine went down before a sync", True
    if mark.failure is not None:
        return f"a sync failed in the last run: {mark.failure}", False
    return (
        'the machine went down before the state was synced (durability="process"), or its clock was set by more than '
        f"{_CLOCKS_APART_S} seconds, which looks the same"
    ), True


class RunMark:
    """The mark of one run over one generation.

    Invariant: `clean` exactly while the mark on the disk lets a start trust this generation after a power loss; it
    turns False only when the disk has the unclean one, and never True after `failure`.
    """

    def __init__(
        self,
        directory: Path,
        generation: Generation,
        mode: str,
        check_place: Callable[[], None],
        applied: Callable[[], LogId],
        before: RunMark | None = None,
    ) -> None:
        """`check_place` raises when `directory` is not ours any more; `applied` tells how far acknowledgements go;
        `before` is the mark of the same run over the generation that this one replaces."""
        self._directory = directory
        self._generation = generation
        self._mode = mode
        self._check_place = check_place
        self._applied = applied
        found = read_mark(directory)
        self._written = found
        other = found is not None and found.generation != generation.info.id
        self.clean = found is not None and found.failure is None and (found.clean or other)
        self.failure: str | None = None
        self._upto = LogId(0, 0)
        if before is not None:
            self.inherit(before)

    @property
    def unsynced_mode(self) -> bool:
        """True when the mark on the disk is of a run in another mode than this one."""
        return self._written is None or self._written.mode != self._mode

    def write_unclean(self) -> None:
        """Returns when the disk has it. Raises StoreError."""
        self._write(clean=False)

    def before_write(self) -> None:
        """Nothing is written before the disk says that something may be. Raises StoreError; in mode "power", where an
        answer promises a sync, also after one that failed."""
        if self.failure is not None and self._mode == "power":
            raise self.refusal()
        if self.clean:
            self._write(clean=False)

    def flushed(self, error: EngineError | None) -> EngineError | None:
        """A flush has ended so: mark it. Returns what to tell those who asked for it."""
        if isinstance(error, SyncFailedError):
            self.fail(str(error))
        if error is None and self.failure is not None:
            return self.refusal()
        if error is None and not self.clean:
            try:
                self._write(clean=True)
            except EngineError as refused:
                return refused
        return error

    def fail(self, what: str) -> None:
        """A sync failed, which `what` tells."""
        if self.failure is None:
            self.failure, self._upto = what, self._applied()
            log.error("a sync failed; from here on nothing counts as durable: %s", what)
            self.record_failure()

    def inherit(self, before: RunMark) -> None:
        """What happened to the run before it moved over to this generation has happened to it."""
        self.failure, self._upto = before.failure, before._upto
        self.record_failure()

    def record_failure(self) -> None:
        """Tell the next start. That may be one on this boot, so it need not be on the disk; after another boot the
        state counts as lost without it."""
        if self.failure is None or (self._written is not None and self._written.failure is not None):
            return
        doubtful = self._written is not None and not self.clean  # by a run in that mark's mode, until a flush
        mode = self._written.mode if self._written is not None and doubtful else self._mode
        mark = msgspec.structs.replace(self._mark(clean=False), mode=mode)
        with suppress(OSError, EngineError):
            self._check_place()
            replace_file(self._directory / NAME, checked(mark), synced=False)
            self._written = mark

    def refusal(self) -> SyncFailedError:
        return SyncFailedError(
            f"a sync failed in this run, and what it was to make durable may be lost: {self.failure}",
            hint="see the kernel's log; stop, and start again on a disk that works",
        )

    def check_sound(self) -> None:
        """Raises SyncFailedError after a sync that failed: the state may not be what was applied."""
        if self.failure is not None:
            raise self.refusal()

    def durable(self, applied: LogId, snapshot: LogId) -> LogId:
        """How far the log may be cut: to what is applied (mode "power"), or to the newest snapshot of this lineage.
        Neither rises once a sync has failed: no snapshot is taken any more."""
        if self._mode == "process":
            return min(applied, snapshot)
        return applied if self.failure is None else min(applied, self._upto)

    def _mark(self, *, clean: bool) -> Mark:
        info = self._generation.info
        return Mark(clean, this_boot(), self._mode, info.config.lineage, info.id, self.failure)

    def _write(self, *, clean: bool) -> None:
        mark = self._mark(clean=clean)
        self._check_place()
        try:
            write_checked(self._directory / NAME, mark)
        except OSError as error:
            refused = disk_error("the run mark cannot be written", error)
            if isinstance(refused, SyncFailedError):
                self.fail(str(refused))
            raise refused from error
        self._written, self.clean = mark, clean
