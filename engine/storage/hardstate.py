"""The hard state of a node of the log: its term, and whom it voted for. One that is lost could vote twice.

    hardstate
    +----------------------+
    | slot 0       4 KiB   |    each is one of engine/slots.py, whose payload is a msgpack HardState; no disk writes a
    +----------------------+    block of one with a block of the other
    | slot 1       4 KiB   |
    +----------------------+

It lies beside the generations, and is none's: whatever becomes of the state, it stays. The file comes into being whole,
with its first content, so that a file without any is damage.
"""

from __future__ import annotations

import os
import reprlib
from contextlib import suppress
from pathlib import Path

import msgspec

from shardengine.engine.contract import HardState
from shardengine.engine.errors import DamagedError, HardStateError, disk_error
from shardengine.engine.slots import Slots, slot_of
from shardengine.engine.storage.anchors import Anchors
from shardengine.engine.storage.files import replace_file, sync_directory
from shardengine.ipc.files import open_file, sync
from shardengine.shards.types import U64_MAX

NAME = "hardstate"
SLOT_BYTES = 4096
VOTED_FOR_BYTES_MAX = 1024
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(HardState).decode


class HardStateFile:
    """The file of one data directory, as of its last `start`.

    Invariant: the disk has `state`, or there is no file: one that somebody removed is as if there never was any. What a
    save that failed has left on it is newer, and nobody was told that it counts: the next save writes over that, not
    over `state`.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / NAME
        self._slots: Slots[HardState] | None = None
        self._anchors = Anchors([])

    @property
    def state(self) -> HardState | None:
        return None if self._slots is None else self._slots.newest

    def start(self) -> None:
        """Read it, in a directory that is locked, and whose names are on the disk.

        A run that died may have written what the disk never got, and a sync that failed is not told again: so what is
        found is written and synced once more before it counts. Raises DamagedError, FileRefusedError, OSError.
        """
        self._slots = None
        try:
            descriptor = open_file(self._path, os.O_RDWR)
        except FileNotFoundError:
            return
        try:
            slots, state = self._read(descriptor)
            slots.write_again(descriptor, _encode(state))
            sync(descriptor, self._path, content_only=True)
        finally:
            os.close(descriptor)
        self._slots, self._anchors = slots, Anchors([self._path])

    def judge(self) -> None:
        """Read it, if it is there, and change nothing. Raises DamagedError, FileRefusedError, OSError."""
        with suppress(FileNotFoundError):
            descriptor = open_file(self._path)
            try:
                self._read(descriptor)
            finally:
                os.close(descriptor)

    def _read(self, descriptor: int) -> tuple[Slots[HardState], HardState]:
        slots = Slots(descriptor, SLOT_BYTES, _decode)
        if slots.newest is None:
            raise self._damaged()
        return slots, slots.newest

    def _damaged(self) -> DamagedError:
        return DamagedError(
            f"{self._path}: neither slot holds a readable term and vote; this node may have voted in a term that it "
            "does not remember",
            hint="put a copy of that very file in its place; without one, have the node join the others anew, under "
            "another name, and only then remove the file",
            path=str(self._path),
        )

    def save(self, state: HardState | None) -> None:
        """See `Engine.save_hard_state`."""
        if state is not None:
            check_follows(state, self.state)
        elif self.state is None:
            return
        kept = self.state if state is None else state
        assert kept is not None
        try:
            self._create(kept) if self._slots is None else self._write(self._slots, kept)
        except OSError as error:
            raise disk_error("the hard state cannot be written", error, path=str(self._path)) from error

    def _create(self, state: HardState) -> None:
        replace_file(self._path, slot_of(1, _encode(state)).ljust(2 * SLOT_BYTES, b"\0"))
        sync_directory(self._path.parent)
        descriptor = open_file(self._path)
        try:
            slots, _ = self._read(descriptor)
        finally:
            os.close(descriptor)
        self._slots, self._anchors = slots, Anchors([self._path])

    def _write(self, slots: Slots[HardState], state: HardState) -> None:
        self._anchors.check()
        descriptor = open_file(self._path, os.O_RDWR)
        try:
            slots.write(descriptor, _encode(state))
            sync(descriptor, self._path, content_only=True)
        finally:
            os.close(descriptor)
        slots.turn(state)


def check_follows(state: HardState, before: HardState | None) -> None:
    """Raise HardStateError when `state` is none, or may not follow `before`, which is remembered."""
    _check_form(state)
    if before is None:
        return
    if state.term < before.term:
        raise HardStateError(
            f"term {state.term} is below term {before.term}, which was saved before",
            hint="terms never fall: the caller has lost its own, which hard_state() tells",
            term=state.term,
            before=before.term,
        )
    if state.term == before.term and before.voted_for not in (None, state.voted_for):
        raise HardStateError(
            f"the vote of term {state.term} went to {before.voted_for!r}, and cannot become {state.voted_for!r}",
            hint="a node votes once in a term, and never takes it back: ask hard_state() before voting",
            term=state.term,
            voted_for=state.voted_for,
            before=before.voted_for,
        )


def _check_form(state: HardState) -> None:
    """Raises HardStateError when it is none."""
    if type(state) is not HardState or type(state.term) is not int or not 0 <= state.term <= U64_MAX:
        raise HardStateError(
            f"{reprlib.repr(state)} is no HardState with a plain int of at most {U64_MAX} as its term",
            hint="pass HardState(term, voted_for), or None to save once more what is remembered",
            got=state,
            limit=U64_MAX,
        )
    name = state.voted_for
    if name is not None and (type(name) is not str or _size(name) > VOTED_FOR_BYTES_MAX):
        raise HardStateError(
            f"voted_for is {reprlib.repr(name)}, no str of at most {VOTED_FOR_BYTES_MAX} bytes as UTF-8",
            hint="name the node that got the vote, or None; encode what is no text, in hexadecimal for example",
            got=name,
            limit=VOTED_FOR_BYTES_MAX,
        )


def _size(name: str) -> int:
    """In bytes as UTF-8; more than is allowed where it has none."""
    try:
        return len(name.encode())
    except UnicodeEncodeError:
        return VOTED_FOR_BYTES_MAX + 1
