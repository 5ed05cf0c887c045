"""The control page of a generation: what its engine shows at this moment, for other processes to see.

    control   128 bytes, mapped by the engine and by readers; words of 64 bits, in the machine's order
    +-----+------------------------------------------------------------------------------------------+
    |  0  | magic, and version of this layout                                                        |
    |  1  | sequence: rises with every write, odd while one is under way                             |
    | 2-5 | group, index, term, clock: what is published                                             |
    |  6  | state: 1 live, 2 stopped, 3 replaced by another generation                               |
    |  7  | run: another one for every start                                                         |
    |  8  | pid of the engine                                                                        |
    |  9  | boot on which that ran: checksum of the kernel's id, 0 where that is hidden              |
    | 10  | boot: when it was, seconds                                                               |
    | 11  | sum: of words 0 to 10, each times an odd number of its own, modulo 2^64                  |
    | 12  | heartbeat: CLOCK_MONOTONIC of the engine's last tick, ns; one store, so it is not summed |
    +-----+------------------------------------------------------------------------------------------+

The sum covers the sequence, so a mixture of two writes is found also where stores are seen in another order than they
were made in. Every word is one store (`memoryview.cast`; `struct.pack_into` writes byte by byte). A page that is
missing, torn for good (its engine died within a write) or of another boot is none: then the decision record and the
shards' own positions say where a generation stands. So it is never synced, and no part of snapshots.
"""

from __future__ import annotations

import mmap
import os
import time
from contextlib import suppress
from pathlib import Path

import msgspec

from shardengine.engine.storage.runmark import Boot, this_boot
from shardengine.ipc.errors import FULL
from shardengine.ipc.files import allocate, open_file, write_all
from shardengine.shards.digest import checksum
from shardengine.shards.types import Position

LIVE, STOPPED, REPLACED = 1, 2, 3
_MAGIC = 0x5348_4152_4443_5401  # "SHARDCT", version 1
_SEQUENCE, _STATE, _SUM, _BEAT, _WORDS = 1, 6, 11, 12, 13
_MASK = (1 << 64) - 1
_ODD = tuple(pow(0x9E37_79B9_7F4A_7C15, place + 1, _MASK + 1) for place in range(_SUM))
_OF_SEQUENCE, _OF_GROUP, _OF_INDEX, _OF_TERM, _OF_CLOCK = _ODD[1:6]
_BYTES = 128


class Page(msgspec.Struct, frozen=True):
    """What a whole page says. `beat`: when its engine last gave a sign of life, CLOCK_MONOTONIC. `same_boot`: False
    when the clock says that this was before the machine was started, or was set since."""

    sequence: int
    position: Position
    state: int
    run: int
    pid: int
    beat: int
    same_boot: bool


