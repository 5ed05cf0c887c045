"""A snapshot on its way to another host: numbered pieces here, the same directory there.

How pieces get across is the host's business; `encode_piece` makes bytes of them. One piece at a time is in memory on
either side.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import msgspec

from shardengine.engine.config import MIB
from shardengine.engine.errors import (
    PieceDamagedError,
    PieceDuplicateError,
    PieceEndError,
    PieceGapError,
    PieceSourceError,
    SnapshotDamagedError,
    TravelError,
)
from shardengine.engine.snapshot.folder import PARTIAL, Partial, snapshot_info, sweep
from shardengine.engine.snapshot.manifest import Manifest, read_manifest, write_manifest
from shardengine.engine.snapshot.parts import read_part, stretches
from shardengine.engine.snapshot.pieces import Piece, decode_piece, encode_piece, file_errors_named, manifest_of
from shardengine.engine.snapshot.receiving import PartsWriter
from shardengine.engine.storage.files import sync_directory

__all__ = [
    "PIECE_BYTES",
    "PIECE_BYTES_MAX",
    "Piece",
    "SnapshotAssembler",
    "decode_piece",
    "encode_piece",
    "stream_snapshot",
]

PIECE_BYTES = 1 * MIB
PIECE_BYTES_MAX = 64 * MIB

_PURPOSE = "travel"


def stream_snapshot(path: str | os.PathLike[str], piece_bytes: int = PIECE_BYTES) -> Iterator[Piece]:
    """The pieces of the snapshot at `path`, in order; no piece holds more than `piece_bytes` of data.

    Reads as it goes, and blocks for that; at most one file is open, and closed when the generator is. A part is
    checked against the manifest while it is read: of a damaged one the end is not given out.

    Raises:
        TravelError: `piece_bytes` is out of range.
        SnapshotError: this process lacks what it takes to read a file.
        SnapshotDamagedError: at once, or later when a part turns out to be missing, cut off or damaged.
        SnapshotFormatError: this version cannot read the snapshot.
    """
    if not 1 <= piece_bytes <= PIECE_BYTES_MAX:
        raise TravelError(
            f"piece_bytes = {piece_bytes}: expected 1 to {PIECE_BYTES_MAX}",
            hint=f"leave it out for {PIECE_BYTES}",
            piece_bytes=piece_bytes,
        )
    folder = Path(path)
    return _pieces(folder, read_manifest(folder), piece_bytes)


def _pieces(folder: Path, manifest: Manifest, piece_bytes: int) -> Iterator[Piece]:
    source = bytes.fromhex(manifest.checksum)
    left = sum(info.bytes for info in manifest.parts)
    yield Piece(source, 0, 0, 0, b"", msgspec.json.encode(manifest), left == 0).sealed()
    number = 1
    for part, info in enumerate(manifest.parts):
        for offset, data in stretches(folder / info.file, info, piece_bytes):
            left -= len(data)
            yield Piece(source, number, part, offset, data, b"", left == 0).sealed()
            number += 1


class SnapshotAssembler:
    """Makes a snapshot in `directory` out of the pieces of `stream_snapshot`, in order.

        with SnapshotAssembler(directory) as assembler:
            for piece in pieces:
                assembler.add(piece)
            path = assembler.finish()

    Everything grows in a new hidden directory, which leaving the `with` block, or `abandon`, removes; what dead
    processes left of theirs is removed when an assembler is made. A refused piece changes nothing: the right one may
    still follow. A file that cannot be written ends the assembly. Blocks for file work; not thread-safe.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._directory = Path(directory)
        self._next = 0
        self._complete = self._closed = False
        self._manifest: Manifest | None = None
        self._partial: Partial | None = None
        self._writer: PartsWriter | None = None
        with file_errors_named(f"sweeping {self._directory}"):
            sweep(self._directory, f"{PARTIAL}{_PURPOSE}-")

    @property
    def next_number(self) -> int:
        """The number of the piece that `add` takes next."""
        return self._next

    @property
    def complete(self) -> bool:
        """Whether the last piece was taken, so that `finish` can follow."""
        return self._complete

    def add(self, piece: Piece) -> None:
        """Take the next piece.

        Raises:
            PieceDamagedError: the piece, or the part that it completes, does not match its checksum or manifest.
            PieceSourceError: it belongs to another snapshot than the first one did.
            PieceDuplicateError, PieceGapError: it comes again, or pieces before it are missing.
            PieceEndError: it says to be the last and bytes are missing, or the last one came before it.
            SnapshotFormatError: this version cannot read the snapshot.
            TravelError: a file cannot be written, another snapshot has the name, or the assembly is over.
        """
        self._check_open()
        self._check_piece(piece)
        if self._writer is None:
            self._begin(piece)
        else:
            self._writer.check(piece)
            with self._file_work():
                self._writer.write(piece.data)
        self._next += 1
        self._complete = piece.last

    def finish(self) -> Path:
        """Give the snapshot its name. Returns its path, once all of it is on the disk.

        If the very same snapshot is there already, that one stays and its path is returned.

        Raises:
            PieceEndError: the last piece is missing; it may still be added.
            TravelError: a file cannot be written, another snapshot has the name, or the assembly is over.
        """
        self._check_open()
        if not self._complete:
            raise PieceEndError(
                f"the pieces end at number {self._next}, before the last one",
                hint="send the rest, or abandon the assembly",
                number=self._next,
            )
        assert self._partial is not None and self._manifest is not None
        path = self._directory / self._manifest.name
        if self._is_there(self._manifest):
            self._check_whole(path, self._manifest)
            with self._file_work():
                sync_directory(self._directory)  # who gave it its name may have died before
        else:
            with self._file_work():
                write_manifest(self._partial.path, self._manifest)
                self._partial.seal(self._manifest.name)
        self.abandon()
        return path

    def abandon(self) -> None:
        """Remove everything that was not finished. Nothing can be added afterwards."""
        self._closed = True
        if self._writer is not None:
            self._writer.close()
        if self._partial is not None:
            with file_errors_named(f"removing {self._partial.path}"):
                self._partial.remove()

    def __enter__(self) -> SnapshotAssembler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abandon()

    def _check_open(self) -> None:
        if self._closed:
            raise TravelError("the assembly is over: finished, abandoned or failed", hint="begin another one")

    def _check_piece(self, piece: Piece) -> None:
        """Whether it is whole, of this snapshot, and the next one."""
        if piece.checksum != piece.expected_checksum():
            raise PieceDamagedError(
                f"piece {piece.number} does not match its checksum", hint="send it again", number=piece.number
            )
        if self._manifest is not None and piece.source.hex() != self._manifest.checksum:
            raise PieceSourceError(
                f"piece {piece.number} is of snapshot {piece.source.hex()}, not {self._manifest.checksum}",
                hint="finish one snapshot before the next, or abandon it and begin anew",
                number=piece.number,
            )
        if piece.number != self._next or self._complete:
            raise self._out_of_order(piece.number)

    def _out_of_order(self, number: int) -> TravelError:
        if number < self._next:
            return PieceDuplicateError(
                f"piece {number} came before; {self._next} is next", hint="skip it", number=number, expected=self._next
            )
        if self._complete:
            return PieceEndError(f"piece {number} comes after the last, {self._next - 1}", hint="finish", number=number)
        return PieceGapError(
            f"piece {number} comes where {self._next} is next",
            hint=f"send from {self._next} on",
            number=number,
            expected=self._next,
        )

    def _begin(self, piece: Piece) -> None:
        manifest = manifest_of(piece)
        self._is_there(manifest)
        with self._file_work():
            self._partial = Partial(self._directory, _PURPOSE)
            self._writer = PartsWriter(self._partial.path, manifest.parts)
            self._writer.begin()
        self._manifest = manifest

    def _is_there(self, manifest: Manifest) -> bool:
        """Whether this very snapshot is in the directory. Raises TravelError when something else has its name."""
        path = self._directory / manifest.name
        if not os.path.lexists(path):
            return False
        info = snapshot_info(path)
        if info is None or info.checksum.hex() != manifest.checksum:
            raise TravelError(
                f"{path} is there, and is not snapshot {manifest.checksum}",
                hint="move it away, or assemble in another directory",
                path=str(path),
            )
        return True

    def _check_whole(self, path: Path, manifest: Manifest) -> None:
        """Raises TravelError when the snapshot that is there says to be the very one, and is damaged."""
        try:
            for part in manifest.parts:
                read_part(path / part.file, part)
        except SnapshotDamagedError as error:
            raise TravelError(
                f"{error.message}, and has the name of the snapshot that came",
                hint="move it away, and finish again",
                path=str(path),
            ) from error

    @contextmanager
    def _file_work(self) -> Iterator[None]:
        """What fails in here leaves files in an unknown state, and so ends the assembly."""
        try:
            with file_errors_named(f"assembling in {self._directory}"):
                yield
        except BaseException:
            self.abandon()
            raise
