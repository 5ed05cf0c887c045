"""The receiving end of a travelling snapshot: its parts, written one after the other."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from shardengine.engine.errors import PieceDamagedError, PieceGapError
from shardengine.engine.snapshot.manifest import PartInfo
from shardengine.engine.snapshot.pieces import Piece, check_end
from shardengine.ipc.files import sync
from shardengine.shards.digest import hasher128


class PartsWriter:
    """Writes the parts, one file after the other. `part` and `offset` say where the next byte goes.

    Invariant: a file that is full is on the disk and closed; at most one is open.
    """

    def __init__(self, folder: Path, parts: list[PartInfo]) -> None:
        self._folder = folder
        self._parts = parts
        self._file: BinaryIO | None = None
        self._hasher = hasher128()
        self._last = max((part for part, info in enumerate(parts) if info.bytes), default=-1)
        self.part, self.offset = -1, 0

    def begin(self) -> None:
        """Go to the first byte. Called once, before anything else."""
        self._go_on()

    @property
    def room(self) -> int:
        return self._parts[self.part].bytes - self.offset

    def check(self, piece: Piece) -> None:
        """Whether the piece goes on where the files end, and ends what it says. Changes nothing.

        Raises:
            PieceGapError: it begins elsewhere.
            PieceEndError: it says to be the last, and bytes are missing.
            PieceDamagedError: it has no data, or too much, or completes a part that is not what the manifest says.
        """
        number, size = piece.number, len(piece.data)
        if (piece.part, piece.offset) != (self.part, self.offset):
            raise PieceGapError(
                f"piece {number} begins at byte {piece.offset} of part {piece.part}; byte {self.offset} of part "
                f"{self.part} is next",
                hint="let the sender begin anew",
                number=number,
            )
        if piece.metadata or not 0 < size <= self.room:
            raise PieceDamagedError(
                f"piece {number} has {size} bytes of data and {len(piece.metadata)} of metadata; part {self.part} has "
                f"room for {self.room}",
                hint="send it again",
                number=number,
            )
        check_end(piece, whole=self.part == self._last and size == self.room)
        if size == self.room and not self._matches_with(piece.data):
            raise PieceDamagedError(
                f"{self._parts[self.part].file} does not match the checksum of its manifest",
                hint="the snapshot was damaged before it was sent; send another one",
                number=number,
            )

    def _matches_with(self, data: bytes) -> bool:
        """Whether the open part, ended by `data`, is what the manifest says."""
        hasher = self._hasher.copy()
        hasher.update(data)
        return hasher.hexdigest() == self._parts[self.part].checksum

    def write(self, data: bytes) -> None:
        assert self._file is not None and len(data) <= self.room
        self._file.write(data)
        self._hasher.update(data)
        self.offset += len(data)
        if self.room == 0:
            self._go_on()

    def _go_on(self) -> None:
        """Complete the open file; open the next one that will have bytes, making the empty ones on the way."""
        while True:
            self._complete()
            self.part, self.offset = self.part + 1, 0
            if self.part == len(self._parts):
                return
            self._file = (self._folder / self._parts[self.part].file).open("xb")
            self._hasher = hasher128()
            if self.room:
                return

    def _complete(self) -> None:
        if self._file is not None:
            self._file.flush()
            sync(self._file.fileno(), self._folder / self._parts[self.part].file)
            self.close()

    def close(self) -> None:
        """Close what is open. Does not fail: what is not flushed by now is given up."""
        file, self._file = self._file, None
        if file is not None:
            try:
                file.close()
            except OSError:
                pass