class ControlPage:
    """The engine's end. A publish costs less than a microsecond: it stores seven words and calls nobody."""

    def __init__(self, path: Path, *, through_map: bool) -> None:
        """Make the page if it is missing; what it says does not change before `begin`. `through_map`: as for a ring;
        without, and where the disk has no room for it, it is written by calls. Raises OSError, FileRefusedError."""
        self._descriptor = open_file(path, os.O_RDWR | os.O_CREAT)
        self._map: mmap.mmap | None = None
        try:
            if through_map and _has_disk(self._descriptor):
                self._map = mmap.mmap(self._descriptor, _BYTES)
            held = self._map or bytearray(os.pread(self._descriptor, _BYTES, 0).ljust(_BYTES, b"\0"))
        except OSError:
            os.close(self._descriptor)
            raise
        self._words = memoryview(held).cast("Q")
        words = self._words[:_WORDS].tolist()
        self._sequence = words[_SEQUENCE] if _is_whole(words) else 0
        self._rest = 0
        self._state = 0

    def begin(self, position: Position) -> None:
        """A run begins to show what it stands at."""
        boot = this_boot()
        words = self._words
        words[_SEQUENCE] = self._sequence + 1
        words[0], words[_STATE] = _MAGIC, LIVE
        self._state = LIVE
        words[7], words[8] = int.from_bytes(os.urandom(8)), os.getpid()
        words[9], words[10] = _word_of(boot.id), boot.time
        self._beat()
        self._write(position)

    def publish(self, position: Position) -> None:
        """`position` is what readers may see from now on."""
        words, sequence = self._words, self._sequence
        words[_SEQUENCE] = sequence + 1
        words[2] = group = position.group
        words[3] = index = position.index
        words[4] = term = position.term
        words[5] = clock = position.clock
        self._sequence = sequence = sequence + 2
        words[_SUM] = (
            self._rest
            + sequence * _OF_SEQUENCE
            + group * _OF_GROUP
            + index * _OF_INDEX
            + term * _OF_TERM
            + clock * _OF_CLOCK
        ) & _MASK
        words[_SEQUENCE] = sequence
        if self._map is None:
            self._store()

    def beat(self) -> None:
        """The engine lives. Before `begin` nothing happens: the page is that of the run before."""
        if self._state == LIVE:
            self._beat()
            if self._map is None:
                self._store()

    def end(self, state: int) -> None:
        """The run is over: STOPPED or REPLACED. Closes the page. Nothing happens to one that is closed."""
        if self._state == LIVE:
            words = self._words
            words[_SEQUENCE] = self._sequence + 1
            words[_STATE] = self._state = state
            self._beat()
            self._write(Position(*words[2:6].tolist()))
        self.close()

    def close(self) -> None:
        """Say nothing. Closing twice does nothing."""
        if self._descriptor >= 0:
            self._state = 0
            self._words.release()
            if self._map is not None:
                self._map.close()
            os.close(self._descriptor)
            self._descriptor = -1

    def _beat(self) -> None:
        self._words[_BEAT] = time.monotonic_ns()

    def _write(self, position: Position) -> None:
        """With whatever the words beside the position are by now."""
        words = self._words
        self._rest = sum(words[place] * _ODD[place] for place in (0, *range(_STATE, _SUM))) & _MASK
        self.publish(position)

    def _store(self) -> None:
        """Where a store might be a SIGBUS. A full disk leaves the page as it was, or torn; the next tick writes it."""
        with suppress(OSError):
            write_all(self._descriptor, self._words.cast("B"), 0)


class ControlView:
    """A reader's end of the page at `path`. One that is missing counts as empty."""

    def __init__(self, path: Path) -> None:
        """Raises OSError, FileRefusedError."""
        self._map, self._found = _mapped(path)
        self.words = memoryview(self._map or bytes(_BYTES)).cast("Q")
        boot = this_boot()
        self._boot = Boot(str(_word_of(boot.id) or ""), boot.time)
        self._path = path

    @property
    def sequence(self) -> int:
        """Of the last write; another one tells that there was another."""
        return self.words[_SEQUENCE]

    def read(self) -> Page | None:
        """What it says; None while it is written, or when it is none, or of another boot by the kernel's word."""
        words = self.words[:_WORDS].tolist()
        if not _is_whole(words) or words[_SEQUENCE] != self.sequence:
            return None
        there, here = Boot(str(words[9] or ""), words[10]), self._boot
        if there.id and here.id and there.id != here.id:
            return None
        return Page(words[1], Position(*words[2:6]), words[6], words[7], words[8], words[12], there.is_same(here))

    def in_place(self) -> bool:
        """Whether the path still names this page, or still none."""
        try:
            found = os.lstat(self._path)
        except OSError:
            return self._found is None
        return self._found is not None and os.path.samestat(found, self._found)

    def close(self) -> None:
        """Closing twice does nothing."""
        self.words.release()
        if self._map is not None:
            self._map.close()


def _has_disk(descriptor: int) -> bool:
    """Give the page its disk; False: it is full."""
    try:
        allocate(descriptor, 0, _BYTES)
    except OSError as error:
        if error.errno not in FULL:
            raise
        return False
    return True


def _mapped(path: Path) -> tuple[mmap.mmap | None, os.stat_result | None]:
    """The file at `path`, and which it is; a map of it unless it is too short to be a page."""
    try:
        descriptor = open_file(path)
    except FileNotFoundError:
        return None, None
    try:
        found = os.fstat(descriptor)
        whole = found.st_size >= _BYTES
        return mmap.mmap(descriptor, _BYTES, prot=mmap.PROT_READ) if whole else None, found
    finally:
        os.close(descriptor)


def _is_whole(words: list[int]) -> bool:
    sum_ = sum(word * odd for word, odd in zip(words, _ODD, strict=False)) & _MASK
    return words[0] == _MAGIC and words[_SEQUENCE] % 2 == 0 and words[_SUM] == sum_


def _word_of(boot: str) -> int:
    return checksum(boot.encode()) if boot else 0
