"""Over a dict, with an append-only file beside it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Literal

from shardengine.engine.adaptors.durable import AnyPath, Durability, InDirectory, home_of
from shardengine.engine.adaptors.journal import Chunk, Journal
from shardengine.engine.adaptors.records import Records
from shardengine.engine.adaptors.state import DictStore, State
from shardengine.engine.adaptors.store import place_of, stands
from shardengine.engine.errors import ConfigError, StoreError, SyncFailedError, disk_error
from shardengine.engine.intake.tail import Tail
from shardengine.engine.storage.anchors import Anchors
from shardengine.engine.storage.files import BESIDE, sync_directory
from shardengine.engine.storage.generations import DirectoryConfig
from shardengine.ipc.errors import hint_for
from shardengine.ipc.files import create_file, open_file, sync
from shardengine.shards.kv import KeyValue
from shardengine.shards.machine import Machine
from shardengine.shards.transaction import Record
from shardengine.shards.types import Limits

NAME = "state"
CHECKPOINT_BYTES = 16 << 20
_PIECE_BYTES = 1 << 20
log = logging.getLogger("shardengine")


class FileStateMachine(InDirectory):
    """A `StateMachine` whose records are in this process's memory, and in one append-only file.

    Every chunk is one record of the file, with its checksum: writes, and where the log stands. When more was appended
    than `checkpoint_bytes`, and than the state has, the next chunk first has the state written anew, into a file beside
    it, which takes its place when the disk has all of it. So has a start, if any was appended in the run before: it
    needs room for the state once more. That takes as long as writing the state does.

    What a failure leaves, `durability` "process":

        a process is killed     everything that was acknowledged: the kernel has it
        power loss              the state of a chunk, at or behind `durable()`; no chunk in part

    and "power", where each chunk is synced before it is acknowledged:

        both                    everything that was acknowledged

    A record that is not whole is cut off where a death can have left it, and refused as damage where it cannot: see
    `journal.py`, which also says what cannot be told. On a full disk a chunk is a StoreFullError, of which nothing is
    left; a checkpoint that does not fit is put off.

    Args:
        path: the directory; made by `start` when it is not there.
        machine: what the commands mean; any class.
        limits, bad_entry: as of `MemoryStateMachine`; fixed when the directory is made. None: what it has.
        durability: what an acknowledged chunk survives.
        checkpoint_bytes: see above.

    Raises ConfigError, or MachineImportError when `machine` is no machine.
    """

    def __init__(
        self,
        path: AnyPath,
        machine: type[Machine] = KeyValue,
        *,
        limits: Limits | None = None,
        bad_entry: Literal["fail", "reject"] | None = None,
        durability: Durability = "process",
        checkpoint_bytes: int = CHECKPOINT_BYTES,
    ) -> None:
        if type(checkpoint_bytes) is not int or checkpoint_bytes < 1:
            raise ConfigError(
                f"checkpoint_bytes={checkpoint_bytes!r} is no number of bytes, 1 or more",
                hint=f"leave it out: {CHECKPOINT_BYTES}",
                key="checkpoint_bytes",
                value=checkpoint_bytes,
            )
        home = home_of(path, "file", (NAME,))
        store = FileStore(home.path / NAME, checkpoint_bytes, synced=durability == "power")
        super().__init__(home, store, machine, limits, bad_entry, durability)


class FileStore(DictStore):
    """A dict, and a journal.

    Invariant: the file holds what the dict does, up to the journal's end, and nothing behind it unless `_torn`. From
    the moment they are set, `_appended` and `_next` count if they are in the file, or are the file: an interrupt may
    keep them from being taken over, which `settle` makes good.
    """

    def __init__(self, path: Path, checkpoint_bytes: int, *, synced: bool) -> None:
        """`synced`: with every commit."""
        super().__init__()
        self._path = path
        self._synced = synced
        self._checkpoint_bytes = self._due = checkpoint_bytes
        self._journal: Journal | None = None
        self._torn = False
        self._appended: tuple[int, Mapping[bytes, bytes | None], DirectoryConfig, Tail] | None = None
        self._next: tuple[Journal, State] | None = None
        self._anchors = Anchors([])

    # ---- life ----------------------------------------------------------------------------------------------------

    def open(self, *, create: bool) -> bool:
        self._beside.unlink(missing_ok=True)
        try:
            file = FileIO(open_file(self._path, os.O_RDWR), "r+")
        except FileNotFoundError:
            return False
        try:
            journal = Journal.found(self._path, file)
            state = self._read(journal)
            sync_directory(self._path.parent)
        except BaseException:
            file.close()
            raise
        self._take(journal, state)
        if journal.appended or not journal.same_boot:
            self.compact()
        return True

    def _read(self, journal: Journal) -> State:
        records, place = Records(), None
        for chunk in journal.chunks():
            records.write(chunk.writes)
            place = chunk.place or place
        assert place is not None
        tail, fixed = stands(place, str(self._path))
        return State(fixed, records, tail)

    def _take(self, journal: Journal, state: State) -> None:
        """`journal`, which is the file at the path, holds `state`, which is what counts."""
        before, self._journal = self._journal, journal
        self._state, self._torn, self._due = state, False, self._checkpoint_bytes
        self._anchors = Anchors([self._path])
        if before is not None and before is not journal:
            before.close()

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()
        self._journal = self._state = self._appended = self._next = None

    # ---- writing -------------------------------------------------------------------------------------------------

    def commit(self, writes: Mapping[bytes, bytes | None], fixed: DirectoryConfig, tail: Tail) -> None:
        journal = self._checkpoint()
        self._anchors.check()
        try:
            self._cut(journal)
            self._torn = True
            end = journal.write(Chunk(dict(writes), place_of(tail, fixed)))
            if self._synced:
                sync(journal.descriptor, self._path, content_only=True)
        except OSError as error:
            with suppress(OSError):
                self._cut(journal)
            raise disk_error(f"{self._path} cannot be written", error, path=str(self._path)) from error
        self._appended = (end, writes, fixed, tail)
        self.settle()
        if self._synced:
            journal.synced = end

    def _cut(self, journal: Journal) -> None:
        """Remove what a write that came to nothing has left. Raises OSError."""
        if self._torn:
            os.ftruncate(journal.descriptor, journal.end)
            self._torn = False

    def settle(self) -> None:
        if self._next is not None:
            self._settle_next()
        journal, state = self._journal, self._now
        assert journal is not None
        if self._appended is not None:
            end, writes, fixed, tail = self._appended
            journal.accept(end)
            state.fixed = fixed
            state.move(writes, tail)
            self._torn, self._appended = False, None
        elif self._torn:
            with suppress(OSError):
                self._cut(journal)

    def flush(self) -> None:
        journal = self._journal
        assert journal is not None
        try:
            sync(journal.descriptor, self._path, content_only=True)
        except OSError as error:
            raise disk_error(f"{self._path} cannot be synced", error, path=str(self._path)) from error
        journal.synced = journal.end

    # ---- another file --------------------------------------------------------------------------------------------

    def replace(self, records: Iterable[Record], fixed: DirectoryConfig, tail: Tail) -> None:
        state = State(fixed, Records(dict(records)), tail)
        self._move_in(self._written(state), state)

    def compact(self) -> None:
        self._move_in(self._written(self._now), self._now)

    def _checkpoint(self) -> Journal:
        """The journal to go on with: a new one, if that is due, and can be written."""
        journal, state = self._journal, self._now
        assert journal is not None
        if journal.appended > max(self._due, journal.base_end):
            try:
                made = self._written(state)
            except StoreError as error:
                log.warning("no checkpoint, which is put off: %s", error)
                self._due = journal.appended + self._checkpoint_bytes
                return journal
            self._move_in(made, state)
            return made
        return journal

    @property
    def _beside(self) -> Path:
        return self._path.with_name(self._path.name + BESIDE)

    def _written(self, state: State) -> Journal:
        """A journal beside the other one, whose base is `state`, and on the disk. Raises StoreError, and nothing has
        changed then."""
        self._anchors.check()
        try:
            self._beside.unlink(missing_ok=True)
            file = FileIO(create_file(self._beside), "r+")
            try:
                journal = Journal.begun(self._path, file)
                for piece in _pieces(state.records):
                    journal.accept(journal.write(Chunk(piece, None)))
                journal.accept(journal.write(Chunk({}, place_of(state.tail, state.fixed))))
                sync(journal.descriptor, self._beside)
            except BaseException:
                file.close()
                self._beside.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise disk_error(f"{self._beside} cannot be written", error, path=str(self._path)) from error
        journal.base_end = journal.synced = journal.end
        return journal

    def _move_in(self, journal: Journal, state: State) -> None:
        """Give the file its name: from here on `state` counts. Raises StoreError; SyncFailedError: only the next `open`
        tells whether it does."""
        self._next = (journal, state)
        try:
            self._beside.rename(self._path)
        except OSError as error:
            raise disk_error(f"{self._beside} cannot be renamed", error, path=str(self._path)) from error
        finally:
            self._settle_next()

    def _settle_next(self) -> None:
        assert self._next is not None
        journal, state = self._next
        try:
            if self._has_its_name(journal):
                sync_directory(self._path.parent)
                self._take(journal, state)
        except OSError as error:
            self._drop_next(journal)
            raise SyncFailedError(
                f"{self._path.parent} cannot be synced: {error}", hint=hint_for(error), path=str(self._path)
            ) from error
        self._drop_next(journal)

    def _drop_next(self, journal: Journal) -> None:
        self._next = None
        if self._journal is not journal:
            journal.close()

    def _has_its_name(self, journal: Journal) -> bool:
        try:
            return os.path.samestat(os.lstat(self._path), os.fstat(journal.descriptor))
        except FileNotFoundError:
            return False


def _pieces(records: Records) -> Iterator[dict[bytes, bytes | None]]:
    """All of them, about _PIECE_BYTES at a time."""
    piece, size = dict[bytes, bytes | None](), 0
    for key, value in records.under(b""):
        piece[key] = value
        size += len(key) + len(value)
        if size >= _PIECE_BYTES:
            yield piece
            piece, size = {}, 0
    yield piece
